"""One link: the conversation of two nodes over one bidirectional stream, the same whoever dialled.

`asyncio.wait_for` has no place here: before Python 3.12 it loses a cancellation that comes together with what it waits for, and
where frames keep coming a link would never end.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

import structlog

from conlora.core.encoding import CHUNK_BYTES, Encoding
from conlora.core.federation import FederationSettings
from conlora.errors import PeerError, ProtocolError, SettingsMismatch, SketchRejected, SnapshotRejected
from conlora.net import wire
from conlora.net.identity import Peer
from conlora.net.transfers import Formats, Incoming, Landing, Outgoing, Sender
from conlora.net.wire import Chunk, Frame, Goodbye, SketchHeader, SnapshotHeader, SnapshotTaken, Transfer
from conlora.v1 import peer_pb2

log = structlog.get_logger()


class Stream(Protocol):
    """Either end of a gRPC stream of frames."""

    async def read(self) -> Frame | memoryview | None:
        """The next frame, or what a chunk holds; None once the other side has ended the stream."""
        ...

    async def write(self, message: Frame | bytes) -> None:
        """Sends a frame, perhaps serialized already; returns when the transport has taken it."""
        ...


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


class LinkClosed(PeerError):
    """The link ended in an orderly way; `reason` says why."""

    def __init__(self, reason: "Goodbye.Reason", detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Mailbox:
    """What waits for a link: answers, which go first; then snapshots, one under way at a time; or a good-bye, which is the last.

    Of snapshots at most `depth` wait, the oldest is dropped, so that a slow link never builds a queue. Depth is 1 (newest
    wins). In lockstep it is 2: the other side still needs round r when r + 1 is published.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._waiting: deque[Outgoing] = deque()
        self._answers: deque[Frame] = deque()
        self._under_way = False
        self._goodbye: Frame | None = None
        self._changed = asyncio.Event()

    @property
    def answering(self) -> bool:
        """Whether there is an answer to be sent."""
        return bool(self._answers)

    def put(self, snapshot: Outgoing) -> None:
        """Offers a snapshot."""
        if len(self._waiting) == self._depth:
            self._waiting.popleft().release()
        self._waiting.append(snapshot.hold())
        self._update()

    def answer(self, frame: Frame) -> None:
        """To be sent soon, between two chunks if need be."""
        self._answers.append(frame)
        self._update()

    def delivered(self) -> None:
        """The other side has the snapshot that was under way."""
        self._under_way = False
        self._update()

    def close(self, goodbye: Frame) -> None:
        """Makes `goodbye` the next thing to be sent, and the last."""
        self._goodbye = goodbye
        self._update()

    def clear(self) -> None:
        """The link has ended."""
        while self._waiting:
            self._waiting.popleft().release()

    async def next(self, patience: float) -> Outgoing | Frame | None:
        """A frame, a snapshot that the caller has to release, or None when nothing came within `patience` seconds."""
        try:
            async with asyncio.timeout(patience):
                await self._changed.wait()
        except TimeoutError:
            return None
        if self._goodbye is not None:
            return self._goodbye
        if self._answers:
            return self.next_answer()
        self._under_way = True
        snapshot = self._waiting.popleft()
        self._update()
        return snapshot

    def next_answer(self) -> Frame:
        """The answer that has waited longest."""
        answer = self._answers.popleft()
        self._update()
        return answer

    def _update(self) -> None:
        if self._goodbye or self._answers or (self._waiting and not self._under_way):
            self._changed.set()
        else:
            self._changed.clear()


