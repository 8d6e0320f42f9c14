"""Every family of models goes through publish, mix, checkpoint, resume, export, reload and merge, all in this process."""

import os
import shutil
import socket
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes
import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from tests.families import FAMILIES, make_base, make_data

from conlora.config import NodeConfig
from conlora.core.robustness import Trust
from conlora.core.schema import Role, TensorSpec, Vector
from conlora.training.arena import Arena, arena_bytes, create_memory
from conlora.training.channel import Channel
from conlora.training.data import load_data
from conlora.training.gossip import Gossip
from conlora.training.merging import merge
from conlora.training.messages import (
    FROM_TRAINER,
    Contribution,
    Contributions,
    Evaluated,
    FromTrainer,
    Mixed,
    Published,
    Saved,
    Sealed,
    Setup,
    line,
)
from conlora.training.model import Built, build_model
from conlora.training.trainer import _optimizer, arguments, train

ROUNDS, STEPS, WEIGHT = 2, 2, 0.25


class Loopback:
    """A daemon's end of a channel. Its node has one neighbour, who is always this far from what the node publishes."""

    def __init__(self, arena: Arena, away: Vector, keep: Path) -> None:
        self.said: list[FromTrainer] = []
        self.published: list[Vector] = []
        self.mixed: list[Vector] = []
        self.away = away
        self._arena = arena
        self._keep = keep
        self._ours, theirs = socket.socketpair()
        self.channel = Channel(theirs, guest=True)
        self._thread = threading.Thread(target=self._answer)
        self._thread.start()

    def close(self) -> None:
        """Ends the conversation, once all that was said is heard."""
        self.channel.close()
        self._thread.join()
        self._ours.close()

    def _answer(self) -> None:
        with self._ours.makefile("rb") as heard:
            for data in heard:
                message = FROM_TRAINER.validate_json(data)
                self.said.append(message)
                match message:
                    case Published():
                        slot = message.round % 2
                        self.published.append(self._arena.own(slot).copy())
                        self._arena.inbox(0, 0)[:] = self._arena.own(slot) + self.away
                        only = Contribution(place=0, slot=0, weight=WEIGHT)
                        answer = Contributions(round=message.round, items=[only], mix=2 + slot, publish=1 - slot)
                        self._ours.sendall(line(answer))
                    case Mixed():
                        self.mixed.append(self._arena.own(2 + message.round % 2).copy())
                    case Saved():
                        shutil.copytree(message.path, self._keep / f"round-{message.round}")
                        self._ours.sendall(line(Sealed(intact=True)))


