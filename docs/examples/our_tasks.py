"""A task of one's own: how urgent a text is, as a number from 0 to `options.most`.

In a configuration, with this file importable on every node (`PYTHONPATH`, or an installed package):
`task: {type: custom, class: our_tasks:Urgency, options: {most: 10}}`.
"""

from typing import Any

import numpy as np
import torch
from peft import TaskType
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, EvalPrediction

from conlora.config import NodeConfig
from conlora.errors import ConfigError
from conlora.training.tasks.base import Base, Row, Textual, load_base, load_tokenizer


class Urgency(Textual):
    """A regression; columns `text` and `urgency`."""

    peft_type = TaskType.SEQ_CLS
    figures = ("error",)  # what an evaluation tells beside the loss, from `metrics`

    def __init__(self, config: NodeConfig) -> None:
        self._config, self._task = config, config.task
        self._most = config.task.options["most"]
        self.tokenizer = load_tokenizer(config.model)

    def base(self) -> Base:
        """The model, with a head for one number."""
        return load_base(AutoModelForSequenceClassification, self._config, num_labels=1, problem_type="regression")

    def columns(self) -> list[str]:
        """What every row has to have."""
        return ["text", "urgency"]

    def encode(self, row: Row) -> Row:
        """A row as model inputs."""
        urgency = float(row["urgency"])
        if not 0 <= urgency <= self._most:
            raise ConfigError(f"urgency {urgency} is not from 0 to {self._most}; correct the row")
        return {**self.tokenizer(row["text"], truncation=True), "labels": urgency / self._most}

    def collator(self) -> DataCollatorWithPadding:
        """Makes batches."""
        return DataCollatorWithPadding(self.tokenizer)

    def reduce(self, logits: Any, labels: torch.Tensor) -> Any:
        """What `metrics` needs of a batch's logits."""
        return logits[:, 0]

    def metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """The mean error, in the unit of the rows."""
        return {"error": self._most * float(np.mean(np.abs(prediction.predictions - prediction.label_ids)))}
