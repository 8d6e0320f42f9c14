"""Figures of benches are judged by their targets, and reports of several modules stand beside each other."""

import json
from pathlib import Path

import pytest
from tests.bench.figures import Figure, Figures, fraction


@pytest.mark.parametrize(
    ("figure", "reached"),
    [
        (Figure(what="x", ratio=0.1, at_most=1 / 6), True),
        (Figure(what="x", ratio=0.2, at_most=1 / 6), False),
        (Figure(what="x", ratio=0.7, at_least=0.7), True),
        (Figure(what="x", value=2.0, at_most=3.0), True),
        (Figure(what="x", value=2.0, ratio=4.0, at_most=3.0), False),
        (Figure(what="x", value=2.0), None),
        (Figure(what="x", at_most=1.0, remark="does not start"), None),
    ],
)
def test_reached(figure: Figure, reached: bool | None) -> None:
    assert figure.reached is reached


def test_small_ratios_are_shown_as_targets_are() -> None:
    assert [fraction(x) for x in (1 / 45, 0.7, 0.0)] == ["0.0222 (1/45)", "0.7", "0"]


def test_reports_stand_beside_each_other(tmp_path: Path) -> None:
    Figures("one", "The first", tmp_path).record("length", samples=[1.0, 4.0, 2.0], unit="s", against="a|b", ratio=0.5)
    two = Figures("two", "The second", tmp_path)
    two.record("width", 3.0, at_most=4.0)
    two.record("height", remark="it has\nnone")
    report = json.loads((tmp_path / "one.json").read_text())
    assert report["figures"][0]["value"] == 2.0
    assert report["figures"][0]["samples"] == [1.0, 4.0, 2.0]
    assert {
        "cpu",
        "cores",
        "memory",
        "kernel",
        "python",
        "torch",
        "numpy",
        "grpcio",
        "conlora",
        "commit",
        "date",
    } == set(report["machine"])
    first, second = (tmp_path / "one.md").read_text(), (tmp_path / "two.md").read_text()
    assert "| length | 2 s (1 to 4, 3 samples) | a\\|b | 0.5 |  |  |  |" in first
    assert "| width | 3 |  |  | ≤ 4 | yes |  |" in second
    assert "| height | - |  |  |  |  | it has none |" in second
    assert (tmp_path / "all.md").read_text() == first + "\n" + second
    Figures("one", "The first", tmp_path).record("length", 9.0)
    assert "| width |" in (tmp_path / "all.md").read_text()
