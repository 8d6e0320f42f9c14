"""How vectors of one schema travel: as a safetensors payload of fp32, bf16 or int8, in pieces that stand alone.

A payload is a header, constant for a schema and an encoding, and a body. The body is cut into pieces of at most 1 MiB, one
chunk on the wire each, so that a piece is encoded and decoded on its own, while it is in cache. All numbers are
little-endian, as is every machine we run on.
"""

import io
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from conlora.core.schema import Schema, Vector

CHUNK_BYTES = 1 << 20
BLOCK = 256  # elements that share a scale in int8
STEP = 64 * 1024  # elements that are worked on at a time: 256 KiB and their scratch stay in L2; a multiple of BLOCK
TINY = np.finfo(np.float32).tiny

Buffer = bytes | bytearray | memoryview


class Encoding(StrEnum):
    """How elements travel. Relative rms errors of normal data: 0, 1.7e-3 and 7e-3."""

    FP32 = "fp32"
    BF16 = "bf16"
    INT8 = "int8"


@dataclass(frozen=True, slots=True)
class Piece:
    """Elements `[start, stop)` of the flat vector, which take `nbytes` on the wire."""

    start: int
    stop: int
    nbytes: int


class Format:
    """One schema in one encoding: the constant header, the pieces, and what turns pieces into bytes and back.

    header: 8 bytes of length and JSON, padded so that the body is aligned to 8 bytes.
    pieces: all of the vector, in order.
    nbytes: of the whole payload.

    The payload is a safetensors file. In fp32 and bf16 it has the schema's tensors under their names. In int8 a piece is its
    scales (fp32, one for each block of 256 elements of the flat vector) followed by its values; the file lists them as
    flat tensors `scales.0`, `values.0`, `scales.1` and so on.

    It holds no state, so threads may share it.
    """

    def __init__(self, schema: Schema, encoding: Encoding) -> None:
        self.schema = schema
        self.encoding = encoding
        layout = _LAYOUTS[encoding]
        self._layout = layout
        length = layout.elements(CHUNK_BYTES)
        bounds = [(start, min(start + length, schema.size)) for start in range(0, schema.size, length)]
        self.pieces = tuple(Piece(start, stop, layout.nbytes(stop - start)) for start, stop in bounds)
        self.header = _header(layout.tensors(schema, self.pieces))
        self.nbytes = len(self.header) + sum(piece.nbytes for piece in self.pieces)

    def encode(
        self, piece: Piece, vector: Vector, sent: Vector | None = None, delta: bool = False, prefix: bytes = b""
    ) -> bytes:
        """`prefix`, and the `piece.nbytes` bytes of a piece.

        vector: shape `(schema.size,)`, fp32, perhaps in shared memory; nobody may write to it meanwhile.
        sent: a vector that holds what the receiver has, updated to what it will have. Required with `delta`.
        delta: encode `vector - sent`, for a receiver that adds it to what it has, instead of `vector`.
        prefix: what goes before it on the wire, so that it need not be copied once more.

        Deltas feed errors back: what rounding has lost is part of the next difference, as in Seide et al. 2014. An element that
        is not finite decodes to one that is not finite. Raises ValueError for a delta against nothing.
        """
        if delta and sent is None:
            raise ValueError("a delta needs what the receiver has")
        if self.encoding is Encoding.FP32 and not delta:
            data = b"".join((prefix, vector[piece.start : piece.stop].data))
        else:
            stream = io.BytesIO(prefix + bytes(piece.nbytes))  # the one way to write into what becomes bytes
            with stream.getbuffer() as buffer, np.errstate(all="ignore"):
                self._pack(buffer[len(prefix) :], piece, vector, sent if delta else None)
            data = stream.getvalue()
        if sent is not None:
            self.decode(piece, memoryview(data)[len(prefix) :], sent, sent if delta else None)
        return data

    def decode(self, piece: Piece, data: Buffer, out: Vector, base: Vector | None = None) -> None:
        """Writes a piece's values into `out`: those in `data`, or with `base` (what a delta was made against) their sum.

        data: exactly `piece.nbytes` bytes, which may come from a hostile peer: values may be NaN or infinite afterwards, without
            an exception or a warning.
        out, base: shape `(schema.size,)`, fp32; of both the piece's elements alone are touched.
        """
        length = piece.stop - piece.start
        packed = self._layout.open(np.frombuffer(data, np.uint8), length)
        scratch = np.empty(min(STEP, length), np.float32)
        with np.errstate(all="ignore"):
            for at, elements in _steps(piece):
                target = out[elements]
                if base is None:
                    packed.get(at, target)
                else:
                    difference = scratch[: len(target)]
                    packed.get(at, difference)
                    np.add(base[elements], difference, out=target)

    def _pack(self, buffer: memoryview, piece: Piece, vector: Vector, base: Vector | None) -> None:
        length = piece.stop - piece.start
        packed = self._layout.open(np.frombuffer(buffer, np.uint8), length)
        scratch = np.empty(min(STEP, length), np.float32)
        for at, elements in _steps(piece):
            values = vector[elements]
            if base is not None:
                values = np.subtract(values, base[elements], out=scratch[: len(values)])
            packed.put(at, values)


