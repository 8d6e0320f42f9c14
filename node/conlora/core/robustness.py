"""Robust mixing: bounds what neighbours that lie can do to a node. A node chooses it for itself, on top of any rule."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Protocol

import numpy as np

from conlora.core.mixing import BLOCK
from conlora.core.schema import Vector

STEP = 1 << 14  # elements, 64 KiB: as many vectors as there are neighbours stay in cache


@dataclass(frozen=True, slots=True)
class Received:
    """A neighbour's newest vector, shape `(size,)`, fp32; its weight; and the radius that it clips at, if it does."""

    weight: float
    vector: Vector
    radius: float | None = None


@dataclass(frozen=True, slots=True)
class Screened:
    """What to mix in place of what was received, as `mixing.mix` takes it; and the weight that is left of each neighbour."""

    neighbours: list[tuple[float, Vector]]
    weights: list[float]


class Screen(Protocol):
    """What stands between what neighbours sent and what a rule mixes."""

    @property
    def radius(self) -> float | None:
        """What neighbours are told with this node's next snapshot; None: nothing."""
        ...

    def __call__(self, own: Vector, neighbours: Sequence[Received]) -> Screened:
        """What to mix into `own` (shape `(size,)`, fp32) in place of what was received."""
        ...


class Trust:
    """No screen: what was received is mixed as it is."""

    radius = None

    def __call__(self, own: Vector, neighbours: Sequence[Received]) -> Screened:
        """See `Screen`."""
        pairs = [(other.weight, other.vector) for other in neighbours]
        return Screened(pairs, [weight for weight, _ in pairs])


class Clipping:
    """Self-centred clipping, `x = y + sum_j w_ij min(1, tau_ij / ||y_j - y||) (y_j - y)`.

    ClippedGossip (He, Karimireddy & Jaggi 2022, "Byzantine-robust decentralized learning via ClippedGossip", algorithm 1).
    Both ends of an edge clip at the smaller of their two radii, which they tell each other with their snapshots: so the
    factor is the same at both ends, the mean of honest nodes stays where it is, and who lies about a radius can do no more
    than weaken an edge of its own. What a neighbour tells, by whatever vector, moves this node by `w_ij tau_ij` at most.
    """

    def __init__(self, attackers: int, radius: float | None = None) -> None:
        """attackers: neighbours of a node that may lie. radius: None adapts it to what neighbours sent last, see `adapted`."""
        self.radius = radius
        self._attackers = attackers
        self._fixed = radius is not None

    def __call__(self, own: Vector, neighbours: Sequence[Received]) -> Screened:
        """See `Screen`."""
        distances = [distance(own, other.vector) for other in neighbours]
        told, self.radius = self.radius, self._next_radius(neighbours, distances)
        if told is None:  # before the first mix
            told = self.radius
        weights = []
        for other, far in zip(neighbours, distances, strict=True):
            limit = min((radius for radius in (told, other.radius) if radius is not None), default=math.inf)
            weights.append(other.weight if far <= limit else other.weight * limit / far)
        pairs = zip(weights, (other.vector for other in neighbours), strict=True)
        return Screened([(weight, vector) for weight, vector in pairs if weight > 0], weights)

    def _next_radius(self, neighbours: Sequence[Received], distances: list[float]) -> float | None:
        if self._fixed or not distances:
            return self.radius
        return adapted([other.weight for other in neighbours], distances, self._attackers)


def adapted(weights: Sequence[float], distances: Sequence[float], attackers: int) -> float:
    """`sqrt(sum_j w_j d_j^2 / w)` over the neighbours j that are left once the `attackers` farthest, of weight w, are out.

    The radius of He et al.'s bound, which has the honest neighbours in the sum: a larger one lets in more of a lie than it
    spares of honest vectors, a smaller one the other way round. The distance to the nearest where nobody is left.
    """
    by_distance = sorted(zip(distances, weights, strict=True))
    left = max(0, len(by_distance) - attackers)
    near, far = by_distance[:left], by_distance[left:]
    if not near:
        return by_distance[0][0]
    return math.sqrt(sum(weight * distance**2 for distance, weight in near) / sum(weight for _, weight in far))


class TrimmedMean:
    """Coordinate by coordinate the mean of `y` and the neighbours' values but those farthest from the median of them all.

    As many are left out as neighbours may lie: the mean around the median (Xie, Koyejo & Gupta 2018, "Generalized
    Byzantine-tolerant SGD"). Cutting as many at both ends would cost an honest value at the end where no lie is, and
    let a liar that is always at the same end pull the mean its way, round by round. The neighbours' mean is then clipped to the
    values that have `attackers` smaller and larger ones, so that it lies among honest ones whatever the lies are.

    With fewer neighbours than twice `attackers` nothing is left to mix. Metropolis weights play no part; the weights
    returned are the neighbours' mean.
    """

    radius = None

    def __init__(self, attackers: int) -> None:
        """attackers: neighbours of a node that may lie."""
        self._attackers = attackers
        self._mean: Vector | None = None  # of those kept; used again for each mix

    def __call__(self, own: Vector, neighbours: Sequence[Received]) -> Screened:
        """See `Screen`. What is returned is written over by the next call."""
        count = len(neighbours)
        if count < 2 * self._attackers:
            return Screened([], [0.0] * count)
        if self._mean is None:
            self._mean = np.empty_like(own)
        for first in range(0, len(own), STEP):
            part = slice(first, first + STEP)
            theirs = [other.vector[part] for other in neighbours]
            self._mean[part] = around_the_median(own[part], theirs, self._attackers)
        kept = count - self._attackers
        share = kept / (kept + 1)
        return Screened([(share, self._mean)], [share / count] * count)


def around_the_median(own: Vector, theirs: Sequence[Vector], attackers: int) -> Vector:
    """Of each element of `theirs` (at least `2 attackers` vectors) the mean of all but the `attackers` values that are farthest
    from the median of `own` and them; clipped to what has `attackers` smaller and larger ones among all of these.

    Vectors are compared pair by pair, which is several times as fast as np.sort along the first axis.
    """
    ascending: list[Vector] = []
    for other in theirs:
        ascending = _inserted(other, ascending)
    everyone = _inserted(own, ascending)
    count, kept = len(theirs), len(theirs) - attackers
    median = (everyone[count // 2] + everyone[(count + 1) // 2]) / 2
    # Those that are kept come one after the other in order, so they begin at one of the first.
    mean = least = np.full_like(own, np.inf)
    for first in range(attackers + 1):
        run = ascending[first : first + kept]
        farthest = np.maximum(median - run[0], run[-1] - median)
        mean = np.where(farthest < least, reduce(np.add, run) / np.float32(kept), mean)
        least = np.minimum(farthest, least)
    return np.clip(mean, everyone[attackers], everyone[kept])


def _inserted(vector: Vector, ascending: Sequence[Vector]) -> list[Vector]:
    """One more among vectors that are in ascending order, element by element."""
    smaller = []
    for other in ascending:
        smaller.append(np.minimum(vector, other))
        vector = np.maximum(vector, other)
    return [*smaller, vector]


def distance(one: Vector, other: Vector) -> float:
    """Euclidean, summed in blocks that stay in cache."""
    squares = 0.0
    for first in range(0, len(one), BLOCK):
        difference = other[first : first + BLOCK] - one[first : first + BLOCK]
        squares += float(np.dot(difference, difference))
    return math.sqrt(squares)
