"""What networks do to links: peers that vanish without a word, partitions in one direction, links that flap."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from tests.meshes import Member, linked, snapshot, until
from tests.relays import BACK, FORTH, Relay

from conlora.net import dialling, wire

Members = Callable[[str], Member]
Wired = Callable[[], Awaitable[tuple[Member, Member, Relay]]]


@pytest.fixture
async def wired(member: Members, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Wired]:
    """Two members with a link, which a has dialled through a relay."""
    monkeypatch.setattr(wire, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(wire, "SILENCE_SECONDS", 0.5)
    monkeypatch.setattr(dialling, "LONGEST_RETRY_SECONDS", 0.2)
    relays: list[Relay] = []

    async def make() -> tuple[Member, Member, Relay]:
        a, b = member("a"), member("b")
        relays.append(relay := await Relay(b.address).__aenter__())
        await b.start(a.card(dialled=False))
        await a.start(b.card(address=relay.address))
        await until(lambda: linked(a, b), "one link")
        return a, b, relay

    yield make
    for relay in relays:
        await relay.__aexit__()


@pytest.mark.parametrize("stopped", [(FORTH, BACK), (FORTH,), (BACK,)], ids=["both ways", "only back", "only forth"])
async def test_a_peer_out_of_reach_is_dead_at_both_ends_until_the_network_heals(
    wired: Wired, stopped: tuple[str, ...]
) -> None:
    """Also where packets still come through in one direction: the edge dies for both, or weights would not be symmetric."""
    a, b, relay = await wired()
    relay.stop(*stopped)
    await until(lambda: not a.link(b) and not b.link(a), "dead at both ends")
    assert (a.node.events, b.node.events) == ([("up", "b"), ("down", "b")], [("up", "a"), ("down", "a")])
    assert any("nothing heard from" in each.last_error for each in (a.state(b), b.state(a)))
    relay.heal()
    await until(lambda: linked(a, b), "up again")
    assert a.mesh is not None
    a.mesh.publish(snapshot(7))
    await until(lambda: b.node.snapshots == [("a", 7, 1, True)], "snapshots flow again")


async def test_a_link_that_flaps_is_up_or_down_at_both_ends_and_leaves_nothing_behind(wired: Wired) -> None:
    a, b, relay = await wired()
    before = len(asyncio.all_tasks())
    for _ in range(20):
        relay.reset()
        await until(lambda: not linked(a, b), "down")
        await until(lambda: linked(a, b), "up again")
    for member, other in ((a, b), (b, a)):
        words = [word for word, _ in member.node.events]
        assert words == ["up", "down"] * (len(words) // 2) + ["up"], "each link has its end"
        assert member.link(other)
    assert a.mesh is not None
    a.mesh.publish(snapshot(7))
    await until(lambda: ("a", 7, 1, True) in b.node.snapshots, "snapshots flow")
    await until(lambda: len(asyncio.all_tasks()) <= before + 1, "no task is left of the links that broke")
