"""Links between meshes over real TLS on loopback: they come up once, carry snapshots, die on both ends, come back."""

import asyncio
import dataclasses
import socket
from collections.abc import Callable
from typing import Any

import pytest
from tests.meshes import SETTINGS, Member, linked, snapshot, until

from conlora.core.federation import FederationSettings
from conlora.errors import ConfigError
from conlora.net import mesh as mesh_module
from conlora.net import wire
from conlora.net.link import Link
from conlora.net.wire import Frame

Members = Callable[[str], Member]


async def link_up(a: Member, b: Member, a_dials: bool = True, b_dials: bool = False) -> None:
    """Starts two members and waits for their link."""
    await a.start(b.card(dialled=a_dials))
    await b.start(a.card(dialled=b_dials))
    await until(lambda: linked(a, b), "one link")


async def pair(member: Members, a_dials: bool = True, b_dials: bool = False) -> tuple[Member, Member]:
    """Two members with a link."""
    a, b = member("a"), member("b")
    await link_up(a, b, a_dials, b_dials)
    return a, b


@pytest.mark.parametrize(("a_dials", "b_dials"), [(True, False), (False, True), (True, True)])
async def test_a_link_comes_up_whoever_dials(member: Members, a_dials: bool, b_dials: bool) -> None:
    a, b = await pair(member, a_dials, b_dials)
    assert (a.state(b).word, b.state(a).word) == ("up", "up")
    for here, there in ((a, b), (b, a)):
        assert here.mesh is not None
        here.mesh.publish(snapshot(7, degree=3))
        await until(lambda there=there: there.node.snapshots, "a snapshot at the other end")
    assert (a.node.snapshots, b.node.snapshots) == ([("b", 7, 3, True)], [("a", 7, 3, True)])


def by_id(member: Members) -> list[Member]:
    """Two members, the one with the smaller id first: of two links, the one that it dialled is kept."""
    return sorted((member("a"), member("b")), key=lambda each: each.identity.node_id)


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
            await until(lambda: here.node.events, "the other link is admitted")
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
    a, b = await pair(member)
    size = 5 * 2**20 + 3
    for here in (a, b):
        assert here.mesh is not None
        here.mesh.publish(snapshot(1, size))
    await until(lambda: a.node.snapshots and b.node.snapshots, "both snapshots")
    assert a.node.snapshots == [("b", 1, 1, True)]
    assert b.node.snapshots == [("a", 1, 1, True)]
    link = b.link(a)
    assert link is not None
    assert link.bytes_received == size


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
    await a.start(b.card(), depth=depth)
    await b.start(a.card(dialled=False), depth=depth)
    await until(lambda: linked(a, b), "one link")
    reading, read = asyncio.Event(), mesh_module._AcceptedStream.read

    async def gated(stream: mesh_module._AcceptedStream) -> Frame | None:
        await reading.wait()
        return await read(stream)

    monkeypatch.setattr(mesh_module._AcceptedStream, "read", gated)
    link = a.link(b)
    assert link is not None
    assert a.mesh is not None
    size = 16 << 20  # more than the transport takes in advance
    a.mesh.publish(snapshot(1, size))
    await until(lambda: link.bytes_sent, "a has begun to send")
    for round_ in (2, 3, 4, 5, 6):
        a.mesh.publish(snapshot(round_, size))
    reading.set()
    await until(lambda: b.node.snapshots and b.node.snapshots[-1][1] == 6, "the newest")
    assert b.node.snapshots == [("a", round_, 1, True) for round_ in expected]


OTHER = {"peft": '{"rank": 4}', "seed": 2, "local_steps": 9, "labels": ("b", "a"), "mode": "sync"}


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
    assert a.state(b).retry_at - asyncio.get_running_loop().time() > mesh_module.LONGEST_RETRY_SECONDS


async def test_goodbye_ends_the_link_on_both_ends(member: Members) -> None:
    a, b = await pair(member, b_dials=True)
    await a.close()
    assert a.node.events[-1] == ("down", "b")
    await until(lambda: b.link(a) is None, "down at b", seconds=1)
    assert b.node.events[-1] == ("down", "a")
    assert b.state(a).word == "down"
    await until(
        lambda: "connection refused" in b.state(a).last_error or "the node stops" in b.state(a).last_error, "why"
    )


def noted(monkeypatch: pytest.MonkeyPatch, at: Member) -> list[str]:
    """Every sentence for the operator from now on: the state forgets the last one when a link comes up again."""
    reasons: list[str] = []
    assert at.mesh is not None
    monkeypatch.setattr(at.mesh, "_note", lambda state, sentence, refused: reasons.append(sentence))
    return reasons


