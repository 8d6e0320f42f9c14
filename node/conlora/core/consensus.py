"""Consensus error of a federation's adapters: how far nodes are from agreement, in B, in A and in the product B A.

Symbols follow DESIGN 2.6: P_i = B_i A_i; a bar is the mean over nodes. No d x k product is ever formed: every norm
comes from r x r Gram matrices of concatenated factors, in float64.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conlora.core.schema import Schema, Vector

Matrix = NDArray[np.float64]
Factors = dict[str, tuple[Matrix, Matrix]]  # module -> (B of shape (d, r), A of shape (r, k))

ROUNDING = 1e-6  # of the factors' norm: vectors are mixed in fp32, and a ratio of rounding errors means nothing


@dataclass(frozen=True, slots=True)
class Consensus:
    """Errors in total over all adapted modules; every figure is a Frobenius norm or a ratio of two.

    D: mean over nodes of `sum_l ||P_i - Bbar Abar||` (the literature's figure).
    V: root mean square over nodes of `||P_i - Pbar||`.
    C: `||mean_j dB_j dA_j||`, the cross term; 0 with frozen A.
    E_A, E_B: root mean square of `||dA||` and `||dB||`.
    amplification: `V / sqrt(E_A^2 + E_B^2)`; 0 where nodes agree up to fp32 rounding.
    relative: `V / ||Bbar Abar||`; 0 where there is no update yet.
    """

    D: float
    V: float
    C: float
    E_A: float
    E_B: float
    amplification: float
    relative: float

    def to_json(self) -> dict[str, float]:
        """The figures by name."""
        return asdict(self)


def factors(schema: Schema, vector: Vector, frozen: Mapping[str, NDArray[Any]]) -> Factors:
    """B and A of each adapted module, float64.

    vector: what is exchanged, laid out by `schema`. frozen: full-schema tensors by name, for factors that the rule
    does not exchange. Both may be views; modules that lack a factor in both raise KeyError.
    """
    tensors: dict[str, NDArray[Any]] = {**frozen, **schema.views(vector)}
    pairs: Factors = {}
    for name in tensors:
        if ".lora_B." in name:
            module = name.split(".lora_B.")[0]
            a = tensors[name.replace(".lora_B.", ".lora_A.")]
            pairs[module] = (tensors[name].astype(np.float64), a.astype(np.float64))
    return pairs


def product_norm(b: Matrix, a: Matrix) -> float:
    """||B A||_F for B `(d, r)` and A `(r, k)`, as `sqrt(sum((B'B) * (A A')))`."""
    return float(np.sqrt(max(np.sum((b.T @ b) * (a @ a.T)), 0.0)))


def product_distance(b1: Matrix, a1: Matrix, b2: Matrix, a2: Matrix) -> float:
    """||B1 A1 - B2 A2||_F through `[B1-B2, B2] [A1; A1-A2]`, which keeps its digits where the products are close."""
    return product_norm(np.hstack([b1 - b2, b2]), np.vstack([a1, a1 - a2]))


def edge_error(own: Factors, other: Factors) -> float:
    """`||P_i - P_j||_F` over all modules together: how far one neighbour's update is from this node's."""
    squares = [product_distance(*own[module], *other[module]) ** 2 for module in own]
    return float(np.sqrt(sum(squares)))


def measure(nodes: Sequence[Factors]) -> Consensus:
    """All figures over the given nodes' factors (at least one node; the same modules and shapes in each)."""
    n = len(nodes)
    d_sum = v_squares = c_squares = a_squares = b_squares = mean_squares = size_squares = 0.0
    for module in nodes[0]:
        b = np.stack([node[module][0] for node in nodes])  # (n, d, r)
        a = np.stack([node[module][1] for node in nodes])  # (n, r, k)
        b_mean, a_mean = _mean(b), _mean(a)
        d_sum += sum(product_distance(b[i], a[i], b_mean, a_mean) for i in range(n)) / n
        # mean_i ||P_i - Pbar||^2 = sum_{i<j} ||P_i - P_j||^2 / n^2: only differences of close products are taken.
        v_squares += sum(product_distance(b[i], a[i], b[j], a[j]) ** 2 for i in range(n) for j in range(i)) / n**2
        c_squares += (product_norm(np.hstack(list(b - b_mean)), np.vstack(list(a - a_mean))) / n) ** 2
        b_squares += float(np.sum((b - b_mean) ** 2)) / n
        a_squares += float(np.sum((a - a_mean) ** 2)) / n
        mean_squares += product_norm(b_mean, a_mean) ** 2
        size_squares += float(np.sum(b_mean**2) + np.sum(a_mean**2))
    v, spread, mean = np.sqrt(v_squares), np.sqrt(a_squares + b_squares), np.sqrt(mean_squares)
    return Consensus(
        D=float(d_sum),
        V=float(v),
        C=float(np.sqrt(c_squares)),
        E_A=float(np.sqrt(a_squares)),
        E_B=float(np.sqrt(b_squares)),
        amplification=float(v / spread) if spread > ROUNDING * np.sqrt(size_squares) else 0.0,
        relative=float(v / mean) if mean > 0 else 0.0,
    )


def _mean(stack: Matrix) -> Matrix:
    """Mean over the first axis, exact where all are equal: a frozen A then has no error at all, not even rounding."""
    mean: Matrix = stack[0] + (stack - stack[0]).mean(axis=0)
    return mean
