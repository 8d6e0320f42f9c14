"""Peers that are added, removed or moved while links to others are up, over real TLS on loopback."""

from collections.abc import Callable

import pytest
from tests.daemons import free_port
from tests.meshes import Member, linked, noted, pair, snapshot, until

from conlora.core.encoding import Encoding
from conlora.net import dialling, wire
from conlora.net.mesh import Mesh

Members = Callable[[str], Member]


def running(member: Member) -> Mesh:
    assert member.mesh is not None
    return member.mesh


@pytest.mark.parametrize(("a_dials", "c_dials"), [(True, False), (False, True)])
async def test_a_peer_is_added_while_another_link_is_up(member: Members, a_dials: bool, c_dials: bool) -> None:
    """TLS admits it from then on, and not before."""
    a, b = await pair(member, a_dials=False, b_dials=True)
    kept, c = a.link(b), member("c")
    await c.start(a.card(dialled=c_dials))
    if c_dials:
        await until(lambda: c.state(a).last_error, "a does not know c")
        assert c.link(a) is None
    running(a).change([b.card(dialled=False), c.card(dialled=a_dials)])
    await until(lambda: linked(a, c), "a link with the new one")
    running(a).publish(snapshot(3))
    await until(lambda: b.node.snapshots and c.node.snapshots, "a's snapshot at both")
    assert a.link(b) is kept
    assert b.node.events == [("up", "a")]


@pytest.mark.parametrize("a_dials", [True, False])
async def test_a_removed_peer_is_parted_from_and_let_in_no_more(
    member: Members, monkeypatch: pytest.MonkeyPatch, a_dials: bool
) -> None:
    a, b = await pair(member, a_dials, not a_dials)
    c = member("c")
    await c.start(a.card())
    running(a).change([b.card(dialled=a_dials), c.card(dialled=False)])
    await until(lambda: linked(a, c), "a link with c")
    kept, told = a.link(c), noted(monkeypatch, b)
    await running(a).part([b.identity.node_id])
    assert a.node.events[-1] == ("down", "b"), "at once"
    assert b.identity.node_id not in running(a).states
    running(a).change([c.card(dialled=False)])
    await until(lambda: b.link(a) is None, "down at b")
    await until(lambda: told, "b knows why")
    assert told[0] == "a said good-bye: its operator has removed this node"
    if not a_dials:
        await until(lambda: len(told) > 1, "b has tried again")
        assert "said good-bye" not in told[1]
    assert a.link(c) is kept
    assert b.node.events == [("up", "a"), ("down", "a")]


async def test_a_peer_that_takes_no_good_bye_is_removed_all_the_same(
    member: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await pair(member, a_dials=False, b_dials=True)
    link = a.link(b)
    assert link is not None
    monkeypatch.setattr(wire, "GOODBYE_SECONDS", 0.1)
    monkeypatch.setattr(link, "close", lambda reason, detail: None)
    await running(a).part([b.identity.node_id])
    assert a.node.events == [("up", "b"), ("down", "b")]
    await until(lambda: b.link(a) is None, "down at b")


async def test_a_new_address_counts_at_once_where_there_is_no_link(
    member: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialling, "FIRST_RETRY_SECONDS", 1000.0)
    a, b = member("a"), member("b")
    await b.start(a.card(dialled=False))
    await a.start(b.card(address=f"127.0.0.1:{free_port()}"))
    await until(lambda: a.state(b).retry_at, "a has given up for now")
    running(a).change([b.card()])
    await until(lambda: linked(a, b), "one link")
    assert a.state(b).retry_at == 0


async def test_a_new_address_leaves_a_link_alone_and_counts_for_the_next_one(member: Members) -> None:
    a, b = await pair(member)
    kept = a.link(b)
    b.address = f"127.0.0.1:{free_port()}"
    running(a).change([b.card()])
    assert a.link(b) is kept
    await b.close()
    await until(lambda: a.link(b) is None, "down at a")
    await b.start(a.card(dialled=False))
    await until(lambda: linked(a, b), "at the new address")


async def test_a_peer_without_an_address_is_dialled_no_more(member: Members) -> None:
    a, b = await pair(member)
    running(a).change([b.card(dialled=False)])
    task = running(a)._dialler.tasks[b.identity.node_id]
    await b.close()
    await until(task.done, "a has stopped dialling")
    running(a).change([b.card()])
    await b.start(a.card(dialled=False))
    await until(lambda: linked(a, b), "with an address again")


async def test_another_encoding_is_used_on_the_link_that_is_up(member: Members) -> None:
    a, b = await pair(member)
    running(a).publish(snapshot(1))
    await until(lambda: b.node.snapshots, "a snapshot")
    kept, a.node.encoding = a.link(b), Encoding.BF16
    running(a).change([b.card()])
    assert kept is not None
    assert (a.link(b), kept.encoding) == (kept, Encoding.BF16)
    sent = kept.counts.bytes_sent
    running(a).publish(snapshot(2))
    await until(lambda: len(b.node.snapshots) == 2, "another snapshot")
    assert kept.counts.bytes_sent - sent == a.node.formats["bf16"].nbytes


async def test_the_first_peer_of_a_node_that_trained_alone(member: Members) -> None:
    """The port opens before it is known; until then it admits nobody."""
    a, b = member("a"), member("b")
    await a.start()
    await b.start(a.card())
    await until(lambda: b.state(a).last_error, "refused")
    running(a).change([b.card(dialled=False)])
    await until(lambda: linked(a, b), "one link")
