"""Metropolis-Hastings weights and the one-sided mixing step."""

from collections.abc import Sequence

import numpy as np

from conlora.core.schema import Vector


def metropolis_weight(own_degree: int, other_degree: int) -> float:
    """Weight of an edge, `1 / (1 + max(d_i, d_j))` (Xiao & Boyd 2004, eq. 19).

    Symmetric in its arguments, and the weights of a node with `d` edges sum to at most `d / (d + 1)`,
    so that the node always keeps a positive weight on itself.
    """
    return 1.0 / (1 + max(own_degree, other_degree))


def mix(own: Vector, neighbours: Sequence[tuple[float, Vector]]) -> Vector:
    """One node's mixing step `x = y + sum_j w_ij (y_j - y)` (DESIGN 2.1), as a new vector.

    own: this node's published vector y, shape `(size,)`, fp32.
    neighbours: weight and newest vector of each live neighbour.

    Differences are what is summed: where neighbours agree the result is y exactly, with no rounding drift.
    """
    mixed = own.copy()
    difference = np.empty_like(own)
    for weight, vector in neighbours:
        np.subtract(vector, own, out=difference)
        difference *= np.float32(weight)
        mixed += difference
    return mixed
