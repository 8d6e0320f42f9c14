"""A study's tables: Markdown for people, CSV for programs."""

import csv
import io
from collections.abc import Callable, Iterable, Sequence

from conlora.core.consensus import FIGURES
from conlora.testbed.metric import Metric, number
from conlora.testbed.study import GROUP, Group, Interval, Study, findings

Column = tuple[str, Callable[[Group], Interval]]


def _columns(metric: Metric) -> list[Column]:
    return [
        *((name, lambda group, name=name: group.late(name)) for name in FIGURES),
        ("D before the mix", lambda group: group.late("D", "before")),
        (metric.name, lambda group: group.score),
        ("worst node", lambda group: group.of(lambda result: metric.worst([number(x) for x in result["after"]]))),
    ]


def as_csv(study: Study) -> str:
    """One line per group; each figure with its mean and its half-width."""
    columns, out = _columns(study.metric), io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*GROUP, "seeds", "rho", "s", *(f"{name}{end}" for name, _ in columns for end in ("", " ±"))])
    for group in study.groups:
        first = group.results[0]
        figures = [f"{x:.6g}" for _, value in columns for x in (value(group).mean, value(group).half)]
        writer.writerow(
            [*group.axes.values(), len(group.results), _number(first["rho"]), _number(first["s"]), *figures]
        )
    return out.getvalue()


def as_markdown(study: Study) -> str:
    """The same for people, with the findings above."""
    lines = [f"# {study.name}", "", *(f"- {finding}" for finding in findings(study)), ""]
    lines += ["Mean ± half of the 95 % confidence interval over seeds.", ""]
    lines += ["Consensus error is that after the mix, over the last quarter of the rounds.", ""]
    columns = _columns(study.metric)
    lines += _markdown(
        [*GROUP, "s", *(name for name, _ in columns)], (_cells(group, columns) for group in study.groups)
    )
    return "\n".join(lines) + "\n"


def _cells(group: Group, columns: list[Column]) -> list[str]:
    return [
        *map(_axis, group.axes.values()),
        _number(group.results[0]["s"]),
        *(str(value(group)) for _, value in columns),
    ]


def _markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (headings, ["---"] * len(headings), *rows)]


def _axis(value: object) -> str:
    return "" if value is None else str(value)


def _number(value: float | None) -> str:
    return "∞" if value is None else f"{value:.4g}"
