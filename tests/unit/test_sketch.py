"""Sketches against the exact figures of the nodes that they come from."""

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.schemas import Shapes, full_schema

from conlora.core.consensus import Consensus, Factors, consensus, measure, product_distance
from conlora.core.schema import Role
from conlora.core.sketch import FACTOR_PAIRS, PAIRS, Sketcher, SketchLayout, distance, estimate, motion, widened


def layout(shapes: Shapes, shared: frozenset[Role] = frozenset({Role.A, Role.B})) -> SketchLayout:
    full = full_schema(shapes)
    return SketchLayout.of(full, full.select(shared))


def nodes_around(n: int, shapes: Shapes, spread: float, seed: int, frozen: bool = False) -> list[Factors]:
    """fp32 factors of n nodes; `spread` is their distance relative to the common part."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    centre = [(normal(d, r), normal(r, k)) for d, k, r in shapes]
    return [
        {
            f"l{i}": (b + spread * normal(*b.shape), a if frozen else a + spread * normal(*a.shape))
            for i, (b, a) in enumerate(centre)
        }
        for _ in range(n)
    ]


TWELVE = [(64, 48, 4)] * 12


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("spread", [0.5, 0.02])
def test_estimates_lie_within_their_bars_and_near_the_truth(seed: int, spread: float) -> None:
    nodes = nodes_around(7, TWELVE, spread, seed)
    seen = estimate(layout(TWELVE), Sketcher(layout(TWELVE), seed).sketch(*nodes))
    truth = consensus(measure(nodes))
    for name in ("V", "D", "E_A", "E_B"):
        assert getattr(seen.figures, name) == pytest.approx(getattr(truth, name), rel=0.15), name
    for field in fields(Consensus):
        exact, guess, bar = (getattr(x, field.name) for x in (truth, seen.figures, seen.bars))
        assert 0 < bar < guess, field.name
        assert abs(guess - exact) < 2 * bar, field.name  # four standard errors


def test_bars_cover_the_truth_about_as_often_as_they_say() -> None:
    covered, trials = dict.fromkeys(("V", "D", "E_A", "E_B", "amplification", "relative"), 0), 60
    for seed in range(trials):
        nodes = nodes_around(5, [(24, 20, 3)] * 4, 0.3, seed)
        seen = estimate(layout([(24, 20, 3)] * 4), Sketcher(layout([(24, 20, 3)] * 4), seed).sketch(*nodes))
        truth = consensus(measure(nodes))
        for name in covered:
            covered[name] += abs(getattr(seen.figures, name) - getattr(truth, name)) <= getattr(seen.bars, name)
    assert all(count >= 0.8 * trials for count in covered.values()), covered


def test_frozen_a_has_no_part_and_exactly_no_error() -> None:
    frozen = layout(TWELVE, frozenset({Role.B}))
    assert frozen.size == 12 * (PAIRS + FACTOR_PAIRS * 4)
    nodes = nodes_around(5, TWELVE, 0.3, seed=1, frozen=True)
    seen = estimate(frozen, Sketcher(frozen, 1).sketch(*nodes))
    assert seen.figures.E_A == seen.figures.C == seen.bars.E_A == seen.bars.C == 0
    assert pytest.approx(consensus(measure(nodes)).V, rel=0.15) == seen.figures.V
    assert all(layer.E_A == layer.C == 0 for layer in seen.layers.values())


def test_nodes_that_agree_have_no_error_and_no_bar() -> None:
    seen = estimate(layout(TWELVE), Sketcher(layout(TWELVE), 3).sketch(*nodes_around(4, TWELVE, 0.0, seed=3)))
    for figures in (seen.figures, seen.bars):
        assert figures.D == figures.V == figures.C == figures.E_A == figures.E_B == figures.amplification == 0


def test_one_node_agrees_with_itself() -> None:
    seen = estimate(layout(TWELVE), Sketcher(layout(TWELVE), 3).sketch(*nodes_around(1, TWELVE, 0.0, seed=3)))
    assert seen.figures.V == 0


def test_layers_are_told_apart() -> None:
    nodes = nodes_around(6, TWELVE, 0.01, seed=5)
    for node in nodes:
        node["l7"] = (
            node["l7"][0] + np.random.default_rng(id(node)).normal(size=(64, 4)).astype(np.float32),
            node["l7"][1],
        )
    seen = estimate(layout(TWELVE), Sketcher(layout(TWELVE), 5).sketch(*nodes))
    assert max(seen.layers, key=lambda name: seen.layers[name].V) == "l7"
    exact = measure(nodes)["l7"].consensus()
    assert pytest.approx(exact.V, rel=0.3) == seen.layers["l7"].V


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 3)), max_size=3), st.integers(0, 99))
def test_sketches_are_linear_in_b_and_alike_on_every_node(shapes: Shapes, seed: int) -> None:
    one, other = nodes_around(2, shapes, 1.0, seed, frozen=True)
    both = {name: (one[name][0] + other[name][0], one[name][1]) for name in one}
    frozen = layout(shapes, frozenset({Role.B}))
    a, b, c = Sketcher(frozen, seed).sketch(one, other, both)
    np.testing.assert_allclose(a + b, c, atol=1e-3)
    np.testing.assert_array_equal(a, Sketcher(frozen, seed).sketch(one)[0])


def test_the_distance_of_two_nodes() -> None:
    one, other = nodes_around(2, TWELVE, 0.3, seed=2)
    sketches = Sketcher(layout(TWELVE), 2).sketch(one, other)
    exact = np.sqrt(sum(product_distance(*one[name], *other[name]) ** 2 for name in one))
    assert distance(layout(TWELVE), *sketches) == pytest.approx(exact, rel=0.15)
    assert distance(layout(TWELVE), sketches[0], sketches[0]) == 0


def test_the_motion_of_a_node() -> None:
    one, other = nodes_around(2, TWELVE, 0.3, seed=2)
    gone = motion(layout(TWELVE), *Sketcher(layout(TWELVE), 2).sketch(one, other))
    products = [product_distance(*one[name], *other[name]) for name in one]
    assert pytest.approx(np.linalg.norm(products), rel=0.15) == gone.V
    assert pytest.approx(np.sum(products), rel=0.15) == gone.D
    assert pytest.approx(np.linalg.norm([np.linalg.norm(one[n][1] - other[n][1]) for n in one]), rel=0.15) == gone.E_A
    assert pytest.approx(np.linalg.norm([np.linalg.norm(one[n][0] - other[n][0]) for n in one]), rel=0.15) == gone.E_B


@pytest.mark.parametrize("seed", range(8))
def test_bars_allow_for_sketches_of_different_times(seed: int) -> None:
    """Nodes that agree at any time, and all go the same way: what seems to keep them apart is time, and in the bar."""
    (start,) = nodes_around(1, TWELVE, 0.0, seed)
    rng = np.random.default_rng(seed)
    way = {name: (0.1 * rng.normal(size=b.shape), 0.1 * rng.normal(size=a.shape)) for name, (b, a) in start.items()}

    def at(time: float) -> Factors:
        return {name: (b + time * way[name][0], a + time * way[name][1]) for name, (b, a) in start.items()}

    lags = rng.uniform(0, 3, size=7)
    sketcher = Sketcher(layout(TWELVE), seed)
    seen = estimate(layout(TWELVE), sketcher.sketch(*(at(10 - lag) for lag in lags)))
    gone = motion(layout(TWELVE), *sketcher.sketch(at(9), at(10)))
    moved = Consensus(*(float(np.std(lags)) * getattr(gone, field.name) for field in fields(Consensus)))
    wide = widened(seen, moved)
    assert wide.figures == seen.figures
    for name in ("D", "V", "E_A", "E_B"):
        assert getattr(seen.figures, name) > 10 * getattr(seen.bars, name), "so that it is the time"
        assert getattr(wide.bars, name) > 0.6 * getattr(seen.figures, name)
    assert widened(seen, Consensus(*[0.0] * 7)) == seen


def test_a_frozen_factor_stays_exact_whatever_the_lag() -> None:
    frozen = layout(TWELVE, frozenset({Role.B}))
    sketches = Sketcher(frozen, 1).sketch(*nodes_around(5, TWELVE, 0.3, seed=1, frozen=True))
    wide = widened(estimate(frozen, sketches), motion(frozen, *sketches[:2]))
    assert wide.bars.E_A == wide.bars.C == 0
    assert wide.bars.V > 0


def test_signs_depend_on_seed_and_module() -> None:
    (node,) = nodes_around(1, [(8, 8, 2)], 0.0, seed=1)
    first, second = (Sketcher(layout([(8, 8, 2)]), seed).sketch(node)[0] for seed in (1, 2))
    assert not np.array_equal(first, second)


def test_a_seven_billion_parameter_models_record_is_under_two_percent_of_its_snapshot() -> None:
    """Query and value projections of 32 layers of width 4096 at rank 16, both rules."""
    shapes = [(4096, 4096, 16)] * 64
    for shared in (frozenset({Role.A, Role.B}), frozenset({Role.B})):
        snapshot = full_schema(shapes).select(shared).size
        assert 2 * layout(shapes, shared).size < 0.02 * snapshot
