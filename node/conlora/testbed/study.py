"""What a finished grid says: means with confidence intervals over seeds, and the assertions of DESIGN 2.9 checked."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from conlora.core.consensus import ROUNDING
from conlora.testbed.metric import Metric, metric_of

Result = dict[str, Any]

SETTING = ("partition", "rank", "mode", "rate")  # what is held equal where topologies and rules are compared
GROUP = ("rule", "topology", *SETTING)

# D after mixing as the literature has it for its own models, data and rates (DESIGN 2.9): only the order and the fall
# from topology to topology can be compared with ours, not the size.
REFERENCE = {
    "lora": {"T1": 12.42, "T2": 9.84, "T3": 5.37, "T4": 4.29},
    "freeze-a": {"T1": 1.70, "T2": 1.38, "T3": 0.82, "T4": 0.53},
}

# 97.5 % points of Student's t for 1, 2, ... degrees of freedom; above the table 1.96 + 2.5 / df is within 1 %.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over seeds, and the half-width of its 95 % confidence interval (nan for a single seed)."""

    mean: float
    half: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval":
        """Of at least one value; Student's t."""
        n, mean = len(values), math.fsum(values) / len(values)
        if n < 2:
            return cls(mean, math.nan, n)
        deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (n - 1))
        t = _T[n - 2] if n - 2 < len(_T) else 1.96 + 2.5 / (n - 1)
        return cls(mean, t * deviation / math.sqrt(n), n)

    def __str__(self) -> str:
        return f"{self.mean:.3g}" if math.isnan(self.half) else f"{self.mean:.3g} ± {self.half:.2g}"


@dataclass(frozen=True)
class Group:
    """The cells that differ in their seeds only."""

    axes: dict[str, Any]
    results: list[Result]

    def of(self, value: Callable[[Result], float]) -> Interval:
        """Some figure over the seeds."""
        return Interval.of([value(result) for result in self.results])

    def late(self, figure: str, moment: str = "after") -> Interval:
        """A consensus figure at the end of training."""
        return self.of(lambda result: late(result, figure, moment))

    @property
    def score(self) -> Interval:
        """The task's metric on the common test rows, mean over nodes."""
        return self.of(score)


@dataclass(frozen=True)
class Study:
    """All cells of a grid."""

    name: str
    results: list[Result]

    @property
    def metric(self) -> Metric:
        """What the task is judged by."""
        return metric_of(self.results[0])

    @cached_property
    def groups(self) -> list[Group]:
        """In the order of the grid."""
        found: dict[tuple[Any, ...], list[Result]] = defaultdict(list)
        for result in self.results:
            found[tuple(result[axis] for axis in GROUP)].append(result)
        return [Group(dict(zip(GROUP, key, strict=True)), results) for key, results in found.items()]

    @property
    def settings(self) -> list[dict[str, Any]]:
        """The combinations of partition, rank and mode."""
        return list({str(s): s for g in self.groups if (s := {axis: g.axes[axis] for axis in SETTING})}.values())

    def within(self, setting: dict[str, Any]) -> "Study":
        """The part of the study with one partition, rank and mode."""
        return Study(self.name, [r for r in self.results if all(r[axis] == value for axis, value in setting.items())])

    def values(self, axis: str) -> list[Any]:
        """What occurs on an axis, in the order of the grid."""
        return list(dict.fromkeys(result[axis] for result in self.results))

    def pairs(self, axis: str, one: Any, other: Any) -> list[tuple[Result, Result]]:
        """Results that differ in one axis only, `one` first."""
        rest = [a for a in (*GROUP, "seed") if a != axis]
        others = {tuple(r[a] for a in rest): r for r in self.results if r[axis] == other}
        return [(r, found) for r in self.results if r[axis] == one and (found := others.get(tuple(r[a] for a in rest)))]

    def text(self) -> str:
        """What is told at the end of a run."""
        return "\n".join(str(finding) for finding in findings(self))


@dataclass(frozen=True)
class Finding:
    """One assertion of DESIGN 2.9 and how the grid bears it out.

    holds: in every comparison; None where the grid can't tell. on_average: the mean ratio's confidence interval agrees.
    """

    claim: str
    holds: bool | None
    evidence: str
    exceptions: list[str] = field(default_factory=list)
    on_average: bool = False

    def __str__(self) -> str:
        verdict = {True: "holds", False: "does not hold", None: "not tested"}[self.holds]
        if self.holds is False and self.on_average:
            verdict = "holds on average, not everywhere"
        rest = f" Exceptions: {', '.join(self.exceptions)}." if self.exceptions else ""
        return f"{verdict}: {self.claim}. {self.evidence}{rest}"


