"""The trainable tensors of a PEFT model as one flat vector, and back."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from conlora.core.schema import Role, Schema, TensorSpec, Vector
from conlora.errors import ConfigError

_ROLES = {".lora_A.": Role.A, ".lora_B.": Role.B}


class Place(NamedTuple):
    """Where a parameter is found: sharding a model replaces parameters, but neither modules nor names."""

    module: nn.Module
    attribute: str
    full_name: str
    shape: tuple[int, ...]


class Adapter:
    """Reads and writes a model's adapter.

    schema: every adapter tensor, in the model's order. parameters are those of the live model; nothing is cached.
    Parameters may be sharded over ranks by `fully_shard`; then `read`, `write` and `state` are for all ranks at once.
    """

    def __init__(self, model: nn.Module) -> None:
        """Takes all parameters that are trainable now as the adapter."""
        self._places: dict[str, Place] = {}
        specs = []
        for spec, full_name in _trainable(model):
            specs.append(spec)
            module, _, attribute = full_name.rpartition(".")
            self._places[spec.name] = Place(model.get_submodule(module), attribute, full_name, spec.shape)
        self.schema = Schema(tuple(specs))

    def freeze(self, roles: frozenset[Role]) -> None:
        """Takes tensors of these roles out of training; they stay part of the adapter."""
        for spec in self.schema.tensors:
            self._parameter(spec.name).requires_grad_(spec.role not in roles)

    def read(self, schema: Schema) -> Vector:
        """The tensors of `schema` (a sub-schema) as a flat fp32 vector of shape `(schema.size,)`. Raises ConfigError."""
        vector = np.empty(schema.size, np.float32)
        for name, view in schema.views(vector).items():
            view[...] = _whole(self._parameter(name)).to(device="cpu", dtype=torch.float32).numpy()
        return vector

    def write(self, schema: Schema, vector: Vector) -> None:
        """Sets the tensors of `schema` from a flat vector, in place, so that the optimizer keeps its state."""
        with torch.no_grad():
            for name, view in schema.views(vector).items():
                parameter = self._parameter(name)
                values = torch.from_numpy(np.ascontiguousarray(view)).to(parameter.device)
                parameter.copy_(_sharded_like(parameter, values))

    def state(self) -> dict[str, torch.Tensor]:
        """All tensors, whole, by the names that the model has for them."""
        return {place.full_name: _whole(self._parameter(name)) for name, place in self._places.items()}

    def _parameter(self, name: str) -> nn.Parameter:
        place = self._places[name]
        parameter: nn.Parameter | None = getattr(place.module, place.attribute, None)
        if parameter is None or parameter.shape != place.shape:
            raise ConfigError(
                f"{place.full_name}: is no longer where it was, or has another shape; wrap the model in "
                "DistributedDataParallel, or shard it with fully_shard (FSDP2): other ways of sharding don't keep "
                "parameters as they are"
            )
        return parameter


def _whole(parameter: nn.Parameter) -> torch.Tensor:
    """Its values; those of all ranks together where it is sharded (a DTensor, which is not imported for those that aren't)."""
    values = parameter.detach()
    whole: torch.Tensor = values.full_tensor() if hasattr(values, "full_tensor") else values
    return whole


def _sharded_like(parameter: Any, values: torch.Tensor) -> torch.Tensor:
    """This rank's part of the values where the parameter is sharded; every rank has them all."""
    if not hasattr(parameter, "full_tensor"):
        return values
    from torch.distributed.tensor import distribute_tensor

    # each rank takes its part of its own copy
    return distribute_tensor(values, parameter.device_mesh, parameter.placements, src_data_rank=None)


def _trainable(model: nn.Module) -> Iterator[tuple[TensorSpec, str]]:
    """Trainable parameters under the names that PEFT gives them in an adapter file, and those that the model has."""
    for full_name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        name = full_name.replace(".modules_to_save.default", "").replace(".default.", ".")
        marker = next((m for m in _ROLES if m in name), None)
        role = _ROLES[marker] if marker else Role.HEAD
        module = name.split(marker)[0] if marker else name.rpartition(".")[0]
        yield TensorSpec(name, module, role, tuple(parameter.shape)), full_name
