"""The trainable tensors of a PEFT model as one flat vector, and back."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from peft.tuners.lora.layer import ParamWrapper
from torch import nn

from conlora.core.schema import Role, Schema, TensorSpec, Vector
from conlora.errors import ConfigError

Index = tuple[slice, ...]  # of a part of a tensor; (): all of it

_ROLES = {".lora_A.": Role.A, ".lora_B.": Role.B}


class Place(NamedTuple):
    """Where a tensor is found: sharding a model replaces parameters, but neither modules nor names.

    full_name and shape are the parameter's, part is the place of the tensor in it.
    """

    module: nn.Module
    attribute: str
    full_name: str
    shape: tuple[int, ...]
    part: Index

    @property
    def parameter(self) -> nn.Parameter:
        """The live one. Raises ConfigError where the model has been rebuilt in a way that can't be followed."""
        parameter: nn.Parameter | None = getattr(self.module, self.attribute, None)
        if parameter is None or parameter.shape != self.shape:
            raise ConfigError(
                f"{self.full_name}: is no longer where it was, or has another shape; wrap the model in "
                "DistributedDataParallel, or shard it with fully_shard (FSDP2): other ways of sharding don't keep "
                "parameters as they are"
            )
        return parameter


class Adapter:
    """Reads and writes a model's adapter.

    schema: every adapter tensor, in the model's order. parameters are those of the live model; nothing is cached.
    Parameters may be sharded over ranks by `fully_shard`; then `read`, `write` and `state` are for all ranks at once.

    LoRA on a parameter with several experts has the factors of all of them in two tensors, whose product means nothing.
    Here each expert has an A and a B of its own.
    """

    def __init__(self, model: nn.Module) -> None:
        """Takes all parameters that are trainable now as the adapter."""
        self._places: dict[str, Place] = {}
        self._pinned: Vector | None = None
        specs = []
        for full_name, parameter, spec, index in _trainable(model):
            specs.append(spec)
            module, _, attribute = full_name.rpartition(".")
            self._places[spec.name] = Place(
                model.get_submodule(module), attribute, full_name, tuple(parameter.shape), index
            )
        self.schema = Schema(tuple(specs))

    def freeze(self, roles: frozenset[Role]) -> None:
        """Takes tensors of these roles out of training; they stay part of the adapter."""
        for spec in self.schema.tensors:
            self._places[spec.name].parameter.requires_grad_(spec.role not in roles)

    def read(self, schema: Schema, into: Vector | None = None) -> Vector:
        """The tensors of `schema` (a sub-schema) as a flat fp32 vector of shape `(schema.size,)`. Raises ConfigError.

        into: the vector to be filled, or None for a new one.
        """
        vector = np.empty(schema.size, np.float32) if into is None else into
        staged = self._staged(schema.size)
        for name, view in schema.views(vector if staged is None else staged).items():
            place = self._places[name]
            values = _whole(place.parameter)[place.part]
            torch.from_numpy(view).copy_(values, non_blocking=values.is_cuda)
        if staged is not None:
            self._wait()  # copies are queued behind the step that they are of, and waited for together
            np.copyto(vector, staged)
        return vector

    def write(self, schema: Schema, vector: Vector) -> None:
        """Sets the tensors of `schema` from a flat vector, in place, so that the optimizer keeps its state."""
        staged = self._staged(schema.size)
        if staged is not None:
            np.copyto(staged, vector)
        with torch.no_grad():
            for name, view in schema.views(vector if staged is None else staged).items():
                place = self._places[name]
                _put(place.parameter, place.part, torch.from_numpy(np.ascontiguousarray(view)))
        if staged is not None:
            self._wait()  # the next read or write takes the same memory

    def _staged(self, size: int) -> Vector | None:
        """For models on a GPU: page-locked memory, which is copied from and to at the full speed of the bus and without a
        wait for each tensor; shape `(size,)`.
        """
        if not self._gpus():
            return None
        if self._pinned is None or len(self._pinned) < size:
            self._pinned = torch.empty(size, dtype=torch.float32, pin_memory=True).numpy()
        return self._pinned[:size]

    def _wait(self) -> None:
        for device in self._gpus():  # each has a queue of its own, and `device_map` spreads a model over several
            torch.cuda.synchronize(device)

    def _gpus(self) -> set[torch.device]:
        places = self._places.values()
        return {parameter.device for parameter in (place.parameter for place in places) if parameter.is_cuda}

    def state(self) -> dict[str, torch.Tensor]:
        """All parameters, whole, by the names that the model has for them."""
        parameters = {place.full_name: place.parameter for place in self._places.values()}
        return {name: _whole(parameter) for name, parameter in parameters.items()}


def _whole(parameter: nn.Parameter) -> torch.Tensor:
    """Its values; those of all ranks together where it is sharded (a DTensor, which is not imported for those that aren't)."""
    values = parameter.detach()
    whole: torch.Tensor = values.full_tensor() if hasattr(values, "full_tensor") else values
    return whole


def _put(parameter: Any, index: Index, values: torch.Tensor) -> None:
    """Sets a part of a parameter; of a sharded one every rank passes all values and keeps its own."""
    values = values.to(parameter.device, non_blocking=parameter.is_cuda)
    if not hasattr(parameter, "full_tensor"):
        parameter[index].copy_(values)
        return
    from torch.distributed.tensor import distribute_tensor

    if index:
        whole = _whole(parameter).clone()
        whole[index] = values
        values = whole
    # each rank takes its part of its own copy
    parameter.copy_(distribute_tensor(values, parameter.device_mesh, parameter.placements, src_data_rank=None))


def _trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, TensorSpec, Index]]:
    """Trainable parameters and their tensors, under the names that PEFT gives them in a file, those of experts one by one."""
    experts = _experts(model)
    for full_name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        name = full_name.replace(".modules_to_save.default", "").replace(".default.", ".")
        marker = next((m for m in _ROLES if m in name), None)
        module = name.split(marker)[0] if marker else name.rpartition(".")[0]
        role = _ROLES[marker] if marker else Role.HEAD
        count = experts.get(parameter, 1)
        if count == 1:
            yield full_name, parameter, TensorSpec(name, module, role, tuple(parameter.shape)), ()
            continue
        for expert in range(count):
            index = _part(role, parameter, expert, count)
            one = f"{module}.{expert}"
            yield (
                full_name,
                parameter,
                TensorSpec(f"{one}{marker}weight", one, role, tuple(parameter[index].shape)),
                index,
            )


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
