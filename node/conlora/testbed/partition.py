"""Deals the rows of a data set out to nodes: disjoint shares of equal size, alike or deliberately unlike.

Pure functions. `labels` is the class number of each row, shape `(rows in the data set,)`; a share is an array of row
numbers. `rows` is the size of every share, and `nodes * rows` must not exceed the data set.
"""

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.integer]
Rows = NDArray[np.intp]

BALANCING_ROUNDS = 200


def hold_out(labels: Labels, rows: int, rng: np.random.Generator) -> tuple[Rows, Rows]:
    """`(held out, others)`: `rows` rows in the data set's own class proportions, and all the rest."""
    order = rng.permutation(len(labels))
    wanted = _apportion(np.bincount(labels), rows)
    held = np.concatenate([order[labels[order] == label][:count] for label, count in enumerate(wanted)])
    return rng.permutation(held), np.setdiff1d(order, held)


def iid(labels: Labels, nodes: int, rows: int, rng: np.random.Generator) -> list[Rows]:
    """Shuffled: every share is a sample of the whole."""
    return np.split(rng.permutation(len(labels))[: nodes * rows], nodes)


def by_label(labels: Labels, nodes: int, rows: int, rng: np.random.Generator) -> list[Rows]:
    """Sorted by class and cut: most shares hold one class only."""
    chosen = rng.permutation(len(labels))[: nodes * rows]
    ordered = chosen[np.argsort(labels[chosen], kind="stable")]
    return [rng.permutation(share) for share in np.split(ordered, nodes)]


def dirichlet(labels: Labels, nodes: int, rows: int, alpha: float, rng: np.random.Generator) -> list[Rows]:
    """Each node's class proportions are a draw from a Dirichlet distribution around the data set's own, balanced.

    Balanced: the draws are scaled by classes and by nodes in turn (iterative proportional fitting, Deming & Stephan 1940)
    until the nodes together have the data set's own proportions, as where each class is dealt by a Dirichlet draw
    over nodes (Hsu et al. 2019), but with shares of equal size. Otherwise five draws can be almost all of one class,
    and what nodes learn together would say more about the draw than about the rule.

    Its parameters are `alpha * classes * share of the class`: (alpha, alpha, ...) where classes are balanced, and close
    to `iid` for a large alpha whether they are or not. Where nodes together want more of a class than there is,
    each gets its part of it and fills up with other classes; so the more of the data is dealt, the milder the skew.
    """
    stock = np.bincount(labels)
    present = stock > 0
    parameters = alpha * np.count_nonzero(present) * stock[present] / len(labels)
    proportions = np.zeros((nodes, len(stock)))
    proportions[:, present] = _balanced(rng.dirichlet(parameters, size=nodes), stock[present] / len(labels))

    counts = np.stack([_apportion(own, rows) for own in proportions])
    for label in np.flatnonzero(counts.sum(axis=0) > stock):
        counts[:, label] = _apportion(counts[:, label], stock[label])
    _fill_up(counts, proportions, stock, rows, rng)
    return _deal(labels, counts, rng)


def _balanced(proportions: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows (nodes) that still sum to 1 and whose mean is `wanted`; ratios of odds between nodes stay as drawn."""
    balanced = np.maximum(proportions, 1e-9)  # nothing can be scaled from zero
    for _ in range(BALANCING_ROUNDS):
        balanced = balanced * (wanted / balanced.mean(axis=0))
        balanced = balanced / balanced.sum(axis=1, keepdims=True)
    return balanced


def _apportion(weights: NDArray[np.number], total: int) -> NDArray[np.int_]:
    """`total` split in proportion to `weights` into whole numbers, by largest remainder."""
    quotas = weights * (total / weights.sum())
    counts: NDArray[np.int_] = np.floor(quotas).astype(int)
    short = total - int(counts.sum())
    counts[np.argsort(counts - quotas, kind="stable")[:short]] += 1
    return counts


def _fill_up(
    counts: NDArray[np.int_],
    proportions: NDArray[np.float64],
    stock: NDArray[np.int_],
    rows: int,
    rng: np.random.Generator,
) -> None:
    """Raises `counts` (nodes, classes) until each node has `rows`: one row a turn, so that none is served last."""
    left = stock - counts.sum(axis=0)
    short = rows - counts.sum(axis=1)
    while short.any():
        for node in rng.permutation(np.flatnonzero(short)):
            weights = np.where(left > 0, proportions[node], 0.0)
            if weights.sum() < 1e-9:  # none of the node's own classes is left
                weights = left.astype(float)
            label = rng.choice(len(left), p=weights / weights.sum())
            counts[node, label] += 1
            left[label] -= 1
            short[node] -= 1


def _deal(labels: Labels, counts: NDArray[np.int_], rng: np.random.Generator) -> list[Rows]:
    """Shares with `counts[node, class]` rows of each class, drawn at random, each share shuffled."""
    parts: list[list[Rows]] = [[] for _ in counts]
    for label in range(counts.shape[1]):
        pool = rng.permutation(np.flatnonzero(labels == label))
        ends = np.cumsum(counts[:, label])
        for node, part in enumerate(np.split(pool, ends)[:-1]):
            parts[node].append(part)
    return [rng.permutation(np.concatenate(own)) for own in parts]
