"""Benches fit the code of today: they run rarely, so what they import is checked with every other test."""

import importlib
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"
RELIABILITY = BENCH.parent / "reliability"


@pytest.mark.parametrize("path", sorted([*BENCH.glob("*.py"), *RELIABILITY.glob("*.py")]), ids=lambda path: path.stem)
def test_a_bench_imports(path: Path) -> None:
    importlib.import_module(f"tests.{path.parent.name}.{path.stem}")


@pytest.mark.parametrize("path", sorted((BENCH / "peers").glob("*.py")), ids=lambda path: path.stem)
def test_a_runner_of_a_peer_is_python(path: Path) -> None:
    """No more than that: the packages that they import are in environments of their own."""
    compile(path.read_text(encoding="utf-8"), str(path), "exec")
