"""How a base model is kept other than whole and on one device: in 4 or 8 bits, or spread over several GPUs."""

from importlib.util import find_spec
from typing import Any

import torch
from peft import prepare_model_for_kbit_training
from torch import nn
from transformers import AutoConfig, BitsAndBytesConfig

from conlora.config import NodeConfig
from conlora.errors import ConfigError


def placement(auto: Any, config: NodeConfig) -> dict[str, Any]:
    """What `auto.from_pretrained` is told of it; nothing as a rule. Raises ConfigError where bitsandbytes is missing."""
    model = config.model
    spread: dict[str, Any] = {"device_map": model.device_map} if model.device_map else {}
    if model.quantization is None:
        return spread
    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"model.quantization: {model.quantization} needs bitsandbytes, which is not installed; `pip install "
            "'conlora[quantized]'`, or leave the key out"
        )
    if config.training.device == "cpu":
        spread = {"device_map": {"": "cpu"}}  # bitsandbytes would take a GPU where there is one
    return {**spread, "quantization_config": _bits(config, _kept_whole(auto, config))}


def prepared(model: Any) -> Any:
    """A quantised model as it has to be for training: frozen, and in float32 where it is not quantised."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # On such CPUs bitsandbytes repacks weights at the first evaluation, and has no gradients through them from then on.
            module.support_avx512bf16_for_cpu = False
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)  # the Trainer sees to activations


def stands_for(module: nn.Module) -> type[nn.Module] | None:
    """The class of layer that a quantised one stands for; None for any other module."""
    found: type[nn.Module] | None = getattr(module, "source_cls", None)
    return found


def _bits(config: NodeConfig, kept_whole: list[str] | None) -> BitsAndBytesConfig:
    if config.model.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept_whole)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=getattr(torch, config.precision),
        llm_int8_skip_modules=kept_whole,
    )


def _kept_whole(auto: Any, config: NodeConfig) -> list[str] | None:
    """Modules that may be trained whole: heads, which are all outside the body, and `modules_to_save`.

    None, which leaves it to transformers, where the model has no part that is the body.
    """
    model = config.model
    with torch.device("meta"):  # names only
        skeleton = auto.from_config(AutoConfig.from_pretrained(model.base, revision=model.revision))
    parts = [name for name, _ in skeleton.named_children()]
    if skeleton.base_model_prefix not in parts:
        return config.lora.modules_to_save or None
    return [name for name in parts if name != skeleton.base_model_prefix] + config.lora.modules_to_save
