"""What arrives on a link: frames and chunks, in the order that the protocol allows, become checked snapshots and sketches."""

import math
import time
from dataclasses import astuple, dataclass, field
from typing import Protocol

import structlog

from conlora.core.budget import Budget
from conlora.core.conduct import Conduct
from conlora.core.encoding import CHUNK_BYTES, Encoding
from conlora.core.sketchbook import LEAST_BYTES, allowance, most_credit
from conlora.errors import Overdue, ProtocolError, Quarantined, SketchRejected, SnapshotRejected
from conlora.net import wire
from conlora.net.identity import Peer
from conlora.net.sketches import NEIGHBOURS_BYTES
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
    """One link's receiving end.

    What breaks the protocol raises ProtocolError; what is refused is counted, and raises Quarantined where it is once too often.
    """

    def __init__(self, peer: Peer, receiver: Receiver, counts: Counts, conduct: Conduct) -> None:
        self._peer = peer
        self._receiver = receiver
        self._counts = counts
        self._conduct = conduct
        self._arriving: Incoming | _Sketch | None = None
        self._due = math.inf  # when what is arriving has to be there
        self._number = 0  # of the last snapshot
        self._heartbeats = Budget(wire.HEARTBEATS_AT_ONCE, 2 / wire.HEARTBEAT_SECONDS)
        largest = max((format.nbytes for format in receiver.formats.values()), default=0)
        most = most_credit(receiver.max_sketch_bytes, largest)
        self._sketch_bytes = Budget(LEAST_BYTES + receiver.max_sketch_bytes, most=most)

    @property
    def patience(self) -> float:
        """Seconds until the next frame has to be there."""
        return min(self._due - time.monotonic(), wire.SILENCE_SECONDS)

    def check_pace(self) -> None:
        """Raises Overdue where what is arriving should be there by now."""
        if time.monotonic() >= self._due:
            kind = "snapshot" if isinstance(self._arriving, Incoming) else "sketch"
            raise Overdue(
                "slow",
                f"{self._peer.name} began a {kind} and did not end it in time; a link has to carry 1 MiB in "
                f"{wire.SILENCE_SECONDS:.0f} s",
            )

    def heartbeat(self) -> None:
        """Takes a sign of life. What comes more often than anybody sends it, only keeps this node busy."""
        if not self._heartbeats.spend(1, time.monotonic()):
            raise ProtocolError(
                "rate", f"{self._peer.name} sent more heartbeats than one in {wire.HEARTBEAT_SECONDS:.0f} s"
            )
        self._sketch_bytes.earn(LEAST_BYTES)

    def frame(self, frame: Frame, answering: bool) -> Frame | None:
        """Takes a frame other than those that keep up the conversation; returns what has to be answered.

        answering: whether an earlier answer has not been sent yet.
        """
        match frame.WhichOneof("kind"):
            case "snapshot" if self._arriving is None:
                self._arriving = self._begin_snapshot(frame.snapshot, answering)
                self._due = time.monotonic() + wire.transfer_seconds(frame.snapshot.nbytes)
            case "snapshot_end" if isinstance(self._arriving, Incoming):
                incoming, self._arriving, self._due = self._arriving, None, math.inf
                return self._end_snapshot(incoming, frame.snapshot_end.digest)
            case "sketch" if self._arriving is None:
                self._arriving = self._begin_sketch(frame.sketch)
                self._due = time.monotonic() + wire.transfer_seconds(frame.sketch.nbytes)
            case kind:
                raise ProtocolError(
                    "out-of-place", f"{self._peer.name} sent {kind or 'an empty frame'} where it has no place"
                )
        return None

    def chunk(self, chunk: memoryview) -> None:
        """Takes a chunk of what is arriving."""
        match self._arriving:
            case None:
                raise ProtocolError("out-of-place", f"{self._peer.name} sent a chunk where it has no place")
            case Incoming() as incoming:
                incoming.take(chunk)
            case _Sketch() as sketch:
                self._take_sketch(sketch, chunk)
        self._counts.bytes_received += len(chunk)

    def _begin_snapshot(self, header: SnapshotHeader, answering: bool) -> Incoming:
        name = self._peer.name
        if answering:
            raise ProtocolError("unanswered", f"{name} sent a snapshot before the last one was answered")
        if header.round > wire.MAX_ROUND:
            raise ProtocolError("round", f"{name} announced a snapshot of round {header.round}, which nobody can reach")
        format = self._receiver.formats.get(header.encoding)
        if format is None:
            raise ProtocolError("encoding", f"{name} announced a snapshot in an encoding that nobody knows")
        if header.nbytes != format.nbytes:
            raise ProtocolError(
                "size", f"{name} announced a snapshot of {header.nbytes} bytes, where the schema takes {format.nbytes}"
            )
        if header.HasField("radius") and not header.radius >= 0:
            raise ProtocolError("radius", f"{name} announced a radius of {header.radius}, where none is negative")
        landing = self._receiver.snapshot_begins(self._peer, header) if header.number > self._number else None
        return Incoming(name, header, format, landing)

    def _end_snapshot(self, incoming: Incoming, digest: bytes) -> Frame:
        """Hands it over if it is good; returns the answer."""
        outcome, detail = SnapshotTaken.OUTCOME_UNUSED, ""
        try:
            incoming.finish(digest)
            self._count_up(incoming.header.number)
            if incoming.landing and not incoming.landing.cancelled:
                self._receiver.snapshot_received(self._peer, incoming.header, incoming.landing)
                outcome = SnapshotTaken.OUTCOME_KEPT
        except SnapshotRejected as rejection:
            outcome, detail = SnapshotTaken.OUTCOME_REJECTED, str(rejection)
            log.warning("snapshot rejected", peer=self._peer.name, round=incoming.header.round, reason=detail)
            self._counts.rejected += 1
            self._offence(rejection.reason)
        self._sketch_bytes.earn(allowance(incoming.header.nbytes))
        return wire.taken(incoming.header.id, outcome, detail)

    def _count_up(self, number: int) -> None:
        """Snapshots come in the order in which they were published, each once. Raises SnapshotRejected."""
        if number == self._number:
            raise SnapshotRejected("replayed", f"snapshot {number} has come before")
        if number < self._number:
            raise SnapshotRejected("reordered", f"snapshot {number} comes after snapshot {self._number}")
        self._number = number

    def _offence(self, reason: str) -> None:
        if self._conduct.offend(reason, time.monotonic()):
            raise Quarantined(f"{self._peer.name} has sent too much that can't be used ({self._conduct.offences})")

    def _begin_sketch(self, header: SketchHeader) -> "_Sketch":
        most = self._receiver.max_sketch_bytes
        if not 0 < header.nbytes <= most:
            raise ProtocolError(
                "size", f"{self._peer.name} announced a sketch of {header.nbytes} bytes, at most {most} fit the schema"
            )
        charged = min(header.nbytes, max(0, most - NEIGHBOURS_BYTES))  # senders don't count neighbours' ids either
        if not self._sketch_bytes.spend(charged, time.monotonic()):
            raise ProtocolError("rate", f"{self._peer.name} sent more sketches than go along with its snapshots")
        return _Sketch(header)

    def _take_sketch(self, sketch: "_Sketch", chunk: memoryview) -> None:
        missing = sketch.header.nbytes - len(sketch.payload)
        if not 0 < len(chunk) <= min(CHUNK_BYTES, missing):
            raise ProtocolError(
                "chunk-length", f"{self._peer.name} sent a chunk of {len(chunk)} bytes where {missing} were missing"
            )
        sketch.payload += chunk
        if len(sketch.payload) < sketch.header.nbytes:
            return
        self._arriving, self._due = None, math.inf
        try:
            self._receiver.sketch_received(self._peer, sketch.header, sketch.payload)
        except SketchRejected as rejection:
            self._counts.sketches_rejected += 1
            self._offence(f"sketch-{rejection.reason}")


@dataclass(slots=True)
class _Sketch:
    """One that is being received."""

    header: SketchHeader
    payload: bytearray = field(default_factory=bytearray)
