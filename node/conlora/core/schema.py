"""What a flat adapter vector contains: tensor names, roles, shapes and offsets."""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]


class Role(StrEnum):
    """What a trainable tensor is for. The product of a module's B and A is its weight update."""

    A = "A"
    B = "B"
    HEAD = "head"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of an adapter.

    `name` is its key in a PEFT state dict, with the expert's number where that stacks experts; `module` names the adapted
    layer, shared by its A and its B.
    """

    name: str
    module: str
    role: Role
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Schema:
    """An ordered set of fp32 tensors laid out without gaps in one flat vector."""

    tensors: tuple[TensorSpec, ...]

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First element of each tensor in the flat vector."""
        offsets, position = [], 0
        for spec in self.tensors:
            offsets.append(position)
            position += spec.size
        return tuple(offsets)

    @cached_property
    def size(self) -> int:
        """Elements in the flat vector."""
        return sum(spec.size for spec in self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of the flat fp32 vector."""
        return 4 * self.size

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over the canonical description; equal digests mean interchangeable vectors."""
        return hashlib.sha256(json.dumps(self.to_json(), separators=(",", ":")).encode()).hexdigest()

    def views(self, vector: Vector) -> dict[str, Vector]:
        """Shaped views into `vector` (shape `(size,)`), by tensor name; nothing is copied."""
        return {
            spec.name: vector[offset : offset + spec.size].reshape(spec.shape)
            for spec, offset in zip(self.tensors, self.offsets, strict=True)
        }

    def select(self, roles: Iterable[Role]) -> "Schema":
        """The sub-schema of the tensors that have one of `roles`, order kept."""
        wanted = set(roles)
        return Schema(tuple(spec for spec in self.tensors if spec.role in wanted))

    def flatten(self, tensors: Mapping[str, NDArray[Any]]) -> Vector:
        """A new flat fp32 vector filled from named arrays. Raises KeyError for a tensor that is missing."""
        vector = np.empty(self.size, np.float32)
        for name, view in self.views(vector).items():
            view[...] = tensors[name]
        return vector

    def modules(self) -> Iterator[tuple[str, TensorSpec | None, TensorSpec | None]]:
        """Each adapted module with its A and B specs (None where the schema leaves one out)."""
        pairs: dict[str, dict[Role, TensorSpec]] = {}
        for spec in self.tensors:
            if spec.role is not Role.HEAD:
                pairs.setdefault(spec.module, {})[spec.role] = spec
        for module, pair in pairs.items():
            yield module, pair.get(Role.A), pair.get(Role.B)

    def to_json(self) -> list[dict[str, Any]]:
        """A JSON-ready description; `from_json` reads it back."""
        return [
            {"name": s.name, "module": s.module, "role": s.role.value, "shape": list(s.shape)} for s in self.tensors
        ]

    @classmethod
    def from_json(cls, description: Iterable[Mapping[str, Any]]) -> "Schema":
        """The schema that `to_json` described."""
        return cls(tuple(TensorSpec(d["name"], d["module"], Role(d["role"]), tuple(d["shape"])) for d in description))