def _steps(piece: Piece) -> Iterator[tuple[int, slice]]:
    """The piece in steps: their places in the piece, and their elements in the flat vector."""
    for start in range(piece.start, piece.stop, STEP):
        yield start - piece.start, slice(start, min(start + STEP, piece.stop))


Tensors = dict[str, dict[str, Any]]


def _header(tensors: Tensors) -> bytes:
    """The length and JSON that a safetensors file begins with."""
    text = json.dumps(tensors, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _entry(dtype: str, shape: tuple[int, ...], start: int, nbytes: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, start + nbytes]}


class _Plain:
    """The elements of a piece as numbers of one type."""

    def __init__(self, name: str, dtype: Any) -> None:
        self._name = name
        self._dtype: np.dtype[Any] = np.dtype(dtype)

    def elements(self, nbytes: int) -> int:
        return nbytes // self._dtype.itemsize

    def nbytes(self, elements: int) -> int:
        return elements * self._dtype.itemsize

    def tensors(self, schema: Schema, pieces: tuple[Piece, ...]) -> Tensors:
        size = self._dtype.itemsize
        return {
            spec.name: _entry(self._name, spec.shape, size * offset, size * spec.size)
            for spec, offset in zip(schema.tensors, schema.offsets, strict=True)
        }

    def open(self, wire: NDArray[np.uint8], elements: int) -> "_PlainPiece":
        return _PlainPiece(wire.view(self._dtype))


class _PlainPiece:
    def __init__(self, values: NDArray[Any]) -> None:
        self._values = values

    def put(self, at: int, values: Vector) -> None:
        np.copyto(self._values[at : at + len(values)], values, casting="unsafe")

    def get(self, at: int, out: Vector) -> None:
        np.copyto(out, self._values[at : at + len(out)], casting="unsafe")


class _Blockwise:
    """The elements of a piece as one scale a block, and the nearest of 255 multiples of it for each element."""

    def elements(self, nbytes: int) -> int:
        return nbytes // (BLOCK + 4) * BLOCK

    def nbytes(self, elements: int) -> int:
        return elements + 4 * _blocks(elements)

    def tensors(self, schema: Schema, pieces: tuple[Piece, ...]) -> Tensors:
        tensors: Tensors = {}
        position = 0
        for i, piece in enumerate(pieces):
            elements = piece.stop - piece.start
            blocks = _blocks(elements)
            tensors[f"scales.{i}"] = _entry("F32", (blocks,), position, 4 * blocks)
            tensors[f"values.{i}"] = _entry("I8", (elements,), position + 4 * blocks, elements)
            position += piece.nbytes
        return tensors

    def open(self, wire: NDArray[np.uint8], elements: int) -> "_BlockwisePiece":
        border = 4 * _blocks(elements)
        return _BlockwisePiece(wire[:border].view(np.float32), wire[border:].view(np.int8))


class _BlockwisePiece:
    def __init__(self, scales: Vector, values: NDArray[np.int8]) -> None:
        self._scales = scales
        self._values = values
        self._firsts = np.arange(0, len(values), BLOCK)
        self._scratch = np.empty(min(STEP, len(values)), np.float32)

    def put(self, at: int, values: Vector) -> None:
        scratch = self._scratch[: len(values)]
        scales = self._scales[at // BLOCK : _blocks(at + len(values))]
        np.abs(values, out=scratch)
        # Positive floats are ordered as their bits are, NaN last, and numpy finds the largest integer in half the time.
        largest = np.maximum.reduceat(scratch.view(np.int32), self._firsts[: len(scales)])
        np.divide(largest.view(np.float32), 127, out=scales)
        scales[scales < TINY] = 0  # whose inverse would overflow; not true of NaN, which stays
        inverses = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
        _multiply(values, inverses, out=scratch)
        np.rint(scratch, out=scratch)
        np.copyto(self._values[at : at + len(values)], scratch, casting="unsafe")

    def get(self, at: int, out: Vector) -> None:
        np.copyto(out, self._values[at : at + len(out)])
        _multiply(out, self._scales[at // BLOCK : _blocks(at + len(out))], out=out)


def _blocks(elements: int) -> int:
    """How many blocks hold so many elements; the last may be shorter."""
    return -(-elements // BLOCK)


def _multiply(values: Vector, factors: Vector, out: Vector) -> None:
    """Multiplies each block of `values` by its factor."""
    whole = len(values) // BLOCK * BLOCK
    rows = (-1, BLOCK)
    np.multiply(values[:whole].reshape(rows), factors[: whole // BLOCK, None], out=out[:whole].reshape(rows))
    if whole < len(values):
        np.multiply(values[whole:], factors[-1], out=out[whole:])


_LAYOUTS: dict[Encoding, _Plain | _Blockwise] = {
    Encoding.FP32: _Plain("F32", np.float32),
    Encoding.BF16: _Plain("BF16", ml_dtypes.bfloat16),
    Encoding.INT8: _Blockwise(),
}
