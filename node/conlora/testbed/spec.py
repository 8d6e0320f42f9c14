"""A testbed's specification: a YAML file, validated like a node's configuration."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import networkx as nx
from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from conlora.config import (
    ExchangeSection,
    FilePath,
    LoraSection,
    ModelSection,
    Section,
    TaskSection,
    TrainingSection,
    load_section,
    readable,
)
from conlora.config.mixing import MixingSection
from conlora.config.tasks import GuestSection
from conlora.core.gossip import Mode
from conlora.core.rules import RULES
from conlora.core.topology import graph_of, named_graph
from conlora.errors import ConfigError

# Settings of `training` that a single node can't have to itself, and why.
EQUAL_ON_ALL_NODES = {
    "rounds": "rounds are compared across nodes",
    "local_steps": "unequal work per round would bias what the federation learns",
    "record_vectors": "the testbed measures consensus from every node's vectors",
}


class Dirichlet(Section):
    """Shares whose class proportions are drawn from a Dirichlet distribution; the smaller, the less alike."""

    dirichlet: float = Field(gt=0)


def _known_partition(value: object) -> object:
    if value in ("iid", "by-label") or (isinstance(value, dict) and list(value) == ["dirichlet"]):
        return value
    raise ValueError(f"{value!r} is no partition; write iid, by-label or {{dirichlet: 0.5}}")


Partition = Annotated[Dirichlet | Literal["iid", "by-label"], BeforeValidator(_known_partition)]


class TestbedData(Section):
    """The one data set that is dealt out to the nodes."""

    __test__ = False  # pytest: not a test class

    path: FilePath | None = Field(None, description="a file or folder as a node's `data.path`, with the task's columns")
    hub: str | None = Field(None, description="a hub data set, instead of path")
    split: str = Field("train", description="split of the hub data set")
    partition: Partition = "iid"
    partition_by: str | None = Field(
        None,
        min_length=1,
        description="the column whose values the partition takes for classes; default: the task's labels",
    )
    rows_per_node: int | None = Field(None, ge=2, description="default: as many as the data allows")
    test_rows: int = Field(500, ge=1, description="held out before partitioning; every adapter is evaluated on them")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give one of path and hub")
        if self.path is not None:
            readable(self.path)
        return self

    @property
    def source(self) -> str:
        """What messages call it."""
        return str(self.path or self.hub)


class Override(Section):
    """What one node does differently."""

    training: TrainingSection

    @field_validator("training")
    @classmethod
    def _may_differ(cls, training: TrainingSection) -> TrainingSection:
        for key in EQUAL_ON_ALL_NODES.keys() & training.model_fields_set:
            raise ValueError(f"{key} has to be equal on all nodes ({EQUAL_ON_ALL_NODES[key]}); remove it here")
        return training


class TestbedSpec(Section):
    """The whole file: a federation of `nodes` nodes on this machine, run once for each rule."""

    __test__ = False  # pytest: not a test class

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    nodes: int = Field(ge=1)
    topology: str | None = Field(None, description="a named topology; give this or edges")
    edges: list[tuple[int, int]] | None = Field(None, description="pairs of node numbers from 1; instead of topology")
    rules: list[str] = Field(min_length=1, description="one run each")
    mode: Mode = Mode.ASYNC
    seed: int = Field(0, ge=0, lt=2**63, description="of the adapter's start, the partition and random topologies")
    model: ModelSection
    lora: LoraSection = LoraSection()
    task: TaskSection
    training: TrainingSection = TrainingSection()
    exchange: ExchangeSection = ExchangeSection()
    mixing: MixingSection = MixingSection()
    data: TestbedData
    overrides: dict[str, Override] = Field({}, description="by node name, merged over its configuration")
    baselines: list[Literal["alone", "pooled"]] = Field([], description="what to compare with; default: nothing")
    learning_rates: dict[str, Annotated[float, Field(gt=0)]] = Field({}, description="by rule; default: the rule's")

    @field_validator("topology")
    @classmethod
    def _possible_topology(cls, topology: str | None, info: ValidationInfo) -> str | None:
        if topology is not None and "nodes" in info.data:
            named_graph(topology, info.data["nodes"])  # raises ValueError with the reason
        return topology

    @field_validator("edges")
    @classmethod
    def _possible_edges(cls, edges: list[tuple[int, int]] | None, info: ValidationInfo) -> list[tuple[int, int]] | None:
        if edges is not None and "nodes" in info.data:
            graph_of(edges, info.data["nodes"])  # raises ValueError with the reason
        return edges

    @field_validator("rules")
    @classmethod
    def _known_rules(cls, rules: list[str]) -> list[str]:
        for rule in rules:
            if rule not in RULES:
                raise ValueError(f"unknown rule {rule!r}; choose from {', '.join(RULES)}")
            if rules.count(rule) > 1:
                raise ValueError(f"rule {rule!r} is named twice; name each rule once")
        return rules

    @field_validator("overrides")
    @classmethod
    def _known_nodes(cls, overrides: dict[str, Override], info: ValidationInfo) -> dict[str, Override]:
        names = node_names(info.data["nodes"]) if "nodes" in info.data else list(overrides)
        for name in overrides:
            if name not in names:
                raise ValueError(f"there is no node {name!r}; nodes are named {names[0]} to {names[-1]}")
        return overrides

    @field_validator("learning_rates")
    @classmethod
    def _rates_of_rules(cls, rates: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        for rule in rates:
            if rule not in info.data.get("rules", rates):
                raise ValueError(f"{rule!r} is not among this testbed's rules; add it to rules or remove its rate")
        return rates

    @model_validator(mode="after")
    def _one_graph(self) -> Self:
        if (self.topology is None) == (self.edges is None):
            raise ValueError("give exactly one of topology (such as ring) and edges (such as [[1, 2], [2, 3]])")
        return self

    @model_validator(mode="after")
    def _can_be_dealt(self) -> Self:
        if isinstance(self.task, GuestSection):
            raise ValueError("task.type: a testbed trains by itself and has no place for guests; choose another task")
        if self.data.partition != "iid" and self.class_column is None:
            raise ValueError(
                f"data.partition: rows of the task {self.task.type} have no labels to be dealt out by; name a column in "
                "data.partition_by, or write iid"
            )
        return self

    @property
    def class_column(self) -> str | None:
        """The column whose values are the classes that shares are dealt out by."""
        label: str | None = getattr(self.task, "label_column", None)
        return self.data.partition_by or label

    @property
    def graph(self) -> "nx.Graph[int]":
        """The topology over nodes 0..n-1."""
        if self.edges is not None:
            return graph_of(self.edges, self.nodes)
        return named_graph(str(self.topology), self.nodes, self.seed)

    @property
    def names(self) -> list[str]:
        """The nodes' names, in order."""
        return node_names(self.nodes)

    def to_json(self) -> dict[str, Any]:
        """The specification as JSON-ready values with absolute paths; `load_spec` reads it back from YAML."""
        overrides = {name: own.model_dump(mode="json", exclude_unset=True) for name, own in self.overrides.items()}
        return self.model_dump(mode="json", exclude_none=True) | {"overrides": overrides}


def node_names(nodes: int) -> list[str]:
    """node-1, node-2, ..."""
    return [f"node-{number}" for number in range(1, nodes + 1)]


def load_spec(path: Path) -> TestbedSpec:
    """Reads and validates a testbed's specification. Raises ConfigError, one line per mistake."""
    if not path.exists():
        raise ConfigError(f"{path}: no such file; give a testbed's specification, such as deploy/demo/demo.yaml")
    return load_section(path, TestbedSpec)
