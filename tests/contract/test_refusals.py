"""A link against a peer that abuses what the protocol allows: too often, too slowly, twice, out of order, without an end."""

import asyncio
import tracemalloc
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from tests.contract.test_hostile_frames import (
    FP32,
    GOOD,
    HEAD,
    MALFORMED,
    PEER,
    SETTINGS,
    VECTOR,
    VIOLATIONS,
    Inbox,
    chunk,
    header,
    run,
    snapshot,
)
from tests.scripts import Script

from conlora.core.conduct import OFFENCES, Conduct
from conlora.core.encoding import CHUNK_BYTES
from conlora.core.sketchbook import LEAST_BYTES
from conlora.errors import Overdue, PeerError, ProtocolError, Quarantined, SketchRejected
from conlora.net import wire
from conlora.net.identity import Peer
from conlora.net.link import Link
from conlora.net.wire import Frame, Goodbye, SketchHeader, SnapshotTaken

HEARTBEATS = [wire.heartbeat()] * 5  # time for the answer
OUTCOMES = {outcome: SnapshotTaken.Outcome.Name(outcome)[8:].lower() for outcome in SnapshotTaken.Outcome.values()}


async def outcomes(*snapshots: list[Frame]) -> tuple[list[str], Conduct]:
    """How each was answered, with the sentence where there is one."""
    stream = Script([frame for group in snapshots for frame in (*group, *HEARTBEATS)])
    link = Link(PEER, stream, dialled=True, depth=1)
    with pytest.raises(PeerError, match="ended the link"):
        await link.run(Inbox())
    answers = [frame.taken for frame in stream.written if frame.HasField("taken")]
    return [f"{OUTCOMES[answer.outcome]} {answer.detail}".rstrip() for answer in answers], link.conduct


@pytest.mark.parametrize("violation", VIOLATIONS)
async def test_every_violation_has_a_short_name(violation: str) -> None:
    error, _, _ = await run(VIOLATIONS[violation][0])
    assert isinstance(error, ProtocolError)
    assert error.reason in REASONS


REASONS = {
    "answer", "chunk-length", "early-end", "encoding", "no-frame", "no-hello", "out-of-place", "radius", "rate", "round",
    "size", "too-large", "unanswered",
}  # fmt: skip


@pytest.mark.parametrize("malformed", MALFORMED)
async def test_a_malformed_snapshot_is_counted_by_its_reason(malformed: str) -> None:
    frames, reason = MALFORMED[malformed]
    _, conduct = await outcomes(frames)
    assert conduct.refused == {reason.split(":")[0]: 1}


async def test_a_snapshot_that_comes_twice_is_replayed() -> None:
    answers, conduct = await outcomes(GOOD, GOOD, snapshot(number=2))
    assert answers == ["kept", "rejected replayed: snapshot 1 has come before", "kept"]
    assert conduct.refused == {"replayed": 1}


async def test_a_snapshot_that_was_published_earlier_is_reordered() -> None:
    answers, conduct = await outcomes(snapshot(number=9), snapshot(number=7), snapshot(number=8), snapshot(number=10))
    assert answers == [
        "kept",
        "rejected reordered: snapshot 7 comes after snapshot 9",
        "rejected reordered: snapshot 8 comes after snapshot 9",
        "kept",
    ]
    assert conduct.refused == {"reordered": 2}


async def test_a_snapshot_without_a_number_is_none_that_anybody_has_published() -> None:
    answers, conduct = await outcomes(snapshot(number=0))
    assert answers == ["rejected replayed: snapshot 0 has come before"]
    assert conduct.refused == {"replayed": 1}


async def test_a_replay_is_not_written_anywhere() -> None:
    begun = []

    class Noting(Inbox):
        def snapshot_begins(self, peer: Peer, header: wire.SnapshotHeader) -> object:
            begun.append(header.number)
            return super().snapshot_begins(peer, header)

    await run([*GOOD, *HEARTBEATS, *GOOD], Noting())
    assert begun == [1]


async def test_the_fifth_offence_ends_the_link_with_the_reasons() -> None:
    bad, worse = snapshot(VECTOR * np.float32(1e6)), snapshot(digest=bytes(16))
    frames = [frame for group in (bad, worse, bad, bad, worse, GOOD) for frame in (*group, *HEARTBEATS)]
    inbox = Inbox()
    error, link, stream = await run(frames, inbox)
    assert isinstance(error, Quarantined)
    assert str(error) == "mallory has sent too much that can't be used (norm 3, digest 2)"
    assert stream.written[-1].goodbye.reason == Goodbye.REASON_QUARANTINED
    assert stream.written[-1].goodbye.detail == f"quarantined: {error}"
    assert (link.counts.rejected, inbox.vectors) == (OFFENCES, [])


