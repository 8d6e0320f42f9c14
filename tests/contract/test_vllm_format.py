"""An exported directory is what vLLM loads as a LoRA: its rules, as of its LoRA loader in 2026, in our own words.

It reads `adapter_config.json` and takes the names of tensors apart; names that it does not know end the loading.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.families import FAMILIES, make_base, make_data

from conlora.config import NodeConfig
from conlora.daemon.card import model_card
from conlora.daemon.export import export
from conlora.store.checkpoints import CheckpointStore
from conlora.training.model import Built, build_model

DECODERS = ("llama", "qwen", "gemma", "mistral", "phi")
MAX_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank may be
PREFIX = "base_model.model."


def built(name: str, rule: str, folder: Path, lora: dict[str, Any]) -> tuple[NodeConfig, Built]:
    task, rows = make_data(FAMILIES[name].task, folder)
    config = NodeConfig.model_validate(
        {
            "name": "node", "model": {"base": str(make_base(name, folder / "base"))}, "task": task, "data": {"path": str(rows)},
            "lora": {"rank": 8, **lora}, "federation": {"rule": rule}, "state_dir": str(folder / "state"),
        }
    )  # fmt: skip
    return config, build_model(config)


def exported(config: NodeConfig, model: Built, folder: Path) -> Path:
    store = CheckpointStore(config.state_dir / "checkpoints", keep=1)
    store.prepare()
    model.model.save_pretrained(store.staging / "checkpoint-8")
    checkpoint = store.seal(store.staging / "checkpoint-8", 1, 8, model.shared.digest, model.fingerprint)
    export(config, checkpoint, model_card(config, checkpoint, "ID", None), folder / "adapter", overwrite=False)
    return folder / "adapter"


def refusals(directory: Path, base: torch.nn.Module) -> list[str]:
    """Why vLLM would not serve this directory on this base; nothing where it would."""
    settings = json.loads((directory / "adapter_config.json").read_text())
    reasons = [
        name
        for name, wrong in {
            "r": not isinstance(settings["r"], int) or not 0 < settings["r"] <= max(MAX_RANKS),
            "lora_alpha": not isinstance(settings["lora_alpha"], int | float),
            "target_modules": not isinstance(settings["target_modules"], list | str),
            "bias": settings.get("bias", "none") != "none",
            "lora_bias": bool(settings.get("lora_bias")),
            "modules_to_save": bool(settings.get("modules_to_save")),
            "use_dora": bool(settings.get("use_dora")),
            "init_lora_weights": settings.get("init_lora_weights", True) is not True,
        }.items()
        if wrong
    ]
    return reasons + tensor_refusals(load_file(directory / "adapter_model.safetensors"), base)


def tensor_refusals(tensors: dict[str, torch.Tensor], base: torch.nn.Module) -> list[str]:
    """Tensors that belong to no linear layer, or do not fit it, and layers that have one factor only."""
    linear = {name: module for name, module in base.named_modules() if isinstance(module, torch.nn.Linear)}
    found: dict[str, dict[str, torch.Tensor]] = {}
    reasons = []
    for name, tensor in tensors.items():
        module, _, factor = name.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        if not name.startswith(PREFIX) or not name.endswith(".weight") or factor not in ("lora_A", "lora_B"):
            reasons.append(f"name {name}")
        elif module not in linear:
            reasons.append(f"layer {name}")
        else:
            found.setdefault(module, {})[factor] = tensor
    for module, factors in found.items():
        shapes = {factor: tuple(tensor.shape) for factor, tensor in factors.items()}
        rank = shapes.get("lora_A", (0,))[0]
        layer = linear[module]
        if shapes != {"lora_A": (rank, layer.in_features), "lora_B": (layer.out_features, rank)}:
            reasons.append(f"shapes {module}")
    return reasons if found else [*reasons, "no tensors"]


@pytest.mark.parametrize("rule", ["lora", "freeze-a"])
@pytest.mark.parametrize("name", DECODERS)
def test_vllm_takes_what_a_decoder_exports(name: str, rule: str, tmp_path: Path) -> None:
    config, model = built(name, rule, tmp_path, {})
    assert refusals(exported(config, model, tmp_path), model.task.base().model) == []


@pytest.mark.parametrize(
    ("lora", "reasons"),
    [
        ({"rslora": True}, set()),
        ({"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}, set()),
        ({"init": "orthonormal"}, set()),
        ({"dora": True}, {"use_dora", "name"}),
        ({"modules_to_save": ["lm_head"]}, {"modules_to_save", "name"}),
        ({"rank": 1024}, {"r"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_which_settings_vllm_takes(lora: dict[str, Any], reasons: set[str], tmp_path: Path) -> None:
    config, model = built("llama", "lora", tmp_path, lora)
    told = refusals(exported(config, model, tmp_path), model.task.base().model)
    assert {reason.split()[0] for reason in told} == reasons


def test_vllm_does_not_take_a_fresh_head(tmp_path: Path) -> None:
    config, model = built("llama-classifies", "lora", tmp_path, {})
    assert "modules_to_save" in refusals(exported(config, model, tmp_path), model.task.base().model)
