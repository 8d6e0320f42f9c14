"""The exchange of snapshots: the pure gossip state, joined with outbox and inbox in the arena, and with the links."""

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from conlora.core.consensus import EdgeError, total
from conlora.core.encoding import Encoding, Format
from conlora.core.gossip import Contribution, Gossip, Mode, Plan, Snapshot
from conlora.core.schema import Schema
from conlora.daemon.inbox import Inbox
from conlora.daemon.meter import Meter
from conlora.daemon.observatory import Observatory
from conlora.daemon.outbox import Outbox
from conlora.errors import TrainingFailed
from conlora.net.identity import Peer
from conlora.net.transfers import Formats, Landing, Outgoing
from conlora.net.wire import SketchHeader, SnapshotHeader, Transfer
from conlora.training.arena import Arena, arena_bytes, create_memory

# What a link may hold back: the newest snapshot only, or in lockstep also the one before, which may still be needed.
MAILBOX_DEPTH = {Mode.ASYNC: 1, Mode.SYNC: 2}

REJOIN_SECONDS = 30.0  # longest wait for neighbours to say how far they are


@dataclass(frozen=True, slots=True)
class EdgeFigures:
    """One neighbour's part in a mix: its errors before the mix, module by module and together."""

    contribution: Contribution
    error: EdgeError
    layers: list[EdgeError]


@dataclass(frozen=True, slots=True)
class Mix:
    """What the trainer mixes: its own vector, neighbours' as planned, and the slot for what they come to.

    kept: whether what they come to stays there after the trainer has gone on, as the others do. measured: whether it is
    to be measured.
    """

    published: Outgoing
    plan: Plan
    slot: int
    kept: bool
    measured: bool


