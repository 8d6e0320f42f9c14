"""What arrives on a link: frames and chunks, in the order that the protocol allows, become checked snapshots and sketches."""

from dataclasses import astuple, dataclass, field
from typing import Protocol

import structlog

from conlora.core.encoding import CHUNK_BYTES, Encoding
from conlora.errors import ProtocolError, SketchRejected, SnapshotRejected
from conlora.net import wire
from conlora.net.identity import Peer
from conlora.net.transfers import Formats, Incoming, Landing
from conlora.net.wire import Frame, SketchHeader, SnapshotHeader, SnapshotTaken, Transfer

log = structlog.get_logger()


class Receiver(Protocol):
    """The node that a link belongs to."""

    @property
    def formats(self) -> Formats:
        """What snapshots look like, in each encoding."""
        ...

    @property
    def max_sketch_bytes(self) -> int:
        """Larger sketches are refused before memory is taken for them."""
        ...

    def encoding_for(self, peer: Peer) -> Encoding | None:
        """What the peer is sent snapshots in; None: whatever the link carries in time."""
        ...

    def snapshot_begins(self, peer: Peer, header: SnapshotHeader) -> Landing | None:
        """Where a snapshot goes, which may end an earlier one of the same peer; None where it is of no use."""
        ...

    def snapshot_received(self, peer: Peer, header: SnapshotHeader, landing: Landing) -> None:
        """It lies there, complete and checked."""
        ...

    def sketch_received(self, peer: Peer, header: SketchHeader, payload: bytearray) -> None:
        """Checks and keeps a sketch. Raises SketchRejected."""
        ...

    def sketches_for(self, peer: Peer, snapshot_bytes: int | None) -> list[Transfer]:
        """Sketches to send to the peer after a snapshot of that size, or (None) with a heartbeat."""
        ...


@dataclass(slots=True)
class Counts:
    """What has gone over links. Bytes are those of snapshots and sketches, without what frames add."""

    bytes_sent: int = 0
    bytes_received: int = 0
    sketch_bytes_sent: int = 0  # part of bytes_sent
    rejected: int = 0  # snapshots
    sketches_rejected: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


class Reception:
    """One link's receiving end. What breaks the protocol raises ProtocolError; what is refused costs its sender a count."""

    def __init__(self, peer: Peer, receiver: Receiver, counts: Counts) -> None:
        self._peer = peer
        self._receiver = receiver
        self._counts = counts
        self._arriving: Incoming | _Sketch | None = None

    def frame(self, frame: Frame, answering: bool) -> Frame | None:
        """Takes a frame other than those that keep up the conversation; returns what has to be answered.

        answering: whether an earlier answer has not been sent yet.
        """
        match frame.WhichOneof("kind"):
            case "snapshot" if self._arriving is None:
                self._arriving = self._begin_snapshot(frame.snapshot, answering)
            case "snapshot_end" if isinstance(self._arriving, Incoming):
                incoming, self._arriving = self._arriving, None
                return self._end_snapshot(incoming, frame.snapshot_end.digest)
            case "sketch" if self._arriving is None:
                self._arriving = self._begin_sketch(frame.sketch)
            case kind:
                raise ProtocolError(f"{self._peer.name} sent {kind or 'an empty frame'} where it has no place")
        return None

    def chunk(self, chunk: memoryview) -> None:
        """Takes a chunk of what is arriving."""
        match self._arriving:
            case None:
                raise ProtocolError(f"{self._peer.name} sent a chunk where it has no place")
            case Incoming() as incoming:
                incoming.take(chunk)
            case _Sketch() as sketch:
                self._take_sketch(sketch, chunk)
        self._counts.bytes_received += len(chunk)

    def _begin_snapshot(self, header: SnapshotHeader, answering: bool) -> Incoming:
        name = self._peer.name
        if answering:
            raise ProtocolError(f"{name} sent a snapshot before the last one was answered")
        if header.round > wire.MAX_ROUND:
            raise ProtocolError(f"{name} announced a snapshot of round {header.round}, which nobody can reach")
        format = self._receiver.formats.get(header.encoding)
        if format is None:
            raise ProtocolError(f"{name} announced a snapshot in an encoding that nobody knows")
        if header.nbytes != format.nbytes:
            raise ProtocolError(
                f"{name} announced a snapshot of {header.nbytes} bytes, where the schema takes {format.nbytes}"
            )
        if header.HasField("radius") and not header.radius >= 0:
            raise ProtocolError(f"{name} announced a radius of {header.radius}, where none is negative")
        return Incoming(name, header, format, self._receiver.snapshot_begins(self._peer, header))

    def _end_snapshot(self, incoming: Incoming, digest: bytes) -> Frame:
        """Hands it over if it is good; returns the answer."""
        outcome, detail = SnapshotTaken.OUTCOME_UNUSED, ""
        try:
            incoming.finish(digest)
            if incoming.landing and not incoming.landing.cancelled:
                self._receiver.snapshot_received(self._peer, incoming.header, incoming.landing)
                outcome = SnapshotTaken.OUTCOME_KEPT
        except SnapshotRejected as rejection:
            outcome, detail = SnapshotTaken.OUTCOME_REJECTED, str(rejection)
            log.warning("snapshot rejected", peer=self._peer.name, round=incoming.header.round, reason=detail)
            self._counts.rejected += 1
        return wire.taken(incoming.header.id, outcome, detail)

    def _begin_sketch(self, header: SketchHeader) -> "_Sketch":
        most = self._receiver.max_sketch_bytes
        if not 0 < header.nbytes <= most:
            raise ProtocolError(
                f"{self._peer.name} announced a sketch of {header.nbytes} bytes, at most {most} fit the schema"
            )
        return _Sketch(header)

    def _take_sketch(self, sketch: "_Sketch", chunk: memoryview) -> None:
        missing = sketch.header.nbytes - len(sketch.payload)
        if not 0 < len(chunk) <= min(CHUNK_BYTES, missing):
            raise ProtocolError(f"{self._peer.name} sent a chunk of {len(chunk)} bytes where {missing} were missing")
        sketch.payload += chunk
        if len(sketch.payload) < sketch.header.nbytes:
            return
        self._arriving = None
        try:
            self._receiver.sketch_received(self._peer, sketch.header, sketch.payload)
        except SketchRejected:
            self._counts.sketches_rejected += 1


@dataclass(slots=True)
class _Sketch:
    """One that is being received."""

    header: SketchHeader
    payload: bytearray = field(default_factory=bytearray)
