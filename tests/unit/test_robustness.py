"""Robust mixing: against its formulas, and what a liar can do at most."""

import math
import statistics

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conlora.core import mixing, robustness
from conlora.core.mixing import metropolis_weight, mix
from conlora.core.robustness import Clipping, Received, TrimmedMean, Trust, adapted
from conlora.core.schema import Vector

SIZE = 50


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robustness, "BLOCK", 16)
    monkeypatch.setattr(robustness, "STEP", 16)
    monkeypatch.setattr(mixing, "BLOCK", 16)


def vectors(n: int, seed: int) -> Vector:
    return np.random.default_rng(seed).normal(size=(n, SIZE)).astype(np.float32)


def received(others: Vector, radius: float | None = None) -> list[Received]:
    return [Received(1 / (len(others) + 1), other, radius) for other in others]


def test_without_a_screen_all_is_mixed_as_it_came() -> None:
    own, *others = vectors(4, 0)
    screened = Trust()(own, received(others))
    assert screened.weights == [weight for weight, _ in screened.neighbours] == [0.25] * 3
    assert all(mixed is other for (_, mixed), other in zip(screened.neighbours, others, strict=True))


@given(st.integers(1, 6), st.integers(0, 999), st.floats(0.1, 20))
def test_clipping_is_its_formula(neighbours: int, seed: int, radius: float) -> None:
    own, *others = vectors(neighbours + 1, seed)
    exact = own.astype(np.float64)
    for other in received(others):
        difference = other.vector.astype(np.float64) - own
        exact += other.weight * difference * min(1.0, radius / np.linalg.norm(difference))
    np.testing.assert_allclose(mix(own, Clipping(1, radius)(own, received(others)).neighbours), exact, atol=2e-6)


@given(st.integers(1, 6), st.integers(0, 999), st.floats(0.1, 5), st.floats(1, 1e6))
def test_a_liar_moves_a_node_by_weight_times_radius_at_most(n: int, seed: int, radius: float, scale: float) -> None:
    own, *others = vectors(n + 1, seed)
    lie = [Received(1 / (n + 1), np.float32(scale) * others[0]), *received(others)[1:]]
    honest = received(others)[1:]
    with_it, without = (
        mix(own, Clipping(1, radius)(own, said).neighbours).astype(np.float64) for said in (lie, honest)
    )
    assert np.linalg.norm(with_it - without) <= radius / (n + 1) + 1e-4


@given(st.integers(2, 8), st.integers(0, 999), st.booleans())
def test_clipping_at_both_ends_alike_keeps_the_mean_of_all_nodes(n: int, seed: int, adapting: bool) -> None:
    """Three rounds in lockstep: from the second on, adaptive radii are those that both ends were told."""
    graph = nx.gnp_random_graph(n, 0.6, seed=seed)
    y = vectors(n, seed).astype(np.float32)
    screens = [Clipping(1, None if adapting else 3.0 + i) for i in range(n)]
    for round_ in range(3):
        told = [screen.radius for screen in screens]
        mixed = np.stack(
            [
                mix(y[i], screens[i](y[i], [
                    Received(metropolis_weight(graph.degree[i], graph.degree[j]), y[j], told[j])
                    for j in graph.neighbors(i)
                ]).neighbours)
                for i in range(n)
            ]
        )  # fmt: skip
        if not adapting or round_ > 0:
            np.testing.assert_allclose(mixed.mean(axis=0), y.mean(axis=0), atol=1e-5)
        y = mixed


def test_an_adaptive_radius_leaves_out_the_farthest_and_is_told_for_the_next_round() -> None:
    own = np.zeros(SIZE, np.float32)
    others = [np.full(SIZE, far / math.sqrt(SIZE), np.float32) for far in (1, 2, 3, 400)]
    radius = math.sqrt(1 + 4 + 9)  # of three, for all weigh the same
    screen = Clipping(attackers=1)
    assert screen.radius is None
    weights = screen(own, received(np.stack(others))).weights
    np.testing.assert_allclose(weights, [0.2, 0.2, 0.2, 0.2 * radius / 400], rtol=1e-5)
    assert screen.radius == pytest.approx(radius)
    weights = screen(own, received(np.stack(others[::-1]) * 0.1)).weights
    np.testing.assert_allclose(weights, [0.2 * radius / 40, 0.2, 0.2, 0.2], rtol=1e-5)
    assert screen.radius == pytest.approx(0.1 * radius)
    assert screen(own, []).neighbours == []
    assert screen.radius == pytest.approx(0.1 * radius)


