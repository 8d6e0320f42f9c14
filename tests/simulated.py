"""Many nodes, a fake clock and scripted faults, through the very `Gossip` that daemons run.

Each node minimises `|x - c_i|^2 / 2` by local gradient steps; the uniform objective's minimum is the mean of all c_i.
"""

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import networkx as nx
import numpy as np

from conlora.core.gossip import Gossip, Mode
from conlora.core.mixing import mix

SIZE = 3
LOCAL_STEPS = 2


@dataclass
class SimulatedNode:
    """A node as its daemon and trainer act together: slots, a vector, and local steps towards its own optimum."""

    gossip: Gossip
    optimum: np.ndarray
    period: float
    x: np.ndarray = field(default_factory=lambda: np.zeros(SIZE, np.float32))
    slots: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)
    round: int = 0
    waiting: bool = False
    trained: np.ndarray = field(default_factory=lambda: np.zeros(SIZE, np.float32))
    away: bool = False
    last_mixed: dict[str, int] = field(default_factory=dict)

    def train(self, rate: float) -> np.ndarray:
        for _ in range(LOCAL_STEPS):
            self.x = (self.x - rate * (self.x - self.optimum)).astype(np.float32)
        self.round += 1
        self.trained = self.x.copy()
        self.gossip.published(self.round)
        return self.trained

    def receive(self, sender: str, round_: int, degree: int, vector: np.ndarray) -> None:
        if self.gossip.accepts(sender, round_):
            slot = self.gossip.slot_for(sender)
            self.slots[sender, slot] = vector
            self.gossip.received(sender, round_, degree, slot)

    def try_mix(self) -> bool:
        plan = self.gossip.plan(self.round)
        if plan is None:
            return False
        self.x = mix(self.trained, [(c.weight, self.slots[c.peer, c.slot]) for c in plan.contributions])
        self.last_mixed |= {c.peer: c.round for c in plan.contributions}
        self.gossip.release(plan)
        return True

    def adopt(self) -> None:
        """Goes on from a neighbour's vector where it was away for long."""
        if plan := self.gossip.catch_up(self.round, self.last_mixed):
            (only,) = plan.contributions
            assert only.weight == 1
            self.x = self.slots[only.peer, only.slot].copy()
            self.gossip.release(plan)


class Network:
    """Delivers snapshots after a delay, loses some, in the order of a fake clock."""

    def __init__(
        self, graph: nx.Graph, mode: Mode, periods: list[float], optima: np.ndarray, delay: Callable[[], float],
        loss: float = 0.0, seed: int = 0,
    ) -> None:  # fmt: skip
        self.graph = graph
        self.rng = np.random.default_rng(seed)
        self.delay = delay
        self.loss = loss
        self.dead: set[frozenset[int]] = set()
        self.nodes = []
        for i in graph.nodes:
            gossip = Gossip(mode, [str(j) for j in graph.neighbors(i)])
            for j in graph.neighbors(i):
                gossip.link_up(str(j))
            self.nodes.append(SimulatedNode(gossip, optima[i], periods[i]))
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self.now = 0.0

    def at(self, time: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._count), event))

    def run(self, until: float, rate: float) -> None:
        for i, node in enumerate(self.nodes):
            self.at(self.now + node.period * self.rng.random(), lambda i=i: self._turn(i, rate))
        while self._events and self._events[0][0] <= until:
            self.now, _, event = heapq.heappop(self._events)
            event()

    def cut(self, i: int, j: int) -> None:
        """The link breaks for both ends."""
        self.dead.add(frozenset((i, j)))
        self.nodes[i].gossip.link_down(str(j))
        self.nodes[j].gossip.link_down(str(i))

    def heal(self, i: int, j: int) -> None:
        """A new link, which begins with what both ends published last."""
        self.dead.discard(frozenset((i, j)))
        for a, b in ((i, j), (j, i)):
            self.nodes[a].gossip.link_up(str(b))
        for a, b in ((i, j), (j, i)):
            if self.nodes[a].round and not self.nodes[a].away:
                self._deliver(a, b, self.nodes[a].round, self.nodes[a].gossip.degree, self.nodes[a].trained.copy())

    def leave(self, i: int) -> None:
        """Its rounds end, and its edges with them."""
        self.nodes[i].away = True
        for j in self.graph.neighbors(i):
            self.cut(i, j)

    def come_back(self, i: int, adopts: bool) -> None:
        """Links up, and once the neighbours' snapshots are here goes on."""
        for j in self.graph.neighbors(i):
            self.heal(i, j)

        def go_on() -> None:
            self.nodes[i].away = False
            if adopts:
                self.nodes[i].adopt()
            self._turn(i, self.rate)

        self.at(self.now + 2 * self.delay(), go_on)

    def apart(self) -> float:
        """V: how far nodes are from their mean, those left out that are away."""
        present = np.array([node.x for node in self.nodes if not node.away])
        return float(np.sqrt(((present - present.mean(axis=0)) ** 2).sum(axis=1).mean()))

    def _turn(self, i: int, rate: float) -> None:
        node = self.nodes[i]
        if node.away:
            return
        y = node.train(rate)
        for j in self.graph.neighbors(i):
            if frozenset((i, j)) not in self.dead and self.rng.random() >= self.loss:
                self._deliver(i, j, node.round, node.gossip.degree, y.copy())
        self._mix(i, rate)

    def _deliver(self, i: int, j: int, round_: int, degree: int, y: np.ndarray) -> None:
        def arrive() -> None:
            if frozenset((i, j)) not in self.dead:
                self.nodes[j].receive(str(i), round_, degree, y)
                if self.nodes[j].waiting:
                    self._mix(j, self.rate)

        self.at(self.now + self.delay(), arrive)

    rate = 0.0

    def _mix(self, i: int, rate: float) -> None:
        self.rate = rate
        node = self.nodes[i]
        node.waiting = not node.try_mix()
        if not node.waiting:
            self.at(self.now + node.period, lambda: self._turn(i, rate))


def optima(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, SIZE)).astype(np.float32)
