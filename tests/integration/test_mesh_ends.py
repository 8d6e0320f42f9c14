"""How links end: on both ends, with a reason; by silence, by a restart, by a new start; and that idle ones do not."""

import asyncio
import copy
from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs
from tests.meshes import FakeNode, Member, by_id, link_up, linked, noted, pair, until

from conlora.net import dialling, wire
from conlora.net import mesh as mesh_module
from conlora.net.edge import PeerState
from conlora.net.link import Link
from conlora.net.mesh import Mesh
from conlora.net.streams import FrameStream, dialled_stream
from conlora.net.wire import Frame

Members = Callable[[str], Member]


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
    second = copy.copy(a)  # the same identity, started anew
    second.node = FakeNode()
    await second.start(b.card(), listens=False)
    await until(lambda: linked(second, b), "the new link")
    new = b.link(a)
    assert new is not None
    assert new.instance != old.instance
    assert [event for event, _ in b.node.events] == ["up", "up"]
    await until(lambda: a.link(b) is None, "the leftover is closed")
    assert linked(second, b)
    await second.close()


async def test_a_dialler_that_vanishes_leaves_a_reason(member: Members) -> None:
    a, b = await pair(member)
    assert a.mesh is not None
    a.mesh._dialler.tasks[b.identity.node_id].cancel()  # ends the connection with no good-bye, as kill -9 does
    await until(lambda: b.link(a) is None and b.state(a).last_error, "down at b")
    assert b.state(a).last_error == "a went away without a word"
    assert b.node.events == [("up", "a"), ("down", "a")]


@pytest.mark.parametrize("a_dials", [True, False])
async def test_silence_ends_the_link(member: Members, monkeypatch: pytest.MonkeyPatch, a_dials: bool) -> None:
    """As with SIGSTOP: connections stay, nothing comes. The other side is told by the end of the stream."""
    monkeypatch.setattr(wire, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(wire, "SILENCE_SECONDS", 1.0)
    a, b = await pair(member, a_dials, not a_dials)
    link = a.link(b)
    assert link is not None

    async def frozen(message: Frame | bytes) -> None:
        await asyncio.Event().wait()

    reasons = noted(monkeypatch, b)
    monkeypatch.setattr(link._talk, "say", frozen)
    await until(lambda: ("down", "a") in b.node.events and reasons, "dead at b")
    assert reasons[0] == "nothing heard from a for 1 s"
    await until(lambda: ("down", "b") in a.node.events, "dead at a")


async def test_heartbeats_keep_an_idle_link_alive(member: Members, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(wire, "SILENCE_SECONDS", 1.0)
    beats, read = [], FrameStream.read

    async def counted(stream: FrameStream) -> Frame | memoryview | None:
        beats.append(frame := await read(stream))
        return frame

    monkeypatch.setattr(FrameStream, "read", counted)
    a, b = await pair(member)
    await until(lambda: len(beats) > 60, "1.5 s of heartbeats from either side")
    assert a.node.events == [("up", "b")]
    assert b.node.events == [("up", "a")]


async def test_no_link_is_admitted_while_leaving(member: Members, monkeypatch: pytest.MonkeyPatch) -> None:
    """One peer takes no good-bye; the other redials meanwhile, and must not count on a node that is about to end."""
    a, slow, quick = member("a"), member("slow"), member("quick")
    await a.start(slow.card(dialled=False), quick.card(dialled=False))
    await slow.start(a.card())
    await quick.start(a.card())
    await until(lambda: linked(a, slow) and linked(a, quick), "both links")
    link = a.link(slow)
    assert link is not None

    async def stuck(message: Frame | bytes) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(link._talk, "say", stuck)
    monkeypatch.setattr(dialling, "LONGEST_RETRY_SECONDS", 0.1)  # so that it redials often
    with capture_logs() as logs:
        await a.close()
    assert ("a peer took no good-bye", wire.GOODBYE_SECONDS) in [(e["event"], e.get("seconds")) for e in logs]
    assert [event for event, _ in quick.node.events] == ["up", "down"]
    assert a.node.events.count(("up", "quick")) == 1


async def test_a_defect_while_dialling_is_in_the_log_and_not_the_end_of_the_edge(
    member: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    dial, calls = mesh_module.Mesh._dial, 0

    async def defect(mesh: Mesh, state: PeerState) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("a defect")
        await dial(mesh, state)

    monkeypatch.setattr(mesh_module.Mesh, "_dial", defect)
    a, b = member("a"), member("b")
    await b.start(a.card(dialled=False))
    with capture_logs() as logs:
        await a.start(b.card(), listens=False)
        await until(lambda: linked(a, b), "a dials again")
    assert [(entry["event"], entry["peer"]) for entry in logs if entry["log_level"] == "error"] == [
        ("a link has failed by a defect; it is tried again", "b")
    ]


async def test_a_handshake_under_way_is_no_link_when_leaving(member: Members, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = member("a"), member("b")
    mesh = await a.start(b.card(dialled=False))
    shaken, shake_hands = asyncio.Event(), Link.shake_hands

    async def until_closing(link: Link, name: str, *others: Any) -> bool:
        probes = await shake_hands(link, name, *others)
        if name == "a":
            shaken.set()
            await until(lambda: mesh._closing, "a closes")
        return probes

    monkeypatch.setattr(Link, "shake_hands", until_closing)
    await b.start(a.card())
    reasons = noted(monkeypatch, b)
    await shaken.wait()
    await a.close()
    await until(lambda: b.link(a) is None and reasons, "down at b")
    assert a.node.events == []
    assert reasons[0] == "a said good-bye: the node stops"


async def test_what_ends_a_second_link_is_not_told_of_the_edge(
    member: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer that dials again and hangs up, while the edge has its link."""
    a, b = await pair(member)
    reasons = noted(monkeypatch, b)
    async with dialled_stream(a.identity, b.card()) as stream:
        assert await stream.read() is not None, "b says Hello"
    await until(lambda: reasons, "b has noticed")
    # gRPC tells it by the end of the stream, or by cancelling what reads from it, whichever is first
    assert reasons in (["a ended the link without a word"], ["a went away without a word"])
    assert (b.state(a).word, b.state(a).last_error) == ("up", "")
