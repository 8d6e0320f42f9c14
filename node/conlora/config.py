"""One node's configuration: a YAML file, validated; every mistake is a sentence with file, key and remedy."""

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from conlora.core.federation import FederationSettings
from conlora.core.gossip import Mode
from conlora.core.rules import RULES
from conlora.core.schema import Schema
from conlora.errors import ConfigError


def _relative_to_file(value: object, info: ValidationInfo) -> object:
    if isinstance(value, str | Path) and info.context:
        return _resolved(info.context["directory"], value)
    return value


def _resolved(directory: Path, path: str | Path) -> Path:
    try:
        return directory / Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{path}: there is no such user's home directory; correct the path") from None


def _existing(path: Path) -> Path:
    if not path.exists():
        raise ValueError(f"{path} does not exist; correct the path or put the file there")
    return path


def _with_a_port_that_exists(address: str) -> str:
    if int(address.rpartition(":")[2]) > 65535:
        raise ValueError(f"{address!r} is not an address; the port has to be at most 65535")
    return address


FilePath = Annotated[Path, BeforeValidator(_relative_to_file)]
Address = Annotated[
    str, Field(pattern=r"^(\[[0-9a-fA-F:]+\]|[^\s:/]+):\d{1,5}$"), AfterValidator(_with_a_port_that_exists)
]


