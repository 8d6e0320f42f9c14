"""The trainable tensors of a PEFT model as one flat vector, and back."""

from collections.abc import Iterator

import numpy as np
import torch
from peft.tuners.lora.layer import ParamWrapper
from torch import nn

from conlora.core.schema import Role, Schema, TensorSpec, Vector

Index = tuple[slice, ...]

_ROLES = {".lora_A.": Role.A, ".lora_B.": Role.B}


class Adapter:
    """Reads and writes a model's adapter.

    schema: every adapter tensor, in the model's order. parameters are those of the live model; nothing is cached.

    LoRA on a parameter with several experts has the factors of all of them in two tensors, whose product means nothing.
    Here each expert has an A and a B of its own.
    """

    def __init__(self, model: nn.Module) -> None:
        """Takes all parameters that are trainable now as the adapter."""
        self._places: dict[str, tuple[nn.Parameter, Index]] = {}
        specs = []
        for spec, parameter, index in _trainable(model):
            specs.append(spec)
            self._places[spec.name] = parameter, index
        self.schema = Schema(tuple(specs))

    def freeze(self, roles: frozenset[Role]) -> None:
        """Takes tensors of these roles out of training; they stay part of the adapter."""
        for spec in self.schema.tensors:
            parameter, _ = self._places[spec.name]
            parameter.requires_grad_(spec.role not in roles)

    def read(self, schema: Schema) -> Vector:
        """The tensors of `schema` (a sub-schema) as a flat fp32 vector of shape `(schema.size,)`."""
        vector = np.empty(schema.size, np.float32)
        for name, view in schema.views(vector).items():
            parameter, index = self._places[name]
            view[...] = parameter.detach()[index].to(device="cpu", dtype=torch.float32).numpy()
        return vector

    def write(self, schema: Schema, vector: Vector) -> None:
        """Sets the tensors of `schema` from a flat vector, in place, so that the optimizer keeps its state."""
        with torch.no_grad():
            for name, view in schema.views(vector).items():
                parameter, index = self._places[name]
                parameter[index].copy_(torch.from_numpy(np.ascontiguousarray(view)).to(parameter.device))


def _trainable(model: nn.Module) -> Iterator[tuple[TensorSpec, nn.Parameter, Index]]:
    """Trainable parameters under the names that PEFT gives them in an adapter file, those of experts one by one."""
    experts = _experts(model)
    for full_name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        name = full_name.replace(".modules_to_save.default", "").replace(".default.", ".")
        marker = next((m for m in _ROLES if m in name), None)
        if not marker:
            yield TensorSpec(name, name.rpartition(".")[0], Role.HEAD, tuple(parameter.shape)), parameter, ()
            continue
        module, role, count = name.split(marker)[0], _ROLES[marker], experts.get(parameter, 1)
        if count == 1:
            yield TensorSpec(name, module, role, tuple(parameter.shape)), parameter, ()
            continue
        for expert in range(count):
            index = _part(role, parameter, expert, count)
            one = f"{module}.{expert}"
            yield TensorSpec(f"{one}{marker}weight", one, role, tuple(parameter[index].shape)), parameter, index


def _experts(model: nn.Module) -> dict[nn.Parameter, int]:
    """Of factors that hold several experts', how many."""
    return {
        parameter: module.num_experts
        for module in model.modules()
        if isinstance(module, ParamWrapper)
        for factor in (module.lora_A, module.lora_B)
        for parameter in factor.parameters()
    }


def _part(role: Role, parameter: nn.Parameter, expert: int, count: int) -> Index:
    """Where one expert's factor is: PEFT keeps A `(count r, k)` expert by expert, and B `(d, r count)` rank by rank."""
    if role is Role.A:
        rank = len(parameter) // count
        return (slice(expert * rank, (expert + 1) * rank),)
    return slice(None), slice(expert, None, count)
