"""A node's rows as they are: from a file, a folder of images or a hub, in memory-mapped tables or as a stream."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import datasets

from conlora.config import DATA_FORMATS
from conlora.errors import ConfigError, Unavailable
from conlora.files import is_of_disk
from conlora.training.outside import is_outside

Table: TypeAlias = datasets.Dataset
Rows: TypeAlias = Table | datasets.IterableDataset

# What the library says of a CSV file with a heading only and of one with nothing, of Parquet without rows, of JSONL with nothing.
NO_ROWS = ("no data", "No columns to parse", "BatchSize must be greater than 0", "StopIteration")
PATHS = ("string", "large_string")


def read_file(path: Path, texts: Iterable[str], images: Iterable[str], cache: Path, streaming: bool) -> Rows:
    """The rows of a data file, or of a folder that has a folder of images for each label.

    texts: columns that are kept as written. images: columns that hold images, or paths relative to the file. cache:
    directory for intermediate files. Raises ConfigError that names the file.
    """
    options: dict[str, Any] = {"cache_dir": str(cache), "split": "train", "streaming": streaming}
    if path.is_dir():
        options |= {"path": "imagefolder", "data_dir": str(path)}
    else:
        options |= {"path": DATA_FORMATS[path.suffix], "data_files": str(path)}
    if path.suffix == ".csv":  # a text "NA" is a text, and a label "true" a label
        options |= {"converters": dict.fromkeys([*texts, *images], str), "na_filter": False}
    return _with_images(_load(str(path), options), images, str(path), path.parent)


def read_hub(name: str, split: str, images: Iterable[str], cache: Path, streaming: bool) -> Rows:
    """The rows of a hub data set. Raises ConfigError that names it, Unavailable where no hub answers."""
    options = {"path": name, "split": split, "cache_dir": str(cache), "streaming": streaming}
    return _with_images(_load(name, options), images, name, None)


def _load(source: str, options: dict[str, Any]) -> Rows:
    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(**options)
        first = next(iter(rows), None)
    # StopIteration is what the library makes of a file without a byte.
    except (OSError, ValueError, StopIteration, datasets.exceptions.DatasetsError, ConnectionError) as error:
        outside = is_outside(error)
        cause = error if outside else error.__cause__ or error
        if is_of_disk(cause):
            raise cause from None  # of the cache, not of the file
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        if outside:
            raise Unavailable(
                f"data: {source} can't be fetched ({reason}); start again once the hub answers, or give a file"
            ) from error
        if any(word in reason for word in NO_ROWS):
            reason = "it has no rows"
        raise ConfigError(f"data: {source} can't be read ({reason}); correct the file or the configuration") from error
    if first is None:
        raise ConfigError(f"data: {source} has no rows; give a file with rows")
    assert isinstance(rows, datasets.Dataset | datasets.IterableDataset)
    if rows.features is None:  # a stream of CSV, of which the library says nothing, not even what columns it has
        rows = rows.cast(datasets.Features(dict.fromkeys(first, datasets.Value("string"))))
    return rows


def _with_images(rows: Rows, columns: Iterable[str], source: str, folder: Path | None) -> Rows:
    """Columns of paths become columns of images, which are decoded when a row is looked at."""
    features = rows.features or datasets.Features()
    for column in columns:
        feature = features.get(column)
        if feature is None or isinstance(feature, datasets.Image):
            continue
        kind = getattr(feature, "dtype", "")
        if kind not in (*PATHS, "binary", "large_binary") and not (isinstance(feature, dict) and "bytes" in feature):
            raise ConfigError(
                f"data: {source}: column {column!r} holds {kind or 'lists or objects'}, and neither images nor paths of images; "
                "name the right one under task"
            )
        if folder is not None and kind in PATHS:
            rows = rows.map(_absolute, fn_kwargs={"column": column, "folder": str(folder)})
        features = datasets.Features({**features, column: datasets.Image()})
        # Casting a table as a whole would copy it. A stream needs that: `map` has taken its features.
        stream = isinstance(rows, datasets.IterableDataset)
        rows = rows.cast(features) if stream else rows.cast_column(column, datasets.Image())
    return rows


def _absolute(row: dict[str, Any], column: str, folder: str) -> dict[str, Any]:
    path = row[column]
    return {column: str(Path(folder, path)) if path else None}  # that a row has no image is said where it is encoded


def class_names(rows: Rows) -> dict[str, datasets.ClassLabel]:
    """Columns that hold numbers of classes, and the classes' names."""
    found = {}
    for column, feature in (rows.features or {}).items():
        inner = getattr(feature, "feature", feature)  # of a list of tags
        if isinstance(inner, datasets.ClassLabel):
            found[column] = inner
    return found
