"""Language modelling: continuations, and texts for texts."""

import itertools
from typing import Any

from peft import TaskType
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    DataCollatorForSeq2Seq,
)

from conlora.config import NodeConfig
from conlora.config.tasks import CausalLmSection, Seq2SeqSection
from conlora.errors import ConfigError
from conlora.training.tasks.base import IGNORED, Base, NextToken, Row, Textual, load_base, load_tokenizer


class CausalLm(NextToken, Textual):
    """The next token: of plain texts, of what follows a prompt, or of what the assistant says."""

    peft_type = TaskType.CAUSAL_LM
    _task: CausalLmSection

    def __init__(self, config: NodeConfig) -> None:
        assert isinstance(config.task, CausalLmSection)
        self._config, self._model, self._task = config, config.model, config.task
        self.tokenizer = load_tokenizer(self._model)
        if self._task.messages_column and not self.tokenizer.chat_template:
            raise ConfigError(
                f"task.messages_column: {self._model.base} has no chat template; choose a base that was made for "
                "conversations, or use text_column and prompt_column"
            )

    def base(self) -> Base:
        """See `Task`."""
        return load_base(AutoModelForCausalLM, self._config)

    def encode(self, row: Row) -> Row:
        """See `Task`. Labels are the tokens that are learnt, and IGNORED for the others."""
        if self._task.messages_column:
            tokens, learnt = self._conversation(row[self._task.messages_column])
        else:
            tokens, learnt = self._continuation(row)
        tokens, learnt = tokens[: self._task.max_length], learnt[: self._task.max_length]
        if not any(learnt[1:]):  # a loss over nothing is no number
            raise ConfigError(
                f"its first {self._task.max_length} tokens hold nothing to learn; raise task.max_length, or shorten or "
                "remove the row"
            )
        labels = [token if counts else IGNORED for token, counts in zip(tokens, learnt, strict=True)]
        return {"input_ids": tokens, "attention_mask": [1] * len(tokens), "labels": labels}

    def _continuation(self, row: Row) -> tuple[list[int], list[bool]]:
        text = self.tokenizer(str(row[self._task.text_column] or ""), add_special_tokens=False)["input_ids"]
        prompt = str(row[self._task.prompt_column] or "") if self._task.prompt_column else ""
        before = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        start = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        end = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        tokens = [*start, *before, *text, *end]
        ahead = len(start) + len(before)
        return tokens, [False] * ahead + [True] * (len(tokens) - ahead)

    def _conversation(self, messages: Any) -> tuple[list[int], list[bool]]:
        if not isinstance(messages, list) or not all(
            isinstance(m, dict) and {"role", "content"} <= m.keys() for m in messages
        ):
            raise ConfigError("messages have to be a list of objects with role and content; correct the row")
        tokens: list[int] = []
        learnt: list[bool] = []
        for i, message in enumerate(messages):
            # What a turn adds to the conversation so far; the assistant's begins after what asks for it.
            assistant = message["role"] == "assistant"
            asked = self._render(messages[:i], True) if assistant else self._render(messages[: i + 1], False)
            whole = self._render(messages[: i + 1], False) if assistant else asked
            if whole[: len(tokens)] != tokens or whole[: len(asked)] != asked:
                raise ConfigError(
                    f"{self._model.base} has a chat template that rewrites earlier turns, so that what the assistant says "
                    "can't be told apart; use prompt_column and text_column"
                )
            learnt += [False] * (len(asked) - len(tokens)) + [True] * (len(whole) - len(asked))
            tokens = whole
        return tokens, learnt

    def _render(self, messages: list[dict[str, str]], ask: bool) -> list[int]:
        if not messages and not ask:
            return []
        tokens: Any = self.tokenizer.apply_chat_template(messages, add_generation_prompt=ask, return_dict=False)
        return list(tokens)

    def arrange(self, rows: list[Row]) -> list[Row]:
        """See `Task`. Packed rows are cut from all texts in a row, as transformers' run_clm example does."""
        if not self._task.packing:
            return rows
        length = self._task.max_length
        joined = {key: list(itertools.chain.from_iterable(row[key] for row in rows)) for key in rows[0]}
        whole = len(joined["input_ids"]) // length * length
        if not whole:
            raise ConfigError(
                f"task.packing: all texts together have {len(joined['input_ids'])} tokens, fewer than task.max_length "
                f"({length}); lower it or turn packing off"
            )
        return [{key: values[i : i + length] for key, values in joined.items()} for i in range(0, whole, length)]

    def collator(self) -> DataCollatorForSeq2Seq:
        """See `Task`."""
        return DataCollatorForSeq2Seq(self.tokenizer)  # pads labels too


class Seq2Seq(NextToken, Textual):
    """A text for each text."""

    peft_type = TaskType.SEQ_2_SEQ_LM
    shift = 0
    _task: Seq2SeqSection

    def __init__(self, config: NodeConfig) -> None:
        assert isinstance(config.task, Seq2SeqSection)
        self._config, self._model, self._task = config, config.model, config.task
        self.tokenizer = load_tokenizer(self._model)

    def base(self) -> Base:
        """See `Task`."""
        return load_base(AutoModelForSeq2SeqLM, self._config)

    def encode(self, row: Row) -> Row:
        """See `Task`."""
        cut = {"truncation": True, "max_length": self._task.max_length}
        source = self.tokenizer(str(row[self._task.source_column] or ""), **cut)
        target = self.tokenizer(text_target=str(row[self._task.target_column] or ""), **cut)
        return {**source, "labels": target["input_ids"]}

    def collator(self) -> DataCollatorForSeq2Seq:
        """See `Task`."""
        return DataCollatorForSeq2Seq(self.tokenizer)