@pytest.mark.parametrize("rule", ["lora", "freeze-a"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_goes_all_the_way(name: str, rule: str, tmp_path: Path) -> None:
    go_all_the_way(name, rule, tmp_path, {})


VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "rsLoRA": {"lora": {"rslora": True}},
    "DoRA": {"lora": {"dora": True}},
    "LoRA+": {"lora": {"plus_ratio": 8}},
    "orthonormal A": {"lora": {"init": "orthonormal"}},
    "all of a module": {"lora": {"modules_to_save": ["lm_head"]}},
    "ranks by module": {"lora": {"rank_pattern": {"v_proj": 4}, "alpha_pattern": {"v_proj": 64}}},
    "every layer": {"lora": {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}},
    "base in bf16": {"model": {"dtype": "bfloat16"}},
    "base in 4 bits": {"model": {"quantization": "4bit"}},
    "base in 8 bits": {"model": {"quantization": "8bit"}},
    "least memory": {"model": {"quantization": "4bit", "dtype": "bfloat16"}, "training": {"activation_checkpointing": True}},
    "less memory": {"training": {"activation_checkpointing": True, "gradient_accumulation": 2, "batch_size": 2}},
}  # fmt: skip


@pytest.mark.parametrize("rule", ["lora", "freeze-a"])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_goes_all_the_way(name: str, rule: str, tmp_path: Path) -> None:
    go_all_the_way("llama", rule, tmp_path, VARIANTS[name])


@pytest.mark.parametrize("rule", ["lora", "freeze-a"])
@pytest.mark.parametrize("name", ["mixtral", "qwen-moe"])
def test_experts_go_all_the_way(name: str, rule: str, tmp_path: Path) -> None:
    go_all_the_way(name, rule, tmp_path, {"lora": EXPERTS})


def test_experts_stay_whole_in_a_quantised_base(tmp_path: Path) -> None:
    go_all_the_way("mixtral", "lora", tmp_path, {"lora": EXPERTS, "model": {"quantization": "4bit"}})


EXPERTS = {"target_modules": ["v_proj"], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}


@pytest.mark.parametrize("rule", ["lora", "freeze-a"])
def test_a_head_on_a_base_in_bf16_is_mixed_in_fp32(rule: str, tmp_path: Path) -> None:
    go_all_the_way("bert", rule, tmp_path, {"model": {"dtype": "bfloat16"}})


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
@pytest.mark.parametrize(
    "name", ["gpt2", "t5", "bert", "modernbert", "llama-classifies", "vit", "clip-matches", "llava"]
)
def test_a_quantised_base_of_a_family_goes_all_the_way(name: str, bits: str, tmp_path: Path) -> None:
    go_all_the_way(name, "lora", tmp_path, {"model": {"quantization": bits}})


SAYS: dict[str, Callable[[NodeConfig, Built], bool]] = {
    "rsLoRA": lambda config, built: built.model.peft_config["default"].use_rslora,
    "DoRA": lambda config, built: any("magnitude" in spec.name for spec in built.shared.tensors),
    "LoRA+": lambda config, built: learning_rates(config, built) == pytest.approx([0.01, 0.08]),
    "orthonormal A": lambda config, built: rows_are_orthonormal(built),
    "all of a module": lambda config, built: head_is_the_bases(built),
    "ranks by module": lambda config, built: {spec.shape[0] for spec in factors_a(built)} == {2, 4}
    and scalings(built) == {8, 16},
    "every layer": lambda config, built: len(factors_a(built)) == 14,
    "base in bf16": lambda config, built: {p.dtype for p in built.model.parameters()} == {torch.bfloat16, torch.float32}
    and arguments(config, Path("staging")).bf16,
    "base in 4 bits": lambda config, built: kinds(built) == {"Linear4bit": 14, "Linear": 1 + 2 * 4, **OTHERS},
    "base in 8 bits": lambda config, built: kinds(built) == {"Linear8bitLt": 14, "Linear": 1 + 2 * 4, **OTHERS},
    "least memory": lambda config, built: computes_in(built) == {torch.bfloat16}
    and arguments(config, Path("staging")).bf16,
    "less memory": lambda config, built: arguments(config, Path("staging")).gradient_accumulation_steps == 2
    and arguments(config, Path("staging")).activation_checkpointing,
}  # fmt: skip


NODES_OWN = ("LoRA+", "base in bf16", "base in 4 bits", "base in 8 bits", "least memory", "less memory")


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_what_it_says(name: str, tmp_path: Path) -> None:
    """And a node that has it and one that has not are told apart, where they must not mix."""
    config = configured("llama", "lora", tmp_path, VARIANTS[name])
    plain = build_model(configured("llama", "lora", tmp_path, {}))
    built = build_model(config)
    assert SAYS[name](config, built)
    alike = (built.peft, built.shared.digest) == (plain.peft, plain.shared.digest)
    assert alike == (name in NODES_OWN)
    assert built.fingerprint == plain.fingerprint


@pytest.mark.parametrize("name", ["modernbert", "roberta", "llama-classifies", "vit", "bert-words"])
def test_nodes_begin_alike_whatever_their_base_lacks(name: str, tmp_path: Path) -> None:
    """A fresh layer that one node draws in another way than the next would be another frozen base on each."""
    config = configured(name, "freeze-a", tmp_path, {})
    starts = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        starts.append(build_model(config).model.state_dict())
    once, again = ({key: value for key, value in start.items() if ".original_module." not in key} for start in starts)
    assert once.keys() == again.keys()
    assert [key for key in once if not torch.equal(once[key], again[key])] == []


def factors_a(built: Built) -> list[TensorSpec]:
    return [spec for spec in built.adapter.schema.tensors if spec.role is Role.A]


def scalings(built: Built) -> set[float]:
    return {layer.scaling["default"] for layer in built.model.modules() if isinstance(layer, LoraLayer)}


def learning_rates(config: NodeConfig, built: Built) -> list[float]:
    optimizer = _optimizer(config, built)
    assert optimizer is not None
    return sorted({group["lr"] for group in optimizer.param_groups if group["params"]})


def rows_are_orthonormal(built: Built) -> bool:
    views = built.adapter.schema.views(built.adapter.read(built.adapter.schema))
    return all(np.allclose(views[s.name] @ views[s.name].T, np.eye(s.shape[0]), atol=1e-6) for s in factors_a(built))


def kinds(built: Built) -> dict[str, int]:
    """How many modules of which class hold parameters of their own."""
    holders = (m for m in built.model.modules() if any(True for _ in m.parameters(recurse=False)))
    return dict(Counter(type(module).__name__ for module in holders))


OTHERS = {"Embedding": 1, "LlamaRMSNorm": 5}


def computes_in(built: Built) -> set[torch.dtype]:
    return {m.compute_dtype for m in built.model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)}


def head_is_the_bases(built: Built) -> bool:
    (head,) = (spec for spec in built.shared.tensors if spec.role is Role.HEAD)
    ours = built.adapter.schema.views(built.adapter.read(built.adapter.schema))[head.name]
    base: torch.Tensor = built.task.base().model.get_parameter("lm_head.weight")
    return bool(np.array_equal(ours, base.detach().numpy()))


