"""What two nodes say on a stream, each word in its time: a frame comes or goes before a deadline, or a PeerError says why not.

`asyncio.wait_for` has no place here: before Python 3.12 it loses a cancellation that comes together with what it waits for, and
where frames keep coming a link would never end.
"""

import asyncio
from typing import Protocol

from conlora.errors import Overdue, PeerError, ProtocolError
from conlora.net import wire
from conlora.net.reception import Reception
from conlora.net.wire import Frame, Goodbye
from conlora.v1 import peer_pb2


class Stream(Protocol):
    """Either end of a gRPC stream of frames."""

    async def read(self) -> Frame | memoryview | None:
        """The next frame, or what a chunk holds; None once the other side has ended the stream."""
        ...

    async def write(self, message: Frame | bytes) -> None:
        """Sends a frame, perhaps serialized already; returns when the transport has taken it."""
        ...


class LinkClosed(PeerError):
    """The link ended in an orderly way; `reason` says why."""

    def __init__(self, reason: "Goodbye.Reason", detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Conversation:
    """One end of a stream."""

    def __init__(self, name: str, stream: Stream) -> None:
        """name: the peer's, for sentences; its card may change it."""
        self.name = name
        self._stream = stream

    async def greet(self, hello: Frame) -> peer_pb2.Hello:
        """Says Hello, and returns the other side's. Raises Overdue where it comes too late, ProtocolError where something else
        comes first, and what `hear` raises.
        """
        try:
            async with asyncio.timeout(wire.HANDSHAKE_SECONDS):
                await self._stream.write(hello)
                frame = await self.hear()
        except TimeoutError:
            raise Overdue("handshake", f"{self.name} did not say Hello within {wire.HANDSHAKE_SECONDS:.0f} s") from None
        if isinstance(frame, memoryview) or frame.WhichOneof("kind") != "hello":
            kind = "chunk" if isinstance(frame, memoryview) else frame.WhichOneof("kind") or "an empty frame"
            raise ProtocolError("no-hello", f"{self.name} sent {kind} before Hello")
        return frame.hello

    async def hear(self, reception: Reception | None = None) -> Frame | memoryview:
        """The next frame that is no farewell. Raises LinkClosed or another PeerError where there is none.

        reception: whose patience may be shorter than that with a silent peer.
        """
        try:
            async with asyncio.timeout(reception.patience if reception else wire.SILENCE_SECONDS):
                frame = await self._stream.read()
        except TimeoutError:
            if reception:
                reception.check_pace()
            raise PeerError(f"nothing heard from {self.name} for {wire.SILENCE_SECONDS:.0f} s") from None
        if frame is None:
            raise PeerError(f"{self.name} ended the link without a word")
        if isinstance(frame, Frame) and frame.HasField("goodbye"):
            parting, detail = frame.goodbye, wire.printable(frame.goodbye.detail)
            if parting.reason == Goodbye.REASON_LEFT:
                raise LinkClosed(parting.reason, f"{self.name} {wire.HAS_LEFT}")
            raise LinkClosed(parting.reason, f"{self.name} said good-bye{': ' + detail if detail else ''}")
        return frame

    async def say(self, message: Frame | bytes) -> None:
        """Sends a frame, perhaps serialized already. Raises Overdue where the other side takes nothing."""
        try:
            async with asyncio.timeout(wire.STALL_SECONDS):
                await self._stream.write(message)
        except TimeoutError:
            raise Overdue("stalled", f"{self.name} took nothing for {wire.STALL_SECONDS:.0f} s") from None

    async def say_last(self, goodbye: Frame) -> None:
        """Sends a last frame, if the transport still takes it within a moment."""
        try:
            async with asyncio.timeout(wire.GOODBYE_SECONDS):
                await self.say(goodbye)
        except (TimeoutError, PeerError):
            return  # it was a courtesy: the other side finds the end of the stream instead

    async def part(self, goodbye: Frame) -> None:
        """Says good-bye, and waits a moment for the other side to end the stream: ending it here could overtake the frame."""
        await self.say_last(goodbye)
        try:
            async with asyncio.timeout(wire.GOODBYE_SECONDS):
                while (frame := await self._stream.read()) is not None:
                    if isinstance(frame, Frame) and frame.HasField("goodbye"):
                        return
        except (TimeoutError, PeerError):
            return
