"""Sketches spreading through federations of many shapes, on a fake clock, with links that lose, repeat and reorder."""

from collections import deque
from dataclasses import dataclass, field, replace

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conlora.core.budget import Budget
from conlora.core.sketchbook import (
    DEPARTED_SECONDS,
    LEAST_BYTES,
    LONGEST_LIFETIME_SECONDS,
    MOST_NODES,
    Part,
    Record,
    Sketchbook,
    allowance,
    lifetime,
    most_credit,
)
from conlora.core.topology import named_graph

RECORD_BYTES = 1000


def record(node: str, epoch: int = 1, sequence: int = 1, round_: int = 1) -> Record:
    value = np.full(1, round_, np.float32)
    return Record(node, node, epoch, sequence, round_, (), value, value, None)


@dataclass
class World:
    """Nodes with sketchbooks, joined by links; `tick` lets every live link carry one occasion's sketches."""

    graph: "nx.Graph[int]"
    record_bytes: int = RECORD_BYTES
    now: float = 0.0
    books: dict[int, Sketchbook] = field(default_factory=dict)
    sequence: dict[int, int] = field(default_factory=dict)
    epoch: dict[int, int] = field(default_factory=dict)
    wire: deque[tuple[int, int, Part]] = field(default_factory=deque)  # sender, receiver, part
    carried: int = 0

    def __post_init__(self) -> None:
        for node in self.graph:
            self.start(node)

    def start(self, node: int) -> None:
        """A new daemon: an empty book, a later epoch, links up on both sides."""
        self.epoch[node] = self.epoch.get(node, 0) + 1
        self.sequence[node] = 0
        peers = [str(other) for other in self.graph[node]]
        self.books[node] = Sketchbook(str(node), peers, self.record_bytes)
        for other in self.graph[node]:
            self.books[node].link_up(str(other))
            if other in self.books:
                self.books[other].link_up(str(node))

    def stop(self, node: int) -> None:
        """The daemon is gone; its neighbours notice."""
        del self.books[node]
        for other in self.graph[node]:
            if other in self.books:
                self.books[other].link_down(str(node))

    def mix(self, node: int, round_: int) -> None:
        """The node finishes a round."""
        self.sequence[node] += 1
        own = record(str(node), self.epoch[node], self.sequence[node], round_)
        self.books[node].put(own, 0.0, self.now)

    def tick(self, seconds: float = 1.0, earned: float = 1e9) -> None:
        """Time passes, every live link sends, and everything sent arrives."""
        self.now += seconds
        self.send(earned)
        self.deliver()

    def send(self, earned: float = 1e9) -> None:
        for node, book in self.books.items():
            for other in self.graph[node]:
                if other in self.books:
                    for part in book.take(str(other), earned, self.now):
                        self.carried += 1
                        self.wire.append((node, other, part))

    def deliver(self) -> None:
        while self.wire:
            sender, receiver, part = self.wire.popleft()
            if receiver in self.books:
                self.books[receiver].received(part.record, part.age, str(sender), self.now)

    def rounds(self, node: int) -> dict[str, int]:
        """What a node knows: each known node's round."""
        return {part.record.node_id: part.record.round for part in self.books[node].parts(self.now)}


TOPOLOGIES = [named_graph("T1", 7), nx.path_graph(7), nx.star_graph(6), named_graph("complete", 7)]


@pytest.mark.parametrize("graph", TOPOLOGIES, ids=["ring", "path", "star", "complete"])
def test_everybody_hears_of_everybody_in_as_many_hops_as_the_graph_is_wide(graph: "nx.Graph[int]") -> None:
    world = World(graph)
    for node in graph:
        world.mix(node, 5)
    for _ in range(nx.diameter(graph)):
        world.tick()
    for node in graph:
        assert world.rounds(node) == {str(other): 5 for other in graph}


@pytest.mark.parametrize("graph", TOPOLOGIES, ids=["ring", "path", "star", "complete"])
def test_only_what_changed_travels(graph: "nx.Graph[int]") -> None:
    world = World(graph)
    for node in graph:
        world.mix(node, 1)
    for _ in range(10):
        world.tick()
    settled = world.carried
    assert settled <= 2 * graph.number_of_edges() * len(graph)
    for _ in range(10):
        world.tick()
    assert world.carried == settled
    world.mix(0, 2)
    for _ in range(10):
        world.tick()
    assert 0 < world.carried - settled <= 2 * graph.number_of_edges()
    assert all(world.rounds(node)["0"] == 2 for node in graph)


def test_a_joining_node_learns_everything_and_is_learnt_of() -> None:
    world = World(nx.path_graph(5))
    world.stop(4)
    for node in range(4):
        world.mix(node, 3)
    for _ in range(6):
        world.tick()
    assert "4" not in world.rounds(0)
    world.start(4)
    world.mix(4, 1)
    for _ in range(6):
        world.tick()
    assert world.rounds(4) == {"0": 3, "1": 3, "2": 3, "3": 3, "4": 1}
    assert world.rounds(0)["4"] == 1


