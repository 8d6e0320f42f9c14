"""`conlora check` asks a peer whether it is reachable, trusted and of the same federation, and leaves no trace."""

import asyncio
import dataclasses
import socket
from collections.abc import Callable

import pytest
from tests.meshes import PATIENCE, SETTINGS, Member, linked, until

from conlora.core.federation import FederationSettings
from conlora.errors import PeerError, SettingsMismatch
from conlora.net import probe as probe_module
from conlora.net.introductions import Introductions

Members = Callable[[str], Member]


async def probe(a: Member, b: Member, settings: FederationSettings = SETTINGS, seconds: float = PATIENCE) -> None:
    """In another thread, since it runs a loop of its own, as in `conlora check`."""
    us = Introductions(a.identity, lambda peer: None)
    await asyncio.to_thread(probe_module.probe, a.name, us, b.card(), settings, seconds)


async def test_a_probe_leaves_no_trace(member: Members) -> None:
    a, b = member("a"), member("b")
    await a.start(b.card(dialled=False))
    await b.start(a.card())
    await until(lambda: linked(a, b), "a link")
    link = b.link(a)
    await probe(a, b)
    assert b.link(a) is link
    assert b.node.events == [("up", "a")]
    with pytest.raises(SettingsMismatch, match="b does not fit: seed: ours is 2, theirs 1"):
        await probe(a, b, dataclasses.replace(SETTINGS, seed=2))
    assert b.link(a) is link


async def test_a_probe_of_a_silent_address_is_a_sentence(member: Members) -> None:
    a, b = member("a"), member("b")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        b.address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(PeerError, match="b did not answer within 0 s; is it running, and does a firewall let"):
            await probe(a, b, seconds=0.3)


async def test_a_probe_of_somebody_else_is_a_sentence(member: Members) -> None:
    a, b, c = member("a"), member("b"), member("c")
    await c.start(a.card(dialled=False))
    b.address = c.address
    with pytest.raises(PeerError, match="another certificate than its card; ask b for a new card"):
        await probe(a, b)
    assert c.node.events == []
