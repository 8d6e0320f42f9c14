"""Encodings against dumb oracles: safetensors' own reader, rounding in float64, and a loop over blocks."""

import json
import warnings

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from conlora.core.encoding import BLOCK, CHUNK_BYTES, STEP, Encoding, Format, Piece
from conlora.core.schema import Role, Schema, TensorSpec, Vector

encodings = st.sampled_from(list(Encoding))
sizes = st.integers(1, 700) | st.sampled_from([BLOCK, STEP - 1, STEP, STEP + 1, STEP + BLOCK + 3])
unhurried = settings(deadline=None)
any_float = st.integers(0, 2**32 - 1)


def schema_of(*sizes: int) -> Schema:
    return Schema(tuple(TensorSpec(f"t{i}.lora_B.weight", f"t{i}", Role.B, (size,)) for i, size in enumerate(sizes)))


def normal(size: int, seed: int = 0, scale: float = 1) -> Vector:
    return (scale * np.random.default_rng(seed).normal(size=size)).astype(np.float32)


def any_bits(size: int, seed: int) -> Vector:
    """Every kind of float: subnormal, huge, infinite and not a number too."""
    return np.random.default_rng(seed).integers(0, 2**32, size, np.uint32).view(np.float32)


def encoded(format: Format, vector: Vector, sent: Vector | None = None, delta: bool = False) -> list[bytes]:
    return [format.encode(piece, vector, sent, delta) for piece in format.pieces]


def decoded(format: Format, parts: list[bytes], base: Vector | None = None) -> Vector:
    out = np.full(format.schema.size, np.nan, np.float32)
    for piece, part in zip(format.pieces, parts, strict=True):
        format.decode(piece, part, out, base)
    return out


def bits(vector: Vector) -> bytes:
    return vector.tobytes()


def nearest_bf16(value: float) -> float:
    """Of the 2^16 bf16 numbers the nearest, of two the one with an even last bit; by search, in float64."""
    pattern = int(np.float32(value).view(np.uint32)) >> 16
    near = [(low << 16, low) for low in (pattern, pattern + 1)]
    values = [(float(np.uint32(p).view(np.float32)), low) for p, low in near]
    if not np.isfinite(values[1][0]):
        values[1] = (np.copysign(2.0**128, value), values[1][1])
    return min(values, key=lambda v: (abs(v[0] - value), v[1] & 1))[0]


def int8_oracle(vector: Vector) -> Vector:
    """Block by block, value by value, in float64 from the fp32 scale on."""
    out = []
    for start in range(0, len(vector), BLOCK):
        block = vector[start : start + BLOCK]
        scale = np.float32(max(abs(float(v)) for v in block)) / np.float32(127)
        out += [float(scale) * (round(float(v) / float(scale)) if scale else 0) for v in block]
    return np.array(out, np.float32)


@unhurried
@given(encodings, st.lists(st.integers(1, 5000), min_size=1, max_size=4), st.integers(0, 9))
def test_the_payload_is_a_safetensors_file(encoding: Encoding, shapes: list[int], seed: int) -> None:
    schema = schema_of(*shapes)
    format = Format(schema, encoding)
    vector = normal(schema.size, seed)
    payload = format.header + b"".join(encoded(format, vector))
    assert len(payload) == format.nbytes
    assert len(format.header) % 8 == 0
    tensors = safetensors.torch.load(payload)
    if encoding is Encoding.INT8:
        scales, values = tensors["scales.0"].numpy(), tensors["values.0"].numpy()
        assert (scales.dtype, values.dtype) == (np.float32, np.int8)
        got = decoded(format, encoded(format, vector))
        np.testing.assert_array_equal(np.repeat(scales, BLOCK)[: schema.size] * values, got)
    else:
        assert list(json.loads(format.header[8:])) == [spec.name for spec in schema.tensors]
        assert tensors.keys() == schema.views(vector).keys()
        for name, view in schema.views(vector).items():
            assert torch.equal(tensors[name], torch.from_numpy(view.copy()).to(tensors[name].dtype))
        assert {t.dtype for t in tensors.values()} == {
            {Encoding.FP32: torch.float32, Encoding.BF16: torch.bfloat16}[encoding]
        }


