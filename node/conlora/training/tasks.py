"""Tasks: what a model learns, and all that depends on it: its class, its inputs, its metric."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from peft import TaskType
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from conlora.config import ModelSection, NodeConfig, TaskSection
from conlora.errors import ConfigError


@contextmanager
def loading(model: ModelSection) -> Iterator[None]:
    """Turns what the libraries raise for a missing or damaged base model into one sentence."""
    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"model.base: {model.base} can't be loaded ({reason}); give a folder with config.json, tokenizer and weights, "
            "or the id of a hub model that this machine can reach"
        ) from error


class Task(Protocol):
    """One kind of learning problem on the ecosystem's own classes. A later task adds a class and an entry in `TASKS`."""

    peft_type: TaskType

    def __init__(self, config: NodeConfig) -> None:
        """Loads what turns rows into inputs (a tokenizer, say). Raises ConfigError."""
        ...

    def base_model(self) -> nn.Module:
        """The base model with a fresh head. Raises ConfigError where it can't be loaded."""
        ...

    def columns(self) -> list[str]:
        """Columns that every row has to have."""
        ...

    def encode(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row as model inputs. Raises ConfigError for a row that doesn't fit."""
        ...

    def collator(self) -> Any:
        """Makes a batch of encoded rows."""
        ...

    def metrics(self, prediction: Any) -> dict[str, float]:
        """Figures of an evaluation; `accuracy` among them where that makes sense."""
        ...


class TextClassification:
    """One label of a fixed list for each text."""

    peft_type = TaskType.SEQ_CLS

    def __init__(self, config: NodeConfig) -> None:
        self._model = config.model
        self._task: TaskSection = config.task
        self._index = {label: i for i, label in enumerate(self._task.labels)}
        with loading(self._model):
            self.tokenizer = AutoTokenizer.from_pretrained(self._model.base, revision=self._model.revision)

    def base_model(self) -> nn.Module:
        """See `Task`."""
        with loading(self._model):
            model: nn.Module = AutoModelForSequenceClassification.from_pretrained(
                self._model.base,
                revision=self._model.revision,
                num_labels=len(self._index),
                label2id=self._index,
                id2label={i: label for label, i in self._index.items()},
            )
        return model

    def columns(self) -> list[str]:
        """See `Task`."""
        return [self._task.text_column, self._task.label_column]

    def encode(self, row: dict[str, Any]) -> dict[str, Any]:
        """See `Task`."""
        label = self._index.get(str(row[self._task.label_column]))
        if label is None:
            raise ConfigError(
                f"label {row[self._task.label_column]!r} is not one of task.labels ({', '.join(self._task.labels)}); "
                "correct the row or the list"
            )
        encoded: dict[str, Any] = dict(
            self.tokenizer(str(row[self._task.text_column] or ""), truncation=True, max_length=self._task.max_length)
        )
        return {**encoded, "labels": label}

    def collator(self) -> DataCollatorWithPadding:
        """See `Task`."""
        return DataCollatorWithPadding(self.tokenizer)

    def metrics(self, prediction: Any) -> dict[str, float]:
        """See `Task`."""
        return {"accuracy": float(np.mean(np.argmax(prediction.predictions, axis=-1) == prediction.label_ids))}


TASKS: dict[str, type[Task]] = {"text-classification": TextClassification}
