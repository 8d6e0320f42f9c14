"""A node's own rows: read from file or hub, checked, encoded, split into a training and a held-out part."""

from dataclasses import dataclass
from pathlib import Path

import datasets

from conlora.config import DATA_FORMATS, DataSection
from conlora.errors import ConfigError
from conlora.training.tasks import Task


@dataclass(frozen=True)
class Data:
    """Encoded rows."""

    train: datasets.Dataset
    evaluation: datasets.Dataset


def load_data(section: DataSection, task: Task, cache: Path, seed: int) -> Data:
    """Reads the node's rows. Intermediate files stay in `cache`, inside the node's own state directory.

    seed: decides which rows are held out. Raises ConfigError that names file, row and column.
    """
    datasets.disable_progress_bars()
    source = str(section.path or section.hub)
    rows = _read(section.path, section.hub, section.split, cache, task.columns())
    if section.evaluation_path is not None:
        train, held_out = rows, _read(section.evaluation_path, None, "train", cache, task.columns())
    else:
        if len(rows) < 2:
            raise ConfigError(
                f"data: {source} has {len(rows)} rows; at least 2 are needed to train on some and hold out others"
            )
        size = min(max(1, round(section.evaluation_fraction * len(rows))), len(rows) - 1)
        parts = rows.train_test_split(test_size=size, seed=seed % 2**32)
        train, held_out = parts["train"], parts["test"]
    return Data(_encode(train, task, source), _encode(held_out, task, str(section.evaluation_path or source)))


def _read(path: Path | None, hub: str | None, split: str, cache: Path, columns: list[str]) -> datasets.Dataset:
    try:
        if path is not None:
            kind = DATA_FORMATS[path.suffix]
            # as written: a text "NA" is a text, and a label "true" a label
            options = {"converters": dict.fromkeys(columns, str), "na_filter": False} if kind == "csv" else {}
            loaded = datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=str(cache), **options)
        else:
            loaded = datasets.load_dataset(str(hub), split=split, cache_dir=str(cache))
    except (OSError, ValueError, datasets.exceptions.DatasetsError, ConnectionError) as error:
        cause = error.__cause__ or error
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        if "no data" in reason:  # so the library says of a file that has a heading only
            reason = "it has no rows"
        raise ConfigError(
            f"data: {path or hub} can't be read ({reason}); correct the file or the configuration"
        ) from error
    assert isinstance(loaded, datasets.Dataset)
    if len(loaded) == 0:
        raise ConfigError(f"data: {path or hub} has no rows; give a file with rows")
    return loaded


def _encode(rows: datasets.Dataset, task: Task, source: str) -> datasets.Dataset:
    missing = [column for column in task.columns() if column not in rows.column_names]
    if missing:
        raise ConfigError(
            f"data: {source} has no column {missing[0]!r} (it has {', '.join(rows.column_names)}); "
            "name the right one under task"
        )
    encoded = []
    for number, row in enumerate(rows, start=1):
        try:
            encoded.append(task.encode(row))
        except ConfigError as error:
            raise ConfigError(f"data: {source}, row {number}: {error}") from error
    return datasets.Dataset.from_list(encoded)
