"""Sketches between meshes over real TLS on loopback: beside snapshots, with heartbeats, and where they are refused."""

from collections.abc import Callable

import pytest
from tests.meshes import Member, link_up, pair, snapshot, until

from conlora.core.encoding import CHUNK_BYTES
from conlora.net import wire
from conlora.net.wire import SketchHeader, Transfer

Members = Callable[[str], Member]


def sketch(payload: bytes, age: float = 0.0) -> Transfer:
    return Transfer(SketchHeader(nbytes=len(payload), age_seconds=age), payload)


async def test_a_sketch_follows_the_snapshot(member: Members, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "HEARTBEAT_SECONDS", 10.0)
    a, b = member("a"), member("b")
    a.node.size = b.node.size = size = 3 * CHUNK_BYTES // 4
    await link_up(a, b)
    a.node.owed = [sketch(b"first"), sketch(b"second")]
    assert a.mesh is not None
    a.mesh.publish(snapshot(1, size))
    await until(lambda: len(b.node.sketches) == 2, "both at the other end")
    assert b.node.sketches == [("a", b"first"), ("a", b"second")]
    assert [taken[1] for taken in b.node.snapshots] == [1]
    await until(lambda: a.state(b).counts.sketch_bytes_sent == 11, "counted")
    expected = a.node.formats["fp32"].nbytes + 11
    assert a.state(b).counts.bytes_sent == b.state(a).counts.bytes_received == expected


async def test_sketches_go_with_heartbeats_in_both_directions_and_in_many_chunks(
    member: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "HEARTBEAT_SECONDS", 0.05)
    a, b = member("a"), member("b")
    a.node.max_sketch_bytes = b.node.max_sketch_bytes = 4 * CHUNK_BYTES
    await a.start(b.card())
    await b.start(a.card(dialled=False))
    long = bytes(range(1, 256)) * 10_000
    a.node.owed, b.node.owed = [sketch(long)], [sketch(b"x")]
    await until(lambda: a.node.sketches and b.node.sketches, "one at each end")
    assert (a.node.sketches, b.node.sketches) == ([("b", b"x")], [("a", long)])


async def test_a_refused_sketch_costs_a_count_and_the_link_carries_on(
    member: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "HEARTBEAT_SECONDS", 0.05)
    a, b = await pair(member)
    link = b.link(a)
    a.node.owed = [sketch(b"\0bad"), sketch(b"good")]
    await until(lambda: b.node.sketches, "the good one")
    assert b.node.sketches == [("a", b"good")]
    assert b.state(a).counts.sketches_rejected == 1
    assert b.state(a).counts.rejected == 0
    assert a.mesh is not None
    a.mesh.publish(snapshot(2))
    await until(lambda: b.node.snapshots, "a snapshot after it")
    assert b.link(a) is link


async def test_a_sketch_that_is_too_large_ends_the_link_and_counts_survive_it(
    member: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "HEARTBEAT_SECONDS", 0.05)
    a, b = await pair(member)
    link = b.link(a)
    a.node.owed = [sketch(b"\0"), sketch(bytes(b.node.max_sketch_bytes + 1))]
    await until(lambda: b.link(a) is not link, "that link is gone")
    await until(lambda: b.link(a), "a new one")
    assert ("down", "a") in b.node.events
    assert b.state(a).counts.sketches_rejected == 1
    a.node.owed = [sketch(b"fits")]
    await until(lambda: b.node.sketches == [("a", b"fits")], "sketches again")
