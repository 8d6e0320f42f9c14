"""A base in 4 or 8 bits: what stays whole, what is refused, that it still teaches after an evaluation; on a CPU."""

import sys
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file
from tests.families import DECODER, FAMILIES, make_base, make_data, tokenizer

from conlora.config import NodeConfig
from conlora.errors import ConfigError
from conlora.training.evaluate import Request, evaluate
from conlora.training.model import build_model
from conlora.training.quantization import placement


def configured(name: str, folder: Path, bits: str, **sections: dict[str, Any]) -> NodeConfig:
    task, rows = make_data(FAMILIES[name].task, folder)
    base = folder / "base"
    return NodeConfig.model_validate(
        {
            "name": "node", "task": task, "data": {"path": str(rows)}, "lora": {"rank": 2, **sections.get("lora", {})},
            "model": {"base": str(base if base.exists() else make_base(name, base)), "quantization": bits},
            "federation": {"rule": "lora"}, "training": {"device": "cpu", **sections.get("training", {})},
        }
    )  # fmt: skip


def quantised(model: torch.nn.Module) -> set[str]:
    kinds = bitsandbytes.nn.Linear4bit | bitsandbytes.nn.Linear8bitLt
    return {name for name, module in model.named_modules() if isinstance(module, kinds)}


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
@pytest.mark.parametrize("name", ["bert", "modernbert", "llama-classifies", "vit", "t5", "llava"])
def test_heads_stay_whole_and_the_body_does_not(name: str, bits: str, tmp_path: Path) -> None:
    base = build_model(configured(name, tmp_path, bits)).task.base()
    found = quantised(base.model)
    assert found
    whole = {name for name, module in base.model.named_modules() if isinstance(module, torch.nn.Linear)} - found
    heads = {name for name in whole if name.partition(".")[0] in ("lm_head", "head", "classifier", "score")}
    assert {name.rpartition(".")[0] for name in base.fresh} - {"head.norm"} <= heads
    assert {name.rpartition(".")[2] for name in whole - heads} <= {"wo"}, "which transformers keeps in float32 in T5"


def test_modules_that_are_trained_whole_stay_whole(tmp_path: Path) -> None:
    config = configured("llama", tmp_path, "4bit", lora={"modules_to_save": ["up_proj"], "target_modules": ["q_proj"]})
    assert not [name for name in quantised(build_model(config).task.base().model) if name.endswith("up_proj")]


def test_four_bits_are_nf4_and_computed_with_in_the_precision_of_training(tmp_path: Path) -> None:
    config = configured("llama", tmp_path, "4bit", training={"precision": "bfloat16"})
    options = placement(transformers.AutoModelForCausalLM, config)["quantization_config"]
    assert (options.bnb_4bit_quant_type, options.bnb_4bit_compute_dtype) == ("nf4", torch.bfloat16)


def test_without_bitsandbytes_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configured("llama", tmp_path, "4bit")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(
        ConfigError, match=r"model\.quantization: 4bit needs bitsandbytes.*pip install 'conlora\[quantized\]'"
    ):
        build_model(config)


def test_what_the_bodys_files_lack_can_not_be_quantised(tmp_path: Path) -> None:
    config = configured("bert", tmp_path, "4bit")
    path = tmp_path / "base" / "model.safetensors"
    tensors = load_file(path)
    del tensors["encoder.layer.0.output.dense.weight"]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ConfigError, match=r"encoder\.layer\.0\.output\.dense\.weight is not in the files .* rules out"):
        build_model(config)


def test_it_still_teaches_after_an_evaluation(tmp_path: Path) -> None:
    """bitsandbytes lays weights out anew for evaluation on some CPUs, and there are no gradients through that layout."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_key_value_heads": 2}  # it does so for multiples of 32
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**DECODER | sizes)).save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    built = build_model(configured("llama", tmp_path, "4bit"))
    model, batch = built.model, {"input_ids": torch.arange(8)[None], "labels": torch.arange(8)[None]}

    def gradients() -> list[torch.Tensor]:
        model.train().zero_grad()
        model(**batch).loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    before = gradients()
    with torch.no_grad():
        model.eval()(**batch)
    after = gradients()
    assert any(gradient.any() for gradient in before)
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_an_exported_adapter_is_evaluated_on_a_quantised_base(bits: str, tmp_path: Path) -> None:
    config = configured("bert", tmp_path, bits)
    build_model(config).model.save_pretrained(tmp_path / "adapter")
    (tmp_path / "node.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_none=True)))
    assert config.data.path is not None
    request = Request(
        config=tmp_path / "node.yaml", test=config.data.path, adapters={"start": tmp_path / "adapter"}, threads=1
    )
    told = evaluate(request)
    assert told["after"] == {"start": pytest.approx(told["before"], rel=1e-5)}


def test_a_base_is_spread_as_the_configuration_says(tmp_path: Path) -> None:
    config = configured("llama", tmp_path, "4bit", training={"device": "auto"})
    spread = config.model.model_copy(update={"device_map": "auto", "quantization": None})
    config = config.model_copy(update={"model": spread})
    assert placement(transformers.AutoModelForCausalLM, config) == {"device_map": "auto"}
    assert not quantised(build_model(config).model)
