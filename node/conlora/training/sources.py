"""A node's rows as they are: from a file, a folder of images or a hub, in memory-mapped tables or as a stream."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import datasets

from conlora.config import DATA_FORMATS
from conlora.errors import ConfigError, Unavailable
from conlora.training.outside import is_outside

Table: TypeAlias = datasets.Dataset
Rows: TypeAlias = Table | datasets.IterableDataset


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
    return _with_images(_load(str(path), options), images, path.parent)


def read_hub(name: str, split: str, images: Iterable[str], cache: Path, streaming: bool) -> Rows:
    """The rows of a hub data set. Raises ConfigError that names it, Unavailable where no hub answers."""
    options = {"path": name, "split": split, "cache_dir": str(cache), "streaming": streaming}
    return _with_images(_load(name, options), images, None)


def _load(source: str, options: dict[str, Any]) -> Rows:
    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(**options)
        empty = next(iter(rows), None) is None
    except (OSError, ValueError, datasets.exceptions.DatasetsError, ConnectionError) as error:
        outside = is_outside(error)
        cause = error if outside else error.__cause__ or error
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        if outside:
            raise Unavailable(
                f"data: {source} can't be fetched ({reason}); start again once the hub answers, or give a file"
            ) from error
        if "no data" in reason:  # so the library says of a file that has a heading only
            reason = "it has no rows"
        raise ConfigError(f"data: {source} can't be read ({reason}); correct the file or the configuration") from error
    if empty:
        raise ConfigError(f"data: {source} has no rows; give a file with rows")
    assert isinstance(rows, datasets.Dataset | datasets.IterableDataset)
    return rows


def _with_images(rows: Rows, columns: Iterable[str], folder: Path | None) -> Rows:
    """Columns of paths become columns of images, which are decoded when a row is looked at."""
    features = rows.features or {}
    for column in columns:
        if column in features and not isinstance(features[column], datasets.Image):
            if folder is not None and getattr(features[column], "dtype", "") in ("string", "large_string"):
                rows = rows.map(_absolute, fn_kwargs={"column": column, "folder": str(folder)})
            rows = rows.cast_column(column, datasets.Image())
    return rows


def _absolute(row: dict[str, Any], column: str, folder: str) -> dict[str, Any]:
    return {column: str(Path(folder, row[column]))}


def class_names(rows: Rows) -> dict[str, datasets.ClassLabel]:
    """Columns that hold numbers of classes, and the classes' names."""
    found = {}
    for column, feature in (rows.features or {}).items():
        inner = getattr(feature, "feature", feature)  # of a list of tags
        if isinstance(inner, datasets.ClassLabel):
            found[column] = inner
    return found