def go_all_the_way(name: str, rule: str, tmp_path: Path, changes: dict[str, dict[str, Any]]) -> None:
    config = configured(name, rule, tmp_path, changes)
    once, channel = run(config, tmp_path / "once", round_=0, resume=None)
    assert channel.published[0].any()
    for published, mixed in zip(channel.published, channel.mixed, strict=True):
        np.testing.assert_allclose(mixed, published + WEIGHT * channel.away, rtol=0, atol=1e-6)
    dtypes = {parameter.dtype for parameter in once.model.parameters() if parameter.requires_grad}
    assert dtypes == {torch.float32}, "mixing is done in it, however the base is kept"
    evaluated = [message for message in channel.said if isinstance(message, Evaluated)]
    assert len(evaluated) == ROUNDS
    assert all({"loss", *once.task.figures} == message.figures.keys() for message in evaluated), evaluated

    _, again = run(config, tmp_path / "resumed", round_=1, resume=tmp_path / "once" / "round-1")
    np.testing.assert_allclose(again.mixed[-1], channel.mixed[-1], rtol=0, atol=1e-6)

    exported = tmp_path / "once" / f"round-{ROUNDS}"
    fresh = build_model(config).task.base().model
    reloaded = PeftModel.from_pretrained(fresh, str(exported)).eval()
    unrounded = reloaded
    if config.model.quantization:
        changes = {**changes, "model": {**changes["model"], "quantization": None}}
        base = build_model(configured(name, rule, tmp_path, changes)).task.base().model
        unrounded = PeftModel.from_pretrained(base, str(exported)).eval()
    batch = a_batch(once, config, tmp_path)
    with torch.no_grad():
        ours, theirs, expected = (logits(model(**batch)) for model in (once.model.eval(), reloaded, unrounded))
        merge(config, exported, tmp_path / "merged")
        whole = getattr(transformers, config.task.auto_class).from_pretrained(tmp_path / "merged").eval()
        merged = logits(whole(**batch))
    coarse = config.model.dtype == "bfloat16"
    np.testing.assert_allclose(ours, theirs, atol=0.05 if coarse else 1e-5)
    np.testing.assert_allclose(expected, merged, atol=0.05 if coarse else 1e-4)


def configured(name: str, rule: str, folder: Path, changes: dict[str, dict[str, Any]]) -> NodeConfig:
    base = make_base(name, folder / "base")
    task, rows = make_data(FAMILIES[name].task, folder)
    return NodeConfig.model_validate(
        {
            "name": "node", "model": {"base": str(base), **changes.get("model", {})}, "task": task,
            "lora": {"rank": 2, **changes.get("lora", {})},
            "federation": {"rule": rule, "seed": 3}, "data": {"path": str(rows)}, "state_dir": str(folder / "state"),
            "training": {"rounds": ROUNDS, "local_steps": STEPS, "batch_size": 4, "device": "cpu", "evaluate_every": 1,
                         "checkpoint_every": 1, "learning_rate": 0.01, **changes.get("training", {})},
        }
    )  # fmt: skip


def logits(outputs: Any) -> torch.Tensor:
    return outputs["logits" if "logits" in outputs else "logits_per_image"].float()


def run(config: NodeConfig, keep: Path, round_: int, resume: Path | None) -> tuple[Built, Loopback]:
    """Trains from a checkpoint, or from the start."""
    transformers.set_seed(1)
    built = build_model(config)
    memory = create_memory()
    os.ftruncate(memory, arena_bytes(built.shared.size, 1))
    arena = Arena(memory, built.shared.size)
    os.close(memory)  # it is mapped, and does not grow
    away = np.random.default_rng(0).normal(0, 0.01, built.shared.size).astype(np.float32)
    daemon = Loopback(arena, away, keep)
    data = load_data(config.data, built.task, config.state_dir / "datasets", seed=1)
    setup = Setup(
        config={}, staging=str(keep / "staging"), resume_from=str(resume) if resume else None,
        round=round_, step=round_ * STEPS, paused=False,
    )  # fmt: skip
    gossip = Gossip(
        built,
        arena,
        daemon.channel,
        screen=Trust(),
        publish=(round_ + 1) % 2,
        local_steps=STEPS,
        rounds_mixed=round_,
        step=round_ * STEPS,
    )
    try:
        assert train(config, setup, built, data, gossip)
    finally:
        daemon.close()
    return built, daemon


def a_batch(built: Built, config: NodeConfig, folder: Path) -> dict[str, Any]:
    data = load_data(config.data, built.task, folder / "again", seed=1)
    batch = built.task.collator()([data.train[i] for i in range(4)])
    return {key: value for key, value in batch.items() if key != "labels" or config.task.type == "seq2seq"}