class Section(BaseModel):
    """Strict base: unknown keys are errors, values are fixed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(Section):
    """The frozen base model that all nodes of a federation share."""

    base: str = Field(description="a folder with config.json and weights, or a hub id")
    revision: str | None = Field(None, description="hub revision; pin one in a real federation")

    @model_validator(mode="before")
    @classmethod
    def _resolve_folder(cls, data: Any, info: ValidationInfo) -> Any:
        """A path is relative to the file; anything that looks like `owner/name` and is no folder is a hub id."""
        base = data.get("base") if isinstance(data, dict) else None
        if isinstance(base, str) and info.context:
            path = _resolved(info.context["directory"], base)
            if path.is_dir():
                return {**data, "base": os.path.normpath(path)}
            if base.startswith((".", "/", "~")) or base.count("/") > 1:
                raise ValueError(f"base: the folder {path} does not exist; give the base model's folder or a hub id")
        return data


class LoraSection(Section):
    """PEFT's LoRA settings; equal on all nodes."""

    rank: int = Field(8, ge=1, description="r, the inner size of B A")
    alpha: float = Field(16, gt=0, description="the product is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="of the adapter's input; may differ between nodes")
    target_modules: list[str] | None = Field(None, description="default: PEFT's choice for the architecture")


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


class TaskSection(Section):
    """What the model learns."""

    type: Literal["text-classification"] = "text-classification"
    labels: list[str] = Field(
        min_length=2, description="all classes of the federation, in the order of the head's rows"
    )
    text_column: str = Field("text", description="this node's own name of the column")
    label_column: str = Field("label", description="this node's own name of the column")
    max_length: int = Field(128, ge=1, description="tokens; longer texts are cut")


class DataSection(Section):
    """This node's own rows. They never leave it."""

    path: FilePath | None = Field(None, description="CSV, JSONL or Parquet file")
    hub: str | None = Field(None, description="a hub data set, instead of path")
    split: str = Field("train", description="split of the hub data set")
    evaluation_path: FilePath | None = Field(None, description="held-out rows; default: a part of the rows above")
    evaluation_fraction: float = Field(0.1, gt=0, lt=1, description="of the rows, held out to measure accuracy")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give exactly one of path and hub")
        for path in filter(None, (self.path, self.evaluation_path)):
            _existing(path)
            if path.suffix not in DATA_FORMATS:
                raise ValueError(f"{path}: unknown format {path.suffix!r}; use one of {', '.join(DATA_FORMATS)}")
        return self


DATA_FORMATS = {".csv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}


class TrainingSection(Section):
    """The local optimizer's work."""

    rounds: int = Field(100, ge=1, description="after these the node stands still, with its links up")
    local_steps: int = Field(8, ge=1, description="optimizer steps per round; equal on all nodes")
    batch_size: int = Field(16, ge=1, description="rows per optimizer step")
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


class ObservingSection(Section):
    """What others may see of this node's consensus error."""

    sketched: bool = Field(True, description="let the federation know sketches of this node's adapter: no weights")
    metrics: Address | None = Field(None, description="host:port for Prometheus; none: no metrics")


class NodeBasics(Section):
    """Who and where a node is: what commands need that must work while the rest of the file is unfinished or wrong."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", description="what partners call this node")
    state_dir: FilePath = Field(Path("state"), validate_default=True, description="checkpoints, history, logs")
    identity_dir: FilePath = Field(Path("identity"), validate_default=True, description="node.key and node.crt")
    peers_dir: FilePath = Field(Path("peers"), validate_default=True, description="one identity card per peer")
    listen: Address = Field("0.0.0.0:7443", description="the peer port")
    advertise: Address | None = Field(None, description="where peers can dial this node; none: it only dials out")
    admin_socket: FilePath | None = Field(None, description="default: admin.sock in state_dir")

    @property
    def admin_path(self) -> Path:
        """The admin service's Unix socket."""
        return self.admin_socket or self.state_dir / "admin.sock"


class NodeConfig(NodeBasics):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelSection
    lora: LoraSection = LoraSection()
    federation: FederationSection = FederationSection()
    task: TaskSection
    data: DataSection
    training: TrainingSection = TrainingSection()
    observing: ObservingSection = ObservingSection()

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
            labels=tuple(self.task.labels),
            schema=schema.digest,
        )


S = TypeVar("S", bound=Section)


def load_config(path: Path) -> NodeConfig:
    """Reads and validates a node's configuration. Raises ConfigError, one line per mistake."""
    return load_section(path, NodeConfig)


def load_basics(path: Path) -> NodeBasics:
    """Reads just who and where the node is. Raises ConfigError."""
    return load_section(path, NodeBasics)


def load_section(path: Path, section: type[S], remedy: str = "`conlora init DIR` writes a first configuration") -> S:
    """Reads any of our YAML files. Raises ConfigError with file, key path and remedy for every mistake in it.

    remedy: what to do where there is no such file.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; {remedy}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read ({error}); it has to be a readable UTF-8 text file") from error
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" in line {where.line + 1}" if where else ""
        problem = " ".join(str(getattr(error, "problem", error)).split())
        raise ConfigError(f"{path}: not valid YAML{line} ({problem}); mend that line") from error
    except ValueError as error:  # PyYAML lets it through where a date has a 13th month
        raise ConfigError(f"{path}: not valid YAML ({error}); mend that value, or quote it") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: has to be a YAML mapping of keys to values, not {type(data).__name__}")
    try:
        return section.model_validate(data, context={"directory": path.resolve().parent})
    except ValidationError as error:
        raise ConfigError("\n".join(_sentence(path, section, item) for item in error.errors())) from error


def _sentence(path: Path, section: type[BaseModel], item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"]) or "(top level)"
    match item["type"]:
        case "extra_forbidden":
            near = difflib.get_close_matches(str(item["loc"][-1]), _keys_beside(section, item["loc"]), n=1)
            hint = (
                f"did you mean {near[0]!r}?" if near else "remove it, or look it up in docs/reference/configuration.md"
            )
            return f"{path}: {key}: unknown key; {hint}"
        case "missing":
            return f"{path}: {key}: missing; add this key"
        case "value_error":
            return f"{path}: {key}: {item['ctx']['error']}"
        case "string_pattern_mismatch" if key in ("listen", "advertise", "address", "observing.metrics"):
            return f"{path}: {key}: {item['input']!r} is not an address; write host:port, such as 0.0.0.0:7443"
        case _:
            return f"{path}: {key}: {item['msg']}, got {item['input']!r}; correct the value"


def _keys_beside(section: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys that are allowed where an unknown one was found."""
    for part in location[:-1]:
        field = section.model_fields.get(str(part))
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return []
        section = field.annotation
    return list(section.model_fields)
