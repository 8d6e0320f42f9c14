"""Named topologies, Metropolis matrices and their spectra."""

import math

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conlora.core.topology import (
    NAMED,
    REFERENCE_GRAPHS,
    from_neighbours,
    graph_of,
    metropolis_matrix,
    named_graph,
    spectrum,
)

RANDOM = ("random-regular", "erdos-renyi")


@st.composite
def graphs(draw: st.DrawFn) -> "nx.Graph[int]":
    """Any graph over 1 to 9 nodes, connected or not."""
    n = draw(st.integers(1, 9))
    pairs = [(i, j) for i in range(1, n + 1) for j in range(i + 1, n + 1)]
    return graph_of(draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else [], n)


@given(graphs())
def test_metropolis_matrix_is_a_mixing_matrix_of_its_graph(graph: "nx.Graph[int]") -> None:
    w = metropolis_matrix(graph)
    n = graph.number_of_nodes()
    assert np.array_equal(w, w.T)
    np.testing.assert_allclose(w.sum(axis=1), 1)
    assert (w >= 0).all()
    assert (np.diag(w) > 0).all()  # every node keeps a part of its own
    for i in range(n):
        for j in range(n):
            if i != j:
                expected = 1 / (1 + max(graph.degree[i], graph.degree[j])) if graph.has_edge(i, j) else 0
                assert w[i, j] == expected


@given(graphs())
def test_spectrum_is_that_of_the_distance_from_the_mean(graph: "nx.Graph[int]") -> None:
    n = graph.number_of_nodes()
    rho, s = spectrum(graph)
    if not nx.is_connected(graph):
        assert (rho, s) == (1.0, math.inf)
        return
    deviation = metropolis_matrix(graph) - np.full((n, n), 1 / n)
    assert rho == pytest.approx(np.linalg.norm(deviation, 2), abs=1e-9)
    assert rho < 1
    # s^2 (n-1) is what a unit disturbance per round adds up to: trace of sum_{t>=1} (W - J)^(2t)
    squared = deviation @ deviation
    series = np.trace(squared @ np.linalg.inv(np.eye(n) - squared))
    assert s == pytest.approx(math.sqrt(series / max(n - 1, 1)), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "n"),
    [(name, n) for name in NAMED for n in (2, 4, 6, 8, 9, 16) if name != "isolated" and (name, n) != ("torus", 2)],
)
def test_named_topologies_are_connected_over_all_nodes(name: str, n: int) -> None:
    graph = named_graph(name, n, seed=3)
    assert sorted(graph) == list(range(n))
    assert nx.is_connected(graph)
    assert not list(nx.selfloop_edges(graph))


@pytest.mark.parametrize("name", RANDOM)
def test_random_topologies_depend_on_the_seed_alone(name: str) -> None:
    drawn = {seed: set(named_graph(name, 12, seed).edges) for seed in range(4)}
    assert all(set(named_graph(name, 12, seed).edges) == edges for seed, edges in drawn.items())
    assert len({frozenset(edges) for edges in drawn.values()}) > 1


@pytest.mark.parametrize(("name", "edges"), [("T1", 7), ("T2", 10), ("T3", 14), ("T4", 17), ("du14", 7)])
def test_reference_topologies(name: str, edges: int) -> None:
    graph = named_graph(name, 7)
    assert graph.number_of_edges() == edges
    assert nx.is_connected(graph)


def test_reference_t1_is_the_ring() -> None:
    assert set(map(frozenset, named_graph("T1", 7).edges)) == set(map(frozenset, named_graph("ring", 7).edges))


def test_predictor_falls_from_ring_to_dense() -> None:
    predicted = [spectrum(named_graph(name, 7))[1] for name in ("T1", "T2", "T3", "T4", "complete")]
    assert predicted == sorted(predicted, reverse=True)
    assert predicted[0] == pytest.approx(0.6807, abs=1e-4)
    assert predicted[-1] == pytest.approx(0, abs=1e-9)


def test_exponential_has_neighbours_at_powers_of_two() -> None:
    assert set(named_graph("exponential", 10).neighbors(0)) == {1, 2, 4, 8, 9, 6}


def test_a_graph_from_what_nodes_say_of_themselves() -> None:
    """One end's word is enough; who is not there, and oneself, is no neighbour."""
    graph = from_neighbours({"a": ["a", "b", "gone"], "b": [], "c": []})
    assert set(graph.nodes) == {"a", "b", "c"}
    assert list(graph.edges) == [("a", "b")]


def test_isolated_nodes_never_agree() -> None:
    assert spectrum(named_graph("isolated", 3)) == (1.0, math.inf)
    assert spectrum(named_graph("isolated", 1)) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("name", "n", "sentence"),
    [
        ("T2", 5, "topology T2 has 7 nodes, not 5"),
        ("rign", 5, "unknown topology 'rign'; known: ring"),
        ("torus", 7, "product of two factors"),
    ],
)
def test_impossible_topologies(name: str, n: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        named_graph(name, n)


@pytest.mark.parametrize("edge", [(0, 1), (1, 4), (2, 2)])
def test_impossible_edges(edge: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="does not join two different nodes"):
        graph_of([(1, 2), edge], 3)


def test_every_reference_topology_is_tested() -> None:
    assert REFERENCE_GRAPHS.keys() == {"T1", "T2", "T3", "T4", "du14"}
