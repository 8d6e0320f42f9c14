"""Links between meshes over real TLS on loopback: they come up once, compare settings, carry snapshots."""

import asyncio
import dataclasses
import socket
from collections.abc import Callable
from typing import Any

import pytest
from tests.meshes import SETTINGS, Member, by_id, link_up, linked, pair, snapshot, until

from conlora.core.federation import FederationSettings
from conlora.errors import Unavailable
from conlora.net import dialling, streams
from conlora.net.link import Link
from conlora.net.streams import AcceptedStream
from conlora.net.wire import Frame

Members = Callable[[str], Member]


@pytest.mark.parametrize(("a_dials", "b_dials"), [(True, False), (False, True), (True, True)])
async def test_a_link_comes_up_whoever_dials(member: Members, a_dials: bool, b_dials: bool) -> None:
    a, b = await pair(member, a_dials, b_dials)
    assert (a.state(b).word, b.state(a).word) == ("up", "up")
    for here, there in ((a, b), (b, a)):
        assert here.mesh is not None
        here.node.first = [snapshot(7, degree=3)]  # where both dial, another link may yet replace this one
        here.mesh.publish(here.node.first[0])
        await until(lambda there=there: there.node.snapshots, "a snapshot at the other end")
    assert (set(a.node.snapshots), set(b.node.snapshots)) == ({("b", 7, 3, True)}, {("a", 7, 3, True)})


@pytest.mark.parametrize("low_first", ["dialled", "accepted"])
@pytest.mark.parametrize("high_first", ["dialled", "accepted"])
async def test_dialling_each_other_at_once_ends_with_one_link(
    member: Members, monkeypatch: pytest.MonkeyPatch, low_first: str, high_first: str
) -> None:
    """All handshakes of both links are done before either end admits a link, in each possible order."""
    low, high = by_id(member)
    crossing, shake_hands, everybody = [], Link.shake_hands, asyncio.Event()

    async def held_back(link: Link, name: str, *others: Any) -> bool:
        probes = await shake_hands(link, name, *others)
        crossing.append(link)
        if len(crossing) == 4:
            everybody.set()
        await everybody.wait()
        here, first = (low, low_first) if name == low.name else (high, high_first)
        if link.dialled != (first == "dialled"):
            await here.node.linked.wait()  # the other link is admitted first, and this one right after
        return probes

    monkeypatch.setattr(Link, "shake_hands", held_back)
    await asyncio.gather(low.start(high.card(), settings=None), high.start(low.card(), settings=None))
    for each in (low, high):
        assert each.mesh is not None
        each.mesh.begin(SETTINGS)
    await until(lambda: len(crossing) == 4 and linked(low, high), "the same link at both ends")
    for here, there in ((low, high), (high, low)):
        assert here.mesh is not None
        here.mesh.publish(snapshot(1))
        await until(lambda there=there: there.node.snapshots, "a snapshot at the other end")
    link = low.link(high)
    assert link is not None
    assert link.dialled
    assert linked(low, high)
    assert len(crossing) == 4
    for each in (low, high):  # a link that gave way is replaced, never down
        assert {event for event, _ in each.node.events} == {"up"}
        assert len(each.node.snapshots) == 1


async def test_three_members_have_three_edges(member: Members) -> None:
    a, b, c = member("a"), member("b"), member("c")
    await a.start(b.card(), c.card())
    await b.start(a.card(), c.card(dialled=False))
    await c.start(a.card(dialled=False), b.card())
    await until(lambda: linked(a, b) and linked(b, c) and linked(a, c), "all edges")
    assert a.mesh is not None
    a.mesh.publish(snapshot(1))
    await until(lambda: b.node.snapshots and c.node.snapshots, "a's snapshot at both")
    assert b.node.snapshots == c.node.snapshots == [("a", 1, 1, True)]


async def test_snapshots_of_many_chunks_arrive_bit_exact_both_ways(member: Members) -> None:
    a, b = member("a"), member("b")
    a.node.size = b.node.size = size = 5 * 2**18 + 3
    await link_up(a, b)
    for here in (a, b):
        assert here.mesh is not None
        here.mesh.publish(snapshot(1, size))
    await until(lambda: a.node.snapshots and b.node.snapshots, "both snapshots")
    assert a.node.snapshots == [("b", 1, 1, True)]
    assert b.node.snapshots == [("a", 1, 1, True)]
    link = b.link(a)
    assert link is not None
    assert link.counts.bytes_received == a.node.formats["fp32"].nbytes


