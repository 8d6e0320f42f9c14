"""Consensus measures against float64 oracles that form every product."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conlora.core.consensus import (
    EdgeError,
    Factors,
    amplification,
    consensus,
    edge_errors,
    factors,
    measure,
    product_distance,
    product_norm,
    total,
)
from conlora.core.schema import Role, Schema, TensorSpec

shapes = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))


def random_nodes(
    n: int, layers: list[tuple[int, int, int]], spread: float, seed: int, frozen: bool = False
) -> list[Factors]:
    """Nodes around a common point; `spread` is their distance relative to it."""
    rng = np.random.default_rng(seed)
    centre = {f"l{i}": (rng.normal(size=(d, r)), rng.normal(size=(r, k))) for i, (d, k, r) in enumerate(layers)}
    return [
        {
            name: (b + spread * rng.normal(size=b.shape), a if frozen else a + spread * rng.normal(size=a.shape))
            for name, (b, a) in centre.items()
        }
        for _ in range(n)
    ]


def dense(nodes: list[Factors]) -> dict[str, float]:
    """Every figure from its definition, products formed."""
    figures = dict.fromkeys(("D", "V", "C", "E_A", "E_B", "mean"), 0.0)
    for module in nodes[0]:
        b = np.stack([node[module][0] for node in nodes])
        a = np.stack([node[module][1] for node in nodes])
        p, b_mean, a_mean = b @ a, b.mean(0), a.mean(0)
        figures["D"] += np.mean([np.linalg.norm(x - b_mean @ a_mean) for x in p])
        figures["V"] += np.mean([np.linalg.norm(x - p.mean(0)) ** 2 for x in p])
        figures["C"] += np.linalg.norm(np.mean((b - b_mean) @ (a - a_mean), axis=0)) ** 2
        figures["E_A"] += np.mean([np.linalg.norm(x - a_mean) ** 2 for x in a])
        figures["E_B"] += np.mean([np.linalg.norm(x - b_mean) ** 2 for x in b])
        figures["mean"] += np.linalg.norm(b_mean @ a_mean) ** 2
    return {name: value if name == "D" else np.sqrt(value) for name, value in figures.items()}


@given(
    st.integers(1, 6),
    st.lists(shapes, min_size=1, max_size=3),
    st.sampled_from([1.0, 1e-2, 1e-4]),
    st.integers(0, 9999),
)
def test_all_figures_equal_their_definitions(
    n: int, layers: list[tuple[int, int, int]], spread: float, seed: int
) -> None:
    nodes = random_nodes(n, layers, spread, seed)
    truth, seen = dense(nodes), consensus(measure(nodes))
    floor = 1e-9 * (1 + truth["mean"])
    for name in ("D", "V", "C", "E_A", "E_B"):
        assert getattr(seen, name) == pytest.approx(truth[name], rel=1e-5, abs=floor), name
    assert seen.relative == pytest.approx(truth["V"] / truth["mean"], rel=1e-5, abs=1e-9)


@given(
    st.integers(1, 5),
    st.lists(shapes, min_size=1, max_size=3),
    st.sampled_from([1.0, 1e-3, 1e-6, 0.0]),
    st.integers(0, 9999),
)
def test_fp32_factors_give_four_digits_down_to_a_millionth_of_the_norms(
    n: int, layers: list[tuple[int, int, int]], spread: float, seed: int
) -> None:
    nodes = [
        {name: (b.astype(np.float32), a.astype(np.float32)) for name, (b, a) in node.items()}
        for node in random_nodes(n, layers, spread, seed)
    ]
    exact = [{name: (b.astype(np.float64), a.astype(np.float64)) for name, (b, a) in node.items()} for node in nodes]
    truth, seen = dense(exact), consensus(measure(nodes))
    norms = sum(float(np.linalg.norm(b) * np.linalg.norm(a)) for b, a in exact[0].values())
    for name in ("D", "V", "C"):
        if truth[name] > 1e-6 * norms:
            assert getattr(seen, name) == pytest.approx(truth[name], rel=1e-4), name
    for i in range(1, n):
        edges = edge_errors(nodes[0], nodes[i])
        for edge, (b1, a1), (b2, a2) in zip(edges, exact[0].values(), exact[i].values(), strict=True):
            distance = float(np.linalg.norm(b1 @ a1 - b2 @ a2))
            if distance > 1e-6 * norms:
                assert edge.product == pytest.approx(distance, rel=1e-4)
            assert edge.a == pytest.approx(np.linalg.norm(a1 - a2), rel=1e-6)
            assert edge.b == pytest.approx(np.linalg.norm(b1 - b2), rel=1e-6)


@given(shapes, st.integers(0, 9999), st.sampled_from([1e-2, 1e-5]))
def test_unlike_factors_of_almost_one_product(shape: tuple[int, int, int], seed: int, step: float) -> None:
    """B R and R^-1 A have the product B A: the sum over Gram matrices cancels, the measure does not."""
    (first,) = random_nodes(1, [shape], 0.0, seed)
    b, a = first["l0"]
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(b.shape[1], b.shape[1])))[0]
    b2, a2 = b @ turn + step * rng.normal(size=b.shape), turn.T @ a
    truth = float(np.linalg.norm(b @ a - b2 @ a2))
    if truth > 1e-6 * float(np.linalg.norm(b) * np.linalg.norm(a)):
        assert product_distance(b, a, b2, a2) == pytest.approx(truth, rel=1e-4)


@given(st.lists(shapes, min_size=1, max_size=3), st.integers(0, 9999))
def test_modules_add_up(layers: list[tuple[int, int, int]], seed: int) -> None:
    modules = measure(random_nodes(3, layers, 0.5, seed))
    whole, parts = consensus(modules), [sums.consensus() for sums in modules.values()]
    assert pytest.approx(sum(part.D for part in parts)) == whole.D
    for name in ("V", "C", "E_A", "E_B"):
        assert getattr(whole, name) == pytest.approx(np.linalg.norm([getattr(part, name) for part in parts]))


def test_a_nodes_amplification_is_over_all_of_its_edges() -> None:
    edges = [EdgeError(3.0, 1.0, 1.0), EdgeError(4.0, 1.0, 1.0)]
    assert total(edges) == EdgeError(5.0, pytest.approx(np.sqrt(2)), pytest.approx(np.sqrt(2)))
    assert amplification(edges) == pytest.approx(2.5)
    assert amplification([]) == 0
    assert amplification([EdgeError(0.0, 0.0, 0.0)]) == 0


def test_a_product_of_nothing() -> None:
    assert product_norm(np.zeros((3, 2)), np.ones((2, 5))) == 0


@given(shapes, st.integers(0, 9999))
def test_parts_that_cancel_leave_nothing_but_rounding(shape: tuple[int, int, int], seed: int) -> None:
    """[B, B] [A; -A] is 0, which a sum over Gram matrices knows to the root of float64's digits only."""
    (first,) = random_nodes(1, [shape], 0.0, seed)
    b, a = first["l0"]
    assert product_norm(np.hstack([b, b]), np.vstack([a, -a])) < 1e-13 * np.linalg.norm(b) * np.linalg.norm(a)


