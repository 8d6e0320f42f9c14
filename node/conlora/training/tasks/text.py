"""Classification of texts and of words."""

from typing import Any

import numpy as np
from peft import TaskType
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    EvalPrediction,
)

from conlora.config import NodeConfig
from conlora.config.tasks import TextClassificationSection, TokenClassificationSection
from conlora.errors import ConfigError
from conlora.training.tasks.base import IGNORED, Base, Classes, Row, Textual, load_base, load_tokenizer


class TextClassification(Textual):
    """One label of a fixed list for each text."""

    peft_type = TaskType.SEQ_CLS
    _task: TextClassificationSection

    def __init__(self, config: NodeConfig) -> None:
        assert isinstance(config.task, TextClassificationSection)
        self._config, self._model, self._task = config, config.model, config.task
        self._classes = Classes(self._task.labels)
        self.tokenizer = load_tokenizer(self._model)

    def base(self) -> Base:
        """See `Task`."""
        # decoders classify by the last token that is no padding
        padding = {"pad_token_id": self.tokenizer.pad_token_id}
        return load_base(AutoModelForSequenceClassification, self._config, **padding, **self._classes.head())

    def encode(self, row: Row) -> Row:
        """See `Task`."""
        label = self._classes.number(row[self._task.label_column])
        text = str(row[self._task.text_column] or "")
        return {**self.tokenizer(text, truncation=True, max_length=self._task.max_length), "labels": label}

    def collator(self) -> DataCollatorWithPadding:
        """See `Task`."""
        return DataCollatorWithPadding(self.tokenizer)


class TokenClassification(Textual):
    """One tag of a fixed list for each word; a word's tag is that of its first token."""

    peft_type = TaskType.TOKEN_CLS
    figures = ("accuracy", "f1")
    _task: TokenClassificationSection

    def __init__(self, config: NodeConfig) -> None:
        assert isinstance(config.task, TokenClassificationSection)
        self._config, self._model, self._task = config, config.model, config.task
        self._classes = Classes(self._task.labels)
        self.tokenizer = load_tokenizer(self._model)
        if not self.tokenizer.is_fast:
            raise ConfigError(
                f"model.base: {self._model.base} has a tokenizer that doesn't say which word a token is of; choose a base "
                "with a fast tokenizer (tokenizer.json)"
            )

    def base(self) -> Base:
        """See `Task`."""
        return load_base(AutoModelForTokenClassification, self._config, **self._classes.head())

    def encode(self, row: Row) -> Row:
        """See `Task`."""
        words, tags = _list(row[self._task.words_column]), _list(row[self._task.tags_column])
        if len(words) != len(tags):
            raise ConfigError(f"{len(words)} words have {len(tags)} tags; give one tag a word")
        numbers = [self._classes.number(tag) for tag in tags]
        encoded = self.tokenizer(words, is_split_into_words=True, truncation=True, max_length=self._task.max_length)
        ids = encoded.word_ids()
        labels = [
            IGNORED if word is None or (i and ids[i - 1] == word) else numbers[word] for i, word in enumerate(ids)
        ]
        return {**encoded, "labels": labels}

    def collator(self) -> DataCollatorForTokenClassification:
        """See `Task`."""
        return DataCollatorForTokenClassification(self.tokenizer)

    def metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Accuracy by word, and F1 of whole entities where the tags are BIO."""
        told, truth = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
        counted = truth != IGNORED
        figures = {"accuracy": float(np.mean(told[counted] == truth[counted]))}
        if any(name.startswith("B-") for name in self._classes.names):
            pairs = [(self._entities(t[c]), self._entities(y[c])) for t, y, c in zip(told, truth, counted, strict=True)]
            right = sum(len(t & y) for t, y in pairs)
            both = sum(len(t) + len(y) for t, y in pairs)
            figures["f1"] = 2 * right / both if both else 1.0
        return figures

    def _entities(self, tags: Any) -> set[tuple[int, int, str]]:
        """(first word, word after the last, kind) of each entity; an I- tag without a beginning begins one (as CoNLL)."""
        found: set[tuple[int, int, str]] = set()
        start, kind = 0, ""
        for i, name in enumerate([*(self._classes.names[tag] for tag in tags), "O"]):
            mark, _, of = name.partition("-")
            if kind and (mark != "I" or of != kind):
                found.add((start, i, kind))
                kind = ""
            if mark in ("B", "I") and not kind:
                start, kind = i, of
        return found


def _list(value: Any) -> list[str]:
    match value:
        case str():
            return value.split()
        case list() | tuple():
            return [str(item) for item in value]
    return [] if value is None else [str(value)]