def test_a_restarted_node_is_believed_although_it_counts_from_an_earlier_round_again() -> None:
    world = World(nx.path_graph(3))
    for round_ in range(1, 9):
        world.mix(0, round_)
        world.tick()
    world.stop(0)
    world.start(0)
    world.mix(0, 4)
    for _ in range(3):
        world.tick()
    assert world.rounds(2)["0"] == 4


def test_a_departed_node_ages_out_everywhere_and_the_living_stay() -> None:
    world = World(nx.path_graph(4))
    for node in range(4):
        world.mix(node, 1)
    for _ in range(5):
        world.tick()
    world.stop(0)
    for step in range(int(DEPARTED_SECONDS)):
        if step % 30 == 0:
            for node in (1, 2, 3):
                world.mix(node, 2 + step)
        world.tick()
    assert set(world.rounds(3)) == {"1", "2", "3"}
    world.tick(DEPARTED_SECONDS)  # nobody renews
    assert world.rounds(3) == {}


def test_a_departed_nodes_part_is_not_passed_back_and_forth_for_ever() -> None:
    world = World(named_graph("ring", 6))
    world.mix(0, 1)
    for _ in range(6):
        world.tick()
    world.stop(0)
    for _ in range(20):
        world.tick(DEPARTED_SECONDS / 10)
    assert all("0" not in world.rounds(node) for node in range(1, 6))


def test_halves_of_a_partition_go_on_and_agree_again_when_it_heals() -> None:
    graph = nx.path_graph(6)
    world = World(graph)
    for node in graph:
        world.mix(node, 1)
    for _ in range(6):
        world.tick()
    graph.remove_edge(2, 3)
    world.books[2].link_down("3")
    world.books[3].link_down("2")
    for node in graph:
        world.mix(node, 2)
    for _ in range(6):
        world.tick()
    assert world.rounds(0) == {"0": 2, "1": 2, "2": 2, "3": 1, "4": 1, "5": 1}
    graph.add_edge(2, 3)
    world.books[2].link_up("3")
    world.books[3].link_up("2")
    for _ in range(6):
        world.tick()
    assert world.rounds(0) == world.rounds(5) == dict.fromkeys("012345", 2)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_repeated_and_reordered_sketches_never_turn_time_back(data: st.DataObject) -> None:
    graph = data.draw(st.sampled_from(TOPOLOGIES))
    world = World(graph)
    seen: dict[tuple[int, str], int] = {}
    for step in range(1, 12):
        for node in graph:
            world.mix(node, step)
        world.now += 1
        world.send()
        repeated = data.draw(st.lists(st.sampled_from(list(world.wire)), max_size=5)) if world.wire else []
        world.wire = deque(data.draw(st.permutations([*world.wire, *repeated])))
        world.deliver()
        for node in graph:
            for other, round_ in world.rounds(node).items():
                assert round_ >= seen.get((node, other), 0)
                seen[node, other] = round_
    for _ in range(7):
        world.tick()
    assert all(world.rounds(node) == {str(other): 11 for other in graph} for node in graph)


def test_who_hears_of_a_node_first_hand_is_not_told_of_it_again() -> None:
    """On the complete graph each record travels once over each of its owner's links, and no further."""
    world = World(named_graph("complete", 7))
    for node in world.graph:
        others = tuple(str(other) for other in world.graph if other != node)
        world.books[node].put(replace(record(str(node)), neighbours=others), 0.0, 0.0)
    for _ in range(5):
        world.tick()
    assert world.carried == 7 * 6
    assert all(len(world.rounds(node)) == 7 for node in world.graph)


def test_who_stands_still_does_not_lag() -> None:
    assert Part(record("a"), 7.0).lag == 7
    assert Part(replace(record("a"), still=True), 7.0).lag == 0


def test_where_rounds_are_long_records_live_long() -> None:
    assert lifetime(1.0) == DEPARTED_SECONDS
    assert lifetime(600.0) == 12_000
    assert lifetime(1e9) == LONGEST_LIFETIME_SECONDS
    book = Sketchbook("a", ["b"], RECORD_BYTES)
    book.put(replace(record("c"), lifetime=lifetime(600.0)), 0.0, 0.0)
    assert book.parts(11_999.0)
    assert not book.parts(12_000.0)


def test_ages_add_up_along_the_way() -> None:
    world = World(nx.path_graph(4))
    world.mix(0, 1)
    for _ in range(3):
        world.tick(seconds=10)
    (part,) = world.books[3].parts(world.now)
    assert part.age == pytest.approx(30)
    world.now += 5
    assert world.books[3].parts(world.now)[0].age == pytest.approx(35)


@pytest.mark.parametrize("age", [-1.0, DEPARTED_SECONDS, float("nan"), float("inf")])
def test_impossible_ages_are_refused(age: float) -> None:
    book = Sketchbook("a", ["b"], RECORD_BYTES)
    book.link_up("b")
    assert not book.received(record("c"), age, "b", 0.0)
    assert book.parts(0.0) == []


