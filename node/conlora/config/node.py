"""One node's configuration."""

from pathlib import Path
from typing import Literal, Self

from pydantic import ConfigDict, Field, model_validator

from conlora.config.basics import NodeBasics
from conlora.config.fields import FilePath, LocalAddress, Section, existing
from conlora.config.mixing import MixingSection
from conlora.config.model import LoraSection, ModelSection, Precision
from conlora.config.reading import load_section
from conlora.config.tasks import GuestSection, TaskSection
from conlora.core.encoding import Encoding
from conlora.core.federation import FederationSettings
from conlora.core.gossip import Mode
from conlora.core.rules import RULES
from conlora.core.schema import Schema


class FederationSection(Section):
    """What all nodes agree on beside model and LoRA settings."""

    name: str = Field("default", description="nodes of another name don't mix with this one")
    seed: int = Field(0, ge=0, lt=2**63, description="generates the start of A and head")
    rule: str = Field("freeze-a", description="which factors are trained and mixed; see Rules below")
    mode: Mode = Field(Mode.ASYNC, description="async: nobody waits; sync: lockstep, for comparisons")
    sync_deadline_seconds: float = Field(300, gt=0, description="sync only: longest wait for a neighbour's snapshot")

    @model_validator(mode="after")
    def _known_rule(self) -> Self:
        if self.rule not in RULES:
            raise ValueError(f"rule: unknown rule {self.rule!r}; choose one of {', '.join(RULES)}")
        return self


