"""A testbed's data: read once, a common test set held out, the rest dealt out to the nodes."""

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from conlora.config import DATA_FORMATS, TextClassificationSection
from conlora.errors import ConfigError
from conlora.testbed import partition
from conlora.testbed.spec import Dirichlet, TestbedSpec

FIELD_BYTES = 2**31 - 1  # csv's own limit of 128 KiB is short for documents


class Row(NamedTuple):
    """One labelled text."""

    text: str
    label: str


@dataclass(frozen=True, slots=True)
class Deal:
    """The common test rows, and each node's share."""

    test: list[Row]
    shares: list[list[Row]]


def deal(spec: TestbedSpec) -> Deal:
    """Reads the data and deals it out. Raises ConfigError where it is unreadable or too small."""
    rows = read_rows(spec.data.path, spec.task)
    available = (len(rows) - spec.data.test_rows) // spec.nodes
    wanted = spec.data.rows_per_node or available
    if wanted > available or wanted < 2:
        raise ConfigError(
            f"{spec.data.path}: {len(rows)} rows are too few for {spec.data.test_rows} test rows and {spec.nodes} "
            f"nodes with {max(wanted, 2)} each; lower data.rows_per_node, data.test_rows or nodes, or give more data"
        )
    labels = np.array([spec.task.labels.index(row.label) for row in rows])
    rng = np.random.default_rng(spec.seed)
    test, rest = partition.hold_out(labels, spec.data.test_rows, rng)
    shares = _shares(spec, labels[rest], wanted, rng)
    return Deal([rows[i] for i in test], [[rows[i] for i in rest[share]] for share in shares])


def _shares(spec: TestbedSpec, labels: partition.Labels, rows: int, rng: np.random.Generator) -> list[partition.Rows]:
    match spec.data.partition:
        case Dirichlet(dirichlet=alpha):
            return partition.dirichlet(labels, spec.nodes, rows, alpha, rng)
        case "by-label":
            return partition.by_label(labels, spec.nodes, rows, rng)
        case _:
            return partition.iid(labels, spec.nodes, rows, rng)


def read_rows(path: Path, task: TextClassificationSection) -> list[Row]:
    """All rows of a data file. Raises ConfigError that names the file, the row and what is wrong with it."""
    try:
        return [_row(path, number, record, task) for number, record in enumerate(_records(path), start=1)]
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"{path}: can't be read ({error}); it has to be an intact {path.suffix[1:]} file") from error


def _row(path: Path, number: int, record: Any, task: TextClassificationSection) -> Row:
    for column in (task.text_column, task.label_column):
        if not isinstance(record, dict) or column not in record:
            raise ConfigError(
                f"{path}: row {number} has no {column!r}; mend the row, or set task.text_column and task.label_column"
            )
    label = str(record[task.label_column])
    if label not in task.labels:
        raise ConfigError(f"{path}: row {number} has the label {label!r}; add it to task.labels or mend the row")
    return Row(str(record[task.text_column] or ""), label)


def _records(path: Path) -> Iterator[Any]:
    match DATA_FORMATS[path.suffix]:
        case "csv":
            csv.field_size_limit(FIELD_BYTES)
            with path.open(encoding="utf-8-sig", newline="") as file:
                yield from csv.DictReader(file)
        case "json":
            text = path.read_text(encoding="utf-8")
            if text.lstrip().startswith("["):
                yield from json.loads(text)
            else:  # one object a line; not splitlines(), which also splits inside texts
                yield from (json.loads(line) for line in text.split("\n") if line.strip())
        case _:
            from pyarrow import parquet  # comes with datasets; slow to import and seldom needed

            yield from parquet.read_table(path).to_pylist()


def write_rows(path: Path, rows: Iterable[Row], task: TextClassificationSection) -> None:
    """Writes rows as CSV with the task's two columns."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow([task.text_column, task.label_column])
        writer.writerows(rows)
