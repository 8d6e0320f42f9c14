"""Adapter vectors to safetensors bytes and back; nothing a peer sends is believed before it is checked here."""

import hashlib
from collections.abc import Iterator

import numpy as np
import safetensors
import safetensors.numpy

from conlora.core.schema import Schema, Vector
from conlora.errors import SnapshotRejected

CHUNK_BYTES = 1 << 20
HEADER_BYTES_PER_TENSOR = 512  # room for a name, a shape and two offsets in the JSON header


def encode(schema: Schema, vector: Vector) -> bytes:
    """The vector (shape `(schema.size,)`, fp32) as a safetensors payload."""
    return safetensors.numpy.save(schema.views(vector))


def max_encoded_bytes(schema: Schema) -> int:
    """Upper bound of an honest payload; a peer that announces more is refused before memory is taken."""
    names = sum(len(spec.name.encode()) for spec in schema.tensors)
    return schema.nbytes + 4096 + names + HEADER_BYTES_PER_TENSOR * len(schema.tensors)


def decode(schema: Schema, payload: bytes | bytearray, sha256: bytes) -> Vector:
    """The vector in a peer's payload, shape `(schema.size,)`, fp32.

    Raises SnapshotRejected with reason `digest`, `format`, `keys`, `dtype`, `shape` or `not-finite`.
    """
    if hashlib.sha256(payload).digest() != sha256:
        raise SnapshotRejected("digest", "the payload does not have the announced SHA-256")
    try:
        tensors = safetensors.numpy.load(bytes(payload))
    except (safetensors.SafetensorError, ValueError, KeyError, AttributeError) as error:
        # The parser quotes the peer's bytes: no more of them, and none unprintable, may reach a log.
        raise SnapshotRejected("format", f"not a safetensors payload ({str(error)[:200]!r})") from error
    expected = {spec.name: spec for spec in schema.tensors}
    if tensors.keys() != expected.keys():
        odd = sorted(tensors.keys() ^ expected.keys())[0]
        raise SnapshotRejected("keys", f"tensor {odd[:200]!r} is {'missing' if odd in expected else 'not expected'}")
    for name, array in tensors.items():
        if array.dtype != np.float32:
            raise SnapshotRejected("dtype", f"tensor {name!r} is {array.dtype}, not float32")
        if array.shape != expected[name].shape:
            raise SnapshotRejected("shape", f"tensor {name!r} is {array.shape}, not {expected[name].shape}")
    vector = schema.flatten(tensors)
    if not np.isfinite(vector).all():
        bad = next(name for name, array in tensors.items() if not np.isfinite(array).all())
        raise SnapshotRejected("not-finite", f"tensor {bad!r} holds NaN or infinity")
    return vector


def chunks(payload: bytes) -> Iterator[bytes]:
    """The payload in order, in pieces of at most 1 MiB."""
    for start in range(0, len(payload), CHUNK_BYTES):
        yield payload[start : start + CHUNK_BYTES]
