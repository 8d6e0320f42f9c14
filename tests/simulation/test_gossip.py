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

from conlora.core.gossip import FAR_BEHIND, SLOTS_PER_NEIGHBOUR, Gossip, Mode, Plan
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


def test_halves_of_a_partition_go_on_and_agree_again_when_it_heals() -> None:
    graph, c = named_graph("T3", 7), optima(7, 5)
    network = Network(graph, Mode.ASYNC, [1.0] * 7, c, lambda: 0.1)
    between = [(i, j) for i, j in graph.edges if (i < 3) != (j < 3)]
    apart: dict[str, float] = {}
    network.at(500.0, lambda: apart.update(before=network.apart()))
    for i, j in between:
        network.at(500.0, lambda i=i, j=j: network.cut(i, j))
        network.at(700.0, lambda i=i, j=j: network.heal(i, j))
    network.at(700.0, lambda: apart.update(during=network.apart()))
    network.run(1500, rate=0.004)
    assert all(node.round > 1400 for node in network.nodes), "nobody waits"
    assert apart["during"] > 2 * apart["before"] > 0
    assert network.apart() < 1.1 * apart["before"]
    assert np.linalg.norm(np.mean([node.x for node in network.nodes], axis=0) - c.mean(axis=0)) < 0.02


def test_links_that_flap_all_the_time_pull_nobody_away() -> None:
    """Each edge is up or down at both ends, and degrees follow; where all is calm again all nodes are where they should be."""
    graph, c = named_graph("T2", 7), optima(7, 5)
    network = Network(graph, Mode.ASYNC, [1.0, 1, 2, 1, 4, 1, 1], c, lambda: float(network.rng.exponential(0.5)))
    for i, j in graph.edges:
        for time in np.cumsum(network.rng.exponential(15, size=50)):
            network.at(time, lambda i=i, j=j: network.cut(i, j))
            network.at(time + 5, lambda i=i, j=j: network.heal(i, j))
    network.run(2000, rate=0.004)
    assert [node.gossip.degree for node in network.nodes] == [graph.degree(i) for i in graph.nodes]
    assert np.linalg.norm(np.mean([node.x for node in network.nodes], axis=0) - c.mean(axis=0)) < 0.02


def test_who_comes_back_after_long_disturbs_its_neighbours_less_if_it_adopts() -> None:
    """It was away from round 20 to 500 of the others. Either way all settle at the mean of all optima in the end."""
    graph, c = named_graph("T3", 7), optima(7, 5) + 3
    jumps = {}
    for adopts in (False, True):
        network = Network(graph, Mode.ASYNC, [1.0] * 7, c, lambda: 0.1)
        apart: list[float] = []
        network.at(20.0, lambda network=network: network.leave(0))
        network.at(500.0, lambda network=network, adopts=adopts: network.come_back(0, adopts))
        for time in range(490, 520):
            network.at(time + 0.5, lambda network=network, apart=apart: apart.append(network.apart()))
        network.run(1500, rate=0.005)
        jumps[adopts] = max(apart[10:]) / apart[0]
        assert np.linalg.norm(np.mean([node.x for node in network.nodes], axis=0) - c.mean(axis=0)) < 0.02
        assert network.nodes[0].round < network.nodes[1].round - 400, "its rounds are its own"
    assert jumps[True] < 1.5
    assert jumps[False] > 10


def test_a_slow_node_that_was_away_for_a_moment_goes_on_from_its_own() -> None:
    """It has always been far behind in rounds; what counts is what the others did meanwhile."""
    gossip = Gossip(Mode.ASYNC, ["fast", "new"])
    for peer, round_ in (("fast", 1000 + FAR_BEHIND - 1), ("new", 100 + FAR_BEHIND - 1)):
        gossip.link_up(peer)
        gossip.received(peer, round_, 1, gossip.slot_for(peer))
    assert gossip.catch_up(100, {"fast": 1000}) is None


def test_who_was_away_adopts_the_neighbour_that_has_got_farthest_and_its_slot_stays() -> None:
    gossip = Gossip(Mode.ASYNC, ["slow", "fast", "restarted", "gone"])
    rounds = {"slow": 60, "fast": 500, "restarted": 3, "gone": 900}
    for peer, round_ in rounds.items():
        assert not gossip.complete
        gossip.link_up(peer)
        gossip.received(peer, round_, 1, gossip.slot_for(peer))
    assert gossip.complete
    gossip.link_down("gone")
    plan = gossip.catch_up(50, {"slow": 30, "fast": 100, "restarted": 90, "gone": 90})
    assert plan is not None
    assert [(c.peer, c.round, c.weight) for c in plan.contributions] == [("fast", 500, 1.0)]
    slot = plan.contributions[0].slot
    for round_ in range(501, 510):
        assert gossip.slot_for("fast") != slot
        gossip.received("fast", round_, 1, gossip.slot_for("fast"))
    gossip.release(plan)
    assert gossip.slot_for("fast") == slot


def test_a_newcomer_adopts_from_a_federation_that_is_far() -> None:
    gossip = Gossip(Mode.ASYNC, ["p"])
    gossip.link_up("p")
    gossip.received("p", FAR_BEHIND, 1, gossip.slot_for("p"))
    assert gossip.catch_up(0, {}) is not None


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
