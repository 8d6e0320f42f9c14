"""The one figure that a task is judged by: how it is written, and which way is better."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

USUAL = ("perplexity", "accuracy")  # what a task that tells several is judged by
LOWER_IS_BETTER = ("perplexity", "loss")
SHARES = ("accuracy",)  # of test rows that are right
LARGE = 10.0  # values from here on need no three decimals


@dataclass(frozen=True, slots=True)
class Metric:
    """Named as in the figures of an evaluation."""

    name: str

    @property
    def lower_is_better(self) -> bool:
        """Otherwise higher."""
        return self.name in LOWER_IS_BETTER

    @property
    def is_share(self) -> bool:
        """Whether it counts right rows, so that its sampling error is binomial."""
        return self.name in SHARES

    def of(self, node: dict[str, Any]) -> float:
        """Of a node of a summary, after training; nan where there is no number."""
        return number(node["after"].get(self.name))

    def before(self, node: dict[str, Any]) -> float:
        """Of the start."""
        return number(node["before"].get(self.name))

    def worst(self, values: Sequence[float]) -> float:
        """Of at least one value."""
        return max(values) if self.lower_is_better else min(values)

    def better(self, one: float, other: float) -> bool:
        """Whether `one` is better than `other`."""
        return one < other if self.lower_is_better else one > other

    def text(self, value: float) -> str:
        """With as many digits as tell something."""
        return f"{value:.1f}" if abs(value) >= LARGE else f"{value:.3f}"

    @property
    def article(self) -> str:
        """`an accuracy`, `a perplexity`, `an f1`."""
        return f"{'an' if self.name[0] in 'aeiouf' else 'a'} {self.name}"


def number(value: float | None) -> float:
    """nan for None, which stands in a summary for what is no number."""
    return float("nan") if value is None else value


def usual(figures: Iterable[str]) -> Metric:
    """The likely one among figures that come in no order."""
    names = sorted(set(figures) - {"loss"})
    return Metric(next((name for name in (*USUAL, *names) if name in names), "accuracy"))


def metric_of(summary: dict[str, Any]) -> Metric:
    """That of a summary."""
    return Metric(summary["metric"])