@given(shapes, st.integers(0, 9999))
def test_product_distance_keeps_its_digits_where_products_are_close(shape: tuple[int, int, int], seed: int) -> None:
    (first,) = random_nodes(1, [shape], 0.0, seed)
    b, a = first["l0"]
    step = 1e-6 * np.random.default_rng(seed).normal(size=b.shape)
    # B2 - B1 as it is in floating point, so that the oracle knows the exact difference
    moved = b + step
    truth = np.linalg.norm((moved - b) @ a)
    assert product_distance(moved, a, b, a) == pytest.approx(truth, rel=1e-4)


def test_frozen_a_has_no_cross_term_and_no_error_in_a() -> None:
    seen = consensus(measure(random_nodes(5, [(8, 6, 2)], 0.3, seed=1, frozen=True)))
    assert seen.C == 0
    assert seen.E_A == 0
    assert seen.V > 0


def test_orthonormal_frozen_a_makes_v_equal_e_b() -> None:
    rng = np.random.default_rng(2)
    a = np.linalg.qr(rng.normal(size=(6, 2)))[0].T
    nodes: list[Factors] = [{"m": (rng.normal(size=(8, 2)), a)} for _ in range(5)]
    seen = consensus(measure(nodes))
    assert pytest.approx(seen.E_B) == seen.V
    assert seen.amplification == pytest.approx(1)


def test_nodes_that_agree_have_no_error() -> None:
    seen = consensus(measure(random_nodes(4, [(5, 4, 2)], 0.0, seed=3)))
    assert pytest.approx(0, abs=1e-7) == seen.D
    assert pytest.approx(0, abs=1e-7) == seen.V


def test_factors_come_from_the_vector_and_from_what_is_frozen() -> None:
    full = Schema(
        (
            TensorSpec("m.lora_A.weight", "m", Role.A, (2, 3)),
            TensorSpec("m.lora_B.weight", "m", Role.B, (4, 2)),
            TensorSpec("head.weight", "head", Role.HEAD, (2, 4)),
        )
    )
    shared = full.select({Role.B, Role.HEAD})
    vector = np.arange(shared.size, dtype=np.float32)
    frozen_a = np.ones((2, 3), np.float32)
    pairs = factors(shared, vector, {"m.lora_A.weight": frozen_a})
    assert list(pairs) == ["m"]
    np.testing.assert_array_equal(pairs["m"][0], np.arange(8).reshape(4, 2))
    np.testing.assert_array_equal(pairs["m"][1], frozen_a)
    other = factors(shared, vector + 1, {"m.lora_A.weight": frozen_a})
    (edge,) = edge_errors(pairs, other)
    assert edge.product == pytest.approx(np.linalg.norm(np.ones((4, 2)) @ frozen_a))
    assert (edge.a, edge.b) == (0, pytest.approx(np.sqrt(8)))
