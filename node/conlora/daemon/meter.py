"""What is measured of a mix: the errors on its edges, and sketches of before and after, beside training.

Measuring costs more than mixing, so it is the daemon's, whose priority is low, and a thread's, so that links go on. Where
rounds are shorter than measuring takes, not every round is measured; the last one is.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from conlora.core.consensus import EdgeError, edge_errors, factors
from conlora.core.schema import Schema, Vector
from conlora.core.sketch import Sketcher, SketchLayout

MOST_SHARE = 0.1  # of the time, that measuring may take of one core
ALWAYS_SECONDS = 0.05  # of a core; a measurement that takes no more is never left out for that


@dataclass(frozen=True, slots=True)
class Measured:
    """errors: of each neighbour, module by module. before, after: sketches of the mix's own vectors."""

    errors: list[list[EdgeError]]
    before: Vector
    after: Vector


class Meter:
    """Measures the mixes of one node, one at a time."""

    def __init__(self, full: Schema, shared: Schema, start: Vector, seed: int) -> None:
        """start: values of the whole adapter, shape `(full.size,)`, of which the frozen ones stay. seed: the federation's."""
        exchanged = {spec.name for spec in shared.tensors}
        self._shared = shared
        self._frozen = {name: view for name, view in full.views(start).items() if name not in exchanged}
        self._sketcher = Sketcher(SketchLayout.of(full, shared), seed)
        self._rest_until = 0.0

    @property
    def rested(self) -> bool:
        """Whether a mix may be measured now."""
        return time.monotonic() >= self._rest_until

    def measure(self, own: Vector, mixed: Vector, others: Sequence[Vector]) -> Measured:
        """Errors on the edges to `others` before the mix, and the sketches of `own` and `mixed`; all are shared vectors."""
        began, used = time.monotonic(), time.thread_time()
        measured = self._measure(own, mixed, others)
        seconds = time.thread_time() - used
        if seconds > ALWAYS_SECONDS:
            self._rest_until = began + seconds / MOST_SHARE
        return measured

    def _measure(self, own: Vector, mixed: Vector, others: Sequence[Vector]) -> Measured:
        before, after, *neighbours = (factors(self._shared, v, self._frozen) for v in (own, mixed, *others))
        errors = [edge_errors(before, neighbour) for neighbour in neighbours]
        sketch_before, sketch_after = self._sketcher.sketch(before, after)
        return Measured(errors, sketch_before, sketch_after)
