"""What is checked of a snapshot while its pieces are in cache, and what is wrong with a header that is not ours."""

import json
import math
from typing import Any

import numpy as np
import xxhash

from conlora.core.encoding import Buffer, Format, Piece
from conlora.core.schema import Vector
from conlora.errors import SnapshotRejected

# Root mean square of a vector. Factors begin at 0 or below 1, heads at .02, norms at 1, and Adam moves an element by about the
# learning rate a step: at the largest default (5e-3) an honest adapter needs 200,000 steps in one direction to come here.
MAX_RMS = 1e3

MOST_QUOTED = 200  # characters of what a peer sent that may reach a log


def start_digest(format: Format) -> xxhash.xxh3_128:
    """A running xxh3_128 that has seen the header; the digest of a payload is that of all its bytes in order.

    It finds damage and mistakes, not forgery: the link's TLS vouches for who has sent the bytes.
    """
    return xxhash.xxh3_128(format.header)


class Validator:
    """Follows one snapshot piece by piece, so that digest, finiteness and norm take one pass through the cache."""

    def __init__(self, format: Format) -> None:
        self._format = format
        self._digest = start_digest(format)
        self._squares = 0.0

    def add(self, piece: Piece, data: Buffer, vector: Vector) -> None:
        """Takes a piece's bytes, and what they were decoded to in `vector`; pieces come in order, each once."""
        self._digest.update(data)
        elements = vector[piece.start : piece.stop]
        with np.errstate(all="ignore"):
            self._squares += float(np.dot(elements, elements))  # not finite if an element is not, or beyond all bounds

    def finish(self, vector: Vector, digest: bytes) -> None:
        """Raises SnapshotRejected with reason `digest`, `not-finite` or `norm` if the whole must not be used."""
        if self._digest.digest() != digest:
            raise SnapshotRejected("digest", "the payload does not have the announced digest")
        rms = math.sqrt(self._squares / max(1, len(vector))) if self._squares < math.inf else math.inf
        if rms <= MAX_RMS:
            return
        for name, tensor in self._format.schema.views(vector).items():
            if not np.isfinite(tensor).all():
                raise SnapshotRejected("not-finite", f"tensor {name!r} holds NaN or infinity")
        raise SnapshotRejected("norm", f"the root mean square of its elements is {rms:.3g}, more than {MAX_RMS:g}")


def header_differs(format: Format, received: bytes) -> None:
    """Says how a received header differs from ours, which is constant; returns only where it does not.

    Raises SnapshotRejected with reason `format`, `keys`, `dtype` or `shape`.
    """
    if received == format.header:
        return
    ours, theirs = _tensors(format.header), _tensors(received, most=2 * len(format.header) + 4096)
    if theirs.keys() != ours.keys():
        odd = min(theirs.keys() ^ ours.keys())
        raise SnapshotRejected("keys", f"tensor {_quote(odd)} is {'missing' if odd in ours else 'not expected'}")
    for field, reason in (("dtype", "dtype"), ("shape", "shape"), ("data_offsets", "format")):
        for name, entry in ours.items():
            if theirs[name].get(field) != entry[field]:
                what = f"{field} of tensor {_quote(name)} is {_quote(theirs[name].get(field))}, not {entry[field]!r}"
                raise SnapshotRejected(reason, what)
    raise SnapshotRejected("format", "the header lists our tensors in another order or with other spacing")


def _tensors(header: bytes, most: int | None = None) -> dict[str, dict[str, Any]]:
    """What a header lists. Raises SnapshotRejected for bytes that are no header, or more than `most`."""
    if most is not None and len(header) > most:
        raise SnapshotRejected("format", f"a header of {len(header)} bytes, where {most} are the most that we read")
    if len(header) < 8 or int.from_bytes(header[:8], "little") != len(header) - 8:
        raise SnapshotRejected("format", "not a safetensors header (its length is not the announced one)")
    try:
        tensors = json.loads(header[8:].decode())
    except (ValueError, RecursionError) as error:
        raise SnapshotRejected("format", f"not a safetensors header ({_quote(str(error))})") from error
    if not isinstance(tensors, dict) or not all(isinstance(entry, dict) for entry in tensors.values()):
        raise SnapshotRejected("format", "not a safetensors header (not an object of objects)")
    return tensors


def _quote(value: Any) -> str:
    """What a peer sent, fit to print: short, and unprintable characters escaped."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        return "of another kind"
    return text if len(text) <= MOST_QUOTED else text[:MOST_QUOTED] + "..."