def test_credit_bounds_what_a_link_carries_and_everything_gets_its_turn() -> None:
    """Seven large records on a star's hub: two fit an occasion, and no record is starved."""
    graph = nx.star_graph(6)
    world = World(graph, record_bytes=100_000)
    for step in range(1, 31):
        for node in graph:
            world.mix(node, step)
        before = world.carried
        world.tick(earned=allowance(10_000_000))  # 200 kB
        assert world.carried - before <= 2 * 2 * graph.number_of_edges()
    assert min(world.rounds(1).values()) >= 30 - 5


@pytest.mark.parametrize("share", [0.4, 1.0, 1.7])
def test_nobody_is_starved_where_the_credit_is_for_less_than_two_records(share: float) -> None:
    """Every node has news every round, and a link carries `share` records a round."""
    world = World(nx.path_graph(4))
    for step in range(1, 61):
        for node in world.graph:
            world.mix(node, step)
        world.tick(earned=share * RECORD_BYTES)
    assert set(world.rounds(0)) == set(world.rounds(3)) == set("0123")
    assert min(world.rounds(0).values()) > 60 - 40


def test_a_record_above_the_allowance_waits_until_the_credit_is_enough() -> None:
    book = Sketchbook("a", ["b"], 10 * LEAST_BYTES)
    book.link_up("b")
    book.put(record("a"), 0.0, 0.0)
    sent = [len(book.take("b", allowance(1000), float(t))) for t in range(12)]
    assert sent == [0] * 9 + [1, 0, 0]


def test_an_idle_node_without_earnings_sends_nothing() -> None:
    book = Sketchbook("a", ["b"], RECORD_BYTES)
    book.link_up("b")
    book.put(record("a"), 0.0, 0.0)
    assert book.take("b", 0.0, 0.0) == []


def test_a_flood_of_invented_nodes_is_bounded_and_keeps_no_configured_peer_out() -> None:
    book = Sketchbook("a", ["b", "c"], RECORD_BYTES)
    book.link_up("b")
    for i in range(3 * MOST_NODES):
        book.received(record(f"sybil-{i}"), 0.0, "b", 0.0)
    assert book.received(record("c"), 0.0, "b", 0.0)
    assert len(book.parts(0.0)) == MOST_NODES + 1
    book.expire(DEPARTED_SECONDS)
    assert book.parts(DEPARTED_SECONDS) == []
    assert book.received(record("honest"), 0.0, "b", DEPARTED_SECONDS + 1)


def test_nobody_can_put_words_into_this_nodes_own_mouth() -> None:
    book = Sketchbook("a", ["b"], RECORD_BYTES)
    book.link_up("b")
    assert not book.received(record("a", epoch=9), 0.0, "b", 0.0)
    assert book.parts(0.0) == []


def test_a_node_that_keeps_its_own_sketch_passes_others_on() -> None:
    book = Sketchbook("a", ["b", "c"], RECORD_BYTES, tell_own=False)
    book.link_up("b")
    book.link_up("c")
    book.put(record("a"), 0.0, 0.0)
    book.received(record("c"), 0.0, "c", 0.0)
    assert [part.record.node_id for part in book.take("b", 1e9, 0.0)] == ["c"]
    assert {part.record.node_id for part in book.parts(0.0)} == {"a", "c"}


@pytest.mark.parametrize(
    ("snapshot", "record"), [(33_554_432, 328_704), (16_777_216, 197_632)], ids=["lora", "freeze-a"]
)
@pytest.mark.parametrize("graph", TOPOLOGIES, ids=["ring", "path", "star", "complete"])
def test_a_large_models_sketches_stay_within_two_percent_of_its_snapshots(
    graph: "nx.Graph[int]", snapshot: int, record: int
) -> None:
    """Query and value projections of 32 layers of width 4096 at rank 16: bytes of a snapshot and of a record."""
    world, rounds = World(graph, record_bytes=record), 100
    for step in range(1, rounds + 1):
        for node in graph:
            world.mix(node, step)
        world.tick(earned=allowance(snapshot))
    sent = world.carried * record / (2 * graph.number_of_edges())  # on each link, each way
    assert sent <= 0.02 * snapshot * rounds
    assert min(min(world.rounds(node).values()) for node in graph) > rounds - 25


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4 * LEAST_BYTES),
    st.integers(1, 1 << 28),
    st.lists(st.tuples(st.sampled_from(["snapshot", "heartbeat"]), st.integers(0, 20)), max_size=15),
)
def test_no_honest_sender_uses_more_than_its_neighbour_grants(
    record_bytes: int, snapshot_bytes: int, occasions: list[tuple[str, int]]
) -> None:
    """However much credit it has saved, and however many records have come meanwhile."""
    book, now = Sketchbook("me", ["peer"], record_bytes), 0.0
    book.link_up("peer")
    granted = Budget(LEAST_BYTES + record_bytes, most=most_credit(record_bytes, snapshot_bytes))
    for what, arrivals in occasions:
        now += 1.0
        for i in range(arrivals):
            book.put(record(f"{now:.0f}-{i}"), 0.0, now)
        earned = allowance(snapshot_bytes) if what == "snapshot" else LEAST_BYTES
        granted.earn(earned)
        for _ in book.take("peer", earned, now):
            assert granted.spend(record_bytes, now)