class DataSection(Section):
    """This node's own rows. They never leave it."""

    path: FilePath | None = Field(
        None,
        description="CSV, JSONL, Parquet, Arrow or WebDataset (tar) file, or a folder with one folder of images per label",
    )
    hub: str | None = Field(None, description="a hub data set, instead of path")
    split: str = Field("train", description="split of the hub data set")
    evaluation_path: FilePath | None = Field(None, description="held-out rows; default: a part of the rows above")
    evaluation_split: str | None = Field(
        None, description="held-out split of the hub data set; default: a part of split"
    )
    evaluation_fraction: float = Field(0.1, gt=0, lt=1, description="of the rows, held out to measure accuracy")
    streaming: bool = Field(
        False, description="read rows as they are needed, for sets larger than memory; needs held-out rows of their own"
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.path is not None and self.hub is not None:
            raise ValueError("give one of path and hub, not both")
        for path in filter(None, (self.path, self.evaluation_path)):
            readable(path)
        if self.evaluation_split and not self.hub:
            raise ValueError("evaluation_split is of a hub data set; give evaluation_path instead")
        if self.streaming and not (self.evaluation_path or self.evaluation_split):
            raise ValueError(
                "streaming can't hold out a part of what it reads; give evaluation_path or evaluation_split"
            )
        return self


# Suffixes, and what the datasets library calls the format.
DATA_FORMATS = {
    ".csv": "csv",
    ".jsonl": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".tar": "webdataset",
}


def readable(path: Path) -> None:
    """Raises ValueError unless a data file of a known format, or a folder, is there."""
    existing(path)
    if not path.is_dir() and path.suffix not in DATA_FORMATS:
        raise ValueError(f"{path}: unknown format {path.suffix!r}; use one of {', '.join(DATA_FORMATS)}")


class TrainingSection(Section):
    """The local optimizer's work."""

    rounds: int = Field(100, ge=1, description="after these the node stands still, with its links up")
    local_steps: int = Field(8, ge=1, description="optimizer steps per round; equal on all nodes")
    batch_size: int = Field(16, ge=1, description="rows per forward pass of one process")
    gradient_accumulation: int = Field(1, ge=1, description="forward passes per optimizer step")
    processes: int = Field(
        1,
        ge=1,
        description="on this machine, each on a GPU of its own where there are GPUs; a step takes batch_size × "
        "gradient_accumulation × processes rows",
    )
    activation_checkpointing: bool = Field(
        False, description="less memory for more time: activations are computed twice"
    )
    precision: Precision | None = Field(None, description="of the arithmetic (autocast); default: that of model.dtype")
    learning_rate: float | None = Field(None, gt=0, description="default: the rule's")
    lr_scheduler: str = Field(
        "constant", description="of the learning rate over all rounds: constant, linear, cosine, ..."
    )
    weight_decay: float = Field(0.0, ge=0, description="of the optimizer, AdamW")
    evaluate_every: int = Field(5, ge=1, description="rounds between evaluations on the held-out rows")
    checkpoint_every: int = Field(5, ge=1, description="rounds between checkpoints")
    keep_checkpoints: int = Field(3, ge=1, description="older ones are removed")
    device: Literal["auto", "cpu"] = Field("auto", description="auto: a GPU where there is one")
    threads: int | None = Field(None, ge=1, description="torch threads; default: torch's own choice")
    slowdown: float = Field(1.0, ge=1, description="testbeds: every step takes this many times as long")
    record_vectors: bool = Field(False, description="testbeds: keep each round's vectors before and after mixing")

    @model_validator(mode="after")
    def _known_scheduler(self) -> Self:
        if self.lr_scheduler not in LR_SCHEDULERS:
            raise ValueError(f"lr_scheduler: {self.lr_scheduler!r} is not one of {', '.join(LR_SCHEDULERS)}")
        return self


LR_SCHEDULERS = ("constant", "constant_with_warmup", "linear", "cosine", "polynomial", "inverse_sqrt")


WireEncoding = Literal["fp32", "bf16", "int8", "auto"]


class ExchangeSection(Section):
    """How this node sends its snapshots; each node as it likes."""

    encoding: WireEncoding = Field(
        "bf16",
        description="on the wire; int8 sends differences, so that rounding errors are made up for; auto: bf16 where "
        "the link carries a snapshot within half a round, else int8",
    )
    encodings: dict[str, WireEncoding] = Field({}, description="others, by the peer's name")

    def encoding_for(self, peer: str) -> Encoding | None:
        """What that peer is sent; None: auto."""
        chosen = self.encodings.get(peer, self.encoding)
        return None if chosen == "auto" else Encoding(chosen)


class ObservingSection(Section):
    """What others may see of this node's consensus error."""

    sketched: bool = Field(True, description="let the federation know sketches of this node's adapter: no weights")
    metrics: LocalAddress | None = Field(
        None,
        description="for Prometheus: a port on loopback, or host:port, where whoever reaches it may read (no TLS, no "
        "password); none: no metrics",
    )
    tensorboard: bool = Field(
        False, description="write TensorBoard event files into state_dir/tensorboard (`conlora[tensorboard]`)"
    )


class NodeConfig(NodeBasics):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelSection
    lora: LoraSection = LoraSection()
    federation: FederationSection = FederationSection()
    task: TaskSection
    data: DataSection = DataSection()
    training: TrainingSection = TrainingSection()
    exchange: ExchangeSection = ExchangeSection()
    mixing: MixingSection = MixingSection()
    observing: ObservingSection = ObservingSection()

    @model_validator(mode="after")
    def _has_data(self) -> Self:
        if not self.guest and self.data.path is None and self.data.hub is None:
            raise ValueError("data: names no rows; give path or hub")
        return self

    @model_validator(mode="after")
    def _model_fits_training(self) -> Self:
        if self.model.device_map and self.training.device == "cpu":
            raise ValueError("model.device_map: spreads the base over GPUs, but training.device is cpu; leave out one")
        if self.model.device_map and self.training.processes > 1:
            raise ValueError(
                "model.device_map: spreads one model over GPUs, but training.processes puts a whole one on each; leave out one"
            )
        if self.model.dtype != "float32" and self.precision == "float32" and not self.model.quantization:
            raise ValueError(
                f"training.precision: weights in {self.model.dtype} can't be computed with in float32; leave it out, or set "
                "model.dtype to float32"
            )
        return self

    @model_validator(mode="after")
    def _rejoins_only_who_can_fall_behind(self) -> Self:
        if self.mixing.adopts and self.federation.mode is Mode.SYNC:
            raise ValueError(
                "mixing.rejoin: in sync mode neighbours wait for a node that is away, so there is nothing to adopt; leave it out"
            )
        return self

    @property
    def guest(self) -> bool:
        """Whether a program of the user's trains, instead of the node's own trainer."""
        return isinstance(self.task, GuestSection)

    @property
    def guest_socket(self) -> Path:
        """Where such a program joins."""
        return self.state_dir / "trainer.sock"

    @property
    def precision(self) -> Precision:
        """Of the arithmetic."""
        return self.training.precision or self.model.dtype

    @property
    def learning_rate(self) -> float:
        """The configured learning rate, or the rule's own."""
        return self.training.learning_rate or RULES[self.federation.rule].default_learning_rate

    def settings(self, fingerprint: str, peft: str, schema: Schema) -> FederationSettings:
        """What peers compare before they mix with this node; the arguments are known once the model is built.

        fingerprint: of the base model. peft: canonical LoRA settings. schema: the exchanged tensors.
        """
        return FederationSettings(
            federation=self.federation.name,
            base_model_fingerprint=fingerprint,
            peft=peft,
            seed=self.federation.seed,
            rule=self.federation.rule,
            mode=self.federation.mode.value,
            local_steps=self.training.local_steps,
            task=self.task.agreed(),
            schema=schema.digest,
        )


def load_config(path: Path) -> NodeConfig:
    """Reads and validates a node's configuration. Raises ConfigError, one line per mistake."""
    return load_section(path, NodeConfig)
