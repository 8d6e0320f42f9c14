"""The trainable tensors of a PEFT model as one flat vector, and back."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from conlora.core.schema import Role, Schema, TensorSpec, Vector

_ROLES = {".lora_A.": Role.A, ".lora_B.": Role.B}


class Adapter:
    """Reads and writes a model's adapter.

    schema: every adapter tensor, in the model's order. parameters are those of the live model; nothing is cached.
    """

    def __init__(self, model: nn.Module) -> None:
        """Takes all parameters that are trainable now as the adapter."""
        self._parameters: dict[str, nn.Parameter] = {}
        specs = []
        for spec, parameter in _trainable(model):
            specs.append(spec)
            self._parameters[spec.name] = parameter
        self.schema = Schema(tuple(specs))

    def freeze(self, roles: frozenset[Role]) -> None:
        """Takes tensors of these roles out of training; they stay part of the adapter."""
        for spec in self.schema.tensors:
            self._parameters[spec.name].requires_grad_(spec.role not in roles)

    def read(self, schema: Schema) -> Vector:
        """The tensors of `schema` (a sub-schema) as a flat fp32 vector of shape `(schema.size,)`."""
        vector = np.empty(schema.size, np.float32)
        for name, view in schema.views(vector).items():
            view[...] = self._parameters[name].detach().to(device="cpu", dtype=torch.float32).numpy()
        return vector

    def write(self, schema: Schema, vector: Vector) -> None:
        """Sets the tensors of `schema` from a flat vector, in place, so that the optimizer keeps its state."""
        with torch.no_grad():
            for name, view in schema.views(vector).items():
                parameter = self._parameters[name]
                parameter.copy_(torch.from_numpy(np.ascontiguousarray(view)).to(parameter.device))


def _trainable(model: nn.Module) -> Iterator[tuple[TensorSpec, nn.Parameter]]:
    """Trainable parameters under the names that PEFT gives them in an adapter file."""
    for full_name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        name = full_name.replace(".modules_to_save.default", "").replace(".default.", ".")
        marker = next((m for m in _ROLES if m in name), None)
        role = _ROLES[marker] if marker else Role.HEAD
        module = name.split(marker)[0] if marker else name.rpartition(".")[0]
        yield TensorSpec(name, module, role, tuple(parameter.shape)), parameter