@pytest.mark.parametrize(("a_dials", "b_dials"), [(True, False), (False, True)])
async def test_the_reason_of_a_goodbye_arrives(
    member: Members, monkeypatch: pytest.MonkeyPatch, a_dials: bool, b_dials: bool
) -> None:
    a, b = member("a"), member("b")
    for _ in range(5):  # what would overtake it does not always do so
        await link_up(a, b, a_dials, b_dials)
        reasons = noted(monkeypatch, b)
        await a.close()
        await until(lambda b=b, reasons=reasons: ("down", "a") in b.node.events and reasons, "down at b")
        assert reasons[0] == "a said good-bye: the node stops"
        await b.close()


async def test_a_restarted_peer_links_up_again(member: Members) -> None:
    a, b = await pair(member, a_dials=False, b_dials=True)
    await a.close()
    await until(lambda: b.link(a) is None, "down at b")
    await a.start(b.card(dialled=False))
    await until(lambda: linked(a, b), "up again")
    assert [event for event, _ in b.node.events] == ["up", "down", "up"]
    assert [event for event, _ in a.node.events] == ["up", "down", "up"]
    assert b.state(a).last_error == ""


async def test_a_new_start_replaces_the_leftover_of_a_killed_one(member: Members) -> None:
    """The old link still looks alive, as after kill -9 behind a router that tells nobody; b itself would prefer it."""
    b, a = by_id(member)
    await link_up(a, b, a_dials=False, b_dials=True)
    old = b.link(a)
    assert old is not None
    second = Member.__new__(Member)  # the same identity, started anew
    second.__dict__.update(a.__dict__)
    await second.start(b.card(), listens=False)
    await until(lambda: b.link(a) is not old and b.link(a), "the new link")
    new = b.link(a)
    assert new is not None
    assert new.instance != old.instance
    assert [event for event, _ in b.node.events] == ["up", "up"]
    await second.close()


@pytest.mark.parametrize("a_dials", [True, False])
async def test_silence_ends_the_link(member: Members, monkeypatch: pytest.MonkeyPatch, a_dials: bool) -> None:
    """As with SIGSTOP: connections stay, nothing comes. The other side is told by the end of the stream."""
    monkeypatch.setattr(wire, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(wire, "SILENCE_SECONDS", 1.0)
    a, b = await pair(member, a_dials, not a_dials)
    link = a.link(b)
    assert link is not None

    async def frozen(frame: Frame) -> None:
        await asyncio.Event().wait()

    reasons = noted(monkeypatch, b)
    monkeypatch.setattr(link, "_write", frozen)
    await until(lambda: ("down", "a") in b.node.events and reasons, "dead at b")
    assert reasons[0] == "nothing heard from a for 1 s"
    await until(lambda: ("down", "b") in a.node.events, "dead at a")


async def test_heartbeats_keep_an_idle_link_alive(member: Members, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(wire, "SILENCE_SECONDS", 1.0)
    beats, read = [], mesh_module._Stream.read

    async def counted(stream: mesh_module._Stream) -> Frame | None:
        beats.append(frame := await read(stream))
        return frame

    monkeypatch.setattr(mesh_module._Stream, "read", counted)
    a, b = await pair(member)
    await until(lambda: len(beats) > 60, "1.5 s of heartbeats from either side")
    assert a.node.events == [("up", "b")]
    assert b.node.events == [("up", "a")]


async def test_a_peer_that_still_loads_its_model_is_waited_for(member: Members) -> None:
    a, b = member("a"), member("b")
    mesh = await b.start(a.card(dialled=False), settings=None)
    await a.start(b.card())
    await until(lambda: mesh._service is not None, "b listens")
    mesh.begin(SETTINGS)
    await until(lambda: linked(a, b), "one link")


async def test_no_link_is_admitted_while_leaving(member: Members, monkeypatch: pytest.MonkeyPatch) -> None:
    """One peer takes no good-bye; the other redials meanwhile, and must not count on a node that is about to end."""
    a, slow, quick = member("a"), member("slow"), member("quick")
    await a.start(slow.card(dialled=False), quick.card(dialled=False))
    await slow.start(a.card())
    await quick.start(a.card())
    await until(lambda: linked(a, slow) and linked(a, quick), "both links")
    link = a.link(slow)
    assert link is not None

    async def stuck(frame: Frame) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(link, "_write", stuck)
    monkeypatch.setattr(mesh_module, "LONGEST_RETRY_SECONDS", 0.1)  # so that it redials often
    await a.close()
    assert [event for event, _ in quick.node.events] == ["up", "down"]
    assert a.node.events.count(("up", "quick")) == 1


async def test_a_taken_address_is_a_sentence(member: Members) -> None:
    a, b = member("a"), member("b")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        a.address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(ConfigError, match="can't be used; it may be taken by another program"):
            await a.start(b.card())


async def test_nobody_there_is_a_sentence_and_is_tried_again(member: Members) -> None:
    a, b = member("a"), member("b")
    await a.start(b.card())
    await until(lambda: a.state(b).last_error, "an error")
    assert a.state(b).last_error == "b can't be reached or went away (connection refused)"
    assert a.state(b).word == "down"
    await b.start(a.card(dialled=False))
    await until(lambda: linked(a, b), "up")