async def test_the_breach_that_is_one_too_many_says_so_with_the_reasons() -> None:
    conduct = Conduct()
    for _ in range(OFFENCES - 1):
        with pytest.raises(ProtocolError, match=r"^mallory sent a chunk where it has no place$"):
            await Link(PEER, Script([chunk(b"x")]), dialled=True, depth=1, conduct=conduct).run(Inbox())
    stream = Script([chunk(b"x")])
    link = Link(PEER, stream, dialled=True, depth=1, conduct=conduct)
    with pytest.raises(Quarantined) as caught:
        await link.run(Inbox())
    await link.farewell()
    assert str(caught.value) == (
        f"mallory sent a chunk where it has no place; that was once too often (out-of-place {OFFENCES})"
    )
    assert stream.written[-1].goodbye.reason == Goodbye.REASON_QUARANTINED


def sketch(nbytes: int) -> list[Frame]:
    """As many as fit into a chunk."""
    return [Frame(sketch=SketchHeader(nbytes=nbytes)), chunk(bytes(nbytes))]


class Reader(Inbox):
    """Takes sketches; refuses those that the test says."""

    max_sketch_bytes = 100_000

    def __init__(self, refuse: bool = False) -> None:
        super().__init__()
        self.sketches = 0
        self._refuse = refuse

    def sketch_received(self, peer: Peer, header: SketchHeader, payload: bytearray) -> None:
        self.sketches += 1
        if self._refuse:
            raise SketchRejected("signature", "no")


async def test_sketches_that_can_not_be_used_are_offences_too() -> None:
    error, link, _ = await run([frame for _ in range(9) for frame in sketch(10)], Reader(refuse=True))
    assert isinstance(error, Quarantined)
    assert link.conduct.refused == {"sketch-signature": OFFENCES}


async def test_sketches_without_an_end() -> None:
    reader = Reader()
    error, _, _ = await run([frame for _ in range(100) for frame in sketch(50_000)], reader)
    assert isinstance(error, ProtocolError)
    assert error.reason == "rate"
    assert "more sketches than go along with its snapshots" in str(error)
    assert reader.sketches == (LEAST_BYTES + reader.max_sketch_bytes) // 50_000


