"""Mixing against a dumb oracle: W applied to all nodes' vectors with plain float64 numpy."""

import networkx as nx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conlora.core import mixing
from conlora.core.mixing import metropolis_weight, mix
from conlora.core.rules import RULES, Rule
from conlora.core.schema import Role, Schema, TensorSpec
from conlora.core.topology import metropolis_matrix
from conlora.training.blending import lerp


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


blends = pytest.mark.parametrize("blend", [mixing.blend, lerp])
weights = st.lists(st.floats(1e-3, 1), min_size=0, max_size=8).map(lambda raw: [w / (1 + sum(raw)) for w in raw])


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixing, "BLOCK", 64)


@blends
@given(weights=weights, size=st.integers(0, 300), seed=st.integers(0, 99))
@pytest.mark.usefixtures("small_blocks")
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mixing_is_as_accurate_as_fp32(blend: mixing.Blend, weights: list[float], size: int, seed: int) -> None:
    own, *others = np.random.default_rng(seed).normal(size=(len(weights) + 1, size)).astype(np.float32)
    pairs = list(zip(weights, others, strict=True))
    exact = own.astype(np.float64)
    for weight, other in pairs:
        exact += weight * (other.astype(np.float64) - own)
    before = own.copy(), [other.copy() for other in others]
    out = np.full(size, np.nan, np.float32)
    assert mix(own, pairs, out, blend) is out
    np.testing.assert_allclose(out, exact, atol=4e-7 * (1 + len(pairs)))
    np.testing.assert_array_equal(mix(own, pairs, blend=blend), out)
    np.testing.assert_array_equal(own, before[0])
    np.testing.assert_array_equal(others, before[1] or np.empty((0,)))
    assert mix(own, pairs, own, blend) is own
    np.testing.assert_array_equal(own, out)


@blends
@settings(deadline=None)
@given(weights=weights, seed=st.integers(0, 99))
def test_neighbours_that_agree_change_no_bit(blend: mixing.Blend, weights: list[float], seed: int) -> None:
    y = np.random.default_rng(seed).normal(size=100).astype(np.float32)
    assert mix(y, [(weight, y.copy()) for weight in weights], blend=blend).tobytes() == y.tobytes()


@pytest.mark.parametrize("rule", RULES.values())
def test_rules_mix_into_what_they_are_given(rule: Rule) -> None:
    y, other, out = np.zeros(4, np.float32), np.ones(4, np.float32), np.empty(4, np.float32)
    schema = Schema((TensorSpec("a", "m", Role.A, (4,)),))
    assert rule.mix(schema, y, [(0.25, other)], out) is out
    assert out.tolist() == [0.25] * 4
    assert rule.mix(schema, y, [(0.25, other)], blend=lerp).tolist() == [0.25] * 4


def test_the_published_vector_is_left_alone() -> None:
    y, other = np.zeros(4, np.float32), np.ones(4, np.float32)
    mix(y, [(0.5, other)])
    assert not y.any()
    assert other.all()