@given(st.lists(st.tuples(st.floats(0.1, 1), st.floats(0.1, 100)), min_size=1, max_size=7), st.integers(1, 3))
def test_the_adaptive_radius_is_its_formula(neighbours: list[tuple[float, float]], attackers: int) -> None:
    weights, distances = zip(*neighbours, strict=True)
    found = adapted(weights, distances, attackers)
    left = sorted(neighbours, key=lambda pair: (pair[1], pair[0]))
    out = [left.pop() for _ in range(min(attackers, len(left)))]
    if left:
        assert found**2 * sum(w for w, _ in out) == pytest.approx(sum(w * d * d for w, d in left))
    else:
        assert found == min(distances)


def test_the_smaller_radius_of_an_edge_counts_and_none_is_no_contact() -> None:
    own, other = np.zeros(SIZE, np.float32), np.full(SIZE, 10 / math.sqrt(SIZE), np.float32)
    for theirs, weight in ((2.0, 0.1), (None, 0.25), (7.0, 0.25), (math.inf, 0.25)):
        assert Clipping(1, 5.0)(own, [Received(0.5, other, theirs)]).weights == [pytest.approx(weight)]
    nothing = Clipping(1, 5.0)(own, [Received(0.5, other, 0.0)])
    assert nothing.weights == [0]
    assert nothing.neighbours == []


@given(st.integers(1, 7), st.integers(0, 2), st.integers(0, 999))
def test_the_trimmed_mean_is_its_formula(neighbours: int, attackers: int, seed: int) -> None:
    own, *others = vectors(neighbours + 1, seed)
    exact = own.astype(np.float64)
    for i in range(SIZE if neighbours >= 2 * attackers else 0):
        theirs = [float(other[i]) for other in others]
        ordered = sorted([float(own[i]), *theirs])
        median = statistics.median(ordered)
        kept = sorted(theirs, key=lambda value: abs(value - median))[: neighbours - attackers]
        smallest, largest = ordered[attackers], ordered[-1 - attackers]
        exact[i] = (exact[i] + len(kept) * min(max(statistics.fmean(kept), smallest), largest)) / (1 + len(kept))
    screen = TrimmedMean(attackers)
    for _ in range(2):  # it may use its memory again
        np.testing.assert_allclose(mix(own, screen(own, received(others)).neighbours), exact, atol=1e-6)


@given(st.floats(-1e6, 1e6))
def test_a_liar_at_one_end_costs_no_honest_value_at_the_other(lie: float) -> None:
    """It can do so little only where it is far off; else it counts as one of them, or in place of one that is farther."""
    own, *honest = (np.full(SIZE, value, np.float32) for value in (2, 1, 2, 3))
    mixed = mix(own, TrimmedMean(1)(own, received([*honest, np.full(SIZE, lie, np.float32)])).neighbours)
    np.testing.assert_allclose(mixed, 2, atol=1e-6 if abs(lie - 2) > 1.1 else 0.5)


@given(st.integers(1, 3), st.integers(0, 2), st.integers(0, 999), st.floats(-1e6, 1e6))
def test_with_the_trimmed_mean_values_stay_among_the_honest_ones(
    attackers: int, more: int, seed: int, lie: float
) -> None:
    own, *others = vectors(2 * attackers + more + 1, seed)
    honest = np.stack([own, *others[attackers:]])
    others[:attackers] = [np.full(SIZE, lie, np.float32)] * attackers
    mixed = mix(own, TrimmedMean(attackers)(own, received(others)).neighbours)
    assert (mixed <= honest.max(axis=0) + 1e-6).all()
    assert (mixed >= honest.min(axis=0) - 1e-6).all()
