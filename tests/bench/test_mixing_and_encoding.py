"""Figures: mixing and wire encodings on one thread, as ratios to the time in which memcpy moves the same fp32 bytes."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.bench.figures import Figures

from conlora.core.encoding import Encoding, Format
from conlora.core.mixing import Blend, blend, mix
from conlora.core.schema import Role, Schema, TensorSpec, Vector
from conlora.core.validation import Validator

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3600)]

SIZE = 8_400_000  # elements, 33.6 MB
NEIGHBOURS = 6
REPEATS = 25


def normal(seed: int) -> Vector:
    return np.random.default_rng(seed).standard_normal(SIZE, np.float32)


def best_seconds(actions: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """The least processor time that each took, in turns, so that what else the machine does meets all alike."""
    best = dict.fromkeys(actions, float("inf"))
    for _ in range(REPEATS):
        for name, action in actions.items():
            began = time.thread_time()
            action()
            best[name] = min(best[name], time.thread_time() - began)
    return best


def ratios(actions: dict[str, Callable[[], Any]], memcpy: Callable[[], Any]) -> dict[str, float]:
    """The time of memcpy over that of each action."""
    best = best_seconds({"memcpy": memcpy} | actions)
    return {name: best["memcpy"] / best[name] for name in actions}


def mixing_figures() -> dict[str, float]:
    """Mixing six neighbours, against copying the six."""
    import torch

    from conlora.training.blending import lerp

    own, *others = (normal(seed) for seed in range(NEIGHBOURS + 1))
    pairs = [(1 / (NEIGHBOURS + 1 + i), other) for i, other in enumerate(others)]
    mixed, copies = np.zeros_like(own), [np.zeros_like(own) for _ in others]

    def copy() -> None:
        for to, other in zip(copies, others, strict=True):
            np.copyto(to, other)

    def mixing(blend: Blend) -> Callable[[], Vector]:
        return lambda: mix(own, pairs, mixed, blend)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return ratios({"mix 6, numpy": mixing(blend), "mix 6, torch": mixing(lerp)}, copy)
    finally:
        torch.set_num_threads(threads)


def encoding_figures() -> dict[str, float]:
    """Each encoding there and back, against one copy of the vector."""
    schema = Schema((TensorSpec("m.lora_B.weight", "m", Role.B, (SIZE,)),))
    vector, sent, base, out, copied = normal(0), normal(1), normal(1), np.zeros(SIZE, np.float32), normal(2)
    figures: dict[str, float] = {}
    for encoding in Encoding:
        format = Format(schema, encoding)
        parts = [format.encode(piece, vector) for piece in format.pieces]
        figures |= ratios(
            {
                f"{encoding} encode": lambda f=format: send(f, vector),
                f"{encoding} encode a delta": lambda f=format: send(f, vector, sent),
                f"{encoding} decode": lambda f=format, d=parts: receive(f, d, out),
                f"{encoding} decode and check": lambda f=format, d=parts: receive(f, d, out, checked=True),
                f"{encoding} decode a delta": lambda f=format, d=parts: receive(f, d, out, base),
            },
            lambda: np.copyto(copied, vector),
        )
    return figures


def send(format: Format, vector: Vector, sent: Vector | None = None) -> None:
    """Encodes; a piece's memory is free for the next one, as behind a link that keeps up."""
    for piece in format.pieces:
        format.encode(piece, vector, sent, delta=sent is not None)


def receive(format: Format, parts: list[bytes], out: Vector, base: Vector | None = None, checked: bool = False) -> None:
    validator = Validator(format) if checked else None
    for piece, data in zip(format.pieces, parts, strict=True):
        format.decode(piece, data, out, base)
        if validator:
            validator.add(piece, data, out)


@pytest.mark.parametrize("measured", [mixing_figures, encoding_figures])
def test_ratios(measured: Callable[[], dict[str, float]], figures: Figures) -> None:
    assert measured.__doc__
    for name, ratio in measured().items():
        target = {"at_least": 0.8} if name == "mix 6, torch" else {}
        figures.record(f"{name}, {4 * SIZE / 1e6:.1f} MB", against="memcpy of the same bytes", ratio=ratio, **target)
