"""Tasks that see: labels for images, texts that fit images, and texts about images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import TaskType
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoProcessor,
    DefaultDataCollator,
)

from conlora.config import NodeConfig
from conlora.config.tasks import ImageClassificationSection, ImageTextMatchingSection, ImageTextToTextSection
from conlora.errors import ConfigError
from conlora.training.tasks.base import (
    IGNORED,
    Base,
    Classes,
    Common,
    NextToken,
    Row,
    load_base,
    load_tokenizer,
    loading,
)


class ImageClassification(Common):
    """One label of a fixed list for each image."""

    peft_type = None  # PEFT has no type for it; the fresh head is trained anyway
    _task: ImageClassificationSection

    def __init__(self, config: NodeConfig) -> None:
        assert isinstance(config.task, ImageClassificationSection)
        self._config, self._model, self._task = config, config.model, config.task
        self._classes = Classes(self._task.labels)
        with loading(self._model):
            self._processor = AutoImageProcessor.from_pretrained(self._model.base, revision=self._model.revision)

    def base(self) -> Base:
        """See `Task`."""
        return load_base(
            AutoModelForImageClassification, self._config, ignore_mismatched_sizes=True, **self._classes.head()
        )

    def encode(self, row: Row) -> Row:
        """See `Task`."""
        label = self._classes.number(row[self._task.label_column])
        return {"pixel_values": _pixels(self._processor, row[self._task.image_column]), "labels": label}

    def save_processing(self, directory: Path) -> None:
        """See `Task`."""
        self._processor.save_pretrained(directory)

    def collator(self) -> Any:
        """See `Task`."""
        return DefaultDataCollator()


class ImageTextMatching(Common):
    """Texts that fit images, by a dual encoder with the contrastive loss of its own (CLIP, SigLIP and the like).

    Accuracy is the share of images whose own text the model puts first among those of the batch, equal texts counting as one.
    """

    peft_type = None
    _task: ImageTextMatchingSection

    def __init__(self, config: NodeConfig) -> None:
        assert isinstance(config.task, ImageTextMatchingSection)
        self._config, self._model, self._task = config, config.model, config.task
        self._tokenizer = load_tokenizer(self._model)
        with loading(self._model):
            self._processor = AutoImageProcessor.from_pretrained(self._model.base, revision=self._model.revision)

    def base(self) -> Base:
        """See `Task`."""
        base = load_base(AutoModel, self._config)
        if not hasattr(base.model, "get_text_features"):
            raise ConfigError(
                f"model.base: {self._model.base} is no dual encoder of images and texts; choose one such as CLIP or SigLIP"
            )
        return base

    def encode(self, row: Row) -> Row:
        """See `Task`."""
        text = str(row[self._task.text_column] or "")
        tokens = self._tokenizer(text, truncation=True, max_length=self._task.max_length)
        return {**tokens, "pixel_values": _pixels(self._processor, row[self._task.image_column])}

    def save_processing(self, directory: Path) -> None:
        """See `Task`."""
        self._tokenizer.save_pretrained(directory)
        self._processor.save_pretrained(directory)

    def collator(self) -> Any:
        """See `Task`."""
        return self._batch

    def _batch(self, rows: Sequence[Row]) -> Row:
        pixels = torch.from_numpy(np.stack([np.asarray(row["pixel_values"]) for row in rows]))
        texts = [{key: value for key, value in row.items() if key != "pixel_values"} for row in rows]
        batch: Row = dict(self._tokenizer.pad(texts, return_tensors="pt"))
        # The text that fits the i-th image is the i-th; the model makes its loss of that when it is asked to. Labels are
        # for the metric: of equal texts, which nobody can tell apart, they name the first.
        first: dict[str, int] = {}
        labels = [first.setdefault(str(row["input_ids"]), number) for number, row in enumerate(rows)]
        return batch | {"pixel_values": pixels, "labels": torch.tensor(labels), "return_loss": True}

    def reduce(self, logits: Any, labels: torch.Tensor) -> Any:
        """See `Task`. The label of the text that the model puts first for each image of the batch."""
        told = super().reduce(logits, labels)
        return labels.to(told.device)[told]

    @staticmethod
    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        """The model's own."""
        loss: torch.Tensor = outputs["loss"]
        return loss


class ImageTextToText(NextToken):
    """A text about an image, after a prompt; what follows the prompt is learnt."""

    peft_type = TaskType.CAUSAL_LM
    _task: ImageTextToTextSection

    def __init__(self, config: NodeConfig) -> None:
        assert isinstance(config.task, ImageTextToTextSection)
        self._config, self._model, self._task = config, config.model, config.task
        with loading(self._model):
            self._processor = AutoProcessor.from_pretrained(self._model.base, revision=self._model.revision)
        if not getattr(self._processor, "chat_template", None):
            raise ConfigError(
                f"model.base: {self._model.base} has no chat template, which says where an image goes; choose a "
                "vision-language model that was made for conversations"
            )
        if self._processor.tokenizer.pad_token is None:
            self._processor.tokenizer.pad_token = self._processor.tokenizer.eos_token

    def base(self) -> Base:
        """See `Task`."""
        return load_base(AutoModelForImageTextToText, self._config)

    def encode(self, row: Row) -> Row:
        """See `Task`. Texts and image as they are: how they become tensors depends on the whole batch."""
        prompt = str(row[self._task.prompt_column] or "") if self._task.prompt_column else ""
        asked = [*([{"type": "text", "text": prompt}] if prompt else []), {"type": "image"}]
        messages = [{"role": "user", "content": asked}]
        answer = {"role": "assistant", "content": [{"type": "text", "text": str(row[self._task.text_column] or "")}]}
        before = self._processor.apply_chat_template(messages, add_generation_prompt=True)
        whole = self._processor.apply_chat_template([*messages, answer])
        if not whole.startswith(before):
            raise ConfigError(f"{self._model.base} has a chat template that rewrites prompts; choose another base")
        return {"text": whole, "learnt": whole[len(before) :], "image": row[self._task.image_column].convert("RGB")}

    def save_processing(self, directory: Path) -> None:
        """See `Task`."""
        self._processor.save_pretrained(directory)

    def collator(self) -> Any:
        """See `Task`."""
        return self._batch

    def _batch(self, rows: Sequence[Row]) -> Row:
        batch: Row = dict(
            self._processor(
                text=[row["text"] for row in rows],
                images=[[row["image"]] for row in rows],
                padding=True,
                return_tensors="pt",
            )
        )
        labels = torch.full_like(batch["input_ids"], IGNORED)
        tokenizer = self._processor.tokenizer
        for i, row in enumerate(rows):
            learnt = len(tokenizer(row["learnt"], add_special_tokens=False)["input_ids"])
            places = batch["attention_mask"][i].nonzero()[-learnt:, 0]
            labels[i, places] = batch["input_ids"][i, places]
        return batch | {"labels": labels}


def _pixels(processor: Any, image: Any) -> np.ndarray:
    try:
        pixels: np.ndarray = processor(image.convert("RGB"), return_tensors="np")["pixel_values"][0]
    except (ValueError, TypeError, OSError, AttributeError) as error:
        raise ConfigError(f"no image that the model can take ({error}); mend or remove the row") from error
    return pixels
