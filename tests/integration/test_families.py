"""Every family of models goes through publish, mix, checkpoint, resume, export, reload and merge, all in this process."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel
from tests.families import FAMILIES, make_base, make_data

from conlora.config import NodeConfig
from conlora.core.schema import Vector
from conlora.core.sketch import SketchLayout
from conlora.training.arena import Arena, arena_bytes, create_memory
from conlora.training.data import load_data
from conlora.training.merging import merge
from conlora.training.messages import Contribution, Contributions, Evaluated, Mixed, Published, Saved, Setup
from conlora.training.model import Built, build_model
from conlora.training.trainer import train

ROUNDS, STEPS, WEIGHT = 2, 2, 0.25


@dataclass
class Loopback:
    """A channel whose daemon has one neighbour, who is always this far from what the node publishes."""

    arena: Arena
    away: Vector
    keep: Path
    paused: bool = False
    stopping: bool = False
    checkpoint_wanted: bool = False
    said: list[Any] = field(default_factory=list)
    published: list[Vector] = field(default_factory=list)
    mixed: list[Vector] = field(default_factory=list)

    def send(self, message: Any) -> None:
        self.said.append(message)
        match message:
            case Published():
                self.published.append(self.arena.published.copy())
                self.arena.inbox(0, 0)[:] = self.arena.published + self.away
            case Mixed():
                self.mixed.append(self.arena.mixed.copy())
            case Saved():
                shutil.copytree(message.path, self.keep / f"round-{message.round}")

    def expect(self, kind: type[Contributions]) -> Contributions:
        return Contributions(round=0, items=[Contribution(peer=0, slot=0, weight=WEIGHT)])

    def poll(self) -> None:
        pass

    def wait_while(self, condition: Callable[[], bool], seconds: float | None = None) -> None:
        raise AssertionError("nobody has paused this node")


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
    "ranks by module": {"lora": {"rank_pattern": {"v_proj": 4}, "alpha_pattern": {"v_proj": 32}}},
    "every layer": {"lora": {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}},
    "base in bf16": {"model": {"dtype": "bfloat16"}},
    "less memory": {"training": {"activation_checkpointing": True, "gradient_accumulation": 2, "batch_size": 2}},
}  # fmt: skip


@pytest.mark.parametrize("rule", ["lora", "freeze-a"])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_goes_all_the_way(name: str, rule: str, tmp_path: Path) -> None:
    go_all_the_way("llama", rule, tmp_path, VARIANTS[name])


def go_all_the_way(name: str, rule: str, tmp_path: Path, changes: dict[str, dict[str, Any]]) -> None:
    base = make_base(name, tmp_path / "base")
    task, rows = make_data(FAMILIES[name].task, tmp_path)
    config = NodeConfig.model_validate(
        {
            "name": "node", "model": {"base": str(base), **changes.get("model", {})}, "task": task,
            "lora": {"rank": 2, **changes.get("lora", {})},
            "federation": {"rule": rule, "seed": 3}, "data": {"path": str(rows)}, "state_dir": str(tmp_path / "state"),
            "training": {"rounds": ROUNDS, "local_steps": STEPS, "batch_size": 4, "device": "cpu", "evaluate_every": 1,
                         "checkpoint_every": 1, "learning_rate": 0.01, **changes.get("training", {})},
        }
    )  # fmt: skip
    once, channel = run(config, tmp_path / "once", round_=0, resume=None)
    assert channel.published[0].any()
    for published, mixed in zip(channel.published, channel.mixed, strict=True):
        np.testing.assert_allclose(mixed, published + WEIGHT * channel.away, rtol=0, atol=1e-6)
    evaluated = [message for message in channel.said if isinstance(message, Evaluated)]
    assert len(evaluated) == ROUNDS
    assert all({"loss", *once.task.figures} == message.figures.keys() for message in evaluated), evaluated

    _, again = run(config, tmp_path / "resumed", round_=1, resume=tmp_path / "once" / "round-1")
    np.testing.assert_allclose(again.mixed[-1], channel.mixed[-1], rtol=0, atol=1e-6)

    exported = tmp_path / "once" / f"round-{ROUNDS}"
    fresh = build_model(config).task.base().model
    reloaded = PeftModel.from_pretrained(fresh, str(exported)).eval()
    batch = a_batch(once, config, tmp_path)
    with torch.no_grad():
        ours, theirs = (logits(model(**batch)) for model in (once.model.eval(), reloaded))
        merge(config, exported, tmp_path / "merged")
        whole = getattr(transformers, config.task.auto_class).from_pretrained(tmp_path / "merged").eval()
        merged = logits(whole(**batch))
    coarse = config.model.dtype == "bfloat16"
    np.testing.assert_allclose(ours, theirs, atol=0.05 if coarse else 1e-5)
    np.testing.assert_allclose(theirs, merged, atol=0.05 if coarse else 1e-4)


def logits(outputs: Any) -> torch.Tensor:
    return outputs["logits" if "logits" in outputs else "logits_per_image"].float()


def run(config: NodeConfig, keep: Path, round_: int, resume: Path | None) -> tuple[Built, Loopback]:
    """Trains from a checkpoint, or from the start."""
    transformers.set_seed(1)
    built = build_model(config)
    memory = create_memory()
    sketch = SketchLayout.of(built.adapter.schema, built.shared).size
    os.ftruncate(memory, arena_bytes(built.shared.size, 1, sketch))
    arena = Arena(memory, built.shared.size, 1, sketch)
    os.close(memory)
    away = np.random.default_rng(0).normal(0, 0.01, built.shared.size).astype(np.float32)
    channel = Loopback(arena, away, keep)
    data = load_data(config.data, built.task, config.state_dir / "datasets", seed=1)
    setup = Setup(
        config={}, peers=["other"], staging=str(keep / "staging"), resume_from=str(resume) if resume else None,
        round=round_, step=round_ * STEPS, paused=False,
    )  # fmt: skip
    assert train(config, setup, built, data, arena, channel)  # type: ignore[arg-type]
    return built, channel


def a_batch(built: Built, config: NodeConfig, folder: Path) -> dict[str, Any]:
    data = load_data(config.data, built.task, folder / "again", seed=1)
    batch = built.task.collator()([data.train[i] for i in range(4)])
    return {key: value for key, value in batch.items() if key != "labels" or config.task.type == "seq2seq"}
