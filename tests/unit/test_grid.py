"""A grid's file: its cells, and the sentence for each mistake."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from conlora.errors import ConfigError
from conlora.testbed.grid import Cell, GridSpec, load_grid


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rows.csv").write_text("text,label\ngood,positive\nbad,negative\n")
    (tmp_path / "model").mkdir()
    return tmp_path


BLOCK: dict[str, Any] = {"rules": ["lora", "freeze-a"], "topologies": ["T1", "complete"], "seeds": [1, 2]}


def load(folder: Path, **changes: Any) -> tuple[GridSpec, list[Cell]]:
    content = {
        "name": "study",
        "nodes": 7,
        "grid": [BLOCK],
        "model": {"base": "model"},
        "task": {"labels": ["negative", "positive"]},
        "training": {"rounds": 4, "local_steps": 2},
        "data": {"path": "rows.csv", "test_rows": 1},
        "learning_rates": {"lora": 1e-3, "freeze-a": 2e-3},
        **changes,
    }
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return load_grid(path)


def test_a_block_is_a_full_product(folder: Path) -> None:
    _, cells = load(folder)
    assert len({cell.name for cell in cells}) == len(cells) == 8
    first = cells[0]
    assert first.name == "lora-T1-iid-r8-sync-s1"
    assert first.spec.mode == "sync"
    assert first.spec.seed == 1
    assert first.spec.learning_rates == {"lora": 1e-3}
    assert first.spec.data.path == folder / "rows.csv"
    assert first.spec.training.evaluate_every == first.spec.training.checkpoint_every == 4


def test_blocks_add_up_and_what_two_blocks_share_is_run_once(folder: Path) -> None:
    more = {**BLOCK, "partitions": ["iid", {"dirichlet": 0.1}], "ranks": [4, 8], "modes": ["sync", "async"]}
    _, cells = load(folder, grid=[BLOCK, more])
    assert len(cells) == 8 * 8
    assert "freeze-a-complete-dirichlet0.1-r4-async-s2" in {cell.name for cell in cells}
    assert {cell.spec.lora.rank for cell in cells} == {4, 8}


def test_learning_rates_can_be_searched(folder: Path) -> None:
    block = {"rules": ["lora"], "topologies": ["T1"], "rates": [5e-3, 1e-2]}
    _, cells = load(folder, grid=[block])
    assert [cell.name for cell in cells] == ["lora-T1-iid-r8-sync-lr0.005-s0", "lora-T1-iid-r8-sync-lr0.01-s0"]
    assert [cell.spec.learning_rates for cell in cells] == [{"lora": 5e-3}, {"lora": 1e-2}]


def test_a_cells_digest_follows_its_settings_and_nothing_else(folder: Path) -> None:
    before = {cell.name: cell.digest for cell in load(folder)[1]}
    grown = {cell.name: cell.digest for cell in load(folder, grid=[{**BLOCK, "seeds": [1, 2, 3]}])[1]}
    assert {name: grown[name] for name in before} == before
    changed = {cell.name: cell.digest for cell in load(folder, training={"rounds": 5, "local_steps": 2})[1]}
    assert all(changed[name] != before[name] for name in before)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"grid": []}, "grid: List should have at least 1 item"),
        (
            {"grid": [{**BLOCK, "rules": ["mystery"]}]},
            "grid.0: rules: Value error, unknown rule 'mystery'; choose from lora",
        ),
        ({"grid": [BLOCK, {**BLOCK, "topologies": ["T9"]}]}, "grid.1: topology: Value error, unknown topology 'T9'"),
        ({"nodes": 5}, "topology T1 has 7 nodes, not 5; correct the values"),
        ({"grid": [{**BLOCK, "partitions": ["odd"]}]}, "'odd' is no partition; write iid, by-label or"),
        ({"grid": [{**BLOCK, "rank": [8]}]}, "grid.0.rank: unknown key"),
        ({"lora": {"rank": 4}}, "lora.rank: is an axis of a grid; write it into grid as ranks"),
        (
            {"data": {"path": "rows.csv", "partition": "iid"}},
            "data: partition is an axis of a grid; write it into grid as",
        ),
        ({"data": {"path": "gone.csv"}}, "gone.csv does not exist"),
        ({"colour": "red"}, "colour: unknown key"),
    ],
)
def test_mistakes_are_named(folder: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(folder, **changes)
    assert str(error.value).startswith(f"{folder / 'grid.yaml'}: ")
    assert sentence in str(error.value)


def test_a_grid_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file; give a grid"):
        load_grid(tmp_path / "gone.yaml")