class Exchange:
    """One node's snapshots, out and in. Implements what links need of a node (`net.mesh.Node`)."""

    def __init__(
        self,
        mode: Mode,
        peers: list[Peer],
        deadline_seconds: float,
        observatory: Observatory,
        encoding_for: Callable[[str], Encoding | None],
    ) -> None:
        """deadline_seconds: lockstep's longest wait for a neighbour's snapshot. observatory: where sketches go.
        encoding_for: what a peer, by its name, is sent; None: whatever the link carries in time.
        """
        self._observatory = observatory
        self._encoding_for = encoding_for
        self.memory = create_memory()
        self.recorded = False  # whether mixes are looked at whole after the trainer has gone on
        self.weights: dict[str, float] = {}  # of the neighbours in the last mix
        self.last_mix: dict[str, EdgeFigures] = {}  # the last one that was measured
        self.formats: Formats = {}
        self._gossip = Gossip(mode, [peer.node_id for peer in peers])
        self._inbox = Inbox(self._gossip)
        self._names = {peer.node_id: peer.name for peer in peers}
        self._deadline = deadline_seconds
        self._arena: Arena | None = None
        self._outbox: Outbox | None = None
        self._meter: Meter | None = None
        self._published: Outgoing | None = None  # of the round under way
        self._mix: Mix | None = None  # likewise
        self._offered: Plan | None = None  # to a trainer that catches up
        self._unmeasured = asyncio.Event()  # no mix is being measured
        self._unmeasured.set()
        self._arrived = asyncio.Event()
        self._interrupted = False

    def open(self, schema: Schema, meter: Meter) -> None:
        """Gives the arena its size."""
        os.ftruncate(self.memory, arena_bytes(schema.size, self._gossip.places))
        self._arena = Arena(self.memory, schema.size)
        self._outbox = Outbox(self._arena, MAILBOX_DEPTH[self._gossip.mode])
        self._meter = meter
        self.formats = {encoding.value: Format(schema, encoding) for encoding in Encoding}

    def change(
        self, peers: list[Peer], deadline_seconds: float, encoding_for: Callable[[str], Encoding | None]
    ) -> None:
        """Takes on what may change while training goes on; see `__init__`. Peers that are left out have no link any more."""
        self._deadline, self._encoding_for = deadline_seconds, encoding_for
        before, self._names = self._names, {peer.node_id: peer.name for peer in peers}
        for gone in before.keys() - self._names.keys():
            self._gossip.remove(gone)
            self._inbox.forget(gone)
            self.weights.pop(gone, None)
            self.last_mix.pop(gone, None)
        for added in self._names.keys() - before.keys():
            self._gossip.add(added)
        if self._arena:
            self._arena.make_room(self._gossip.places)

    def go_on(self, rounds_mixed: int) -> None:
        """A trainer begins, with a model that has mixed so many rounds."""
        self._end_round()
        self._gossip.published(
            rounds_mixed + 1
        )  # what it will publish next, which lockstep's neighbours may send already

    @property
    def arena(self) -> Arena:
        """The shared vectors; only once `open` was called."""
        assert self._arena is not None
        return self._arena

    @property
    def outbox(self) -> Outbox:
        """What was published; only once `open` was called."""
        assert self._outbox is not None
        return self._outbox

    @property
    def degree(self) -> int:
        """Edges that count for this node's weights."""
        return self._gossip.degree

    def name(self, peer: str) -> str:
        """Of a peer, by its id."""
        return self._names[peer]

    def publish(self, round_: int, radius: float | None = None) -> Outgoing:
        """Takes what the trainer has written, and returns it for the links. radius: what this node clips at."""
        self._end_round()
        self._published = self.outbox.publish(round_, self._gossip.degree, radius).hold()
        self._gossip.published(round_)
        return self._published

    def _end_round(self) -> None:
        """Lets go of what the round under way still holds; it was cut off where it holds anything."""
        self.adopted()
        if self._mix:
            self.release(self._mix)
        elif self._published:
            self._published.release()
        self._mix = self._published = None

    def release(self, mix: Mix) -> None:
        """Nobody needs the mix any more."""
        mix.published.release()
        self._gossip.release(mix.plan)
        if mix.kept:
            self.outbox.release(mix.slot)

    async def plan(self, round_: int, last: bool = False) -> Mix | None:
        """What to mix; lockstep waits for it. None when interrupted. Raises TrainingFailed after the deadline.

        last: no round comes after it, so it is always measured: its figures are those that stay.
        """
        if last:
            await self._unmeasured.wait()
        try:
            async with asyncio.timeout(self._deadline):
                while not self._interrupted:
                    self._arrived.clear()
                    if (plan := self._gossip.plan(round_)) is not None:
                        return self._begin_mix(plan, last)
                    await self._arrived.wait()
                return None
        except TimeoutError:
            late = ", ".join(self._names[peer] for peer in self._gossip.missing(round_))
            raise TrainingFailed(
                f"round {round_}: no snapshot of this round from {late} within {self._deadline:.0f} s; in sync mode every "
                "neighbour has to take part: start the missing ones (`conlora peers` says why they are down), or raise "
                "federation.sync_deadline_seconds"
            ) from None

    async def offer(self, round_: int, last_mixed: Mapping[str, int]) -> Contribution | None:
        """What a node that was away goes on from, until `adopted`; see `Gossip.catch_up`. None: from where it stood.

        Waits for the neighbours' snapshots, but not long: one that is away itself says nothing before it has decided.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REJOIN_SECONDS):
                while not self._interrupted:
                    self._arrived.clear()
                    if plan := self._gossip.catch_up(round_, last_mixed):
                        self._offered = plan
                        return plan.contributions[0]
                    if self._gossip.complete:
                        break
                    await self._arrived.wait()
        return None

    def adopted(self) -> None:
        """What was offered has been read."""
        if self._offered:
            self._gossip.release(self._offered)
        self._offered = None

    def forget(self) -> None:
        """What was published before an absence is not what new links begin with."""
        if self._outbox:
            self._outbox.forget()

    def _begin_mix(self, plan: Plan, last: bool) -> Mix:
        assert self._meter is not None
        assert self._published is not None
        measured = self._unmeasured.is_set() and (last or self._meter.rested)
        kept = measured or self.recorded
        self._mix = Mix(self._published, plan, self.outbox.plan(kept), kept, measured)
        return self._mix

    def mixed(self, weights: list[float]) -> Mix:
        """The trainer has mixed. Returns what, for `measure` if it is to be measured, else for `release`.

        weights: of the contributions, which may have come to less than was planned.
        """
        mix = self._mix
        assert mix is not None
        self._mix = self._published = None
        if mix.measured:
            self._unmeasured.clear()
        shares = zip(mix.plan.contributions, weights, strict=True)
        contributions = tuple(replace(contribution, weight=weight) for contribution, weight in shares)
        self.weights = {c.peer: c.weight for c in contributions if c.peer in self._names}
        return replace(mix, plan=replace(mix.plan, contributions=contributions))

    async def measure(self, mix: Mix) -> list[EdgeFigures]:
        """The figures of all edges of a mix."""
        assert self._meter is not None
        try:
            others = [self.arena.inbox(c.place, c.slot) for c in mix.plan.contributions]
            measured = await asyncio.to_thread(
                self._meter.measure, mix.published.vector, self.arena.own(mix.slot), others
            )
        finally:
            self._unmeasured.set()
            self.release(mix)
        edges = zip(mix.plan.contributions, measured.errors, strict=True)
        figures = [EdgeFigures(contribution, total(layers), layers) for contribution, layers in edges]
        self.last_mix = {f.contribution.peer: f for f in figures if f.contribution.peer in self._names}
        self._observatory.mixed(mix.plan.round, measured.before, measured.after)
        return figures

    def interrupt(self) -> None:
        """Ends a wait of `plan`, and all later ones."""
        self._interrupted = True
        self._arrived.set()

    def newest(self, peer: str) -> tuple[Snapshot, float] | None:
        """A neighbour's newest snapshot and its age in seconds."""
        return self._inbox.newest(peer)

    def encoding_for(self, peer: Peer) -> Encoding | None:
        """See `net.reception.Receiver`."""
        return self._encoding_for(peer.name)

    def snapshot_begins(self, peer: Peer, header: SnapshotHeader) -> Landing | None:
        """See `net.reception.Receiver`."""
        return self._inbox.begins(peer.node_id, header, self.arena)

    def snapshot_received(self, peer: Peer, header: SnapshotHeader, landing: Landing) -> None:
        """See `net.reception.Receiver`."""
        self._inbox.received(peer.node_id, header, landing)
        self._arrived.set()

    @property
    def max_sketch_bytes(self) -> int:
        """See `net.reception.Receiver`."""
        return self._observatory.max_sketch_bytes

    def sketch_received(self, peer: Peer, header: SketchHeader, payload: bytearray) -> None:
        """See `net.reception.Receiver`."""
        self._observatory.received(peer, header, payload)

    def sketches_for(self, peer: Peer, snapshot_bytes: int | None) -> list[Transfer]:
        """See `net.reception.Receiver`."""
        return self._observatory.sketches_for(peer, snapshot_bytes)

    def link_up(self, peer: Peer) -> list[Outgoing]:
        """See `net.mesh.Node`."""
        self._observatory.link_up(peer)
        self._gossip.link_up(peer.node_id)
        return self.outbox.recent

    def link_down(self, peer: Peer) -> None:
        """See `net.mesh.Node`."""
        self._inbox.cancel(peer.node_id)
        self._observatory.link_down(peer)
        self._gossip.link_down(peer.node_id)
