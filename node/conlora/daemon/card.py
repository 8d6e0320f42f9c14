"""The model card of an exported adapter: what it is and how it came about, with no data and no paths of this machine."""

import importlib.metadata
import re
from pathlib import Path
from typing import Any

import yaml

from conlora.config import ModelSection, NodeConfig
from conlora.config.tasks import LabelledTaskSection
from conlora.store.checkpoints import Checkpoint, read_settings
from conlora.store.history import History

_CARD = """\
---
{metadata}---
# {federation}: a LoRA adapter trained by a federation, with no server in the middle

| | |
|---|---|
{facts}

## Consensus error

{consensus}

## Use

```python
from peft import PeftModel
from transformers import {auto_class}

base = {auto_class}.from_pretrained("{base}"{loading})
model = PeftModel.from_pretrained(base, "PATH OF THIS DIRECTORY")
```
"""
_SHOWN = ("V", "D", "relative", "amplification")  # of the federation's figures
_LIBRARIES = ("conlora", "peft", "transformers", "torch", "safetensors")
_UNKNOWN = "not known"
_LONGEST_NAME = 96  # of a model on a hub


def model_card(config: NodeConfig, checkpoint: Checkpoint, node_id: str, history: History | None) -> str:
    """Markdown with a hub's metadata in front. history: of this node; None where it is lost. Raises StateError."""
    base = public_base(config.model)
    return _CARD.format(
        metadata=yaml.safe_dump({"base_model": base, "library_name": "peft", "tags": ["lora", "conlora"]}),
        federation=config.federation.name,
        facts="\n".join(
            f"| {name} | {_cell(fact)} |" for name, fact in _facts(config, checkpoint, node_id, history).items()
        ),
        consensus=_consensus(history.federation_at(checkpoint.round) if history else {}),
        auto_class=config.task.auto_class,
        base=base,
        loading=_loading(config),
    )


def public_base(model: ModelSection) -> str:
    """The base model's id on a hub; of a folder its own name, in the letters that such an id may have."""
    path = Path(model.base)
    if not path.is_absolute() and not path.is_dir():
        return model.base
    name = re.sub(r"(?:[^A-Za-z0-9_.]|\.{2,})+", "-", path.name)[:_LONGEST_NAME]
    return re.sub(r"^[-.]+|(?:[-.]|\.git)+$", "", name) or "base"


def _facts(config: NodeConfig, checkpoint: Checkpoint, node_id: str, history: History | None) -> dict[str, str]:
    federation, task, model = config.federation, config.task, config.model
    revision = f", revision `{model.revision}`" if model.revision else ""
    peers = [f"`{peer}`" for peer in history.peers_until(checkpoint.round)] if history else [_UNKNOWN]
    labels = {"labels": ", ".join(task.labels)} if isinstance(task, LabelledTaskSection) else {}
    return {
        "base model": f"`{public_base(model)}`{revision}",
        "base model's weights": f"SHA-256 `{checkpoint.base}`" if checkpoint.base else _UNKNOWN,
        "task": task.type,
        **labels,
        "federation": f"{federation.name}, seed {federation.seed}",
        "rule": f"`{federation.rule}`, mode `{federation.mode.value}`",
        "LoRA": ", ".join(f"{name} {value}" for name, value in _lora(config, checkpoint).items()),
        "rounds mixed": f"{checkpoint.round}, of {config.training.local_steps} optimizer steps each",
        "node": f"{config.name}, `{node_id}`",
        "mixed with": ", ".join(peers) or "nobody",
        "made by": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _LIBRARIES),
    }


def _lora(config: NodeConfig, checkpoint: Checkpoint) -> dict[str, Any]:
    """Rank, alpha and targets, and whatever else is not as usual."""
    settings = read_settings(checkpoint)
    targets = settings["target_modules"]
    named = sorted(targets) if isinstance(targets, list) else [targets]
    return {
        "rank": config.lora.rank,
        "alpha": config.lora.alpha,
        **config.lora.model_dump(
            exclude_defaults=True, exclude={"rank", "alpha", "target_modules", "target_parameters"}
        ),
        "on": ", ".join([*named, *sorted(settings.get("target_parameters") or [])]),
    }


def _consensus(moments: dict[str, dict[str, Any]]) -> str:
    """A table of the federation's figures before and after mixing, with their error bars."""
    if not moments:
        return f"{_UNKNOWN.capitalize()}: this node had seen no sketches."
    before, after = moments["before"], moments["after"]
    rows = [f"| {name} | {_with_bar(before, name)} | {_with_bar(after, name)} |" for name in _SHOWN]
    return "\n".join(
        [
            f"Estimated by this node at its round {after['round']}, from sketches of {after['nodes']} nodes: V is how far the "
            "nodes' updates are from their mean (root mean square), D the same from the product of the mean factors, summed "
            "over modules; relative is V as a share of the update, amplification V for each unit of distance in the factors.",
            "",
            "| | before mixing | after mixing |",
            "|---|---|---|",
            *rows,
        ]
    )


def _with_bar(row: dict[str, Any], name: str) -> str:
    bar = row["bars"].get(name)
    return f"{row[name]:.4g}" + (f" ± {bar:.2g}" if bar is not None else "")


def _cell(text: str) -> str:
    """On one line of a table, whatever labels and names hold."""
    return " ".join(text.split()).replace("|", "\\|")


def _loading(config: NodeConfig) -> str:
    """What a person has to tell `from_pretrained` beside the name."""
    revision = f', revision="{config.model.revision}"' if config.model.revision else ""
    labels = f", num_labels={len(config.task.labels)}" if isinstance(config.task, LabelledTaskSection) else ""
    return revision + labels