@pytest.mark.parametrize("encoding", Encoding)
def test_a_vector_of_several_pieces(encoding: Encoding) -> None:
    schema = schema_of(1_000_000, 5, 1_200_001)
    format = Format(schema, encoding)
    assert len(format.pieces) > 1
    assert all(p.nbytes <= CHUNK_BYTES for p in format.pieces)
    assert [p.start for p in format.pieces[1:]] == [p.stop for p in format.pieces[:-1]]
    assert (format.pieces[0].start, format.pieces[-1].stop) == (0, schema.size)
    vector = normal(schema.size)
    parts = encoded(format, vector)
    assert [len(part) for part in parts] == [p.nbytes for p in format.pieces]
    one = Format(schema_of(schema.size), encoding)
    assert b"".join(parts) == b"".join(encoded(one, vector)), "the body does not depend on the tensors"
    assert len(safetensors.deserialize(format.header + b"".join(parts))) == len(json.loads(format.header[8:]))
    errors = {Encoding.FP32: (0, 0), Encoding.BF16: (1.6e-3, 1.8e-3), Encoding.INT8: (6.5e-3, 7.5e-3)}
    low, high = errors[encoding]
    assert low <= relative(decoded(format, parts), vector) <= high


def relative(got: Vector, wanted: Vector) -> float:
    """Root mean square of the error over that of what was wanted."""
    return float(np.linalg.norm((got - wanted).astype(np.float64)) / np.linalg.norm(wanted.astype(np.float64)))


@unhurried
@given(st.lists(any_float, min_size=1, max_size=40))
@example([0x7F800001, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF])  # NaN whose rounding would carry into another number
@example([0x7F7FFFFF, 0x7F800000, 0x80000000, 0, 1, 0x7F7F8000, 0x3F808000, 0x3F818000])  # to infinity; zeros; ties
def test_bf16_is_rounded_to_nearest_even(patterns: list[int]) -> None:
    vector = np.array(patterns, np.uint32).view(np.float32)
    format = Format(schema_of(len(vector)), Encoding.BF16)
    for got, value in zip(decoded(format, encoded(format, vector)).tolist(), vector.tolist(), strict=True):
        if np.isfinite(value):
            wanted = nearest_bf16(value)
            assert got == (np.copysign(np.inf, value) if abs(wanted) == 2.0**128 else wanted)
            assert np.signbit(got) == np.signbit(value)
        else:
            assert got == value or (np.isnan(got) and np.isnan(value))


