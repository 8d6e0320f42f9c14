"""Consensus error of a federation's adapters: how far nodes are from agreement, in B, in A and in the product B A.

Symbols follow DESIGN 2.6: P_i = B_i A_i; a bar is the mean over nodes, dA and dB are deviations from it. No d x k product
is ever formed: every norm comes from r x r Gram matrices of concatenated factors, in float64 whatever the factors have.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conlora.core.figures import FIGURES as FIGURES
from conlora.core.figures import Consensus as Consensus
from conlora.core.figures import EdgeError as EdgeError
from conlora.core.figures import amplification as amplification
from conlora.core.figures import total as total
from conlora.core.schema import Schema, Vector

Matrix = NDArray[Any]  # fp32 as it is exchanged, or float64
Factors = dict[str, tuple[Matrix, Matrix]]  # module -> (B of shape (d, r), A of shape (r, k))

ROUNDING = 1e-6  # of the factors' norm: vectors are mixed in fp32, and a ratio of rounding errors means nothing
# Below this share of its terms, a sum over Gram matrices has lost half of float64's digits to cancellation.
CANCELLED = 1e-8


@dataclass(frozen=True, slots=True)
class Sums:
    """What the figures of one module are made from, so that modules can be added up: D, and squares of the norms.

    mean: `||Bbar Abar||^2`. size: `||Bbar||^2 + ||Abar||^2`, against which rounding is judged.
    """

    d: float
    v: float
    c: float
    a: float
    b: float
    mean: float
    size: float

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))

    def consensus(self) -> Consensus:
        """The figures; estimates of squares that came out negative count as zero."""
        v, c, a, b, mean, size = (max(x, 0.0) for x in (self.v, self.c, self.a, self.b, self.mean, self.size))
        spread = a + b
        return Consensus(
            D=float(self.d),
            V=float(np.sqrt(v)),
            C=float(np.sqrt(c)),
            E_A=float(np.sqrt(a)),
            E_B=float(np.sqrt(b)),
            amplification=float(np.sqrt(v / spread)) if spread > ROUNDING**2 * size else 0.0,
            relative=float(np.sqrt(v / mean)) if mean > 0 else 0.0,
        )


NOTHING = Sums(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def factors(schema: Schema, vector: Vector, frozen: Mapping[str, NDArray[Any]]) -> Factors:
    """B and A of each adapted module, as views.

    vector: what is exchanged, laid out by `schema`. frozen: full-schema tensors by name, for factors that the rule
    does not exchange. Modules that lack a factor in both raise KeyError.
    """
    tensors: dict[str, NDArray[Any]] = {**frozen, **schema.views(vector)}
    return {
        name.split(".lora_B.")[0]: (tensors[name], tensors[name.replace(".lora_B.", ".lora_A.")])
        for name in tensors
        if ".lora_B." in name
    }


def product_norm(b: Matrix, a: Matrix) -> float:
    """||B A||_F for B `(d, r)` and A `(r, k)`, as `sqrt(sum((B'B) * (A A')))`.

    Where that sum cancels (B A is tiny beside B and A), by the triangular factors of B and A' instead, which lose
    nothing: `||B A|| = ||R_B R_A'||`.
    """
    b, a = np.asarray(b, np.float64), np.asarray(a, np.float64)
    terms = (b.T @ b) * (a @ a.T)
    square = float(np.sum(terms))
    if square > CANCELLED * float(np.sum(np.abs(terms))):
        return float(np.sqrt(square))
    return float(np.linalg.norm(_triangle(b) @ _triangle(a.T).T))


def _triangle(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """R of the matrix's QR decomposition."""
    return np.asarray(np.linalg.qr(matrix, mode="r"))


def product_distance(b1: Matrix, a1: Matrix, b2: Matrix, a2: Matrix) -> float:
    """||B1 A1 - B2 A2||_F through `[B1-B2, B2] [A1; A1-A2]`, which keeps its digits where the factors are close."""
    b1, a1, b2, a2 = (np.asarray(x, np.float64) for x in (b1, a1, b2, a2))
    return product_norm(np.hstack([b1 - b2, b2]), np.vstack([a1, a1 - a2]))


def edge_errors(own: Factors, other: Factors) -> list[EdgeError]:
    """One neighbour's errors, module by module in the order of `own`."""
    return [_edge_error(*own[module], *other[module]) for module in own]


def _edge_error(b1: Matrix, a1: Matrix, b2: Matrix, a2: Matrix) -> EdgeError:
    return EdgeError(product_distance(b1, a1, b2, a2), distance(a1, a2), distance(b1, b2))


def distance(x: Matrix, y: Matrix) -> float:
    """||X - Y||_F, exactly 0 for the same array."""
    return 0.0 if x is y else float(np.linalg.norm(np.asarray(x, np.float64) - y))


def measure(nodes: Sequence[Factors]) -> dict[str, Sums]:
    """The sums of each module over the given nodes' factors (at least one node; the same modules and shapes in each)."""
    return {module: _measure([node[module] for node in nodes]) for module in nodes[0]}


def consensus(modules: Mapping[str, Sums]) -> Consensus:
    """The figures over all modules together."""
    return sum(modules.values(), start=NOTHING).consensus()


def _measure(pairs: Sequence[tuple[Matrix, Matrix]]) -> Sums:
    """One module: every node's (B, A)."""
    n = len(pairs)
    b = np.stack([pair[0] for pair in pairs]).astype(np.float64)  # (n, d, r)
    a = np.stack([pair[1] for pair in pairs]).astype(np.float64)  # (n, r, k)
    b_mean, a_mean = _mean(b), _mean(a)
    return Sums(
        d=sum(product_distance(b[i], a[i], b_mean, a_mean) for i in range(n)) / n,
        # mean_i ||P_i - Pbar||^2 = sum_{i<j} ||P_i - P_j||^2 / n^2: only differences of close products are taken.
        v=sum(product_distance(b[i], a[i], b[j], a[j]) ** 2 for i in range(n) for j in range(i)) / n**2,
        c=(product_norm(np.hstack(list(b - b_mean)), np.vstack(list(a - a_mean))) / n) ** 2,
        a=float(np.sum((a - a_mean) ** 2)) / n,
        b=float(np.sum((b - b_mean) ** 2)) / n,
        mean=product_norm(b_mean, a_mean) ** 2,
        size=float(np.sum(b_mean**2) + np.sum(a_mean**2)),
    )


def _mean(stack: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the first axis, exact where all are equal: a frozen A then has no error at all, not even rounding."""
    mean: NDArray[np.float64] = stack[0] + (stack - stack[0]).mean(axis=0)
    return mean
