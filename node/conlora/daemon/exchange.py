"""The exchange of snapshots: the pure gossip state, joined with the arena on one side and the links on the other."""

import asyncio
import os
import time
from collections import deque
from dataclasses import dataclass

import structlog

from conlora.core.codec import decode, encode, max_encoded_bytes
from conlora.core.consensus import EdgeError, total
from conlora.core.gossip import Contribution, Gossip, Mode, Plan, Snapshot
from conlora.core.schema import Schema
from conlora.daemon.observatory import Observatory
from conlora.errors import SnapshotRejected, TrainingFailed
from conlora.net.identity import Peer
from conlora.net.wire import SketchHeader, SnapshotHeader, Transfer, outgoing
from conlora.training.arena import Arena, arena_bytes, create_memory

log = structlog.get_logger()

# What a link may hold back: the newest snapshot only, or in lockstep also the one before, which may still be needed.
MAILBOX_DEPTH = {Mode.ASYNC: 1, Mode.SYNC: 2}


@dataclass(frozen=True, slots=True)
class EdgeFigures:
    """One neighbour's part in the last mix: its errors before the mix, module by module and together."""

    contribution: Contribution
    error: EdgeError
    layers: list[EdgeError]


class Exchange:
    """One node's snapshots, out and in. Implements what links need of a node (`net.mesh.Node`)."""

    def __init__(self, mode: Mode, peers: list[Peer], deadline_seconds: float, observatory: Observatory) -> None:
        """deadline_seconds: lockstep's longest wait for a neighbour's snapshot. observatory: where sketches go."""
        self._observatory = observatory
        self.memory = create_memory()
        self.last_mix: dict[str, EdgeFigures] = {}
        self._gossip = Gossip(mode, [peer.node_id for peer in peers])
        self._names = {peer.node_id: peer.name for peer in peers}
        self._index = {peer.node_id: i for i, peer in enumerate(peers)}
        self._deadline = deadline_seconds
        self._schema: Schema | None = None
        self._arena: Arena | None = None
        self._recent: deque[Transfer] = deque(maxlen=MAILBOX_DEPTH[mode])
        self._received_at: dict[str, float] = {}
        self._arrived = asyncio.Event()
        self._interrupted = False
        self._plan: Plan | None = None

    def open(self, schema: Schema, sketch_size: int, rounds_mixed: int) -> None:
        """Gives the arena its size; `rounds_mixed` is where the trainer goes on from."""
        if self._schema is None:
            os.ftruncate(self.memory, arena_bytes(schema.size, len(self._index), sketch_size))
            self._arena = Arena(self.memory, schema.size, len(self._index), sketch_size)
            self._schema = schema
        self._gossip.release()
        self._gossip.published(rounds_mixed)

    @property
    def arena(self) -> Arena:
        """The shared vectors; only once `open` was called."""
        assert self._arena is not None
        return self._arena

    @property
    def degree(self) -> int:
        """Edges that count for this node's weights."""
        return self._gossip.degree

    def publish(self, round_: int) -> Transfer:
        """Encodes what the trainer has published and returns it for the links."""
        assert self._schema is not None
        snapshot = outgoing(round_, self._gossip.degree, encode(self._schema, self.arena.published))
        self._recent.append(snapshot)
        self._gossip.published(round_)
        return snapshot

    async def plan(self, round_: int) -> Plan | None:
        """What to mix; lockstep waits for it. None when interrupted. Raises TrainingFailed after the deadline."""
        try:
            async with asyncio.timeout(self._deadline):
                while not self._interrupted:
                    self._arrived.clear()
                    if (plan := self._gossip.plan(round_)) is not None:
                        self._plan = plan
                        return plan
                    await self._arrived.wait()
                return None
        except TimeoutError:
            late = ", ".join(self._names[peer] for peer in self._gossip.missing(round_))
            raise TrainingFailed(
                f"round {round_}: no snapshot of this round from {late} within {self._deadline:.0f} s; in sync mode every "
                "neighbour has to take part: start the missing ones, or raise federation.sync_deadline_seconds"
            ) from None

    def position(self, peer: str) -> int:
        """A peer's index in the arena."""
        return self._index[peer]

    def mixed(self, errors: list[list[EdgeError]]) -> list[EdgeFigures]:
        """The trainer has read the planned slots, with these errors of each edge's modules; returns the figures."""
        assert self._plan is not None
        edges = zip(self._plan.contributions, errors, strict=True)
        figures = [EdgeFigures(contribution, total(layers), layers) for contribution, layers in edges]
        self.last_mix = {f.contribution.peer: f for f in figures}
        self._observatory.mixed(self._plan.round, self.arena.sketch_before, self.arena.sketch_after)
        self._gossip.release()
        return figures

    def interrupt(self) -> None:
        """Ends a wait of `plan`, and all later ones."""
        self._interrupted = True
        self._arrived.set()

    def newest(self, peer: str) -> tuple[Snapshot, float] | None:
        """A neighbour's newest snapshot and its age in seconds."""
        snapshot = self._gossip.newest(peer)
        return (snapshot, time.monotonic() - self._received_at[peer]) if snapshot else None

    @property
    def max_snapshot_bytes(self) -> int:
        """See `net.link.Receiver`."""
        return max_encoded_bytes(self._schema) if self._schema else 0

    def snapshot_received(self, peer: Peer, header: SnapshotHeader, payload: bytearray) -> None:
        """See `net.link.Receiver`."""
        assert self._schema is not None  # links begin after `open`
        if not self._gossip.accepts(peer.node_id, header.round):
            return  # lockstep: sent once more after a new link
        try:
            vector = decode(self._schema, payload, header.sha256)
        except SnapshotRejected as rejection:
            log.warning("snapshot rejected", peer=peer.name, round=header.round, reason=str(rejection))
            raise
        slot = self._gossip.slot_for(peer.node_id, header.round)
        self.arena.inbox(self._index[peer.node_id], slot)[:] = vector
        self._gossip.received(peer.node_id, header.round, header.degree, slot)
        self._received_at[peer.node_id] = time.monotonic()
        self._arrived.set()

    @property
    def max_sketch_bytes(self) -> int:
        """See `net.link.Receiver`."""
        return self._observatory.max_sketch_bytes

    def sketch_received(self, peer: Peer, header: SketchHeader, payload: bytearray) -> None:
        """See `net.link.Receiver`."""
        self._observatory.received(peer, header, payload)

    def sketches_for(self, peer: Peer, snapshot_bytes: int | None) -> list[Transfer]:
        """See `net.link.Receiver`."""
        return self._observatory.sketches_for(peer, snapshot_bytes)

    def link_up(self, peer: Peer) -> list[Transfer]:
        """See `net.mesh.Node`."""
        self._observatory.link_up(peer)
        self._gossip.link_up(peer.node_id)
        return list(self._recent)

    def link_down(self, peer: Peer) -> None:
        """See `net.mesh.Node`."""
        self._observatory.link_down(peer)
        self._gossip.link_down(peer.node_id)
