"""Snapshots on their way over one link: a vector into header, chunks and digest, and back into a vector.

Chunks are cut where the pieces of the encoding end (core/encoding.py), so that each is encoded, sent, decoded and checked
while it is in cache, and lands in the slot that it will be mixed from.
"""

import itertools
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from conlora.core.encoding import CHUNK_BYTES, Encoding, Format, Piece
from conlora.core.pace import Pace
from conlora.core.schema import Vector
from conlora.core.validation import Validator, header_differs, start_digest
from conlora.errors import ProtocolError
from conlora.net import wire
from conlora.net.wire import Chunk, Frame, SnapshotHeader, SnapshotTaken

Formats = Mapping[str, Format]  # by encoding
_numbers = itertools.count(1)


class Outgoing:
    """A vector that this node has published. It stays as it is for as long as anybody holds it."""

    def __init__(
        self,
        round_: int,
        degree: int,
        vector: Vector,
        *,
        shared: bool,
        on_free: Callable[[], None],
        radius: float | None = None,
    ) -> None:
        """shared: whether several links will send it, so that encoding it once pays. on_free: called
        when nobody holds it any more. radius: what this node clips at.
        """
        self.round = round_
        self.degree = degree
        self.radius = radius
        self.vector = vector
        self.number = next(_numbers)
        self.published_at = time.monotonic()
        self._encoded: dict[tuple[Encoding, int], Chunk] | None = {} if shared else None
        self._on_free = on_free
        self._holders = 0

    def hold(self) -> Self:
        """Somebody needs it; `release` must follow."""
        self._holders += 1
        return self

    def release(self) -> None:
        """Somebody is done with it."""
        self._holders -= 1
        if self._holders == 0:
            self._encoded = None
            self._on_free()

    def encoded(self, format: Format, piece: Piece) -> Chunk:
        """The piece's values in that encoding."""
        if self._encoded is None or format.encoding is Encoding.FP32:
            return encoded(format, piece, self.vector)
        key = (format.encoding, piece.start)
        if key not in self._encoded:
            self._encoded[key] = encoded(format, piece, self.vector)
        return self._encoded[key]


def encoded(format: Format, piece: Piece, vector: Vector, theirs: Vector | None = None, delta: bool = False) -> Chunk:
    """A piece as a chunk, copied once; the arguments are those of `Format.encode`."""
    prefix = wire.chunk_prefix(piece.nbytes)
    message = format.encode(piece, vector, theirs, delta, prefix)
    return Chunk(message, memoryview(message)[len(prefix) :])


class Sender:
    """One link's snapshots out. Where differences are sent, it keeps what the other side has: fp32, one vector."""

    def __init__(self, formats: Formats, encoding: Encoding | None) -> None:
        """encoding: None lets the link's measured pace decide."""
        self.delivery_seconds: float | None = None  # from publishing until the other side had the last one, checked
        self._formats = formats
        self._fixed = encoding
        self._pace = Pace()
        self._last_published_at: float | None = None
        self._theirs: Vector | None = None  # what the other side has decoded, once differences are sent
        self._base = 0  # id of the snapshot that came to that; 0: the other side has kept none
        self._id = 0  # of the snapshot that is to be answered
        self._nbytes = 0
        self._published_at = self._began = 0.0  # the snapshot that is under way, and its first byte

    @property
    def encoding(self) -> Encoding:
        """What the next snapshot is sent in."""
        return self._fixed or self._pace.encoding

    def use(self, encoding: Encoding | None) -> None:
        """Sends the next snapshots in that; None lets the pace decide."""
        self._fixed = encoding

    def published(self) -> None:
        """There is a newer snapshot to send."""
        now = time.monotonic()
        if self._last_published_at is not None:
            self._pace.published(now - self._last_published_at)
        self._last_published_at = now

    def parts(self, snapshot: Outgoing) -> Iterator[Frame | Chunk]:
        """A frame, the chunks after it, and a last frame; each is made when it is asked for."""
        format = self._formats[self.encoding]
        base, self._base = self._base, 0  # until the answer comes, there is none
        if format.encoding is not Encoding.INT8:
            base, self._theirs = 0, None
        elif self._theirs is None:
            self._theirs = np.zeros_like(snapshot.vector)
        header = SnapshotHeader(
            round=snapshot.round,
            degree=snapshot.degree,
            radius=snapshot.radius,
            nbytes=format.nbytes,
            encoding=format.encoding.value,
            id=secrets.randbits(64) or 1,
            base=base,
            number=snapshot.number,
        )
        self._nbytes = format.nbytes
        self._published_at, self._began = snapshot.published_at, time.monotonic()
        digest = start_digest(format)
        yield Frame(snapshot=header)
        yield from wire.chunks(format.header)
        for piece in format.pieces:
            chunk = self._encoded(snapshot, format, piece, delta=base != 0)
            digest.update(chunk.data)
            yield chunk
        self._id = header.id  # may be answered from now on
        yield wire.snapshot_end(digest.digest())

    def _encoded(self, snapshot: Outgoing, format: Format, piece: Piece, delta: bool) -> Chunk:
        if self._theirs is None:
            return snapshot.encoded(format, piece)
        return encoded(format, piece, snapshot.vector, self._theirs, delta)

    def taken(self, answer: SnapshotTaken) -> bool:
        """The other side has answered; returns whether there was something to answer."""
        if not self._id or answer.id != self._id:
            return False
        self._id = 0
        if answer.outcome == SnapshotTaken.OUTCOME_KEPT and self._theirs is not None:
            self._base = answer.id
        now = time.monotonic()
        self.delivery_seconds = now - self._published_at
        self._pace.delivered(self._nbytes, now - self._began, self._formats[Encoding.BF16].nbytes)
        return True


@dataclass
class Landing:
    """Where a snapshot that is being received goes. cancelled: nowhere any more, and the slot may be another's by now.

    base: what the differences that come are to be added to; None where values come whole.
    """

    slot: int
    out: Vector
    base: Vector | None
    cancelled: bool = False


class Incoming:
    """One snapshot that is being received."""

    def __init__(self, sender: str, header: SnapshotHeader, format: Format, landing: Landing | None) -> None:
        """landing: None where the snapshot is of no use and is only read past."""
        self.header = header
        self.landing = landing
        self._sender = sender
        self._format = format
        self._head = bytearray()
        self._pieces = iter(format.pieces)
        self._missing = format.nbytes
        self._validator = Validator(format)

    def take(self, chunk: memoryview) -> None:
        """The next chunk. Raises ProtocolError where it is not as long as it has to be."""
        head_missing = len(self._format.header) - len(self._head)
        piece = None if head_missing else next(self._pieces, None)
        expected = min(head_missing, CHUNK_BYTES) if head_missing else piece.nbytes if piece else 0
        if len(chunk) != expected or not chunk:
            raise ProtocolError(
                "chunk-length", f"{self._sender} sent a chunk of {len(chunk)} bytes where one of {expected} was due"
            )
        self._missing -= expected
        if piece is None:
            self._head += chunk
        elif self.landing is not None and not self.landing.cancelled:
            self._format.decode(piece, chunk, self.landing.out, self.landing.base)
            self._validator.add(piece, chunk, self.landing.out)

    def finish(self, digest: bytes) -> None:
        """The end. Raises ProtocolError where it comes too early, and SnapshotRejected for what must not be used."""
        if self._missing:
            raise ProtocolError("early-end", f"{self._sender} ended a snapshot {self._missing} bytes early")
        header_differs(self._format, bytes(self._head))
        if self.landing is not None and not self.landing.cancelled:
            self._validator.finish(self.landing.out, digest)
