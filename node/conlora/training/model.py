"""The model as all nodes of a federation start with it: base, LoRA adapter, seeded values, fingerprint."""

import json
from dataclasses import dataclass

from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers.pytorch_utils import Conv1D

from conlora.config import NodeConfig
from conlora.core.rules import RULES, Rule
from conlora.core.schema import Role, Schema, Vector
from conlora.core.seeding import initial_vector
from conlora.errors import ConfigError
from conlora.training.adapter import Adapter
from conlora.training.conversion import converted
from conlora.training.fingerprint import fingerprinted
from conlora.training.quantization import stands_for
from conlora.training.tasks import Base, Task, task_of

PEFT_PREFIX = "base_model.model."  # of the base's own names in a PEFT state dict


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """A model as all nodes of a federation begin with it. shared: the sub-schema that the rule exchanges."""

    model: PeftModel
    rule: Rule
    adapter: Adapter
    shared: Schema
    fingerprint: str
    peft: str


@dataclass(frozen=True, kw_only=True)
class Built(Adapted):
    """An adapted model with the task that it is for."""

    task: Task


def build_model(config: NodeConfig) -> Built:
    """The configured task's base model, adapted.

    Raises ConfigError for a model that can't be loaded or LoRA settings that don't fit it, StateError where a converted
    base can't be kept.
    """
    with fingerprinted(config.model) as fingerprint:
        task = task_of(converted(config, fingerprint))
        base = task.base()
        adapted = adapt(config, base, task.peft_type, fingerprint())
    return Built(task=task, **vars(adapted))


def adapt(config: NodeConfig, base: Base, peft_type: TaskType | None, fingerprint: str) -> Adapted:
    """Adds the adapter with the federation's seeded values, and freezes what the rule freezes. Raises ConfigError."""
    rule = RULES[config.federation.rule]
    model = _with_lora(config, peft_type, base)
    adapter = Adapter(model)
    adapter.write(adapter.schema, _start(config, adapter, base))
    adapter.freeze(frozenset(Role) - rule.shared)
    return Adapted(
        model=model,
        rule=rule,
        adapter=adapter,
        shared=adapter.schema.select(rule.shared),
        fingerprint=fingerprint,
        peft=peft_settings(config, adapter.schema),
    )


def _start(config: NodeConfig, adapter: Adapter, base: Base) -> Vector:
    """Seeded values, but for what is trained beside LoRA and has values in the base's files: it begins with those."""
    schema = adapter.schema
    vector = initial_vector(schema, config.federation.seed, config.lora.orthonormal)
    views, loaded = schema.views(vector), schema.views(adapter.read(schema))
    for spec in schema.tensors:
        if spec.role is Role.HEAD and spec.name.removeprefix(PEFT_PREFIX) not in base.fresh:
            views[spec.name][...] = loaded[spec.name]
    return vector


def peft_settings(config: NodeConfig, schema: Schema) -> str:
    """Canonical JSON of the LoRA settings that have to agree; target modules as they were resolved."""
    targets = sorted({module.rpartition(".")[2] for module, _, _ in schema.modules()})
    parameters = sorted(config.lora.target_parameters)
    body = config.lora.model_dump(exclude={"dropout", "plus_ratio"})
    body |= {"type": "lora", "target_modules": targets, "target_parameters": parameters}
    return json.dumps(body, sort_keys=True)


def _with_lora(config: NodeConfig, peft_type: TaskType | None, base: Base) -> PeftModel:
    lora = config.lora
    heads = _heads(base)
    settings_ = LoraConfig(
        task_type=peft_type,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=_default_targets(base.model) if lora.target_modules is None else lora.target_modules,
        target_parameters=lora.target_parameters or None,
        fan_in_fan_out=any(map(_is_transposed, base.model.modules())),
        exclude_modules=[*heads, *lora.modules_to_save, *_bypassed(base.model)] or None,
        modules_to_save=[*heads, *lora.modules_to_save] or None,
        rank_pattern=lora.rank_pattern,
        alpha_pattern=lora.alpha_pattern,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
    )
    try:
        model = get_peft_model(base.model, settings_)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"lora: these settings don't fit the model ({reason}); correct lora.target_modules"
        ) from error
    for parameter in model.parameters():
        if parameter.requires_grad:  # mixing is done in fp32, however the base is kept
            parameter.data = parameter.data.float()
    return model


def _default_targets(model: nn.Module) -> list[str] | str:
    """PEFT's choice for the architecture, or all linear layers where it has none."""
    kind = str(getattr(getattr(model, "config", None), "model_type", ""))
    chosen: list[str] | str = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(kind, "all-linear")
    return chosen


def _is_transposed(module: nn.Module) -> bool:
    """Whether its weights are stored as those of GPT-2 are; of a quantised one, whether they were."""
    return Conv1D in (type(module), stands_for(module))


def _bypassed(model: nn.Module) -> list[str]:
    """Linear layers that are never called: torch's own attention takes their weights, so that LoRA on them does nothing."""
    return [f"{name}.out_proj" for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)]


def _heads(base: Base) -> list[str]:
    """Modules with fresh parameters, which every node would else draw at random: the whole head, and what lacks in the body."""
    body = str(getattr(base.model, "base_model_prefix", ""))
    found = set()
    for name in base.fresh:
        path = name.split(".")
        found.add(".".join(path[:-1]) if path[0] == body else path[0])
    return sorted(found)