@pytest.mark.parametrize("pays", ["snapshots", "heartbeats"])
async def test_as_many_sketches_as_snapshots_and_heartbeats_pay_for(pays: str) -> None:
    reader, frames = Reader(), list[Frame]()
    for number in range(1, 9):
        paying = snapshot(number=number) if pays == "snapshots" else [wire.heartbeat()]
        frames += [*paying, *sketch(LEAST_BYTES // 2), *sketch(LEAST_BYTES // 2)]
    error, _, _ = await run(frames, reader)
    assert "ended the link without a word" in str(error)
    assert reader.sketches == 16


async def test_what_heartbeats_pay_for_is_not_saved_up() -> None:
    """Or a peer could send tens of thousands of sketches at once, after a quiet day."""
    reader = Reader()
    error, _, _ = await run(
        [*[wire.heartbeat()] * 60, *(frame for _ in range(100) for frame in sketch(50_000))], reader
    )
    assert isinstance(error, ProtocolError)
    assert error.reason == "rate"
    assert reader.sketches == (LEAST_BYTES + LEAST_BYTES + reader.max_sketch_bytes) // 50_000


async def test_heartbeats_without_an_end() -> None:
    error, _, _ = await run([wire.heartbeat()] * 1000)
    assert isinstance(error, ProtocolError)
    assert error.reason == "rate"
    assert str(error) == "mallory sent more heartbeats than one in 2 s"


async def test_heartbeats_that_a_pause_has_held_up_are_welcome() -> None:
    error, _, _ = await run([wire.heartbeat()] * 60)
    assert "ended the link without a word" in str(error)


async def test_a_link_is_read_no_faster_than_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is accused: what comes too fast waits on the other side."""
    monkeypatch.setattr(wire, "FRAMES_AT_ONCE", 10)
    monkeypatch.setattr(wire, "FRAMES_PER_SECOND", 1000)
    began = asyncio.get_running_loop().time()
    _, conduct = await outcomes(*(snapshot(number=n) for n in range(1, 7)))
    assert conduct.refused.keys() == {"throttled"}
    assert asyncio.get_running_loop().time() - began >= (6 * 9 - 10) / 1000


class Dribble(Script):
    """Says what is written, and then heartbeats for ever, each soon enough to live."""

    async def read(self) -> Frame | memoryview | None:
        if self.messages:
            return await super().read()
        await asyncio.sleep(0.02)
        return wire.heartbeat()


@pytest.mark.parametrize(("frames", "kind"), [(HEAD, "snapshot"), ([header()], "snapshot"), (sketch(9)[:1], "sketch")])
async def test_a_transfer_that_dribbles(frames: list[Frame], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "SILENCE_SECONDS", 0.5)
    monkeypatch.setattr(wire, "HEARTBEAT_SECONDS", 0.01)
    link = Link(PEER, Dribble(frames), dialled=True, depth=1)
    with pytest.raises(
        Overdue, match=f"mallory began a {kind} and did not end it in time; a link has to carry"
    ) as caught:
        await asyncio.wait_for(link.run(Reader()), 10)
    assert caught.value.reason == "slow"


def test_a_link_at_its_slowest_is_in_time() -> None:
    """1 MiB in SILENCE_SECONDS, whatever the length; what waits in buffers comes on top."""
    for nbytes in (1, CHUNK_BYTES, 100 * CHUNK_BYTES):
        assert wire.transfer_seconds(nbytes) >= wire.SILENCE_SECONDS * (1 + nbytes / CHUNK_BYTES)


async def test_a_peer_that_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(Dribble):
        async def write(self, message: Frame | bytes) -> None:
            await asyncio.Event().wait()

    monkeypatch.setattr(wire, "STALL_SECONDS", 0.1)
    monkeypatch.setattr(wire, "HEARTBEAT_SECONDS", 0.01)
    link = Link(PEER, Full([]), dialled=True, depth=1)
    with pytest.raises(Overdue, match=r"^mallory took nothing for 0 s$") as caught:
        await asyncio.wait_for(link.run(Inbox()), 10)
    assert caught.value.reason == "stalled"


async def test_a_frame_of_many_small_parts_is_refused_unread() -> None:
    """Protobuf would make of 1 MiB many times as much."""
    hello = wire.hello("x", b"", SETTINGS)
    hello.hello.encodings.extend([""] * 500_000)
    message = hello.SerializeToString()
    assert len(message) < wire.MAX_FRAME_BYTES
    for hidden in (message, b"\x1a\x00" + message):  # at once, or after an empty chunk
        with pytest.raises(wire.TooLarge, match=f"a frame of {len(hidden)} bytes that is no chunk"):
            wire.parse(hidden)


def peak(action: Callable[[], object]) -> int:
    """Bytes that Python held at most meanwhile."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class Flood(Script):
    """Says messages that are made one at a time, and hears nothing."""

    def __init__(self, messages: Iterable[bytes]) -> None:
        super().__init__([])
        self._endless = iter(messages)

    async def read(self) -> Frame | memoryview | None:
        await asyncio.sleep(0)
        message = next(self._endless, None)
        return wire.parse(message) if message else None

    async def write(self, message: Frame | bytes) -> None:
        pass


def held(messages: Iterable[bytes]) -> int:
    """Bytes that a link holds at most while these come."""

    def go() -> None:
        with pytest.raises(PeerError):
            asyncio.run(Link(PEER, Flood(messages), dialled=True, depth=1).run(Reader()))

    return peak(go)


def times(n: int, make: Callable[[int], Iterable[Frame]]) -> Iterable[bytes]:
    return (frame.SerializeToString() for i in range(1, n + 1) for frame in make(i))


LARGEST = Frame(goodbye=wire.goodbye(Goodbye.REASON_LEAVING, "x" * (wire.MAX_CONTROL_BYTES - 20)).goodbye)
FLOODS: dict[str, Callable[[int], Iterable[Frame]]] = {
    "snapshots": lambda i: [*snapshot(number=i), *HEARTBEATS[:1]],
    "sketches": lambda i: [*snapshot(number=i), *sketch(100_000)],
    "a sketch in small pieces": lambda i: [chunk(b"x")] if i > 1 else sketch(100_000)[:1],
    "snapshots that are broken off": lambda i: [*HEAD, header(number=i)],
    "the largest frames": lambda i: [LARGEST],
}


@pytest.mark.parametrize("kind", FLOODS)
def test_what_a_link_holds_has_a_bound(kind: str) -> None:
    """That of docs/reference/protocol.md, however much comes."""
    header_bytes, sketch_bytes = len(FP32.header), Reader.max_sketch_bytes
    bound = 2 * wire.MAX_FRAME_BYTES + wire.MAX_CONTROL_BYTES + header_bytes + 3 * sketch_bytes
    few, many = held(times(20, FLOODS[kind])), held(times(400, FLOODS[kind]))
    assert many < bound
    assert many < few + 256 * 1024
