"""What is checked of a snapshot, and how a header that differs is told."""

import json
import struct
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from conlora.core.encoding import Encoding, Format
from conlora.core.schema import Role, Schema, TensorSpec, Vector
from conlora.core.validation import MAX_RMS, Validator, header_differs, start_digest
from conlora.errors import SnapshotRejected

A, B = "q.lora_A.weight", "q.lora_B.weight"
SCHEMA = Schema((TensorSpec(A, "q", Role.A, (2, 3)), TensorSpec(B, "q", Role.B, (4, 2))))
FP32 = Format(SCHEMA, Encoding.FP32)
VECTOR = np.arange(SCHEMA.size, dtype=np.float32)
LARGE = Schema((TensorSpec(A, "q", Role.A, (700, 1000)), TensorSpec(B, "q", Role.B, (1000, 600))))


def receive(format: Format, vector: Vector, flip: int | None = None) -> Vector:
    """Sends, spoils a bit of the body perhaps, and checks as a receiver does."""
    digest, validator = start_digest(format), Validator(format)
    out = np.empty(format.schema.size, np.float32)
    position = 0
    for piece in format.pieces:
        data = bytearray(format.encode(piece, vector))
        digest.update(data)
        if flip is not None and position <= flip // 8 < position + len(data):
            data[flip // 8 - position] ^= 1 << flip % 8
        position += len(data)
        format.decode(piece, data, out)
        validator.add(piece, data, out)
    validator.finish(out, digest.digest())
    return out


@pytest.mark.parametrize("encoding", Encoding)
def test_an_honest_snapshot_passes(encoding: Encoding) -> None:
    format = Format(LARGE, encoding)
    vector = np.random.default_rng(0).normal(size=LARGE.size).astype(np.float32)
    assert len(format.pieces) > 1
    np.testing.assert_allclose(receive(format, vector), vector, atol=0.05)
    receive(format, np.zeros_like(vector))


def test_the_digest_is_that_of_the_payload() -> None:
    digest = start_digest(FP32)
    payload = FP32.header + b"".join(FP32.encode(piece, VECTOR) for piece in FP32.pieces)
    digest.update(payload[len(FP32.header) :])
    assert digest.digest() == xxhash.xxh3_128_digest(payload)


@settings(deadline=None)
@given(st.sampled_from(list(Encoding)), st.data())
def test_a_flipped_bit_is_rejected(encoding: Encoding, data: st.DataObject) -> None:
    format = Format(SCHEMA, encoding)
    flip = data.draw(st.integers(0, 8 * (format.nbytes - len(format.header)) - 1))
    with pytest.raises(SnapshotRejected, match=r"^digest: the payload does not have the announced digest$"):
        receive(format, VECTOR, flip)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("encoding", Encoding)
@pytest.mark.parametrize(("where", "name"), [(0, A), (699_999, A), (700_000, B), (-1, B)])
def test_what_is_not_finite_is_named(encoding: Encoding, where: int, name: str, bad: float) -> None:
    vector = np.ones(LARGE.size, np.float32)
    vector[where] = bad
    # a block of int8 may lie in two tensors, and is not finite as a whole
    first = A if encoding is Encoding.INT8 and where == 700_000 else name
    with pytest.raises(SnapshotRejected, match=f"^not-finite: tensor '{first}' holds NaN or infinity$"):
        receive(Format(LARGE, encoding), vector)


@pytest.mark.parametrize("encoding", Encoding)
@pytest.mark.parametrize("element", [1.01 * MAX_RMS, 1e15, 1e25, 3e38])
def test_an_absurd_norm(encoding: Encoding, element: float) -> None:
    with pytest.raises(SnapshotRejected, match="norm: "):
        receive(Format(LARGE, encoding), np.full(LARGE.size, element, np.float32))
    receive(Format(LARGE, encoding), np.full(LARGE.size, 0.99 * MAX_RMS, np.float32))


def header(tensors: Any) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text


def changed(name: str = A, **fields: Any) -> bytes:
    tensors = json.loads(FP32.header[8:])
    tensors[name] |= fields
    return header(tensors)


def header_of(payload: bytes) -> bytes:
    return payload[: 8 + int.from_bytes(payload[:8], "little")]


VIEWS = SCHEMA.views(VECTOR)
DEEP = b"[" * 100_000
HEADERS = {
    "garbage": (b"\xff" * 40, "format: not a safetensors header (its length"),
    "nothing": (b"", "format: not a safetensors header (its length"),
    "half": (FP32.header[:20], "format: not a safetensors header (its length"),
    "no UTF-8": (struct.pack("<Q", 2) + b"\xff\xff", "format: not a safetensors header ("),
    "no JSON": (struct.pack("<Q", 2) + b"{]", "format: not a safetensors header ("),
    "a list": (header([A, B]), "format: not a safetensors header (not an object of objects)"),
    "tensors that are numbers": (header({A: 1, B: 2}), "format: not a safetensors header (not an object of objects)"),
    "a number without end": (struct.pack("<Q", 4402) + b"[" + b"9" * 4400 + b"]", "format: "),
    "deep": (struct.pack("<Q", 4000) + DEEP[:4000], "format: "),
    "too much": (
        header({"x" * 5000: {}}),
        f"format: a header of 5016 bytes, where {2 * len(FP32.header) + 4096} are the most that we read",
    ),
    "spaces": (header(json.loads(FP32.header[8:])), "format: the header lists our tensors in another order"),
    "another place": (changed(data_offsets=[0, 25]), f"format: data_offsets of tensor '{A}' is [0, 25], not [0, 24]"),
    "no place": (header({A: {"dtype": "F32", "shape": [2, 3]}, B: {}}), f"dtype: dtype of tensor '{B}' is None"),
    "a missing tensor": (header_of(safetensors.numpy.save({A: VIEWS[A]})), f"keys: tensor '{B}' is missing"),
    "an extra tensor": (header_of(safetensors.numpy.save({**VIEWS, "z": VECTOR})), "keys: tensor 'z' is not expected"),
    "an extra name": (header({"\x1b[31m" + "x" * 1000: {}, A: {}, B: {}}), "keys: tensor '\\x1b[31mxxx"),
    "doubles": (changed(dtype="F64"), f"dtype: dtype of tensor '{A}' is 'F64', not 'F32'"),
    "a data type that is none": (changed(dtype="Z\n" * 500), f"dtype: dtype of tensor '{A}' is 'Z\\nZ"),
    "a data type that is no word": (changed(dtype=[["Z"] * 500]), f"dtype: dtype of tensor '{A}' is [['Z'"),
    "a transposed tensor": (changed(shape=[3, 2]), f"shape: shape of tensor '{A}' is [3, 2], not [2, 3]"),
    "another encoding": (Format(SCHEMA, Encoding.INT8).header, "keys: tensor "),
    "half precision": (Format(SCHEMA, Encoding.BF16).header, "dtype: "),
}  # fmt: skip


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_differs(case: str) -> None:
    received, sentence = HEADERS[case]
    with pytest.raises(SnapshotRejected) as caught:
        header_differs(FP32, received)
    assert str(caught.value).startswith(sentence)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600  # it goes to the log: a peer does not choose its length


def test_our_own_header_does_not_differ() -> None:
    header_differs(FP32, FP32.header)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_do_anything_but_be_rejected(received: bytes) -> None:
    with pytest.raises(SnapshotRejected, match=r"^format: "):
        header_differs(FP32, received)


@settings(deadline=None)
@given(st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_no_json_does_anything_but_be_rejected(value: Any) -> None:
    for tensors in (value, {A: value, B: value}, {A: {"dtype": value}, B: {"shape": value}}):
        with pytest.raises(SnapshotRejected) as caught:
            header_differs(FP32, header(tensors))
        assert str(caught.value).isprintable()


@settings(deadline=None)
@given(st.integers(0, len(FP32.header) - 1), st.integers(1, 255))
def test_a_changed_byte_of_the_header_is_rejected(where: int, mask: int) -> None:
    received = bytearray(FP32.header)
    received[where] ^= mask
    with pytest.raises(SnapshotRejected):
        header_differs(FP32, bytes(received))
