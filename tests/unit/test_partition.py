"""Shares are disjoint, of equal size, reproducible, and as alike or unlike as asked for."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conlora.testbed.partition import Labels, Rows, by_label, dirichlet, hold_out, iid

Deal = Callable[[Labels, int, int, np.random.Generator], list[Rows]]


def dirichlet_deal(alpha: float) -> Deal:
    return lambda labels, nodes, rows, rng: dirichlet(labels, nodes, rows, alpha, rng)


DEALS: list[Deal] = [iid, by_label, *map(dirichlet_deal, (0.001, 0.1, 1.0, 1e6))]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Labels, int, int]:
    """Labels, possibly with classes that are rare or absent; a number of nodes; a size of shares that they allow."""
    labels = np.array(draw(st.lists(st.integers(0, 4), min_size=4, max_size=120)))
    nodes = draw(st.integers(1, 4))
    return labels, nodes, draw(st.integers(1, len(labels) // nodes))


@given(cases(), st.sampled_from(DEALS), st.integers(0, 2**32))
def test_shares_are_disjoint_and_equal_and_reproducible(case: tuple[Labels, int, int], deal: Deal, seed: int) -> None:
    labels, nodes, rows = case
    shares = deal(labels, nodes, rows, np.random.default_rng(seed))
    assert [len(share) for share in shares] == [rows] * nodes
    dealt = np.concatenate(shares)
    assert len(set(dealt.tolist())) == nodes * rows
    assert dealt.min() >= 0
    assert dealt.max() < len(labels)
    again = deal(labels, nodes, rows, np.random.default_rng(seed))
    assert all(np.array_equal(a, b) for a, b in zip(shares, again, strict=True))


@given(cases(), st.integers(0, 2**32))
def test_held_out_rows_have_the_whole_sets_proportions(case: tuple[Labels, int, int], seed: int) -> None:
    labels, _, rows = case
    held, others = hold_out(labels, rows, np.random.default_rng(seed))
    assert len(held) == rows
    assert sorted([*held, *others]) == list(range(len(labels)))
    exact = np.bincount(labels) * rows / len(labels)
    assert (np.abs(np.bincount(labels[held], minlength=len(exact)) - exact) < 1).all()


def proportions(labels: Labels, shares: list[Rows]) -> np.ndarray:
    """Class proportions of each share, shape (nodes, classes)."""
    return np.stack([np.bincount(labels[share], minlength=labels.max() + 1) / len(share) for share in shares])


@pytest.fixture
def unbalanced() -> Labels:
    return np.random.default_rng(0).choice(4, size=4000, p=[0.1, 0.2, 0.3, 0.4])


def test_a_large_alpha_is_near_iid(unbalanced: Labels) -> None:
    shares = dirichlet(unbalanced, 5, 400, 1e6, np.random.default_rng(1))
    np.testing.assert_allclose(proportions(unbalanced, shares), [[0.1, 0.2, 0.3, 0.4]] * 5, atol=0.02)


def test_skew_grows_as_alpha_falls(unbalanced: Labels) -> None:
    def skew(alpha: float) -> float:
        draws = [dirichlet(unbalanced, 5, 200, alpha, np.random.default_rng(seed)) for seed in range(20)]
        return float(np.mean([proportions(unbalanced, shares).std(axis=0) for shares in draws]))

    skews = [skew(alpha) for alpha in (100, 1, 0.1)]
    assert skews == sorted(skews)
    assert skews[-1] > 5 * skews[0]


def test_no_node_is_served_last(unbalanced: Labels) -> None:
    """Where classes run out, the nodes that come later in the list don't get the leftovers."""
    draws = [dirichlet(unbalanced, 5, 800, 0.3, np.random.default_rng(seed)) for seed in range(60)]
    distances = [np.abs(proportions(unbalanced, shares) - [0.1, 0.2, 0.3, 0.4]).sum(axis=1) for shares in draws]
    by_node = np.mean(distances, axis=0)
    assert by_node.max() < 1.35 * by_node.min()


def test_by_label_gives_one_class_to_most(unbalanced: Labels) -> None:
    shares = by_label(unbalanced, 8, 500, np.random.default_rng(0))
    classes = [len(set(unbalanced[share].tolist())) for share in shares]
    assert sum(classes) <= 8 + 3  # each of the three borders between classes falls into one share at most
    firsts = [unbalanced[share].min() for share in shares]
    assert firsts == sorted(firsts)


def test_all_rows_can_be_dealt(unbalanced: Labels) -> None:
    for deal in (iid, by_label, partial(dirichlet, alpha=0.05)):
        shares = deal(unbalanced, nodes=8, rows=500, rng=np.random.default_rng(0))
        assert sorted(np.concatenate(shares).tolist()) == list(range(4000))


@given(st.integers(2, 8), st.floats(0.1, 10), st.integers(0, 999))
def test_dirichlet_shares_together_have_the_data_sets_own_proportions(nodes: int, alpha: float, seed: int) -> None:
    labels = np.repeat([0, 1, 2], [1200, 600, 200])
    shares = dirichlet(labels, nodes, 100, alpha, np.random.default_rng(seed))
    dealt = np.bincount(labels[np.concatenate(shares)], minlength=3) / (nodes * 100)
    np.testing.assert_allclose(dealt, [0.6, 0.3, 0.1], atol=0.03)
