"""A link ends when it is told to, however busy it is."""

import asyncio
from typing import ClassVar

import pytest
from structlog.testing import capture_logs
from tests.meshes import FakeNode, vector

from conlora.core.encoding import Encoding
from conlora.errors import PeerError
from conlora.net import wire
from conlora.net.conversation import LinkClosed
from conlora.net.identity import Peer
from conlora.net.link import Link
from conlora.net.mailbox import Mailbox
from conlora.net.transfers import Formats, Outgoing
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


class Stuck:
    """A stream whose other side says nothing and takes nothing more after some messages."""

    def __init__(self, takes: int) -> None:
        self.takes = takes
        self.written: list[Frame] = []
        self.full = asyncio.Event()

    async def read(self) -> Frame | memoryview | None:
        """See `link.Stream`."""
        await asyncio.Event().wait()
        return None

    async def write(self, message: Frame | bytes) -> None:
        """See `link.Stream`."""
        if len(self.written) == self.takes:
            self.full.set()
            await asyncio.Event().wait()
        self.written.append(Frame.FromString(message) if isinstance(message, bytes) else message)


@pytest.mark.parametrize("takes", [3, 4])
async def test_a_link_that_is_replaced_lets_go_at_once(takes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its peer takes no more than a header and some chunks: neither slots nor the link are held by that."""
    monkeypatch.setattr(wire, "GOODBYE_SECONDS", 0.05)
    node, stream = FakeNode(), Stuck(takes)
    node.size = 1 << 20  # four chunks
    freed = []
    held = Outgoing(1, 1, vector(1, node.size), shared=False, on_free=lambda: freed.append("under way"))
    waits = Outgoing(2, 1, vector(2, node.size), shared=False, on_free=lambda: freed.append("waiting"))
    link = Link(Peer("b", "B", "", None), stream, dialled=True, depth=1)
    link._understood = [encoding.value for encoding in Encoding]
    link.offer(held)
    running = asyncio.ensure_future(link.run(node))
    await stream.full.wait()
    link.offer(waits)
    link.close(wire.Goodbye.REASON_DUPLICATE)
    assert sorted(freed) == ["under way", "waiting"]
    with pytest.raises(LinkClosed) as caught:
        await asyncio.wait_for(running, 5)
    assert caught.value.reason == wire.Goodbye.REASON_DUPLICATE
    assert len(stream.written) == takes


async def test_a_link_that_is_replaced_says_nothing_but_good_bye(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a snapshot no sketch may follow."""
    node, stream = FakeNode(), Stuck(100)
    node.size = 1 << 20
    node.owed = [wire.Transfer(wire.SketchHeader(nbytes=1), b"x")]
    link = Link(Peer("b", "B", "", None), stream, dialled=True, depth=1)
    link._understood = [encoding.value for encoding in Encoding]
    write = stream.write

    async def closing(message: Frame | bytes) -> None:
        await write(message)
        if len(stream.written) == 3:
            link.close(wire.Goodbye.REASON_DUPLICATE)

    monkeypatch.setattr(stream, "write", closing)
    link.offer(Outgoing(1, 1, vector(1, node.size), shared=False, on_free=lambda: None))
    with pytest.raises(LinkClosed):
        await asyncio.wait_for(link.run(node), 5)
    assert [frame.WhichOneof("kind") for frame in stream.written] == ["snapshot", "chunk", "chunk", "goodbye"]


class Refusing(Stuck):
    """A stream whose other side takes everything, and refuses each snapshot."""

    def __init__(self) -> None:
        super().__init__(100)
        self.ended = asyncio.Event()
        self.answered = False

    async def read(self) -> Frame | memoryview | None:
        """See `link.Stream`."""
        await self.ended.wait()
        if self.answered:
            return None
        self.answered = True
        header = self.written[0].snapshot
        return wire.taken(header.id, wire.SnapshotTaken.OUTCOME_REJECTED, "norm: too\x1b[31m large")

    async def write(self, message: Frame | bytes) -> None:
        """See `link.Stream`."""
        await super().write(message)
        if self.written[-1].HasField("snapshot_end"):
            self.ended.set()


async def test_what_a_peer_refuses_of_this_node_is_in_the_log() -> None:
    link = Link(Peer("b", "B", "", None), Refusing(), dialled=True, depth=1)
    link._understood = [encoding.value for encoding in Encoding]
    node = FakeNode()
    link.offer(Outgoing(1, 1, vector(1, node.size), shared=False, on_free=lambda: None))
    with capture_logs() as logs, pytest.raises(PeerError, match="b ended the link without a word"):
        await asyncio.wait_for(link.run(node), 5)
    told = {"peer": "b", "reason": "norm: too?[31m large"}
    assert logs == [{"event": "this node's snapshot was rejected", "log_level": "warning", **told}]


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