@unhurried
@given(sizes, st.integers(0, 99), st.floats(1e-30, 1e30))
def test_int8_is_the_nearest_multiple_of_its_blocks_scale(size: int, seed: int, scale: float) -> None:
    vector = normal(size, seed, scale)
    vector[: size // 3] = 0
    format = Format(schema_of(size), Encoding.INT8)
    got, wanted = decoded(format, encoded(format, vector)), int8_oracle(vector)
    steps = np.ones(size, np.float32)
    for start in range(0, size, BLOCK):
        steps[start : start + BLOCK] = np.abs(vector[start : start + BLOCK]).max() / np.float32(127) or 1
    assert (np.abs(got - vector) <= 0.5001 * steps).all()
    clear = np.abs(np.abs(vector / steps) % 1 - 0.5) > 1e-3  # where it is a tie, a rounding of the inverse decides
    np.testing.assert_array_equal(got[clear], wanted[clear])


@unhurried
@given(encodings, sizes, st.integers(0, 99))
def test_a_piece_is_decoded_into_its_place_alone(encoding: Encoding, size: int, seed: int) -> None:
    schema = schema_of(size)
    format = Format(schema, encoding)
    vector = any_bits(size, seed)
    parts = encoded(format, vector)
    out = decoded(format, parts)
    if encoding is Encoding.FP32:
        assert bits(out) == bits(vector)
    assert not np.isfinite(out[~np.isfinite(vector)]).any(), "what was not finite is found out by the receiver"
    (piece,) = format.pieces
    within = Piece(3, 3 + size, piece.nbytes)
    wide = np.full(size + 9, 7, np.float32)
    format.decode(within, memoryview(b"x" + parts[0])[1:], wide)
    assert bits(wide[3 : size + 3]) == bits(out)
    assert (wide[:3] == 7).all()
    assert (wide[size + 3 :] == 7).all()


@pytest.mark.parametrize("tiny", [1e-36, 1e-37, 1e-40, 1e-45])
def test_a_block_too_small_for_a_scale_is_zero(tiny: float) -> None:
    format = Format(schema_of(300), Encoding.INT8)
    assert encoded(format, np.full(300, tiny, np.float32)) == [bytes(308)]
    small = np.full(300, 3e-36, np.float32)
    np.testing.assert_allclose(decoded(format, encoded(format, small)), small, rtol=1e-6)


@unhurried
@given(encodings, st.data(), st.integers(1, 600), st.booleans())
def test_hostile_bytes_are_decoded_without_a_word(
    encoding: Encoding, data: st.DataObject, size: int, delta: bool
) -> None:
    format = Format(schema_of(size), encoding)
    (piece,) = format.pieces
    seed = data.draw(st.integers(0, 9999))
    part = np.random.default_rng(seed).integers(0, 256, piece.nbytes, np.uint8).tobytes()
    head = data.draw(st.sampled_from([b"", b"\0\0\x80\x7f", b"\1\0\x80\x7f", b"\xff\xff\x7f\x7f", b"\0\0\xc0\xff"]))
    part = head[: piece.nbytes] + part[len(head) :]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded(format, [part], any_bits(size, seed) if delta else None)
        format.encode(piece, any_bits(size, seed), any_bits(size, seed + 1), delta)


@unhurried
@given(encodings, sizes, st.integers(0, 99), st.booleans())
def test_the_sender_knows_bit_for_bit_what_the_receiver_has(
    encoding: Encoding, size: int, seed: int, absolute_first: bool
) -> None:
    format = Format(schema_of(size), encoding)
    sent, received = np.zeros(size, np.float32), np.zeros(size, np.float32)
    for round_ in range(4):
        vector = normal(size, seed + round_)
        delta = round_ > 0 or not absolute_first
        before = vector.copy()
        parts = encoded(format, vector, sent, delta)
        received = decoded(format, parts, received if delta else None)
        assert bits(sent) == bits(received)
        assert bits(vector) == bits(before)


@pytest.mark.parametrize(("encoding", "lost"), [(Encoding.INT8, 7e-3), (Encoding.BF16, 1.7e-3)])
def test_what_rounding_loses_arrives_with_the_next_differences(encoding: Encoding, lost: float) -> None:
    """A vector that settles: absolute values are as wrong at the end as at the start, differences become exact."""
    format = Format(schema_of(10_000), encoding)
    limit, way = normal(10_000, 1), normal(10_000, 2)
    sent, with_deltas = np.zeros_like(limit), np.zeros_like(limit)
    errors = []
    for round_ in range(40):
        vector = limit + np.float32(0.5**round_) * way
        with_deltas = decoded(format, encoded(format, vector, sent, delta=True), with_deltas)
        errors.append((relative(decoded(format, encoded(format, vector)), vector), relative(with_deltas, vector)))
    assert errors[0][0] == pytest.approx(lost, rel=0.1)
    assert errors[-1][0] == pytest.approx(lost, rel=0.1)
    assert errors[0][1] == pytest.approx(lost, rel=0.1)
    assert errors[10][1] < lost / 300
    assert errors[-1][1] < 1e-7


@pytest.mark.parametrize("encoding", Encoding)
def test_nothing_to_send(encoding: Encoding) -> None:
    format = Format(Schema(()), encoding)
    assert (format.pieces, json.loads(format.header[8:])) == ((), {})


def test_a_delta_against_nothing() -> None:
    format = Format(schema_of(3), Encoding.INT8)
    with pytest.raises(ValueError, match="a delta needs what the receiver has"):
        format.encode(format.pieces[0], normal(3), delta=True)
