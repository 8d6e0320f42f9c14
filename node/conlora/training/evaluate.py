"""Evaluates exported adapters on a common test set: `python -m conlora.training.evaluate REQUEST.json`.

The request is JSON, {"config": a node's configuration, "test": a data file, "adapters": {key: PEFT directory},
"threads": torch threads}. The answer on stdout is JSON, {"metric": the figure that the task is judged by, "before": figures
of the federation's start, "after": {key: figures}}. Adapters are loaded as any PEFT user would load them, so the figures
also check what was exported.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel, get_peft_model_state_dict
from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from conlora.config import DataSection, load_config
from conlora.errors import ConfigError, ConLoRAError
from conlora.training.data import read_encoded
from conlora.training.messages import evaluated
from conlora.training.model import build_model
from conlora.training.quiet import quiet_libraries
from conlora.training.tasks import Task
from conlora.training.trainer import arguments


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
    task = start.task
    with tempfile.TemporaryDirectory(prefix="conlora-") as scratch:
        rows = read_encoded(DataSection(path=request.test), task, Path(scratch, "datasets"))
        settings = arguments(config, Path(scratch, "staging"))
        before = figures(start.model, task, rows, settings)
        after = {
            key: figures(model, task, rows, settings) for key, model in exported(task.base().model, request.adapters)
        }
    return {"metric": task.figures[0], "before": before, "after": after}


def figures(model: nn.Module, task: Task, rows: Any, settings: transformers.TrainingArguments) -> dict[str, float]:
    """What the task tells of a model on encoded rows, as a node evaluates itself while it trains."""
    trainer = transformers.Trainer(
        model=model,
        args=settings,
        data_collator=task.collator(),
        compute_metrics=task.metrics,
        preprocess_logits_for_metrics=task.reduce,
        compute_loss_func=task.loss,
    )
    trainer.remove_callback(transformers.PrinterCallback)  # the answer has stdout for itself
    return evaluated(0, trainer.evaluate(rows), task.figures).figures


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


def main(argv: list[str]) -> int:
    """The command; returns its exit status."""
    if len(argv) != 1:
        print("usage: python -m conlora.training.evaluate REQUEST.json", file=sys.stderr)
        return ConfigError.exit_code
    quiet_libraries()
    try:
        request = _read_request(Path(argv[0]))
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
