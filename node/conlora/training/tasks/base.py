"""What a task is: all that depends on what a model learns, from its class to its metric."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from peft import TaskType
from safetensors import SafetensorError
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, EvalPrediction, PreTrainedTokenizerBase

from conlora.config import ModelSection, NodeConfig
from conlora.config.tasks import AnyTaskSection
from conlora.errors import ConfigError, Unavailable
from conlora.training.outside import is_outside
from conlora.training.quantization import placement, prepared, stands_for

Row = dict[str, Any]
IGNORED = -100  # a label that neither loss nor metrics count, in transformers
LARGEST_EXPONENT = 700.0  # whose power is a finite float


class Task(Protocol):
    """One kind of learning problem on the ecosystem's own classes. A task of one's own has these methods too."""

    @property
    def peft_type(self) -> TaskType | None:
        """What PEFT calls it, where it has a word."""
        ...

    @property
    def figures(self) -> Sequence[str]:
        """What an evaluation tells beside the loss: names from `metrics`, the one that tasks are judged by first."""
        ...

    @property
    def images(self) -> Sequence[str]:
        """Those of `columns` that hold images."""
        ...

    def __init__(self, config: NodeConfig) -> None:
        """Loads what turns rows into inputs (a tokenizer, say). Raises ConfigError."""
        ...

    def base(self) -> "Base":
        """The base model, with a head where the task has one. Raises ConfigError where it can't be loaded."""
        ...

    def columns(self) -> list[str]:
        """Columns that every row has to have."""
        ...

    def encode(self, row: Row) -> Row:
        """A row as model inputs. Raises ConfigError for a row that doesn't fit."""
        ...

    def arrange(self, rows: list[Row]) -> list[Row]:
        """All encoded rows as they are trained on: the same, or packed into others."""
        ...

    def collator(self) -> Any:
        """Makes a batch of encoded rows."""
        ...

    @property
    def loss(self) -> Callable[..., torch.Tensor] | None:
        """From a batch's outputs and labels the loss, where the model does not make it of its labels by itself."""
        ...

    @property
    def reduce(self) -> Callable[[Any, torch.Tensor], Any]:
        """From a batch's logits and labels what metrics need, so that an evaluation need not keep all logits."""
        ...

    def metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Figures of an evaluation from what `reduce` left; `accuracy` among them where that makes sense."""
        ...

    def save_processing(self, directory: Path) -> None:
        """Writes what turns rows into inputs, to lie beside a model."""
        ...


@dataclass(frozen=True)
class Base:
    """A base model. fresh: names of the parameters that are not in its files, such as a head's; they have to be trained."""

    model: nn.Module
    fresh: frozenset[str]


def load_base(auto: Any, config: NodeConfig, **settings: Any) -> Base:
    """The base model as a class such as AutoModelForCausalLM loads it. Raises ConfigError."""
    section = config.model
    with loading(section):
        model, told = auto.from_pretrained(
            section.base,
            revision=section.revision,
            dtype=getattr(torch, section.dtype),
            output_loading_info=True,
            **placement(auto, config),
            **settings,
        )
    wanted, limit = getattr(config.task, "max_length", 0), _positions(model)
    if limit is not None and wanted > limit:
        raise ConfigError(
            f"task.max_length: {wanted} is more than the {limit} tokens that {section.base} takes; lower it"
        )
    if section.quantization:
        model = prepared(model)
    names = {name for name, _ in model.named_parameters()}
    mismatched = {entry[0] for entry in told["mismatched_keys"]}
    fresh = frozenset(names & (set(told["missing_keys"]) | mismatched))
    for name in fresh:
        if stands_for(model.get_submodule(name.rpartition(".")[0])):
            raise ConfigError(
                f"model.quantization: {name} is not in the files of {section.base}, so it has to be trained, which "
                f"{section.quantization} rules out; leave the key out"
            )
    return Base(model, fresh)


