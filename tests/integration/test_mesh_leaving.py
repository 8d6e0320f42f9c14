"""Nodes that leave and come back: what their neighbours see, and that nobody is asked in vain."""

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import structlog
from tests.meshes import Member, link_up, linked, pair, snapshot, until

from conlora.net import dialling
from conlora.net import mesh as mesh_module
from conlora.net.edge import PeerState
from conlora.net.mesh import Mesh
from conlora.net.streams import dialled_stream

Members = Callable[[str], Member]

HAS_LEFT = "a has left; the link comes up again when it comes back"


def running(member: Member) -> Mesh:
    assert member.mesh is not None
    return member.mesh


def changes(member: Member) -> list[tuple[str, str]]:
    """Where both dial, a second link may have replaced the first."""
    return [event for event, _ in itertools.groupby(member.node.events)]


def warnings(entries: list[Any]) -> list[Any]:
    return [entry for entry in entries if entry["log_level"] not in ("info", "debug")]


@pytest.mark.parametrize(("a_dials", "b_dials"), [(True, False), (False, True), (True, True)])
async def test_who_leaves_is_shown_as_left_and_not_as_lost(member: Members, a_dials: bool, b_dials: bool) -> None:
    a, b = await pair(member, a_dials, b_dials)
    with structlog.testing.capture_logs() as logged:
        await running(a).leave()
        await until(lambda: b.state(a).word == "left", "b knows")
        assert (a.link(b), b.link(a)) == (None, None)
        assert b.state(a).last_error == HAS_LEFT
        assert changes(b) == [("up", "a"), ("down", "a")]
        await a.close()
        if b_dials:
            before = await until(lambda: b.state(a).retry_at, "b has tried")
            running(b).change([a.card()])
            await until(lambda: b.state(a).retry_at not in (0, before), "once more, for its operator: nobody answers")
    assert not warnings(logged)
    assert (b.state(a).word, b.state(a).last_error) == ("left", HAS_LEFT)


async def test_who_has_left_is_dialled_now_and_then_and_links_up_at_once_when_it_dials(
    member: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    dialled: list[str] = []

    def counted(identity: Any, peer: Any, chain: Any) -> Any:
        dialled.append(peer.name)
        return dialled_stream(identity, peer, chain)

    a, b = await pair(member, a_dials=True, b_dials=True)
    monkeypatch.setattr(mesh_module, "dialled_stream", counted)
    await running(a).leave()
    await until(lambda: b.state(a).word == "left" and b.state(a).retry_at, "b waits")
    assert dialled.count("a") <= 1
    assert b.state(a).retry_at - asyncio.get_running_loop().time() > 10
    running(a).come_back()
    await until(lambda: linked(a, b), "up again")
    assert dialled.count("b") == 1
    assert (b.state(a).word, b.state(a).last_error) == ("up", "")
    # A call that a had begun before it left may have come up for a moment.
    assert changes(b)[:2] == [("up", "a"), ("down", "a")]
    assert changes(b)[-2:] == [("down", "a"), ("up", "a")]


async def test_a_node_that_comes_back_and_can_not_dial_is_dialled_soon_and_without_a_word(
    member: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialling, "LONGEST_RETRY_SECONDS", 0.05)
    a, b = await pair(member, a_dials=False, b_dials=True)
    tries: list[Any] = []
    note_left = PeerState.note_left

    def counted(state: PeerState, sentence: str) -> None:
        tries.append(sentence)
        note_left(state, sentence)

    monkeypatch.setattr(PeerState, "note_left", counted)
    with structlog.testing.capture_logs() as logged:
        await running(a).leave()
        await until(lambda: len(tries) > 3, "b has tried again and again")
        running(a).come_back()
        await until(lambda: linked(a, b), "up again", seconds=5)
    assert [entry["event"] for entry in logged if entry.get("peer") == "a"] == ["peer left", "link up"]


async def test_who_dials_a_node_that_has_left_hears_so(member: Members) -> None:
    """Also one that was not there when it said so."""
    a, b = member("a"), member("b")
    await a.start(b.card(dialled=False))
    await running(a).leave()
    await b.start(a.card())
    await until(lambda: b.state(a).word == "left", "b knows")
    assert b.state(a).last_error == HAS_LEFT
    assert b.node.events == []


async def test_a_snapshot_under_way_does_not_hold_a_good_bye_up(
    member: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody will mix it: the edge is dead."""
    a, b = member("a"), member("b")
    a.node.size = b.node.size = size = 4_000_000
    await link_up(a, b)
    link = a.link(b)
    assert link is not None
    parts, going_on, send = [], asyncio.Event(), link._send_part

    async def slow(part: Any) -> None:
        parts.append(part)
        if len(parts) == 3:
            await going_on.wait()
        await send(part)

    monkeypatch.setattr(link, "_send_part", slow)
    running(a).publish(snapshot(1, size))
    await until(lambda: len(parts) == 3, "it is being sent")
    leaving = asyncio.create_task(running(a).leave())
    await asyncio.sleep(0)
    going_on.set()
    await leaving
    await until(lambda: b.state(a).word == "left", "b knows")
    assert len(parts) == 3
    assert b.node.snapshots == []


async def test_a_new_certificate_is_still_named_where_a_peer_had_left(member: Members) -> None:
    a, b = await pair(member, a_dials=False, b_dials=True)
    await running(a).leave()
    await until(lambda: b.state(a).word == "left", "b knows")
    await a.close()
    stranger = member("stranger")
    stranger.address = a.address
    await stranger.start(b.card(dialled=False))
    running(b).change([a.card()])
    await until(lambda: b.state(a).word == "refused", "somebody else answers there")


async def test_both_ends_may_leave_and_come_back(member: Members) -> None:
    a, b = await pair(member, a_dials=True, b_dials=True)
    await asyncio.gather(running(a).leave(), running(b).leave())
    assert (a.link(b), b.link(a)) == (None, None)
    running(b).come_back()
    await until(lambda: b.state(a).word == "left", "a is away still")
    running(a).come_back()
    await until(lambda: linked(a, b), "up again")
