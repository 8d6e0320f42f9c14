"""Reading a node's rows: formats, what is kept as written, and sentences for what does not fit."""

import errno
import json
import os
from pathlib import Path

import datasets
import pytest

from conlora.config import DataSection, NodeConfig
from conlora.errors import ConfigError, StateError
from conlora.training.data import load_data
from conlora.training.tasks import TextClassification


@pytest.fixture
def task(tiny_model: Path) -> TextClassification:
    return TextClassification(config(tiny_model, ["true", "NA"]))


def config(model: Path, labels: list[str]) -> NodeConfig:
    body = {"name": "n", "model": {"base": str(model)}, "task": {"labels": labels}, "data": {"hub": "unused"}}
    return NodeConfig.model_validate(body)


def section(path: Path, **more: object) -> DataSection:
    return DataSection.model_validate({"path": path, **more})


def test_csv_is_taken_as_written(task: TextClassification, tmp_path: Path) -> None:
    """No guessing of types: a label `true` stays `true`, a text `NA` or `3` stays a text."""
    path = tmp_path / "rows.csv"
    path.write_text("text,label,other\nNA,true,1\n3,NA,2\nnull,true,3\n,NA,4\n")
    data = load_data(section(path, evaluation_fraction=0.25), task, tmp_path / "cache", seed=1)
    rows = [*data.train, *data.evaluation]
    assert len(rows) == 4
    assert len(data.evaluation) == 1
    assert sorted(row["labels"] for row in rows) == [0, 0, 1, 1]
    assert sorted(len(row["input_ids"]) for row in rows) == [2, 3, 3, 3], "one empty text, three of one word"


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_full_disk_under_the_cache_is_not_the_files_fault(
    task: TextClassification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrapped: bool
) -> None:
    def full(**_: object) -> None:
        error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if wrapped:
            raise datasets.exceptions.DatasetGenerationError("while generating") from error
        raise error

    path = tmp_path / "rows.csv"
    path.write_text("text,label\nNA,true\n")
    monkeypatch.setattr(datasets, "load_dataset", full)
    told = r"/cache: what is made there can't be written \(.*No space left on device\); free space on that disk$"
    with pytest.raises(StateError, match=told):
        load_data(section(path), task, tmp_path / "cache", seed=1)


@pytest.mark.usefixtures("collected")
@pytest.mark.filterwarnings("ignore:.*rows.csv:pytest.PytestUnraisableExceptionWarning")
def test_csv_as_a_stream(task: TextClassification, tmp_path: Path) -> None:
    """Other columns may hold whatever they like, further down too."""
    path = tmp_path / "rows.csv"
    path.write_text("text,label,other\nNA,true,1\n3,NA,x\nnull,true,\n,NA,2.5\n")
    data = load_data(section(path, evaluation_path=path, streaming=True), task, tmp_path / "cache", seed=1)
    for rows in (list(data.train), list(data.evaluation)):
        assert sorted((row["labels"], len(row["input_ids"])) for row in rows) == [(0, 3), (0, 3), (1, 2), (1, 3)]


def test_jsonl_parquet_and_a_held_out_file(task: TextClassification, tmp_path: Path) -> None:
    import pandas

    rows = [{"text": "good film", "label": "true"}, {"text": "bad day", "label": "NA"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pandas.DataFrame(rows * 2).to_parquet(tmp_path / "rows.parquet")
    held = load_data(
        section(tmp_path / "rows.parquet", evaluation_path=tmp_path / "rows.jsonl"), task, tmp_path / "cache", seed=1
    )
    assert (len(held.train), len(held.evaluation)) == (4, 2)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("words,label\na,true\nb,NA\n", "has no column 'text' (it has words, label); name the right one under task"),
        (
            "text,label\na,true\nb,maybe\nc,maybe\n",
            "row 2: label 'maybe' is not one of task.labels (true, NA); correct the row",
        ),
        ("text,label\n", "can't be read (it has no rows); correct the file or the configuration"),
        ("text,label\na,true\n", "has 1 rows; at least 2 are needed to train on some and hold out others"),
        ('text,label\n"a,true\nb,NA\n', "can't be read (Error tokenizing data"),
    ],
)
def test_what_does_not_fit_is_a_sentence(task: TextClassification, tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_data(section(path), task, tmp_path / "cache", seed=1)
    assert sentence in str(caught.value)
    assert "rows.csv" in str(caught.value)


def test_which_rows_are_held_out_depends_on_the_seed_alone(task: TextClassification, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f"{'good ' * (i % 9)},true\n" for i in range(40)))
    once, again, other = (
        [row["input_ids"] for row in load_data(section(path), task, tmp_path / f"cache{n}", seed).evaluation]
        for n, seed in enumerate((1, 1, 2))
    )
    assert once == again
    assert once != other


@pytest.mark.parametrize("mode", [None, 0o755])
def test_the_copy_of_the_rows_is_for_nobody_else(task: TextClassification, tmp_path: Path, mode: int | None) -> None:
    path, cache = tmp_path / "rows.csv", tmp_path / "datasets"
    path.write_text("text,label\na,true\nb,NA\n")
    if mode:
        cache.mkdir()
        cache.chmod(mode)
    load_data(section(path), task, cache, seed=1)
    assert cache.stat().st_mode & 0o777 == 0o700


def test_a_place_for_the_copy_that_can_not_be_made(task: TextClassification, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.touch()
    with pytest.raises(StateError, match=r"can't be made this user's alone \(.*File exists.*\); change its owner"):
        load_data(section(path), task, path, seed=1)
