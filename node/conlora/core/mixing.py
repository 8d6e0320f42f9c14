"""Metropolis-Hastings weights and the one-sided mixing step."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from conlora.core.schema import Vector

# Elements, 512 KiB: mixing goes through the vectors in blocks, so that sums stay in the second-level cache.
BLOCK = 1 << 17


def metropolis_weight(own_degree: int, other_degree: int) -> float:
    """Weight of an edge, `1 / (1 + max(d_i, d_j))` (Xiao & Boyd 2004, eq. 19).

    Symmetric in its arguments, and the weights of a node with `d` edges sum to at most `d / (d + 1)`,
    so that the node always keeps a positive weight on itself.
    """
    return 1.0 / (1 + max(own_degree, other_degree))


class Blend(Protocol):
    """Moves a vector towards another, element by element; what `mix` is made of."""

    def __call__(self, start: Vector, end: Vector, share: float, out: Vector) -> None:
        """Writes `start + share * (end - start)` to `out`, exactly `start` where both are equal; `out` may be `start`."""
        ...


def blend(start: Vector, end: Vector, share: float, out: Vector) -> None:
    """A `Blend` in three passes of numpy; torch has it in one (`training.blending`)."""
    difference = np.subtract(end, start)
    difference *= np.float32(share)
    np.add(start, difference, out=out)


def mix(
    own: Vector, neighbours: Sequence[tuple[float, Vector]], out: Vector | None = None, blend: Blend = blend
) -> Vector:
    """One node's mixing step `x = y + sum_j w_ij (y_j - y)` (DESIGN 2.1). Returns `out`, or a new vector without it.

    own: this node's published vector y, shape `(size,)`, fp32.
    neighbours: weight and newest vector of each live neighbour; the weights are positive, and their sum is below 1.
    out: shape `(size,)`, fp32. It may be `own` itself; otherwise it shares no memory with the vectors.

    Blends with one neighbour after the other, by shares such that the weights come out as asked. Where neighbours agree the
    result is y exactly, with no rounding drift.
    """
    mixed = np.empty_like(own) if out is None else out
    if not neighbours:
        mixed[:] = own
    shares = _shares([weight for weight, _ in neighbours])
    for first in range(0, len(own), BLOCK):
        block = slice(first, first + BLOCK)
        start, target = own[block], mixed[block]
        for share, (_, vector) in zip(shares, neighbours, strict=True):
            blend(start, vector[block], share, target)
            start = target
    return mixed


def _shares(weights: Sequence[float]) -> list[float]:
    """`s_k = w_k / (1 - sum_{j>k} w_j)`: what later shares, which shrink all earlier ones, leave of each is its weight."""
    shares, rest = [], 1.0
    for weight in reversed(weights):
        shares.append(weight / rest)
        rest -= weight
    return shares[::-1]
