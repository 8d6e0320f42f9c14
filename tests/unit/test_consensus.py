"""Consensus measures against float64 oracles that form every product."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conlora.core.consensus import Factors, edge_error, factors, measure, product_distance
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
    truth, seen = dense(nodes), measure(nodes)
    floor = 1e-9 * (1 + truth["mean"])
    for name in ("D", "V", "C", "E_A", "E_B"):
        assert getattr(seen, name) == pytest.approx(truth[name], rel=1e-5, abs=floor), name
    assert seen.relative == pytest.approx(truth["V"] / truth["mean"], rel=1e-5, abs=1e-9)


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
    seen = measure(random_nodes(5, [(8, 6, 2)], 0.3, seed=1, frozen=True))
    assert seen.C == 0
    assert seen.E_A == 0
    assert seen.V > 0


def test_orthonormal_frozen_a_makes_v_equal_e_b() -> None:
    rng = np.random.default_rng(2)
    a = np.linalg.qr(rng.normal(size=(6, 2)))[0].T
    nodes: list[Factors] = [{"m": (rng.normal(size=(8, 2)), a)} for _ in range(5)]
    seen = measure(nodes)
    assert pytest.approx(seen.E_B) == seen.V
    assert seen.amplification == pytest.approx(1)


def test_nodes_that_agree_have_no_error() -> None:
    seen = measure(random_nodes(4, [(5, 4, 2)], 0.0, seed=3))
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
    assert edge_error(pairs, other) == pytest.approx(np.linalg.norm(np.ones((4, 2)) @ frozen_a))
