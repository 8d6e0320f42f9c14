"""A node's own rows as its trainer takes them: checked, encoded, split into a training and a held-out part."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from conlora.config import DataSection
from conlora.errors import ConfigError, StateError
from conlora.files import filling
from conlora.training.sources import Rows, class_names, read_file, read_hub
from conlora.training.tasks.base import Row, Task

SHUFFLED = 10_000  # rows of a stream that are held in memory to draw from


@dataclass(frozen=True)
class Data:
    """Encoded rows, for the Trainer."""

    train: Any
    evaluation: Any


def load_data(section: DataSection, task: Task, cache: Path, seed: int) -> Data:
    """Reads the node's rows. Intermediate files stay in `cache`, inside the node's own state directory.

    seed: decides which rows are held out. Raises ConfigError that names file, row and column, Unavailable where a hub does not
    answer, StateError where `cache` can't be made or its disk is full.
    """
    _make_private(cache)
    with filling(cache):
        return _loaded(section, task, cache, seed)


def _loaded(section: DataSection, task: Task, cache: Path, seed: int) -> Data:
    source = str(section.path or section.hub)
    rows = _read(section, section.path, section.split, task, cache)
    held_out = _held_out(section, task, cache)
    if held_out is None:
        assert isinstance(rows, datasets.Dataset), (
            "the configuration refuses streams without held-out rows of their own"
        )
        if len(rows) < 2:
            raise ConfigError(
                f"data: {source} has {len(rows)} rows; at least 2 are needed to train on some and hold out others"
            )
        size = min(max(1, round(section.evaluation_fraction * len(rows))), len(rows) - 1)
        order = np.random.default_rng(seed).permutation(len(rows)).tolist()
        return Data(_encoded(rows, task, source, order[size:]), _encoded(rows, task, source, order[:size]))
    if isinstance(rows, datasets.IterableDataset):
        rows = rows.shuffle(seed=seed % 2**32, buffer_size=SHUFFLED)
    return Data(_encoded(rows, task, source), _encoded(held_out, task, str(section.evaluation_path or source)))


def _make_private(cache: Path) -> None:
    """What the library writes there are rows, which are for this user's eyes only, whatever the directory's parents allow."""
    try:
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        if cache.stat().st_mode & 0o077:
            cache.chmod(0o700)
    except OSError as error:
        raise StateError(
            f"state_dir: {cache} can't be made this user's alone ({error}); change its owner, or make room"
        ) from error


def read_encoded(section: DataSection, task: Task, cache: Path) -> Any:
    """All rows of a source, to evaluate on. Raises ConfigError."""
    return _encoded(_read(section, section.path, section.split, task, cache), task, str(section.path or section.hub))


def _held_out(section: DataSection, task: Task, cache: Path) -> Rows | None:
    if section.evaluation_path is None and section.evaluation_split is None:
        return None
    return _read(section, section.evaluation_path, section.evaluation_split or "", task, cache)


def _read(section: DataSection, path: Path | None, split: str, task: Task, cache: Path) -> Rows:
    texts = [column for column in task.columns() if column not in task.images]
    if path is not None:
        rows = read_file(path, texts, task.images, cache, section.streaming)
    else:
        rows = read_hub(str(section.hub), split, task.images, cache, section.streaming)
    have = rows.column_names or []
    missing = [column for column in task.columns() if column not in have]
    if missing:
        raise ConfigError(
            f"data: {path or section.hub} has no column {missing[0]!r} (it has {', '.join(have)}); "
            "name the right one under task"
        )
    return rows


def _encoded(rows: Rows, task: Task, source: str, numbers: Sequence[int] | None = None) -> Any:
    """The rows of these numbers, or all, encoded.

    At once where that can be, so that a bad row is found before training; images and streams as they are needed.
    """
    encode = _encoder(task, source, rows)
    if isinstance(rows, datasets.IterableDataset):
        return rows.map(encode, with_indices=True, remove_columns=rows.column_names)
    if numbers is None:
        numbers = range(len(rows))
    if task.images:
        return _AsNeeded(rows, numbers, encode, source)
    chosen = zip(rows.select(numbers), numbers, strict=True)
    return datasets.Dataset.from_list(task.arrange([encode(row, number) for row, number in chosen]))


def _encoder(task: Task, source: str, rows: Rows) -> Callable[[Row, int], Row]:
    names = class_names(rows)

    def encode(row: Row, number: int) -> Row:
        named = {column: classes.int2str(row[column]) for column, classes in names.items() if row[column] is not None}
        try:
            return task.encode(row | named)
        except ConfigError as error:
            raise ConfigError(f"data: {source}, row {number + 1}: {error}") from error

    return encode


class _AsNeeded(torch.utils.data.Dataset[Row]):
    """Rows that are encoded each time they are looked at."""

    def __init__(
        self, rows: datasets.Dataset, numbers: Sequence[int], encode: Callable[[Row, int], Row], source: str
    ) -> None:
        self._rows = rows
        self._numbers = numbers
        self._encode = encode
        self._source = source

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Row:
        number = self._numbers[index]
        try:
            row = self._rows[number]
        except OSError as error:
            raise ConfigError(f"data: {self._source}, row {number + 1}: {error}; mend or remove the row") from error
        return self._encode(row, number)