def findings(study: Study) -> list[Finding]:
    """The five assertions, in order."""
    return [_rules(study), _topologies(study), _complete(study), _partitions(study), _frozen(study)]


def late(result: Result, figure: str, moment: str = "after") -> float:
    """A consensus figure at the end of training: its mean over the last quarter of the rounds, as single rounds scatter."""
    rounds = result["consensus_by_round"]
    last = rounds[-max(1, len(rounds) // 4) :]
    return math.fsum(entry[moment][figure] for entry in last) / len(last)


def score(result: Result) -> float:
    """The task's metric, mean over nodes."""
    values = [value for value in result["after"] if value is not None]
    return math.fsum(values) / len(values) if values else math.nan


def _rules(study: Study) -> Finding:
    pairs = [p for p in study.pairs("rule", "lora", "freeze-a") if not any(map(_agreed, p))]
    ratios = [late(lora, "D") / late(frozen, "D") for lora, frozen in pairs]
    return _counted(
        "at the end D is larger with lora than with freeze-a",
        [
            (_where(lora, "topology", "partition", "seed"), ratio > 1)
            for (lora, _), ratio in zip(pairs, ratios, strict=True)
        ],
        f"D is {Interval.of(ratios)} times as large" if ratios else "",
        on_average=_above_one(ratios),
    )


def _topologies(study: Study) -> Finding:
    pairs = [p for p in study.pairs("topology", "T1", "T4") if not _agreed(p[0])]
    shares = [late(dense, "D") / late(ring, "D") for ring, dense in pairs]
    return _counted(
        "D falls from the ring (T1) to the dense graph (T4)",
        [
            (_where(ring, "rule", "partition", "seed"), share < 1)
            for (ring, _), share in zip(pairs, shares, strict=True)
        ],
        f"T4 has {Interval.of(shares)} of the ring's D" if shares else "",
        on_average=_above_one([1 / share for share in shares]),
    )


def _complete(study: Study) -> Finding:
    cells = [r for r in study.results if r["topology"] == "complete" and r["mode"] == "sync"]
    largest = max((late(r, "relative") for r in cells), default=0.0)
    return _counted(
        "after a synchronous mix on the complete graph nothing is left but rounding",
        [(_where(r, "rule", "partition", "seed"), _agreed(r)) for r in cells],
        f"the largest spread is {largest:.1e} of the update",
    )


def _partitions(study: Study) -> Finding:
    pairs = study.pairs("partition", "dirichlet0.1", "iid")
    ratios = [late(skewed, "D") / late(even, "D") for skewed, even in pairs if not _agreed(even)]
    return _counted(
        "D is larger with Dirichlet(0.1) shares than with IID ones",
        [(_where(s, "rule", "topology", "seed"), late(s, "D") > late(e, "D")) for s, e in pairs],
        f"D is {Interval.of(ratios)} times as large" if ratios else "",
        on_average=_above_one(ratios),
    )


def _frozen(study: Study) -> Finding:
    cells = [r for r in study.results if r["rule"] == "freeze-a"]
    return _counted(
        "with freeze-a, C and E_A are exactly 0 in every round, before and after the mix",
        [(_where(r, "topology", "partition", "seed"), _exactly_zero(r)) for r in cells],
        "",
    )


def _exactly_zero(result: Result) -> bool:
    moments = [entry[moment] for entry in result["consensus_by_round"] for moment in ("before", "after")]
    return all(figures["C"] == figures["E_A"] == 0 for figures in moments)


def _above_one(ratios: list[float]) -> bool:
    """Whether their mean's confidence interval lies above 1."""
    if len(ratios) < 2:
        return False
    interval = Interval.of(ratios)
    return interval.mean - interval.half > 1


def _counted(claim: str, cases: list[tuple[str, bool]], evidence: str, on_average: bool = False) -> Finding:
    if not cases:
        return Finding(claim, None, "The grid has no cells for it.")
    right = sum(holds for _, holds in cases)
    count = f"{right} of {len(cases)}" if len(cases) > 1 else ("1 of 1" if right else "0 of 1")
    text = f"{count} comparisons{'; ' + evidence if evidence else ''}."
    return Finding(claim, right == len(cases), text, [where for where, holds in cases if not holds], on_average)


def _agreed(result: Result) -> bool:
    """Whether the nodes hold the same update but for fp32 rounding."""
    return bool(late(result, "relative") < 10 * ROUNDING)


def _where(result: Result, *axes: str) -> str:
    return "/".join(f"s{result[axis]}" if axis == "seed" else str(result[axis]) for axis in axes)
