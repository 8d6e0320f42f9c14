"""A grid of testbeds: rules x topologies x partitions x ranks x modes x learning rates x seeds, as one YAML file."""

import hashlib
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from conlora.config import (
    ExchangeSection,
    LoraSection,
    ModelSection,
    Section,
    TaskSection,
    TrainingSection,
    load_section,
)
from conlora.core.gossip import Mode
from conlora.errors import ConfigError
from conlora.testbed.spec import Dirichlet, Partition, TestbedData, TestbedSpec

RESULTS = 2  # version of what a finished cell's file holds
AXES = ("rule", "topology", "partition", "rank", "mode", "rate", "seed")


class Block(Section):
    """A full product of axes; a grid may have several, so that not everything is combined with everything."""

    rules: list[str] = Field(min_length=1)
    topologies: list[str] = Field(min_length=1)
    partitions: list[Partition] = Field(["iid"], min_length=1)
    ranks: list[int] = Field([8], min_length=1)
    modes: list[Mode] = Field([Mode.SYNC], min_length=1)
    rates: list[Annotated[float, Field(gt=0)]] = Field(
        [], description="learning rates; default: that of learning_rates"
    )
    seeds: list[int] = Field([0], min_length=1, description="of the start, the partition and the order of rows")


class GridData(TestbedData):
    """The data set; how it is dealt out is an axis."""

    @model_validator(mode="after")
    def _no_partition(self) -> Self:
        if "partition" in self.model_fields_set:
            raise ValueError("partition is an axis of a grid; write it into grid as partitions")
        return self


class GridSpec(Section):
    """The whole file: what all testbeds of the grid have in common, and the grid."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    nodes: int = Field(ge=2)
    grid: list[Block] = Field(min_length=1, description="one or more products of axes")
    model: ModelSection
    lora: LoraSection = LoraSection()
    task: TaskSection
    training: TrainingSection = TrainingSection()
    exchange: ExchangeSection = Field(
        ExchangeSection(encoding="fp32"), description="default: fp32, so that consensus error is that of mixing alone"
    )
    data: GridData
    learning_rates: dict[str, Annotated[float, Field(gt=0)]] = Field({}, description="by rule; default: the rule's")

    @model_validator(mode="after")
    def _rank_is_an_axis(self) -> Self:
        if "rank" in self.lora.model_fields_set:
            raise ValueError("lora.rank: is an axis of a grid; write it into grid as ranks")
        return self


@dataclass(frozen=True)
class Cell:
    """One testbed of the grid: a federation with one rule."""

    rule: str
    topology: str
    partition: str
    rank: int
    mode: str
    rate: float | None  # None: the grid's learning_rates, or the rule's own
    seed: int
    spec: TestbedSpec

    @property
    def name(self) -> str:
        """What its files are called."""
        rate = "" if self.rate is None else f"-lr{self.rate:g}"
        return f"{self.rule}-{self.topology}-{self.partition}-r{self.rank}-{self.mode}{rate}-s{self.seed}"

    @property
    def axes(self) -> dict[str, Any]:
        """Its place in the grid."""
        return {axis: getattr(self, axis) for axis in AXES}

    @property
    def digest(self) -> str:
        """Of everything that is run: a cell whose settings have changed is run again."""
        return hashlib.sha256(json.dumps([RESULTS, self.spec.to_json()], sort_keys=True).encode()).hexdigest()


def load_grid(path: Path) -> tuple[GridSpec, list[Cell]]:
    """Reads a grid and makes its cells, each once. Raises ConfigError with file, key and remedy."""
    grid = load_section(path, GridSpec, remedy="give a grid, such as deploy/testbed/reference.yaml")
    cells: dict[str, Cell] = {}
    for number, block in enumerate(grid.grid):
        rates: list[float | None] = [*block.rates] or [None]
        axes = (block.rules, block.topologies, block.partitions, block.ranks, block.modes, rates, block.seeds)
        for values in itertools.product(*axes):
            cell = _cell(path, number, grid, *values)
            cells.setdefault(cell.name, cell)
    return grid, list(cells.values())


def _cell(
    path: Path,
    block: int,
    grid: GridSpec,
    rule: str,
    topology: str,
    partition: Any,
    rank: int,
    mode: Mode,
    rate: float | None,
    seed: int,
) -> Cell:
    training = {
        "evaluate_every": grid.training.rounds,  # only the end is compared
        "checkpoint_every": grid.training.rounds,
        **grid.training.model_dump(exclude_unset=True),
    }
    settings: dict[str, Any] = {
        "name": grid.name,
        "nodes": grid.nodes,
        "topology": topology,
        "rules": [rule],
        "mode": mode.value,
        "seed": seed,
        "model": grid.model.model_dump(exclude_none=True),
        "lora": {**grid.lora.model_dump(exclude_none=True), "rank": rank},
        "task": grid.task.model_dump(),
        "training": training,
        "exchange": grid.exchange.model_dump(),
        "data": {**grid.data.model_dump(mode="json", exclude_none=True), "partition": _plain(partition)},
        "learning_rates": {name: own for name, own in grid.learning_rates.items() if name == rule},
    }
    if rate is not None:
        settings["learning_rates"] = {rule: rate}
    try:
        spec = TestbedSpec.model_validate(settings, context={"directory": path.resolve().parent})
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{path}: grid.{block}: {problems}; correct the values") from None
    return Cell(rule, topology, partition_name(partition), rank, mode.value, rate, seed, spec)


def _plain(partition: Any) -> Any:
    return partition.model_dump() if isinstance(partition, Dirichlet) else partition


def partition_name(partition: Any) -> str:
    """`iid`, `by-label` or `dirichlet0.5`."""
    return f"dirichlet{partition.dirichlet:g}" if isinstance(partition, Dirichlet) else str(partition)
