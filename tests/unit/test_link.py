"""A link ends when it is told to, however busy it is."""

import asyncio
from typing import ClassVar

import pytest

from conlora.core.encoding import Encoding
from conlora.net import wire
from conlora.net.identity import Peer
from conlora.net.link import Link
from conlora.net.mailbox import Mailbox
from conlora.net.transfers import Formats
from conlora.net.wire import Frame


class Busy:
    """A stream on which a frame comes whenever the test lets one in, and everything is taken at once."""

    def __init__(self) -> None:
        self.arrived = asyncio.Event()
        self.awaited = asyncio.Event()

    async def read(self) -> Frame | memoryview | None:
        """See `link.Stream`."""
        self.awaited.set()
        await self.arrived.wait()
        self.arrived.clear()
        return wire.heartbeat()

    async def write(self, message: Frame | bytes) -> None:
        """See `link.Stream`."""


class Nobody:
    """A receiver that is never asked for anything but sketches."""

    max_sketch_bytes = 0
    formats: ClassVar[Formats] = {}

    def encoding_for(self, peer: Peer) -> Encoding | None:
        """See `reception.Receiver`."""
        return Encoding.FP32

    def sketches_for(self, peer: Peer, snapshot_bytes: int | None) -> list[wire.Transfer]:
        """See `reception.Receiver`."""
        return []


@pytest.mark.parametrize("turns", range(2))
async def test_a_cancellation_that_comes_with_a_frame_is_not_lost(turns: int) -> None:
    """`turns` of the event loop after it, for the frame passes through several callbacks."""
    stream = Busy()
    link = Link(Peer("b", "B", "", None), stream, dialled=True, depth=1)
    running = asyncio.ensure_future(link.run(Nobody()))
    await stream.awaited.wait()
    stream.arrived.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    running.cancel()
    done, _ = await asyncio.wait({running}, timeout=2)
    assert done == {running}
    assert running.cancelled()


async def test_a_cancellation_that_comes_with_something_to_send_is_not_lost() -> None:
    mailbox = Mailbox(1)
    waiting = asyncio.ensure_future(mailbox.next(60))
    for _ in range(5):  # turns of the event loop, in which it comes to wait
        await asyncio.sleep(0)
    mailbox.close(wire.goodbye(wire.Goodbye.REASON_LEAVING))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