async def test_a_new_link_begins_with_what_the_node_has(member: Members) -> None:
    a, b = member("a"), member("b")
    a.node.first = [snapshot(4)]
    await a.start(b.card())
    await b.start(a.card(dialled=False))
    await until(lambda: b.node.snapshots, "the first snapshot")
    assert b.node.snapshots == [("a", 4, 1, True)]


@pytest.mark.parametrize(("depth", "expected"), [(1, [1, 6]), (2, [1, 5, 6])])
async def test_a_slow_receiver_gets_the_newest(
    member: Members, monkeypatch: pytest.MonkeyPatch, depth: int, expected: list[int]
) -> None:
    a, b = member("a"), member("b")
    a.node.size = b.node.size = size = 4 << 20  # more bytes than the transport takes in advance
    await a.start(b.card(), depth=depth)
    await b.start(a.card(dialled=False), depth=depth)
    await until(lambda: linked(a, b), "one link")
    reading, read = asyncio.Event(), AcceptedStream.read

    async def gated(stream: AcceptedStream) -> Frame | memoryview | None:
        await reading.wait()
        return await read(stream)

    monkeypatch.setattr(AcceptedStream, "read", gated)
    link = a.link(b)
    assert link is not None
    assert a.mesh is not None
    a.mesh.publish(snapshot(1, size))
    await until(lambda: link.counts.bytes_sent, "a has begun to send")
    for round_ in (2, 3, 4, 5, 6):
        a.mesh.publish(snapshot(round_, size))
    reading.set()
    await until(lambda: b.node.snapshots and b.node.snapshots[-1][1] == 6, "the newest")
    assert b.node.snapshots == [("a", round_, 1, True) for round_ in expected]


OTHER = {"peft": '{"rank": 4}', "seed": 2, "local_steps": 9, "task": "[]", "mode": "sync"}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(FederationSettings)])
async def test_a_mismatch_is_named_on_both_sides(member: Members, field: str) -> None:
    a, b = member("a"), member("b")
    other = dataclasses.replace(SETTINGS, **{field: OTHER.get(field, "other")})
    await b.start(a.card(dialled=False), settings=other)
    await a.start(b.card())
    await until(lambda: a.state(b).refused and b.state(a).refused, "refused on both sides")
    for here, there in ((a, b), (b, a)):
        state = here.state(there)
        assert state.last_error.startswith(f"{there.name} does not fit: {field}: ours is ")
        assert ";" not in state.last_error
        assert state.word == "refused"
        assert here.node.events == []
    assert a.state(b).retry_at or await until(lambda: a.state(b).retry_at, "a waits")
    assert a.state(b).retry_at - asyncio.get_running_loop().time() > dialling.LONGEST_RETRY_SECONDS


async def test_a_peer_that_still_loads_its_model_is_waited_for(member: Members) -> None:
    a, b = member("a"), member("b")
    mesh = await b.start(a.card(dialled=False), settings=None)
    await a.start(b.card())
    await until(lambda: mesh._service is not None, "b listens")
    mesh.begin(SETTINGS)
    await until(lambda: linked(a, b), "one link")


async def test_a_taken_address_is_a_sentence(member: Members) -> None:
    a, b = member("a"), member("b")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        a.address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(Unavailable, match="can't be used; it may be taken by another program"):
            await a.start(b.card())


async def test_nobody_there_is_a_sentence_and_is_tried_again(member: Members) -> None:
    a, b = member("a"), member("b")
    await a.start(b.card())
    await until(lambda: a.state(b).last_error, "an error")
    assert a.state(b).last_error == "b can't be reached or went away (connection refused)"
    assert a.state(b).word == "down"
    await b.start(a.card(dialled=False))
    await until(lambda: linked(a, b), "up")


async def test_who_takes_a_connection_and_says_nothing(member: Members, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is stopped, for one: its kernel still answers. It is not said to have kept a Hello back."""
    limits = {**dict(streams.DIALLING_LIMITS), "grpc.min_reconnect_backoff_ms": 300}
    monkeypatch.setattr(streams, "DIALLING_LIMITS", list(limits.items()))
    a, b = member("a"), member("b")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        b.address = f"127.0.0.1:{silent.getsockname()[1]}"
        await a.start(b.card())
        await until(lambda: a.state(b).last_error, "an error")
    assert a.state(b).last_error == "b can't be reached or went away (it takes the connection, and says nothing)"
    assert not a.state(b).conduct.refused
