"""What a model learns: one section for each kind of task, told apart by `type`. Columns are this node's own names."""

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from conlora.config.fields import Section

Column = Annotated[str, Field(min_length=1)]
Tokens = Annotated[int, Field(ge=1)]

ROWS_COLUMN = "this node's own name of the column"
CUT = "tokens; longer texts are cut"


class AnyTaskSection(Section):
    """What all tasks have."""

    auto_class: ClassVar[str] = "AutoModel"  # of transformers, for the model that the adapter is for

    @property
    def columns(self) -> list[str]:
        """Columns that every row has to have."""
        return [value for key, value in self if key.endswith("_column") and value is not None]

    @property
    def images(self) -> list[str]:
        """Those of `columns` that hold images."""
        return [value for key, value in self if key == "image_column"]

    def agreed(self) -> str:
        """Canonical JSON of what has to be equal on all nodes."""
        return json.dumps(self.model_dump(include={"type", "labels", "class_", "options"}), sort_keys=True)


class LabelledTaskSection(AnyTaskSection):
    """What tasks with classes have."""

    labels: list[str] = Field(
        min_length=2, description="all classes of the federation, in the order of the head's rows"
    )


class TextClassificationSection(LabelledTaskSection):
    """One label of a fixed list for each text."""

    auto_class = "AutoModelForSequenceClassification"

    type: Literal["text-classification"] = "text-classification"
    text_column: Column = Field("text", description=ROWS_COLUMN)
    label_column: Column = Field("label", description=ROWS_COLUMN)
    max_length: Tokens = Field(128, description=CUT)


class TokenClassificationSection(LabelledTaskSection):
    """One tag of a fixed list for each word; with BIO tags such as B-PER, F1 counts whole entities."""

    auto_class = "AutoModelForTokenClassification"

    type: Literal["token-classification"]
    words_column: Column = Field("words", description=f"{ROWS_COLUMN}; a list of words, or words separated by blanks")
    tags_column: Column = Field("tags", description=f"{ROWS_COLUMN}; one tag a word, in the same form")
    max_length: Tokens = Field(128, description=CUT)


class CausalLmSection(AnyTaskSection):
    """Continuations: of plain text, of prompts, or of conversations."""

    auto_class = "AutoModelForCausalLM"

    type: Literal["causal-lm"]
    text_column: Column = Field("text", description=f"{ROWS_COLUMN}; what is learnt")
    prompt_column: Column | None = Field(None, description="what comes before the text, read but not learnt")
    messages_column: Column | None = Field(
        None, description="conversations (lists of role and content) instead; what the assistant says is learnt"
    )
    max_length: Tokens = Field(512, description=CUT)
    packing: bool = Field(False, description="join texts to blocks of max_length tokens; for many short ones")

    @property
    def columns(self) -> list[str]:
        """Conversations stand in place of texts."""
        return [self.messages_column] if self.messages_column else super().columns


class Seq2SeqSection(AnyTaskSection):
    """A text for each text."""

    auto_class = "AutoModelForSeq2SeqLM"

    type: Literal["seq2seq"]
    source_column: Column = Field("source", description=ROWS_COLUMN)
    target_column: Column = Field("target", description=ROWS_COLUMN)
    max_length: Tokens = Field(256, description=f"{CUT}, sources and targets")


class ImageClassificationSection(LabelledTaskSection):
    """One label of a fixed list for each image."""

    auto_class = "AutoModelForImageClassification"

    type: Literal["image-classification"]
    image_column: Column = Field("image", description=f"{ROWS_COLUMN}; images, or paths beside the data file")
    label_column: Column = Field("label", description=ROWS_COLUMN)


class ImageTextMatchingSection(AnyTaskSection):
    """Texts that fit images, for dual encoders such as CLIP."""

    type: Literal["image-text-matching"]
    image_column: Column = Field("image", description=f"{ROWS_COLUMN}; images, or paths beside the data file")
    text_column: Column = Field("text", description=ROWS_COLUMN)
    max_length: Tokens = Field(64, description=CUT)


class ImageTextToTextSection(AnyTaskSection):
    """Texts about images, for vision-language models."""

    auto_class = "AutoModelForImageTextToText"

    type: Literal["image-text-to-text"]
    image_column: Column = Field("image", description=f"{ROWS_COLUMN}; images, or paths beside the data file")
    prompt_column: Column | None = Field(None, description="what is asked about the image")
    text_column: Column = Field("text", description=f"{ROWS_COLUMN}; the answer, which is learnt")


class GuestSection(AnyTaskSection):
    """Whatever a program of your own learns, which joins the daemon (docs/how-to/library.md)."""

    type: Literal["guest"]
    options: dict[str, Any] = Field(
        {}, description="what programs have to agree on, in your own words; equal on all nodes"
    )


class CustomTaskSection(AnyTaskSection):
    """A task of one's own: a class with the methods of `conlora.training.tasks.Task`."""

    model_config = ConfigDict(serialize_by_alias=True)

    type: Literal["custom"]
    class_: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")] = Field(
        alias="class", description="`module:Class`, importable on every node"
    )
    options: dict[str, Any] = Field({}, description="whatever the class reads from them; equal on all nodes")


def _type_of(value: Any) -> str:
    found = value.get("type", "text-classification") if isinstance(value, dict) else getattr(value, "type", "")
    return str(found)


TaskSection = Annotated[
    Annotated[TextClassificationSection, Tag("text-classification")]
    | Annotated[TokenClassificationSection, Tag("token-classification")]
    | Annotated[CausalLmSection, Tag("causal-lm")]
    | Annotated[Seq2SeqSection, Tag("seq2seq")]
    | Annotated[ImageClassificationSection, Tag("image-classification")]
    | Annotated[ImageTextMatchingSection, Tag("image-text-matching")]
    | Annotated[ImageTextToTextSection, Tag("image-text-to-text")]
    | Annotated[GuestSection, Tag("guest")]
    | Annotated[CustomTaskSection, Tag("custom")],
    Discriminator(_type_of),
]
