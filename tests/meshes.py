"""Meshes for tests: real TLS links on loopback between members whose nodes only remember what happens to them."""

import asyncio
import time
from collections.abc import Callable, MutableMapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conlora.core.conduct import Quarantine
from conlora.core.encoding import Encoding, Format
from conlora.core.federation import FederationSettings
from conlora.core.schema import Role, Schema, TensorSpec, Vector
from conlora.errors import SketchRejected
from conlora.net.authorities import Authorities
from conlora.net.edge import PeerState
from conlora.net.identity import Identity, Peer, create_identity
from conlora.net.link import Link
from conlora.net.mesh import Mesh
from conlora.net.transfers import Formats, Landing, Outgoing
from conlora.net.wire import SketchHeader, SnapshotHeader, Transfer
from tests.daemons import free_port

SETTINGS = FederationSettings("f", "print", "{}", 1, "lora", "async", 8, "{}", "digest")
PATIENCE = 20.0


async def until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Polls until the condition gives something true, and returns that."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := condition():
            return result
        await asyncio.sleep(0.005)
    raise AssertionError(f"not within {seconds:.0f} s: {what}")


class FakeNode:
    """What a mesh needs of a node: it records links, snapshots and sketches. size: elements of a vector."""

    max_sketch_bytes = 1 << 20
    size = 250
    encoding: Encoding | None = Encoding.FP32

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.snapshots: list[tuple[str, int, int, bool]] = []  # peer, round, degree, whether every element is right
        self.first: list[Outgoing] = []
        self.sketches: list[tuple[str, bytes]] = []
        self.owed: list[Transfer] = []  # sketches for the next neighbour that has room
        self.linked = asyncio.Event()

    def link_up(self, peer: Peer) -> list[Outgoing]:
        """Records; returns the snapshots to begin with."""
        self.events.append(("up", peer.name))
        self.linked.set()
        return self.first

    def link_down(self, peer: Peer) -> None:
        """Records."""
        self.events.append(("down", peer.name))

    @property
    def formats(self) -> Formats:
        """Of one long tensor."""
        schema = Schema((TensorSpec("all", "all", Role.HEAD, (self.size,)),))
        return {encoding.value: Format(schema, encoding) for encoding in Encoding}

    def encoding_for(self, peer: Peer) -> Encoding | None:
        """The same for all."""
        return self.encoding

    def snapshot_begins(self, peer: Peer, header: SnapshotHeader) -> Landing | None:
        """Anywhere."""
        return Landing(0, np.full(self.size, np.nan, np.float32), None)

    def snapshot_received(self, peer: Peer, header: SnapshotHeader, landing: Landing) -> None:
        """Records, and compares with what was sent."""
        right = np.array_equal(landing.out, vector(header.round, self.size))
        self.snapshots.append((peer.name, header.round, header.degree, right))

    def sketch_received(self, peer: Peer, header: SketchHeader, payload: bytearray) -> None:
        """Records; what begins with a zero is refused."""
        if payload[0] == 0:
            raise SketchRejected("format", "begins with a zero")
        self.sketches.append((peer.name, bytes(payload)))

    def sketches_for(self, peer: Peer, snapshot_bytes: int | None) -> list[Transfer]:
        """Everything that is owed."""
        owed, self.owed = self.owed, []
        return owed


class Member:
    """One node of a test federation: identity, address, and its mesh while it runs."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.identity: Identity = create_identity(directory / name)
        self.address = f"127.0.0.1:{free_port()}"
        self.node = FakeNode()
        self.mesh: Mesh | None = None
        self.quarantines: MutableMapping[str, Quarantine] = {}
        self.authorities: Authorities | None = None

    def card(self, *, dialled: bool = True, **changes: Any) -> Peer:
        """This member as a peer of another, which dials it or waits to be dialled."""
        address = self.address if dialled else None
        return replace(Peer(self.name, self.identity.node_id, address, self.identity.certificate), **changes)

    async def start(
        self, *peers: Peer, settings: FederationSettings | None = SETTINGS, depth: int = 1, listens: bool = True
    ) -> Mesh:
        """Listens, and begins where settings are given."""
        self.mesh = Mesh(
            self.name, self.identity, list(peers), self.node, depth, self.quarantines, authorities=self.authorities
        )
        if listens:
            await self.mesh.listen(self.address)
        if settings is not None:
            self.mesh.begin(settings)
        return self.mesh

    async def close(self) -> None:
        """Says good-bye."""
        if self.mesh is not None:
            mesh, self.mesh = self.mesh, None
            await mesh.close()

    def state(self, other: "Member") -> PeerState:
        """How this member sees another."""
        assert self.mesh is not None
        return self.mesh.states[other.identity.node_id]

    def link(self, other: "Member") -> Link | None:
        """The edge's link on this side."""
        return self.state(other).link


def vector(round_: int, size: int) -> Vector:
    """What every node publishes in that round."""
    return np.random.default_rng(round_).standard_normal(size, np.float32)


def snapshot(round_: int, size: int = FakeNode.size, degree: int = 1) -> Outgoing:
    """A node's vector in that round."""
    return Outgoing(round_, degree, vector(round_, size), shared=False, on_free=lambda: None)


def linked(a: Member, b: Member) -> bool:
    """Whether both ends have a link, and it is the same one: what one end dialled, the other accepted."""
    here, there = a.link(b), b.link(a)
    return bool(here and there and here.dialled != there.dialled)


async def link_up(a: Member, b: Member, a_dials: bool = True, b_dials: bool = False) -> None:
    """Starts two members and waits for their link."""
    await a.start(b.card(dialled=a_dials))
    await b.start(a.card(dialled=b_dials))
    await until(lambda: linked(a, b), "one link")


async def pair(member: Callable[[str], Member], a_dials: bool = True, b_dials: bool = False) -> tuple[Member, Member]:
    """Two members with a link."""
    a, b = member("a"), member("b")
    await link_up(a, b, a_dials, b_dials)
    return a, b


def by_id(member: Callable[[str], Member]) -> list[Member]:
    """Two members, the one with the smaller id first: of two links, the one that it dialled is kept."""
    return sorted((member("a"), member("b")), key=lambda each: each.identity.node_id)


def noted(monkeypatch: pytest.MonkeyPatch, at: Member) -> list[str]:
    """Every sentence for the operator from now on: the state forgets the last one when a link comes up again."""
    reasons: list[str] = []
    mesh, note = at.mesh, PeerState.note
    assert mesh is not None

    def spied(state: PeerState, sentence: str, refused: bool) -> None:
        note(state, sentence, refused)
        if any(state is of_this_one for of_this_one in mesh.states.values()):
            reasons.append(sentence)

    monkeypatch.setattr(PeerState, "note", spied)
    return reasons
