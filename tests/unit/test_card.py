"""What goes with an exported adapter: a card that a hub accepts, true to the history, and nothing of this machine."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id
from hypothesis import example, given
from hypothesis import strategies as st

from conlora.config import ModelSection, NodeConfig
from conlora.core.schema import Role, Schema, TensorSpec
from conlora.core.sketch import Estimate, Sketcher, SketchLayout, estimate
from conlora.daemon.card import model_card, public_base
from conlora.daemon.export import export_last
from conlora.net.identity import create_identity
from conlora.store.checkpoints import ADAPTER_FILES, Checkpoint, CheckpointStore
from conlora.store.history import EdgeRecord, History

PRINT = "ab12" * 16
LABELS = ["a|b", "c: d", "e\nf"]


@pytest.fixture
def config(tmp_path: Path) -> NodeConfig:
    base = tmp_path / "models" / "a base & more"
    base.mkdir(parents=True)
    (tmp_path / "private.csv").write_text("text,label\nthe secret,a|b\n")
    return NodeConfig.model_validate(
        {
            "name": "mercy", "model": {"base": str(base)}, "state_dir": str(tmp_path / "state"),
            "identity_dir": str(tmp_path / "identity"), "data": {"path": str(tmp_path / "private.csv")},
            "task": {"labels": LABELS, "text_column": "diary"}, "lora": {"rank": 4, "rslora": True, "dropout": 0.1},
            "federation": {"name": "notes: 'of' \"all\"", "rule": "lora", "seed": 7},
        }
    )  # fmt: skip


@pytest.fixture
def checkpoint(config: NodeConfig) -> Checkpoint:
    store = CheckpointStore(config.state_dir / "checkpoints", keep=2)
    store.prepare()
    staged = store.staging / "checkpoint-24"
    staged.mkdir()
    settings = {
        "base_model_name_or_path": config.model.base,
        "target_modules": ["value", "query"],
        "r": 4,
        "target_parameters": ["experts.up"],
    }
    (staged / ADAPTER_FILES[0]).write_text(json.dumps(settings))
    (staged / ADAPTER_FILES[1]).write_bytes(b"tensors")
    return store.seal(staged, 3, 24, "digest", PRINT)


@pytest.fixture
def seen(config: NodeConfig) -> Estimate:
    """Of three nodes; noted for round 2, with one of a later round that the checkpoint does not contain."""
    schema = Schema(
        (TensorSpec("q.lora_A.weight", "q", Role.A, (2, 3)), TensorSpec("q.lora_B.weight", "q", Role.B, (4, 2)))
    )
    layout = SketchLayout.of(schema, schema)
    draw = np.random.default_rng(0)
    nodes = [{"q": (draw.normal(size=(4, 2)), draw.normal(size=(2, 3)))} for _ in range(3)]
    made = estimate(layout, Sketcher(layout, seed=0).sketch(*nodes))
    config.state_dir.mkdir(exist_ok=True)
    with History(config.state_dir / "history.db") as history:
        for round_, peer in ((1, "ANNA"), (2, "CHARITE"), (4, "LATER")):
            history.add_edges(round_, [EdgeRecord(peer, 1, 0.5)])
            history.add_round(round_, 8 * round_, 0.5, 0.7, 1)
        history.add_federation(2, 3, made, made)
        history.add_federation(4, 99, estimate(layout, [np.zeros(layout.size, np.float32)]), made)
    return made


def facts(card: str) -> dict[str, str]:
    rows = [
        line.replace("\\|", "\0").split(" | ") for line in card.splitlines() if line.startswith("| ") and " | " in line
    ]
    return {row[0].removeprefix("| "): " | ".join(row[1:]).removesuffix(" |").replace("\0", "|") for row in rows}


def test_a_hub_reads_the_card(config: NodeConfig, checkpoint: Checkpoint, seen: Estimate) -> None:
    with History(config.state_dir / "history.db") as history:
        card = ModelCard(model_card(config, checkpoint, "OWN-ID", history), ignore_metadata_errors=False)
    data = card.data.to_dict()
    assert data == {"base_model": "a-base-more", "library_name": "peft", "tags": ["lora", "conlora"]}
    validate_repo_id(data["base_model"])


def test_the_card_tells_how_the_adapter_came_about(config: NodeConfig, checkpoint: Checkpoint, seen: Estimate) -> None:
    with History(config.state_dir / "history.db") as history:
        told = facts(model_card(config, checkpoint, "OWN-ID", history))
    assert told["base model"] == "`a-base-more`"
    assert told["base model's weights"] == f"SHA-256 `{PRINT}`"
    assert told["labels"] == "a|b, c: d, e f"
    assert told["LoRA"].startswith("rank 4, alpha 16")
    assert "rslora True" in told["LoRA"]
    assert told["LoRA"].endswith("on query, value, experts.up")
    assert told["rounds mixed"] == "3, of 8 optimizer steps each"
    assert told["node"] == "mercy, `OWN-ID`"
    assert told["mixed with"] == "`ANNA`, `CHARITE`", "not with whom came after the checkpoint"
    assert "torch 2." in told["made by"]
    for name in ("V", "D", "relative", "amplification"):
        value, bar = getattr(seen.figures, name), getattr(seen.bars, name)
        assert bar > 0
        assert told[name] == " | ".join([f"{value:.4g} ± {bar:.2g}"] * 2)


def test_without_sketches_the_error_is_not_known(config: NodeConfig, checkpoint: Checkpoint) -> None:
    with History(config.state_dir / "history.db") as history:
        card = model_card(config, checkpoint, "OWN-ID", history)
    assert "Not known: this node had seen no sketches." in card
    assert facts(card)["mixed with"] == "nobody"


@pytest.mark.parametrize("lost", [False, True])
def test_an_export_holds_nothing_of_this_machine(
    config: NodeConfig, checkpoint: Checkpoint, seen: Estimate, tmp_path: Path, lost: bool
) -> None:
    if lost:
        (config.state_dir / "history.db").write_text("this is no database " * 100)
    identity = create_identity(config.identity_dir)
    target = tmp_path / "adapter"
    assert export_last(config, target, overwrite=False) == 3
    for path in target.iterdir():
        content = path.read_text()
        for leak in (str(tmp_path), "models", "private", "secret", "diary"):
            assert leak not in content, path
    card = (target / "README.md").read_text()
    assert identity.node_id in card
    assert ("this node had seen no sketches" in card) == lost
    settings: dict[str, Any] = json.loads((target / ADAPTER_FILES[0]).read_text())
    assert settings == {
        "base_model_name_or_path": "a-base-more", "target_modules": ["value", "query"], "r": 4,
        "target_parameters": ["experts.up"],
    }  # fmt: skip


def test_a_hubs_id_stays() -> None:
    assert public_base(ModelSection(base="owner/name.of-it")) == "owner/name.of-it"


@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=200))
@example("a -..b-.git.")
@example("a.git-")
def test_any_folder_has_a_name_that_a_hub_takes(name: str) -> None:
    validate_repo_id(public_base(ModelSection(base=f"/models/{name}")))
