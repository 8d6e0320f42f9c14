"""A testbed's data: read once, a common test set held out, the rest dealt out to the nodes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from conlora.config.tasks import ImageClassificationSection, TextClassificationSection
from conlora.errors import ConfigError, StateError
from conlora.testbed import partition
from conlora.testbed.spec import Dirichlet, TestbedSpec
from conlora.training.sources import Table, class_names, read_file, read_hub


@dataclass(frozen=True, slots=True)
class Rows:
    """A data set. names: of the classes that its rows can have, none where they have none. classes: a number for each row."""

    table: Table
    names: list[str]
    classes: partition.Labels


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of a data set, by number."""

    rows: Rows
    numbers: partition.Rows

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def class_counts(self) -> dict[str, int]:
        """How many rows of each class are in it."""
        counts = np.bincount(self.rows.classes[self.numbers], minlength=len(self.rows.names)).tolist()
        return dict(zip(self.rows.names, counts, strict=False))

    def write(self, path: Path) -> None:
        """As a Parquet file, in which every column stays what it was. Raises StateError."""
        try:
            self.rows.table.select(self.numbers).to_parquet(path)
        except OSError as error:
            raise StateError(f"{path}: can't be written ({error}); free space or make it writable") from error


@dataclass(frozen=True, slots=True)
class Deal:
    """The common test rows, and each node's share."""

    test: Part
    shares: list[Part]

    @property
    def pool(self) -> Part:
        """Everybody's share together."""
        return Part(self.test.rows, np.concatenate([share.numbers for share in self.shares]))


def deal(spec: TestbedSpec, cache: Path) -> Deal:
    """Reads the data and deals it out. cache: a directory that is there for as long as the rows are needed.

    Raises ConfigError where the data are unreadable or too few.
    """
    rows = _classified(spec, _read(spec, cache))
    total = len(rows.classes)
    available = (total - spec.data.test_rows) // spec.nodes
    wanted = spec.data.rows_per_node or available
    if wanted > available or wanted < 2:
        raise ConfigError(
            f"{spec.data.source}: {total} rows are too few for {spec.data.test_rows} test rows and {spec.nodes} "
            f"nodes with {max(wanted, 2)} each; lower data.rows_per_node, data.test_rows or nodes, or give more data"
        )
    rng = np.random.default_rng(spec.seed)
    test, rest = partition.hold_out(rows.classes, spec.data.test_rows, rng)
    shares = _shares(spec, rows.classes[rest], wanted, rng)
    return Deal(Part(rows, test), [Part(rows, rest[share]) for share in shares])


def _shares(spec: TestbedSpec, labels: partition.Labels, rows: int, rng: np.random.Generator) -> list[partition.Rows]:
    match spec.data.partition:
        case Dirichlet(dirichlet=alpha):
            return partition.dirichlet(labels, spec.nodes, rows, alpha, rng)
        case "by-label":
            return partition.by_label(labels, spec.nodes, rows, rng)
        case _:
            return partition.iid(labels, spec.nodes, rows, rng)


def _read(spec: TestbedSpec, cache: Path) -> Table:
    data, task = spec.data, spec.task
    wanted = list(dict.fromkeys([*task.columns, *filter(None, [spec.class_column])]))
    texts = [column for column in wanted if column not in task.images]
    if data.path is not None:
        table = read_file(data.path, texts, task.images, cache, streaming=False)
    else:
        table = read_hub(str(data.hub), data.split, task.images, cache, streaming=False)
    for column in wanted:
        if column not in (have := table.column_names):
            raise ConfigError(
                f"{data.source}: has no column {column!r} (it has {', '.join(have)}); name the right one under task, or in "
                "data.partition_by"
            )
    return table


def _classified(spec: TestbedSpec, table: Table) -> Rows:
    """The rows with their classes: labels in the task's order, or the values of another column. Raises ConfigError."""
    column = spec.class_column
    if column is None:
        return Rows(table, [], np.zeros(len(table), int))
    coded = class_names(table).get(column)
    values = list(table[column])
    if None in values:
        raise ConfigError(f"{spec.data.source}: row {values.index(None) + 1} has no {column!r}; mend or remove the row")
    told = [coded.int2str(value) if coded else str(value) for value in values]
    match spec.task:
        case TextClassificationSection() | ImageClassificationSection() as task if column == task.label_column:
            names = task.labels
        case _:
            names = sorted(set(told))
    numbers = {name: number for number, name in enumerate(names)}
    for row, name in enumerate(told, start=1):
        if name not in numbers:
            raise ConfigError(
                f"{spec.data.source}: row {row} has the label {name!r}; add it to task.labels or mend the row"
            )
    return Rows(table, names, np.array([numbers[name] for name in told]))
