"""Many nodes, a fake clock and scripted faults, through the very `Gossip` that daemons run.

Each node minimises `|x - c_i|^2 / 2` by local gradient steps; the uniform objective's minimum is the mean of all c_i.
"""

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conlora.core.gossip import SLOTS_PER_NEIGHBOUR, Gossip, Mode, Plan
from conlora.core.mixing import mix
from conlora.core.topology import metropolis_matrix, named_graph

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
        self.gossip.release(plan)
        return True


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

    def _turn(self, i: int, rate: float) -> None:
        node = self.nodes[i]
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


@pytest.mark.parametrize("name", ["T1", "T2", "T4", "du14"])
@pytest.mark.parametrize("seed", [1, 2])
def test_async_settles_at_the_uniform_objective_whatever_speeds_delays_and_losses(name: str, seed: int) -> None:
    """DESIGN 2.2: no node's speed gives it more say."""
    rng = np.random.default_rng(seed)
    c = optima(7, seed)
    network = Network(
        named_graph(name, 7),
        Mode.ASYNC,
        [1, 1, 1, 4, 1, 2, 8],
        c,
        lambda: float(rng.exponential(1.5)),
        loss=0.3,
        seed=seed,
    )
    network.run(20_000, rate=0.001)
    final = np.mean([node.x for node in network.nodes], axis=0)
    assert np.linalg.norm(final - c.mean(axis=0)) < 0.03
    spread = max(np.linalg.norm(node.x - final) for node in network.nodes)
    assert spread < 0.15, "nodes stay together up to the drift of their local steps"


@pytest.mark.parametrize("name", ["T1", "T2", "complete"])
def test_sync_equals_the_mixing_matrix_applied_to_all_vectors(name: str) -> None:
    """Lockstep over a jittery network is `x = W y` round by round, computed with plain numpy."""
    rng = np.random.default_rng(0)
    graph, c, rate, rounds = named_graph(name, 7), optima(7, 3), 0.1, 12
    network = Network(graph, Mode.SYNC, [1, 1, 5, 1, 2, 1, 1], c, lambda: float(rng.exponential(3)))
    oracle, w = np.zeros((7, SIZE)), metropolis_matrix(graph)
    history = []
    for _ in range(rounds + 40):
        for _ in range(LOCAL_STEPS):
            oracle -= rate * (oracle - c)
        oracle = w @ oracle
        history.append(oracle.copy())
    network.run(60, rate)
    for i, node in enumerate(network.nodes):
        mixed_rounds = node.round - node.waiting
        assert mixed_rounds >= 3
        if not node.waiting:
            np.testing.assert_allclose(node.x, history[mixed_rounds - 1][i], atol=1e-5)
    rounds_seen = [node.round for node in network.nodes]
    assert max(rounds_seen) - min(rounds_seen) <= nx.diameter(graph)


def test_an_edge_that_dies_gives_its_weight_back_and_drags_nobody() -> None:
    """After a partition each half settles at its own mean, as if the other had never been."""
    graph, c = named_graph("du14", 7), optima(7, 5)
    network = Network(graph, Mode.ASYNC, [1.0] * 7, c, lambda: 0.1)
    network.at(50.0, lambda: network.cut(2, 3))
    network.run(20_000, rate=0.002)
    for half in ([0, 1, 2], [3, 4, 5, 6]):
        mean = np.mean([network.nodes[i].x for i in half], axis=0)
        assert np.linalg.norm(mean - c[half].mean(axis=0)) < 0.02
    assert network.nodes[2].gossip.degree == 2


def test_an_edge_that_is_added_while_nodes_train_joins_what_was_apart() -> None:
    """Two federations of one line each, until two nodes add each other; then all settle at the mean of all."""
    graph, c = named_graph("du14", 7), optima(7, 5)
    network = Network(graph, Mode.ASYNC, [1.0] * 7, c, lambda: 0.1)
    ends = [(2, 3), (3, 2)]
    network.dead.add(frozenset(ends[0]))
    for i, j in ends:
        network.nodes[i].gossip.remove(str(j))
    degrees = [network.nodes[i].gossip.degree for i, _ in ends]

    def join() -> None:
        network.dead.clear()
        for i, j in ends:
            network.nodes[i].gossip.add(str(j))
            network.nodes[i].gossip.link_up(str(j))

    network.at(50.0, join)
    network.run(20_000, rate=0.002)
    assert [network.nodes[i].gossip.degree for i, _ in ends] == [degree + 1 for degree in degrees]
    assert np.linalg.norm(np.mean([node.x for node in network.nodes], axis=0) - c.mean(axis=0)) < 0.02


def test_a_slow_neighbour_with_a_live_link_keeps_its_weight() -> None:
    gossip = Gossip(Mode.ASYNC, ["slow"])
    gossip.link_up("slow")
    gossip.received("slow", 1, 1, gossip.slot_for("slow"))
    for round_ in range(2, 50):
        gossip.published(round_)
        plan = gossip.plan(round_)
        assert plan is not None
        assert [(c.peer, c.round, c.weight) for c in plan.contributions] == [("slow", 1, 0.5)]
        gossip.release(plan)


def test_a_peer_that_starts_again_from_an_earlier_round_is_believed() -> None:
    gossip = Gossip(Mode.ASYNC, ["p"])
    gossip.link_up("p")
    for round_ in (100, 96):
        assert gossip.accepts("p", round_)
        gossip.received("p", round_, 1, gossip.slot_for("p"))
    newest = gossip.newest("p")
    assert newest is not None
    assert newest.round == 96


