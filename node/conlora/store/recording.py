"""Recorded vectors: what a testbed's node published and what it had after mixing, round by round.

One safetensors file a round, `round-000007.safetensors`, with the keys `published` and `mixed` (flat fp32, laid out by the
exchange schema) and the neighbours' weights in its metadata. Beside them, `schema.json` (the exchange schema) and
`frozen.safetensors` (factors that the rule does not exchange), so that products can be formed.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from conlora.core.schema import Schema, Vector
from conlora.errors import StateError


class Recorder:
    """Writes one node's recording."""

    def __init__(self, directory: Path, schema: Schema, frozen: Mapping[str, NDArray[Any]]) -> None:
        self._directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "schema.json").write_text(json.dumps(schema.to_json()))
            safetensors.numpy.save_file(
                {name: np.ascontiguousarray(a) for name, a in frozen.items()}, directory / "frozen.safetensors"
            )
        except (OSError, SafetensorError) as error:
            raise StateError(
                f"{directory}: can't be written ({error}); free space, or set training.record_vectors to false"
            ) from error

    def add(self, round_: int, published: Vector, mixed: Vector) -> None:
        """Vectors of shape `(schema.size,)`: y before and x after the mix of `round_`. Raises StateError."""
        path = self._directory / f"round-{round_:06d}.safetensors"
        try:
            safetensors.numpy.save_file({"published": published, "mixed": mixed}, path)
        except (OSError, SafetensorError) as error:
            raise StateError(
                f"{path}: can't be written ({error}); free space, or set training.record_vectors to false"
            ) from error


class Recording:
    """Reads one node's recording."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.schema = Schema.from_json(json.loads((directory / "schema.json").read_text()))
        self.frozen: dict[str, NDArray[Any]] = safetensors.numpy.load_file(directory / "frozen.safetensors")

    def rounds(self) -> list[int]:
        """The recorded rounds in order."""
        return sorted(int(path.stem.split("-")[1]) for path in self._directory.glob("round-*.safetensors"))

    def load(self, round_: int) -> tuple[Vector, Vector]:
        """`(published, mixed)` of a round, each of shape `(schema.size,)`, fp32."""
        tensors = safetensors.numpy.load_file(self._directory / f"round-{round_:06d}.safetensors")
        return tensors["published"], tensors["mixed"]
