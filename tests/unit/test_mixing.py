"""Mixing against a dumb oracle: W applied to all nodes' vectors with plain float64 numpy."""

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conlora.core.mixing import metropolis_weight, mix
from conlora.core.topology import metropolis_matrix


def random_graph(n: int, seed: int) -> nx.Graph:
    return nx.gnp_random_graph(n, 0.5, seed=seed)


@given(st.integers(2, 9), st.integers(0, 10_000), st.integers(1, 300))
def test_one_sided_mixing_of_all_nodes_is_w_times_the_vectors(n: int, seed: int, size: int) -> None:
    graph = random_graph(n, seed)
    y = np.random.default_rng(seed).normal(size=(n, size)).astype(np.float32)
    mixed = [
        mix(y[i], [(metropolis_weight(graph.degree[i], graph.degree[j]), y[j]) for j in graph.neighbors(i)])
        for i in range(n)
    ]
    np.testing.assert_allclose(np.stack(mixed), metropolis_matrix(graph) @ y.astype(np.float64), atol=2e-6)


@given(st.integers(2, 12), st.integers(0, 10_000))
def test_metropolis_matrix_is_symmetric_stochastic_and_keeps_a_part_for_itself(n: int, seed: int) -> None:
    w = metropolis_matrix(random_graph(n, seed))
    np.testing.assert_allclose(w, w.T)
    np.testing.assert_allclose(w.sum(axis=1), 1)
    assert (np.diag(w) > 0).all()
    assert (w >= 0).all()


def test_weights_are_those_of_the_formula() -> None:
    assert metropolis_weight(2, 2) == pytest.approx(1 / 3)
    assert metropolis_weight(2, 4) == metropolis_weight(4, 2) == pytest.approx(1 / 5)


def test_neighbours_that_agree_change_no_bit() -> None:
    y = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    np.testing.assert_array_equal(mix(y, [(1 / 3, y.copy()), (1 / 3, y.copy())]), y)


def test_the_published_vector_is_left_alone() -> None:
    y, other = np.zeros(4, np.float32), np.ones(4, np.float32)
    mix(y, [(0.5, other)])
    assert not y.any()
    assert other.all()
