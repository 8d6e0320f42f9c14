"""Evaluates exported adapters on a common test set: `python -m conlora.training.evaluate REQUEST.json`.

The request is JSON, {"config": a node's configuration, "test": a CSV file, "adapters": {key: PEFT directory},
"threads": torch threads}. The answer on stdout is JSON, {"before": accuracy of the federation's start, "after": {key:
accuracy}}. Adapters are loaded as any PEFT user would load them, so the figures also check what was exported.
"""

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from peft import PeftModel, get_peft_model_state_dict
from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from conlora.config import load_config
from conlora.errors import ConfigError, ConLoRAError
from conlora.training.model import build_model
from conlora.training.quiet import quiet_libraries
from conlora.training.tasks import Task

FIELD_BYTES = 2**31 - 1  # csv's own limit of 128 KiB is short for documents
BATCH_ROWS = 64  # no gradients are kept, so this is small for any model that can be trained on the same machine


class Request(BaseModel):
    """What to evaluate on what."""

    config: Path
    test: Path
    adapters: dict[str, Path]
    threads: int = Field(ge=1)


def evaluate(request: Request) -> dict[str, Any]:
    """The answer that the module describes. Raises ConfigError."""
    config = load_config(request.config)
    start = build_model(config)
    rows = read_rows(request.test, start.task)
    device = "cuda" if config.training.device == "auto" and torch.cuda.is_available() else "cpu"
    before = accuracy(_on(device, start.model), start.task, rows)
    models = exported(_on(device, start.task.base().model), request.adapters)
    return {"before": before, "after": {key: accuracy(model, start.task, rows) for key, model in models}}


def _on(device: str, model: nn.Module) -> nn.Module:
    """The model on that device; a quantised one, or one that is spread over several, stays where it was loaded."""
    placed = getattr(model, "hf_device_map", None) or getattr(model, "hf_quantizer", None)
    return model if placed else model.to(device)


def read_rows(path: Path, task: Task) -> list[dict[str, Any]]:
    """The test rows, encoded and sorted by length, so that batches need little padding. Raises ConfigError."""
    csv.field_size_limit(FIELD_BYTES)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: can't be read ({error}); it has to be a readable UTF-8 CSV file") from error
    if not rows:
        raise ConfigError(f"{path}: has no rows; give a test set with at least one")
    for column in task.columns():
        if any(row.get(column) is None for row in rows):
            raise ConfigError(f"{path}: column {column!r} is missing, in some rows at least; correct the file")
    try:
        return sorted((task.encode(row) for row in rows), key=lambda row: len(row["input_ids"]))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def exported(base: nn.Module, adapters: dict[str, Path]) -> Iterator[tuple[str, nn.Module]]:
    """Each key with the base model under its adapter; the model is good until the next one is asked for.

    The base model is loaded once and adapters replace one another. Raises ConfigError for one that can't be loaded.
    """
    model: PeftModel | None = None
    for number, (key, directory) in enumerate(adapters.items()):
        name = f"export-{number}"  # keys can hold dots, which PEFT's adapter names must not
        try:
            if not (directory / "adapter_config.json").is_file():
                raise OSError("it has no adapter_config.json")
            if model is None:
                model = PeftModel.from_pretrained(base, str(directory), adapter_name=name)
            else:
                previous = model.active_adapter
                model.load_adapter(str(directory), adapter_name=name)
                model.set_adapter(name)
                model.delete_adapter(previous)
            _require_loaded(model, name, directory)
        except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
            raise ConfigError(f"{directory}: no adapter for this model ({_short(error)}); export it again") from error
        yield key, model


def _require_loaded(model: PeftModel, name: str, directory: Path) -> None:
    """Raises ValueError unless model and file hold the same tensors: PEFT at most warns of what a file lacks."""
    loaded = get_peft_model_state_dict(model, adapter_name=name)
    stored = load_file(directory / "adapter_model.safetensors")
    if odd := sorted(loaded.keys() ^ stored.keys()):
        raise ValueError(f"tensor {odd[0]!r} is in the {'model' if odd[0] in loaded else 'file'} only")
    for key, tensor in stored.items():
        if not torch.equal(loaded[key].cpu(), tensor):
            raise ValueError(f"tensor {key!r} has other values in the model than in the file")


@torch.no_grad()
def accuracy(model: nn.Module, task: Task, rows: list[dict[str, Any]]) -> float:
    """Share of the encoded rows that the model gets right, from 0 to 1."""
    model.eval()
    device = next(model.parameters()).device
    collate = task.collator()
    told, labels = [], []
    for start in range(0, len(rows), BATCH_ROWS):
        batch = collate(rows[start : start + BATCH_ROWS]).to(device)
        labels.append(batch.pop("labels"))
        told.append(task.reduce(model(**batch).logits, labels[-1]).cpu().numpy())
    prediction = transformers.EvalPrediction(
        predictions=np.concatenate(told), label_ids=torch.cat(labels).cpu().numpy()
    )
    return task.metrics(prediction)["accuracy"]


def main(arguments: list[str]) -> int:
    """The command; returns its exit status."""
    if len(arguments) != 1:
        print("usage: python -m conlora.training.evaluate REQUEST.json", file=sys.stderr)
        return ConfigError.exit_code
    quiet_libraries()
    try:
        request = _read_request(Path(arguments[0]))
        torch.set_num_threads(request.threads)
        print(json.dumps(evaluate(request)))
    except ConLoRAError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _read_request(path: Path) -> Request:
    try:
        return Request.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ConfigError(f"{path}: not a readable request ({_short(error)}); see this module's description") from error


def _short(error: Exception) -> str:
    """On one line, since that of PyTorch or pydantic can be a hundred."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
