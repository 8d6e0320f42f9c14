"""The base model and the adapter on it."""

import os
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from conlora.config.fields import Section, resolved

Precision = Literal["float32", "bfloat16", "float16"]


class ModelSection(Section):
    """The frozen base model that all nodes of a federation share."""

    base: str = Field(
        description="a folder with config.json and weights, or with one GGUF file (`conlora[gguf]`), or a hub id"
    )
    revision: str | None = Field(None, description="hub revision; pin one in a real federation")
    dtype: Precision = Field("float32", description="of the frozen weights in memory; may differ between nodes")
    quantization: Literal["4bit", "8bit"] | None = Field(
        None,
        description="of the frozen weights in memory, by bitsandbytes (`conlora[quantized]`); may differ between nodes",
    )
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = Field(
        None, description="spreads the base over this node's GPUs, as transformers has it; default: all on one"
    )

    @model_validator(mode="before")
    @classmethod
    def _resolve_folder(cls, data: Any, info: ValidationInfo) -> Any:
        """A path is relative to the file; anything that looks like `owner/name` and is no folder is a hub id."""
        base = data.get("base") if isinstance(data, dict) else None
        if isinstance(base, str) and info.context:
            path = resolved(info.context["directory"], base)
            if path.is_dir():
                return {**data, "base": os.path.normpath(path)}
            if base.startswith((".", "/", "~")) or base.count("/") > 1:
                raise ValueError(f"base: the folder {path} does not exist; give the base model's folder or a hub id")
        return data


class LoraSection(Section):
    """PEFT's LoRA settings; equal on all nodes but for dropout and plus_ratio."""

    rank: int = Field(8, ge=1, description="r, the inner size of B A")
    alpha: float = Field(
        16, gt=0, description="the product is scaled by alpha / rank, or by alpha / sqrt(rank) with rslora"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="of the adapter's input; may differ between nodes")
    target_modules: list[str] | None = Field(
        None, description="default: PEFT's choice for the architecture, all linear layers where it has none; []: none"
    )
    target_parameters: list[str] = Field(
        [], description="parameters of experts, such as mlp.experts.down_proj: each expert gets an A and a B"
    )
    modules_to_save: list[str] = Field([], description="modules that are trained and mixed whole, beside a fresh head")
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = Field(
        {}, description="other ranks, by pattern of module names"
    )
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = Field({}, description="other alphas, likewise")
    rslora: bool = Field(False, description="rank-stabilised scaling")
    dora: bool = Field(False, description="DoRA: magnitudes of the weights' columns are trained and mixed too")
    plus_ratio: float | None = Field(None, gt=0, description="LoRA+: learning rate of B over that of A; 16 is usual")
    init: str = Field("kaiming", description="start of A: kaiming (PEFT's default) or orthonormal rows")

    @field_validator("init")
    @classmethod
    def _known_init(cls, init: str) -> str:
        if init in UNSOUND_INITS:
            raise ValueError(
                f"{init} changes the base's weights to suit A and B, so that nodes would no longer share one base; use "
                f"{' or '.join(INITS)}"
            )
        if init not in INITS:
            raise ValueError(f"unknown init {init!r}; choose one of {', '.join(INITS)}")
        return init

    @model_validator(mode="after")
    def _fits_parameters(self) -> Self:
        if self.target_parameters and (self.dropout or self.dora):
            wrong = "dropout" if self.dropout else "dora"
            raise ValueError(f"{wrong}: PEFT has none for target_parameters; leave out one of the two")
        return self

    @property
    def orthonormal(self) -> bool:
        """Whether A begins with orthonormal rows."""
        return self.init == "orthonormal"


INITS = ("kaiming", "orthonormal")
UNSOUND_INITS = ("pissa", "olora", "loftq", "corda", "eva", "lora_ga")
