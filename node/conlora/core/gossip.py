"""The pure state of one node's exchange: live edges, newest snapshots, and the decision what to mix.

Events go in as method calls, decisions come out as values; there is no clock and no I/O here, so that the simulation
tests can drive hundreds of schedules through the very code that daemons run.

A neighbour owns some buffer slots, those of its place. Those that a plan names stay as they are until it is released, and
the newest snapshot stays until the next one is complete; what arrives goes to another slot, piece by piece. So neither side
ever waits or reads a half-written vector.
"""

import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from conlora.core.mixing import metropolis_weight

# One that is being mixed, one that is still being measured, the newest, and one that is being written.
SLOTS_PER_NEIGHBOUR = 4


# Rounds that a neighbour has made while this node was away, from which on that was long.
FAR_BEHIND = 20


class Mode(StrEnum):
    """async: mix what is there. sync: lockstep rounds, mix when every neighbour's snapshot of the same round is there."""

    ASYNC = "async"
    SYNC = "sync"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A neighbour's vector as it lies in a slot: the sender's round, its degree when it published, and where it clips."""

    round: int
    degree: int
    slot: int
    radius: float | None = None


@dataclass(frozen=True, slots=True)
class Contribution:
    """One neighbour's part in a mix. place: whose slot it is, among those of all neighbours."""

    peer: str
    place: int
    slot: int
    round: int
    weight: float
    radius: float | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What to mix this round, in slots that nobody writes to until it is released.

    The node's own weight is what the contributions leave of 1.
    """

    round: int
    contributions: tuple[Contribution, ...]


@dataclass(slots=True)
class _Edge:
    place: int
    live: bool = False
    newest: Snapshot | None = None
    by_round: dict[int, Snapshot] = field(default_factory=dict)  # lockstep only: of this round and the next


class Gossip:
    """One node's view of its edges."""

    def __init__(self, mode: Mode, peers: list[str]) -> None:
        self.mode = mode
        self.round = 0
        self._edges: dict[str, _Edge] = {}
        self._held: Counter[tuple[int, int]] = Counter()  # plans that name a slot of a place
        for peer in peers:
            self.add(peer)

    def add(self, peer: str) -> None:
        """Another neighbour, at the first place that nobody has; its edge is dead until `link_up`. Not in lockstep's rounds."""
        taken = {edge.place for edge in self._edges.values()} | {place for place, _ in +self._held}
        self._edges[peer] = _Edge(next(place for place in itertools.count() if place not in taken))

    def remove(self, peer: str) -> None:
        """No neighbour any more. Its place is free once no plan names it. Not in lockstep's rounds."""
        del self._edges[peer]

    def place(self, peer: str) -> int:
        """Where a neighbour's slots are."""
        return self._edges[peer].place

    @property
    def places(self) -> int:
        """So many of them, from the first, are needed for the neighbours of now."""
        return max((edge.place + 1 for edge in self._edges.values()), default=0)

    @property
    def degree(self) -> int:
        """Edges that count for the weights: the live ones; all configured ones in lockstep, where none may be missing."""
        if self.mode is Mode.SYNC:
            return len(self._edges)
        return sum(edge.live for edge in self._edges.values())

    def link_up(self, peer: str) -> None:
        """The edge lives from now on; it carries weight as soon as its first snapshot is here."""
        self._edges[peer].live = True

    def link_down(self, peer: str) -> None:
        """The edge is dead at both ends; its weight goes back to the node itself.

        A dead neighbour's cached snapshot would drag everyone to it (DESIGN 2.3), so it is forgotten. Not in lockstep:
        there the snapshot of the round under way is still exactly what has to be mixed.
        """
        edge = self._edges[peer]
        edge.live = False
        if self.mode is Mode.ASYNC:
            edge.newest = None

    def published(self, round_: int) -> None:
        """The node has published its snapshot of `round_` and will ask for a plan."""
        self.round = round_
        for edge in self._edges.values():
            # later ones are of a trainer's earlier life, when it starts again from a checkpoint
            edge.by_round = {r: snapshot for r, snapshot in edge.by_round.items() if round_ <= r <= round_ + 1}

    def accepts(self, peer: str, round_: int) -> bool:
        """Whether a snapshot of that round is of any use.

        In async mode the newest is the last to arrive, whatever its number: a peer that restarted counts from an
        earlier round again. In lockstep only this round and the next can occur, each once: after a new link they may
        come again, and the slot may be in use.
        """
        if self.mode is Mode.ASYNC:
            return True
        return self.round <= round_ <= self.round + 1 and round_ not in self._edges[peer].by_round

    def slot_for(self, peer: str) -> int:
        """The slot that the next snapshot may be written to, one at a time: neither named by a plan nor still needed."""
        edge = self._edges[peer]
        needed = {snapshot.slot for snapshot in edge.by_round.values()}
        if edge.newest is not None:
            needed.add(edge.newest.slot)
        return next(s for s in range(SLOTS_PER_NEIGHBOUR) if s not in needed and not self._held[edge.place, s])

    def received(self, peer: str, round_: int, degree: int, slot: int, radius: float | None = None) -> None:
        """A checked snapshot now lies in `slot`."""
        edge = self._edges[peer]
        edge.newest = Snapshot(round_, degree, slot, radius)
        if self.mode is Mode.SYNC:
            edge.by_round[round_] = edge.newest

    def newest(self, peer: str) -> Snapshot | None:
        """The newest snapshot of a neighbour, if there is one."""
        return self._edges[peer].newest

    def missing(self, round_: int) -> list[str]:
        """Neighbours whose snapshot of `round_` lockstep still waits for; in async mode nobody is waited for."""
        if self.mode is Mode.ASYNC:
            return []
        return [peer for peer, edge in self._edges.items() if round_ not in edge.by_round]

    def plan(self, round_: int) -> Plan | None:
        """What to mix now, or None while lockstep waits. To be released once nobody reads its slots any more."""
        if self.missing(round_):
            return None
        contributions = []
        for peer, edge in self._edges.items():
            snapshot = edge.newest if self.mode is Mode.ASYNC else edge.by_round[round_]
            if snapshot is None:
                continue
            contributions.append(self._hold(peer, snapshot, metropolis_weight(self.degree, snapshot.degree)))
        return Plan(round_, tuple(contributions))

    @property
    def complete(self) -> bool:
        """Whether there is a snapshot of every neighbour."""
        return all(edge.newest for edge in self._edges.values())

    def catch_up(self, round_: int, last_mixed: Mapping[str, int]) -> Plan | None:
        """What a node that was away goes on from: a single contribution, of weight 1, or None where it has not missed much.

        The node has made `round_` rounds, and mixed each neighbour's snapshot of round `last_mixed[peer]` last; where there is
        none, its own round counts in its place. Of those that are far ahead, the one that has got farthest is taken.
        """
        newest = {peer: edge.newest for peer, edge in self._edges.items() if edge.newest}
        far = [peer for peer in newest if newest[peer].round - last_mixed.get(peer, round_) >= FAR_BEHIND]
        if not far:
            return None
        farthest = max(far, key=lambda peer: newest[peer].round)
        return Plan(round_, (self._hold(farthest, newest[farthest], 1.0),))

    def _hold(self, peer: str, snapshot: Snapshot, weight: float) -> Contribution:
        place = self._edges[peer].place
        self._held[place, snapshot.slot] += 1
        return Contribution(peer, place, snapshot.slot, snapshot.round, weight, snapshot.radius)

    def release(self, plan: Plan) -> None:
        """The slots of the plan have been read. Of plans, two at most may be out at a time."""
        for contribution in plan.contributions:
            self._held[contribution.place, contribution.slot] -= 1