def _positions(model: nn.Module) -> int | None:
    """How many tokens a model takes that has learnt an embedding for each place; None for other models."""
    for name, module in model.named_modules():
        kind = name.rpartition(".")[2]
        if isinstance(module, nn.Embedding) and ("position" in kind or kind == "wpe") and "vision" not in name:
            # RoBERTa and its like count from behind the padding's place
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return None


@contextmanager
def loading(model: ModelSection) -> Iterator[None]:
    """Turns what the libraries raise for a missing or damaged base model, or an absent hub, into one sentence."""
    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if is_outside(error):
            raise Unavailable(
                f"model.base: {model.base} can't be fetched ({reason}); start again once the hub answers, or give a folder"
            ) from error
        raise ConfigError(
            f"model.base: {model.base} can't be loaded ({reason}); give a folder with config.json, tokenizer and weights, "
            "or the id of a hub model that this machine can reach"
        ) from error


def load_tokenizer(model: ModelSection) -> PreTrainedTokenizerBase:
    """The base model's tokenizer, with something to pad with. Raises ConfigError."""
    with loading(model):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model.base, revision=model.revision)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # what is padded counts neither in the attention nor in the loss
    return tokenizer


class Classes:
    """The labels of a federation and their numbers, which are the rows of the head."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.names = list(labels)
        self._numbers = {label: number for number, label in enumerate(labels)}

    def number(self, label: object) -> int:
        """Raises ConfigError for a label that is none of them."""
        number = self._numbers.get(str(label))
        if number is None:
            raise ConfigError(
                f"label {label!r} is not one of task.labels ({', '.join(self.names)}); correct the row or the list"
            )
        return number

    def head(self) -> dict[str, Any]:
        """How transformers is told of them."""
        return {
            "num_labels": len(self.names),
            "label2id": self._numbers,
            "id2label": dict(enumerate(self.names)),
        }


class Common:
    """What most tasks have alike; a task of one's own may begin with it."""

    figures: Sequence[str] = ("accuracy",)
    loss: Callable[..., torch.Tensor] | None = None
    _task: AnyTaskSection

    @property
    def images(self) -> Sequence[str]:
        """See `Task`."""
        return self._task.images

    def columns(self) -> list[str]:
        """See `Task`."""
        return self._task.columns

    def arrange(self, rows: list[Row]) -> list[Row]:
        """See `Task`."""
        return rows

    def reduce(self, logits: Any, labels: torch.Tensor) -> Any:
        """See `Task`. The number of the largest logit; some models return their logits first among other things."""
        return (logits[0] if isinstance(logits, tuple) else logits).argmax(dim=-1)

    def metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """The share of rows whose label is told right."""
        return {"accuracy": float(np.mean(prediction.predictions == prediction.label_ids))}


class NextToken(Common):
    """What tasks that tell tokens from those before them have alike."""

    figures = ("perplexity", "accuracy")
    shift = 1  # the logits at a token tell the one after it; 0: that token

    def reduce(self, logits: Any, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The likeliest token, and minus the log likelihood of the true one, both of shape (rows, tokens - shift)."""
        if isinstance(logits, tuple):
            logits = logits[0]
        logits = logits[:, : logits.shape[1] - self.shift]
        truth = labels[:, self.shift :].to(logits.device)
        return logits.argmax(dim=-1), cross_entropy(logits.mT.float(), truth, ignore_index=IGNORED, reduction="none")

    def metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Perplexity, and the share of tokens that the model puts first; all that are learnt weigh the same."""
        predictions: Any = prediction.predictions
        told, surprise = predictions
        truth = np.asarray(prediction.label_ids)[:, self.shift :]
        counted = truth != IGNORED
        if not counted.any():
            return {}
        mean = float(np.mean(surprise[counted], dtype=np.float64))
        return {
            "perplexity": math.exp(min(mean, LARGEST_EXPONENT)),
            "accuracy": float(np.mean(told[counted] == truth[counted])),
        }


class Textual(Common):
    """What tasks with a tokenizer and nothing else have alike."""

    tokenizer: PreTrainedTokenizerBase

    def save_processing(self, directory: Path) -> None:
        """See `Task`."""
        self.tokenizer.save_pretrained(directory)
