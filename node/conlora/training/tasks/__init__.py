"""Tasks: what a model learns, by the word in a configuration."""

import importlib

from conlora.config import NodeConfig
from conlora.config.tasks import CustomTaskSection
from conlora.errors import ConfigError
from conlora.training.tasks.base import Base, Task, loading
from conlora.training.tasks.images import ImageClassification, ImageTextMatching, ImageTextToText
from conlora.training.tasks.language import CausalLm, Seq2Seq
from conlora.training.tasks.text import TextClassification, TokenClassification

__all__ = ["Base", "Task", "loading", "task_of"]

_TASKS: dict[str, type[Task]] = {
    "text-classification": TextClassification,
    "token-classification": TokenClassification,
    "causal-lm": CausalLm,
    "seq2seq": Seq2Seq,
    "image-classification": ImageClassification,
    "image-text-matching": ImageTextMatching,
    "image-text-to-text": ImageTextToText,
}


def task_of(config: NodeConfig) -> Task:
    """The configured task. Raises ConfigError."""
    if isinstance(config.task, CustomTaskSection):
        return _custom(config.task.class_)(config)
    return _TASKS[config.task.type](config)


def _custom(name: str) -> type[Task]:
    module, _, attribute = name.partition(":")
    try:
        found: type[Task] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"task.class: {name} can't be imported ({error}); install the package that has it, or correct the name"
        ) from error
    return found
