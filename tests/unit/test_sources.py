"""Rows from files as they really are: images by their paths, as a stream too, and sentences for what is none of that."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from conlora.errors import ConfigError
from conlora.training.sources import read_file
from conlora.training.tasks.text import _list


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for shade in (10, 200):
        Image.new("RGB", (4, 4), (shade, shade, shade)).save(tmp_path / f"{shade}.png")
    return tmp_path


def write(path: Path, images: Sequence[Any]) -> Path:
    rows = [{"label": "x", "image": image} for image in images]
    if path.suffix == ".csv":
        path.write_text("\n".join(["image,label", *(f"{row['image']},x" for row in rows)]))
    elif path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    return path


def read(path: Path, streaming: bool = False) -> Any:
    return read_file(path, ["label"], ["image"], path.parent / "cache", streaming)


@pytest.mark.usefixtures("collected")
@pytest.mark.filterwarnings("ignore:.*rows.csv:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_images_by_their_paths(folder: Path, suffix: str, streaming: bool) -> None:
    rows = list(read(write(folder / f"rows{suffix}", ["10.png", "200.png"]), streaming))
    assert [row["image"].getpixel((0, 0))[0] for row in rows] == [10, 200]
    assert [row["label"] for row in rows] == ["x", "x"]


def test_images_in_a_table_are_not_copied(folder: Path) -> None:
    path = folder / "rows.parquet"
    rows = [{"label": "x", "image": {"bytes": (folder / "10.png").read_bytes(), "path": None}}]
    datasets.Dataset.from_list(rows).to_parquet(path)
    assert read(path)[0]["image"].getpixel((0, 0))[0] == 10
    assert not list((folder / "cache").rglob("cache-*.arrow"))


def test_a_row_without_a_path_has_no_image(folder: Path) -> None:
    rows = read(write(folder / "rows.jsonl", ["10.png", None]))
    assert rows[1]["image"] is None


@pytest.mark.parametrize(
    ("images", "what"),
    [([1, 2], "int64"), ([["10.png"], ["200.png"]], "(list|lists or objects)"), ([None, None], "null")],
)
def test_a_column_that_holds_no_images(folder: Path, images: list[Any], what: str) -> None:
    path = write(folder / "rows.jsonl", images)
    told = rf"^data: {path}: column 'image' holds {what}, and neither images nor paths of images; name the right one under "
    with pytest.raises(ConfigError, match=told + "task$"):
        read(path)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_file_without_rows(tmp_path: Path, suffix: str, streaming: bool) -> None:
    path = tmp_path / f"rows{suffix}"
    if suffix == ".parquet":
        empty = datasets.Features({"image": datasets.Value("string"), "label": datasets.Value("string")})
        datasets.Dataset.from_dict({"image": [], "label": []}, features=empty).to_parquet(path)
    else:
        path.touch()
    with pytest.raises(ConfigError, match=rf"^data: {path} .*no rows"):
        read(path, streaming)


@pytest.mark.parametrize(
    ("value", "words"), [("a b", ["a", "b"]), (["a", 1], ["a", "1"]), (7, ["7"]), (0, ["0"]), (None, [])]
)
def test_words_of_a_row(value: Any, words: list[str]) -> None:
    assert _list(value) == words