@settings(max_examples=300)
@given(
    st.lists(st.sampled_from(["begin", "complete", "plan", "release first", "release last", "down", "up"]), max_size=80)
)
def test_a_slot_that_is_needed_is_never_written_and_the_newest_always_wins(events: list[str]) -> None:
    """Any order of events: the oracle knows what each slot holds, which plans are out, and which snapshot came last."""
    gossip = Gossip(Mode.ASYNC, ["p"])
    contents: dict[int, int] = {}
    plans: list[Plan] = []
    writing: int | None = None
    live, newest, arrivals = False, None, itertools.count(1)
    for event in events:
        match event:
            case "up":
                gossip.link_up("p")
                live = True
            case "down":
                gossip.link_down("p")
                live, newest, writing = False, None, None
            case "begin" if live:
                writing = gossip.slot_for("p")
                assert 0 <= writing < SLOTS_PER_NEIGHBOUR
                assert writing not in [c.slot for plan in plans for c in plan.contributions]
                assert newest is None or contents[writing] != newest if writing in contents else True
                contents[writing] = -1  # half-written from now on
            case "complete" if writing is not None:
                newest = next(arrivals)
                contents[writing] = newest
                gossip.received("p", newest, 1, writing)
                writing = None
            case "plan" if len(plans) < 2:
                plan = gossip.plan(1)
                assert plan is not None
                seen = [contents[c.slot] for c in plan.contributions]
                assert seen == ([] if newest is None else [newest])
                plans.append(plan)
            case "release first" if plans:
                gossip.release(plans.pop(0))
            case "release last" if plans:
                gossip.release(plans.pop())
    assert gossip.degree == int(live)


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "remove", "receive", "plan", "release first", "release last"]),
            st.sampled_from("abc"),
        ),
        max_size=80,
    )
)
def test_places_of_peers_that_left_are_used_again_but_not_while_a_plan_names_them(
    events: list[tuple[str, str]],
) -> None:
    gossip = Gossip(Mode.ASYNC, ["a"])
    contents: dict[tuple[int, int], int] = {}
    plans: list[tuple[Plan, list[int]]] = []
    known, arrivals = {"a"}, itertools.count(1)
    for event, peer in events:
        match event:
            case "add" if peer not in known:
                gossip.add(peer)
                gossip.link_up(peer)
                known.add(peer)
            case "remove" if peer in known:
                gossip.link_down(peer)
                gossip.remove(peer)
                known.remove(peer)
            case "receive" if peer in known:
                slot = gossip.slot_for(peer)
                contents[gossip.place(peer), slot] = number = next(arrivals)
                gossip.received(peer, number, 1, slot)
            case "plan" if len(plans) < 2:
                plan = gossip.plan(1)
                assert plan is not None
                assert {c.peer for c in plan.contributions} <= known
                plans.append((plan, [c.round for c in plan.contributions]))
            case "release first" if plans:
                gossip.release(plans.pop(0)[0])
            case "release last" if plans:
                gossip.release(plans.pop()[0])
        for plan, rounds in plans:
            assert [contents[c.place, c.slot] for c in plan.contributions] == rounds
        places = {gossip.place(peer) for peer in known}
        assert len(places) == len(known)
        assert all(place < gossip.places for place in places)
        held = {c.place for plan, _ in plans for c in plan.contributions}
        assert gossip.places <= 3 + len(held), "what is free is taken first"


@settings(max_examples=200)
@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_lockstep_never_writes_what_is_still_needed(measured_late: list[bool]) -> None:
    """One neighbour, a round ahead as far as it may; a plan may be held while the next round is mixed."""
    gossip = Gossip(Mode.SYNC, ["p"])
    contents: dict[int, int] = {}
    measured: Plan | None = None
    sent = 0
    for round_, late in enumerate(measured_late, 1):
        gossip.published(round_)
        while sent < round_ + 1:
            sent += 1
            assert gossip.accepts("p", sent)
            slot = gossip.slot_for("p")
            assert measured is None or slot != measured.contributions[0].slot
            contents[slot] = sent
            gossip.received("p", sent, 1, slot)
        plan = gossip.plan(round_)
        assert plan is not None
        assert [contents[c.slot] for c in plan.contributions] == [round_]
        if measured is not None:
            gossip.release(measured)
            measured = None
        if late:
            measured = plan
        else:
            gossip.release(plan)


@given(st.integers(1, 8), st.permutations(range(8)))
def test_lockstep_waits_for_exactly_the_neighbours_that_are_missing(round_: int, order: list[int]) -> None:
    peers = [str(i) for i in range(8)]
    gossip = Gossip(Mode.SYNC, peers)
    gossip.published(round_)
    waiting = set(peers)
    for i in order:
        assert gossip.plan(round_) is None
        assert set(gossip.missing(round_)) == waiting
        assert gossip.accepts(str(i), round_)
        gossip.received(str(i), round_, 8, gossip.slot_for(str(i)))
        assert not gossip.accepts(str(i), round_), "once is enough: the slot may be in use"
        assert gossip.accepts(str(i), round_ + 1)
        assert not gossip.accepts(str(i), round_ + 2)
        waiting.remove(str(i))
    plan = gossip.plan(round_)
    assert plan is not None
    assert len(plan.contributions) == 8
