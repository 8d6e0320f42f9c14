"""The model as all nodes of a federation start with it: base, LoRA adapter, seeded values, fingerprint."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from peft import LoraConfig, PeftModel, get_peft_model

from conlora.config import NodeConfig
from conlora.core.rules import RULES, Rule
from conlora.core.schema import Role, Schema
from conlora.core.seeding import initial_vector
from conlora.errors import ConfigError
from conlora.training.adapter import Adapter
from conlora.training.tasks import TASKS, Task, loading

WEIGHT_FILES = ("*.safetensors", "*.gguf", "*.bin", "*.h5")  # the first kind that is there counts


@dataclass(frozen=True)
class Built:
    """A model ready for training. shared: the sub-schema that the rule exchanges."""

    model: PeftModel
    task: Task
    rule: Rule
    adapter: Adapter
    shared: Schema
    fingerprint: str
    peft: str


def build_model(config: NodeConfig) -> Built:
    """Loads the base, adds the adapter with the federation's seeded values, and freezes what the rule freezes.

    Raises ConfigError for a model that can't be loaded or LoRA settings that don't fit it.
    """
    task = TASKS[config.task.type](config)
    rule = RULES[config.federation.rule]
    model = _with_lora(config, task)
    adapter = Adapter(model)
    adapter.write(adapter.schema, initial_vector(adapter.schema, config.federation.seed))
    adapter.freeze(frozenset(Role) - rule.shared)
    shared = adapter.schema.select(rule.shared)
    return Built(model, task, rule, adapter, shared, fingerprint(config), peft_settings(config, adapter.schema))


def fingerprint(config: NodeConfig) -> str:
    """SHA-256 (hex) over the digests of the base model's weight files, in the order of the files' names.

    Files rather than loaded tensors, so that nodes may load one base in different precisions.
    """
    base = Path(config.model.base)
    if not base.is_dir():
        with loading(config.model):
            base = Path(
                huggingface_hub.snapshot_download(
                    config.model.base,
                    revision=config.model.revision,
                    allow_patterns=list(WEIGHT_FILES),
                    local_files_only=True,
                )
            )
    files = next((found for pattern in WEIGHT_FILES if (found := sorted(base.glob(pattern)))), [])
    if not files:
        raise ConfigError(f"model.base: {base} holds no weights ({', '.join(WEIGHT_FILES)}); give the folder that does")
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def peft_settings(config: NodeConfig, schema: Schema) -> str:
    """Canonical JSON of the LoRA settings that have to agree; target modules as they were resolved."""
    targets = sorted({module.rpartition(".")[2] for module, _, _ in schema.modules()})
    lora = config.lora
    body: dict[str, Any] = {"type": "lora", "rank": lora.rank, "alpha": lora.alpha, "target_modules": targets}
    return json.dumps(body, sort_keys=True)


def _with_lora(config: NodeConfig, task: Task) -> PeftModel:
    lora = config.lora
    settings_ = LoraConfig(
        task_type=task.peft_type,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
    )
    base = task.base_model()
    try:
        model = get_peft_model(base, settings_)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"lora: these settings don't fit the model ({reason}); correct lora.target_modules"
        ) from error
    assert isinstance(model, PeftModel)
    return model
