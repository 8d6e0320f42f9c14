"""One link: the conversation of two nodes over one bidirectional stream, the same whoever dialled.

`asyncio.wait_for` has no place here: before Python 3.12 it loses a cancellation that comes together with what it waits for, and
where frames keep coming a link would never end.
"""

import asyncio
from collections import deque
from typing import NoReturn, Protocol

from conlora.core.codec import CHUNK_BYTES
from conlora.core.federation import FederationSettings
from conlora.errors import PeerError, ProtocolError, SettingsMismatch, SketchRejected, SnapshotRejected
from conlora.net import wire
from conlora.net.identity import Peer
from conlora.net.wire import Frame, Goodbye, SketchHeader, SnapshotHeader, Transfer
from conlora.v1 import peer_pb2


class Stream(Protocol):
    """Either end of a gRPC stream of frames."""

    async def read(self) -> Frame | None:
        """The next frame; None once the other side has ended the stream."""
        ...

    async def write(self, frame: Frame) -> None:
        """Sends a frame; returns when the transport has taken it."""
        ...


class Receiver(Protocol):
    """Where complete snapshots go."""

    @property
    def max_snapshot_bytes(self) -> int:
        """Larger snapshots are refused before memory is taken for them."""
        ...

    @property
    def max_sketch_bytes(self) -> int:
        """Larger sketches are refused likewise."""
        ...

    def snapshot_received(self, peer: Peer, header: SnapshotHeader, payload: bytearray) -> None:
        """Checks and keeps a snapshot. Raises SnapshotRejected."""
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
    """Snapshots waiting for a link: at most `depth`, the oldest dropped, so that a slow link never builds a queue.

    Depth is 1 (newest wins). In lockstep it is 2: the other side still needs round r when r + 1 is published.
    """

    def __init__(self, depth: int) -> None:
        self._waiting: deque[Transfer] = deque(maxlen=depth)
        self._changed = asyncio.Event()
        self._goodbye: Frame | None = None

    def put(self, snapshot: Transfer) -> None:
        """Offers a snapshot."""
        self._waiting.append(snapshot)
        self._changed.set()

    def close(self, goodbye: Frame) -> None:
        """Makes `goodbye` the next thing to be sent, and the last."""
        self._goodbye = goodbye
        self._changed.set()

    async def next(self, patience: float) -> Transfer | Frame | None:
        """A snapshot, or the goodbye frame, or None when nothing came within `patience` seconds."""
        try:
            async with asyncio.timeout(patience):
                await self._changed.wait()
        except TimeoutError:
            return None
        if self._goodbye is not None:
            return self._goodbye
        snapshot = self._waiting.popleft()
        if not self._waiting:
            self._changed.clear()
        return snapshot


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
        self.instance = theirs.instance
        return theirs.probe

    def offer(self, snapshot: Transfer) -> None:
        """Gives the link a snapshot to send when it can."""
        self._mailbox.put(snapshot)

    def close(self, reason: "Goodbye.Reason", detail: str = "") -> None:
        """Says good-bye after what is being sent now; `run` then ends."""
        self._mailbox.close(wire.goodbye(reason, detail))

    async def run(self, receiver: Receiver) -> None:
        """Sends and receives until the link ends, always by raising: LinkClosed or another PeerError."""
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
                while (frame := await self._stream.read()) is not None and not frame.HasField("goodbye"):
                    continue
        except (TimeoutError, PeerError):
            return

    async def _say(self, goodbye: Frame) -> None:
        """Sends a last frame, if the transport still takes it within a moment."""
        try:
            async with asyncio.timeout(wire.GOODBYE_SECONDS):
                await self._write(goodbye)
        except (TimeoutError, PeerError):
            return  # it was a courtesy: the other side finds the end of the stream instead

    async def _send(self, receiver: Receiver) -> NoReturn:
        while True:
            item = await self._mailbox.next(wire.HEARTBEAT_SECONDS)
            if isinstance(item, Frame):
                await self._say(item)
                raise LinkClosed(item.goodbye.reason, item.goodbye.detail or "this node closed the link")
            if item is None:
                await self._write(wire.heartbeat())
            else:
                await self._transfer(item)
            for sketch in receiver.sketches_for(self.peer, len(item.payload) if item else None):
                await self._transfer(sketch)
                self.sketch_bytes_sent += len(sketch.payload)

    async def _transfer(self, item: Transfer) -> None:
        for frame in item.frames():
            await self._write(frame)
            self.bytes_sent += len(frame.chunk)

    async def _receive(self, receiver: Receiver) -> NoReturn:
        header: SnapshotHeader | SketchHeader | None = None
        payload = bytearray()
        while True:
            frame = await self._next_frame()
            match frame.WhichOneof("kind"):
                case "heartbeat":
                    continue
                case "snapshot" if header is None:
                    header, payload = frame.snapshot, bytearray()
                    self._check_announced("snapshot", header.nbytes, receiver.max_snapshot_bytes)
                    self._check_round(header.round)
                case "sketch" if header is None:
                    header, payload = frame.sketch, bytearray()
                    self._check_announced("sketch", header.nbytes, receiver.max_sketch_bytes)
                case "chunk" if header is not None:
                    payload += self._checked(frame.chunk, header.nbytes - len(payload))
                    if len(payload) == header.nbytes:
                        self._deliver(receiver, header, payload)
                        header = None
                case kind:
                    raise ProtocolError(f"{self.peer.name} sent {kind or 'an empty frame'} where it has no place")

    def _check_announced(self, kind: str, nbytes: int, limit: int) -> None:
        if not 0 < nbytes <= limit:
            raise ProtocolError(
                f"{self.peer.name} announced a {kind} of {nbytes} bytes, at most {limit} fit the schema"
            )

    def _check_round(self, round_: int) -> None:
        if round_ > wire.MAX_ROUND:
            raise ProtocolError(f"{self.peer.name} announced a snapshot of round {round_}, which nobody can reach")

    def _checked(self, chunk: bytes, missing: int) -> bytes:
        if not 0 < len(chunk) <= min(CHUNK_BYTES, missing):
            raise ProtocolError(f"{self.peer.name} sent a chunk of {len(chunk)} bytes where {missing} were missing")
        self.bytes_received += len(chunk)
        return chunk

    def _deliver(self, receiver: Receiver, header: SnapshotHeader | SketchHeader, payload: bytearray) -> None:
        """What is refused costs its sender a count; the link goes on."""
        try:
            if isinstance(header, SnapshotHeader):
                receiver.snapshot_received(self.peer, header, payload)
            else:
                receiver.sketch_received(self.peer, header, payload)
        except SnapshotRejected as rejection:
            self.rejected += 1
            self.last_rejection = str(rejection)
        except SketchRejected as rejection:
            self.sketches_rejected += 1
            self.last_rejection = str(rejection)

    async def _next_hello(self) -> peer_pb2.Hello:
        frame = await self._next_frame()
        if frame.WhichOneof("kind") != "hello":
            raise ProtocolError(f"{self.peer.name} sent {frame.WhichOneof('kind')} before Hello")
        return frame.hello

    async def _next_frame(self) -> Frame:
        """The next frame that is no farewell. Raises LinkClosed or ProtocolError where there is none."""
        try:
            async with asyncio.timeout(wire.SILENCE_SECONDS):
                frame = await self._stream.read()
        except TimeoutError:
            raise PeerError(f"nothing heard from {self.peer.name} for {wire.SILENCE_SECONDS:.0f} s") from None
        if frame is None:
            raise PeerError(f"{self.peer.name} ended the link without a word")
        if frame.WhichOneof("kind") == "goodbye":
            parting = frame.goodbye
            detail = "".join(c if c.isprintable() else "?" for c in parting.detail[:500])
            raise LinkClosed(parting.reason, f"{self.peer.name} said good-bye{': ' + detail if detail else ''}")
        return frame

    async def _write(self, frame: Frame) -> None:
        await self._stream.write(frame)
