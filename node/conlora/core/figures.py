"""The figures of consensus error as plain values, for whoever shows them without computing any; `consensus` measures them.

This imports no numpy, which would take longer than the command that prints a node's status.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields


@dataclass(frozen=True, slots=True)
class Consensus:
    """Errors over some modules, one or all; every figure is a Frobenius norm or a ratio of two.

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


FIGURES = tuple(field.name for field in fields(Consensus))


@dataclass(frozen=True, slots=True)
class EdgeError:
    """How far one neighbour is from this node: `||P_i - P_j||`, `||A_i - A_j||` and `||B_i - B_j||`, Frobenius."""

    product: float
    a: float
    b: float


def total(errors: Iterable[EdgeError]) -> EdgeError:
    """The errors of several modules, or of several neighbours, together: the root of the sum of squares."""
    rows = [(e.product, e.a, e.b) for e in errors]
    return EdgeError(*(math.hypot(*column) for column in zip(*rows, strict=True))) if rows else EdgeError(0.0, 0.0, 0.0)


def amplification(errors: Iterable[EdgeError]) -> float:
    """A node's own amplification, over its neighbours: disagreement in the product for each unit in the factors."""
    together = total(errors)
    spread = math.hypot(together.a, together.b)
    return together.product / spread if spread > 0 else 0.0