class Link:
    """A conversation with `peer`. `shake_hands`, then `run` until it raises the PeerError that ended it."""

    def __init__(self, peer: Peer, stream: Stream, *, dialled: bool, depth: int) -> None:
        self.peer = peer
        self.dialled = dialled
        self.instance = b""
        self.bytes_sent = 0
        self.bytes_received = 0
        self.sketch_bytes_sent = 0  # part of bytes_sent
        self.rejected = 0
        self.sketches_rejected = 0
        self.last_rejection = ""
        self._stream = stream
        self._mailbox = Mailbox(depth)
        self._sender: Sender | None = None
        self._sending: Outgoing | None = None
        self._understood: list[str] = []  # encodings that the other side knows

    async def shake_hands(self, name: str, instance: bytes, settings: FederationSettings, probe: bool = False) -> bool:
        """Exchanges Hellos and compares them; returns whether the other side only probes.

        Raises SettingsMismatch naming every field that differs (both sides do, each from its own view), ProtocolError
        where the other side does not speak the protocol, LinkClosed where it parts.
        """
        await self._stream.write(wire.hello(name, instance, settings, probe))
        try:
            async with asyncio.timeout(wire.HANDSHAKE_SECONDS):
                theirs = await self._next_hello()
        except TimeoutError:
            raise ProtocolError(f"{self.peer.name} did not say Hello within {wire.HANDSHAKE_SECONDS:.0f} s") from None
        if problems := wire.differences(settings, theirs):
            raise SettingsMismatch(f"{self.peer.name} does not fit: {'; '.join(problems)}")
        self.instance, self._understood = theirs.instance, list(theirs.encodings)
        return theirs.probe

    @property
    def encoding(self) -> Encoding | None:
        """What the next snapshot is sent in; None before `run`."""
        return self._sender.encoding if self._sender else None

    @property
    def delivery_seconds(self) -> float | None:
        """From publishing until the other side had the last snapshot, checked; None before the first."""
        return self._sender.delivery_seconds if self._sender else None

    def offer(self, snapshot: Outgoing) -> None:
        """Gives the link a snapshot to send when it can."""
        self._mailbox.put(snapshot)
        if self._sender:
            self._sender.published()

    def close(self, reason: "Goodbye.Reason", detail: str = "") -> None:
        """Says good-bye after what is being sent now; `run` then ends. A link that was replaced breaks off at once."""
        self._mailbox.close(wire.goodbye(reason, detail))
        if reason == Goodbye.REASON_DUPLICATE:
            self.discard()

    def discard(self) -> None:
        """Lets go of all snapshots, also of the one that is being sent, which then stays unfinished."""
        self._mailbox.clear()
        self._let_go()

    async def run(self, receiver: Receiver) -> None:
        """Sends and receives until the link ends, always by raising: LinkClosed or another PeerError."""
        self._sender = Sender(receiver.formats, self._encoding(receiver))
        sending = asyncio.ensure_future(self._send(receiver))
        receiving = asyncio.ensure_future(self._receive(receiver))
        try:
            await asyncio.wait({sending, receiving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                # Ending the stream here could overtake our good-bye, and the other side may have said why it went.
                await asyncio.wait({receiving}, timeout=wire.GOODBYE_SECONDS)
        finally:
            sending.cancel()
            receiving.cancel()
            ours, theirs = await asyncio.gather(sending, receiving, return_exceptions=True)
        error = ours if isinstance(ours, LinkClosed) or isinstance(theirs, asyncio.CancelledError) else theirs
        if isinstance(error, ProtocolError):
            await self.part(wire.goodbye(Goodbye.REASON_PROTOCOL, str(error)))
        raise error

    async def part(self, goodbye: Frame) -> None:
        """Says good-bye, and waits a moment for the other side to end the stream: ending it here could overtake the frame."""
        await self._say(goodbye)
        try:
            async with asyncio.timeout(wire.GOODBYE_SECONDS):
                while (frame := await self._stream.read()) is not None:
                    if isinstance(frame, Frame) and frame.HasField("goodbye"):
                        return
        except (TimeoutError, PeerError):
            return

    async def _say(self, goodbye: Frame) -> None:
        """Sends a last frame, if the transport still takes it within a moment."""
        try:
            async with asyncio.timeout(wire.GOODBYE_SECONDS):
                await self._write(goodbye)
        except (TimeoutError, PeerError):
            return  # it was a courtesy: the other side finds the end of the stream instead

    def _encoding(self, receiver: Receiver) -> Encoding | None:
        """What this node wants, if the other side understands it. fp32 is understood by all."""
        wanted = receiver.encoding_for(self.peer)
        needed = {wanted} if wanted else {Encoding.BF16, Encoding.INT8}
        return wanted if needed <= set(self._understood) else Encoding.FP32

    async def _send(self, receiver: Receiver) -> NoReturn:
        while True:
            nbytes = None
            match await self._mailbox.next(wire.HEARTBEAT_SECONDS):
                case Outgoing() as snapshot:
                    nbytes = await self._send_snapshot(snapshot)
                case Frame() as frame if frame.HasField("goodbye"):
                    await self._say(frame)
                    raise LinkClosed(frame.goodbye.reason, frame.goodbye.detail or "this node closed the link")
                case Frame() as answer:
                    await self._write(answer)
                    continue
                case None:
                    await self._write(wire.heartbeat())
            for sketch in receiver.sketches_for(self.peer, nbytes):
                for part in sketch.parts():
                    await self._send_part(part)
                self.sketch_bytes_sent += len(sketch.payload)

    async def _send_snapshot(self, snapshot: Outgoing) -> int:
        """Sends it to its end, unless the link lets go of it before. Returns its bytes."""
        assert self._sender is not None
        before = self.bytes_sent
        self._sending = snapshot
        try:
            for part in self._sender.parts(snapshot):
                await self._send_part(part)
                if self._sending is None:
                    break
        finally:
            self._let_go()
        return self.bytes_sent - before

    async def _send_part(self, part: Frame | Chunk) -> None:
        """A frame, or a chunk, of something longer. Answers don't wait for its end: the other side waits for them."""
        while self._mailbox.answering:
            await self._write(self._mailbox.next_answer())
        if isinstance(part, Chunk):
            await self._write(part.message)
            self.bytes_sent += len(part.data)
        else:
            await self._write(part)

    def _let_go(self) -> None:
        snapshot, self._sending = self._sending, None
        if snapshot:
            snapshot.release()

    async def _receive(self, receiver: Receiver) -> NoReturn:
        arriving: Incoming | _Sketch | None = None
        while True:
            frame = await self._next_frame()
            if isinstance(frame, memoryview):
                arriving = self._chunk(receiver, arriving, frame)
                continue
            match frame.WhichOneof("kind"):
                case "heartbeat":
                    continue
                case "taken":
                    self._answered(frame.taken)
                case "snapshot" if arriving is None:
                    arriving = self._begin(receiver, frame.snapshot)
                case "snapshot_end" if isinstance(arriving, Incoming):
                    self._end(receiver, arriving, frame.snapshot_end.digest)
                    arriving = None
                case "sketch" if arriving is None:
                    arriving = _Sketch(frame.sketch)
                    if not 0 < frame.sketch.nbytes <= receiver.max_sketch_bytes:
                        raise ProtocolError(
                            f"{self.peer.name} announced a sketch of {frame.sketch.nbytes} bytes, at most "
                            f"{receiver.max_sketch_bytes} fit the schema"
                        )
                case kind:
                    raise ProtocolError(f"{self.peer.name} sent {kind or 'an empty frame'} where it has no place")

    def _chunk(
        self, receiver: Receiver, arriving: "Incoming | _Sketch | None", chunk: memoryview
    ) -> "Incoming | _Sketch | None":
        """Takes a chunk of what is arriving; returns that, or None when it is complete."""
        match arriving:
            case None:
                raise ProtocolError(f"{self.peer.name} sent a chunk where it has no place")
            case Incoming():
                arriving.take(chunk)
            case _Sketch(header=header, payload=payload):
                missing = header.nbytes - len(payload)
                if not 0 < len(chunk) <= min(CHUNK_BYTES, missing):
                    raise ProtocolError(
                        f"{self.peer.name} sent a chunk of {len(chunk)} bytes where {missing} were missing"
                    )
                payload += chunk
        self.bytes_received += len(chunk)
        if isinstance(arriving, _Sketch) and len(arriving.payload) == arriving.header.nbytes:
            try:
                receiver.sketch_received(self.peer, arriving.header, arriving.payload)
            except SketchRejected as rejection:
                self.sketches_rejected += 1
                self.last_rejection = str(rejection)
            return None
        return arriving

    def _begin(self, receiver: Receiver, header: SnapshotHeader) -> Incoming:
        if self._mailbox.answering:
            raise ProtocolError(f"{self.peer.name} sent a snapshot before the last one was answered")
        if header.round > wire.MAX_ROUND:
            raise ProtocolError(
                f"{self.peer.name} announced a snapshot of round {header.round}, which nobody can reach"
            )
        format = receiver.formats.get(header.encoding)
        if format is None:
            raise ProtocolError(f"{self.peer.name} announced a snapshot in an encoding that nobody knows")
        if header.nbytes != format.nbytes:
            raise ProtocolError(
                f"{self.peer.name} announced a snapshot of {header.nbytes} bytes, where the schema takes {format.nbytes}"
            )
        return Incoming(self.peer.name, header, format, receiver.snapshot_begins(self.peer, header))

    def _end(self, receiver: Receiver, incoming: Incoming, digest: bytes) -> None:
        """What is refused costs its sender a count; the link goes on."""
        outcome, detail = SnapshotTaken.OUTCOME_UNUSED, ""
        try:
            incoming.finish(digest)
            if incoming.landing and not incoming.unused:
                receiver.snapshot_received(self.peer, incoming.header, incoming.landing)
                outcome = SnapshotTaken.OUTCOME_KEPT
        except SnapshotRejected as rejection:
            log.warning("snapshot rejected", peer=self.peer.name, round=incoming.header.round, reason=str(rejection))
            self.rejected += 1
            outcome, detail = SnapshotTaken.OUTCOME_REJECTED, str(rejection)
            self.last_rejection = detail
        self._mailbox.answer(wire.taken(incoming.header.id, outcome, detail))

    def _answered(self, answer: SnapshotTaken) -> None:
        assert self._sender is not None
        if not self._sender.taken(answer):
            raise ProtocolError(f"{self.peer.name} answered a snapshot that it was not sent")
        if answer.outcome == SnapshotTaken.OUTCOME_REJECTED:
            log.warning("this node's snapshot was rejected", peer=self.peer.name, reason=_printable(answer.detail))
        self._mailbox.delivered()

    async def _next_hello(self) -> peer_pb2.Hello:
        frame = await self._next_frame()
        if isinstance(frame, memoryview) or frame.WhichOneof("kind") != "hello":
            kind = "chunk" if isinstance(frame, memoryview) else frame.WhichOneof("kind")
            raise ProtocolError(f"{self.peer.name} sent {kind} before Hello")
        return frame.hello

    async def _next_frame(self) -> Frame | memoryview:
        """The next frame that is no farewell. Raises LinkClosed or ProtocolError where there is none."""
        try:
            async with asyncio.timeout(wire.SILENCE_SECONDS):
                frame = await self._stream.read()
        except TimeoutError:
            raise PeerError(f"nothing heard from {self.peer.name} for {wire.SILENCE_SECONDS:.0f} s") from None
        if frame is None:
            raise PeerError(f"{self.peer.name} ended the link without a word")
        if isinstance(frame, Frame) and frame.HasField("goodbye"):
            parting, detail = frame.goodbye, _printable(frame.goodbye.detail)
            raise LinkClosed(parting.reason, f"{self.peer.name} said good-bye{': ' + detail if detail else ''}")
        return frame

    async def _write(self, message: Frame | bytes) -> None:
        await self._stream.write(message)


@dataclass(slots=True)
class _Sketch:
    """One that is being received."""

    header: SketchHeader
    payload: bytearray = field(default_factory=bytearray)


def _printable(text: str) -> str:
    """What a peer says, as it may reach a log."""
    return "".join(c if c.isprintable() else "?" for c in text[:500])
