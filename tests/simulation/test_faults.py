"""Edges that die, come, heal and flap while nodes train: the weights follow, and all settle where they should."""

import numpy as np
from tests.simulated import Network, optima

from conlora.core.gossip import Mode
from conlora.core.topology import named_graph


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
