"""The figures of bench tests: what was measured, on which machine, as JSON and as a table in Markdown.

Each test module has a report of its own, `runs/bench/<module>.json` and `.md`, so that a run of one module leaves those of
the others as they are; `runs/bench/all.md` holds all that lie there, each with the machine and the commit of its run.
"""

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
REPORTS = ROOT / "runs" / "bench"
PACKAGES = ("torch", "numpy", "grpcio", "conlora")
HEADER = ("what", "measured", "against", "ratio", "target", "reached", "remarks")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured thing. value and ratio are None where nothing could be measured; the remark then says why.

    against: what the ratio compares with. A ratio without a value stands for itself, such as an error or a share.
    """

    what: str
    value: float | None = None
    unit: str = ""
    samples: tuple[float, ...] = ()
    against: str = ""
    ratio: float | None = None
    at_most: float | None = None
    at_least: float | None = None
    remark: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the ratio, or the value where there is none, keeps to the target. None without a target or a figure."""
        measured = self.value if self.ratio is None else self.ratio
        if measured is None or (self.at_most is None and self.at_least is None):
            return None
        return (self.at_most is None or measured <= self.at_most) and (
            self.at_least is None or measured >= self.at_least
        )

    def row(self) -> tuple[str, ...]:
        """Cells of the table, as HEADER names them."""
        measured = "-" if self.value is None else f"{self.value:.4g} {self.unit}".rstrip()
        if len(self.samples) > 1:
            measured += f" ({min(self.samples):.3g} to {max(self.samples):.3g}, {len(self.samples)} samples)"
        bounds = [
            f"{sign} {fraction(bound)}"
            for sign, bound in (("≤", self.at_most), ("≥", self.at_least))
            if bound is not None
        ]
        reached = {True: "yes", False: "no", None: "-" if bounds else ""}[self.reached]
        ratio = "" if self.ratio is None else fraction(self.ratio)
        return self.what, measured, self.against, ratio, " and ".join(bounds), reached, self.remark


class Figures:
    """One report. It is written anew with every figure, so that a run that breaks off leaves what it has measured."""

    def __init__(self, name: str, title: str, directory: Path = REPORTS) -> None:
        self._name = name
        self._title = title
        self._directory = directory
        self._figures: list[Figure] = []
        self._machine = machine()

    def record(
        self, what: str, value: float | None = None, unit: str = "", *, samples: Sequence[float] = (), **rest: Any
    ) -> Figure:
        """Keeps a figure, prints it and writes the report. value: the samples' median, unless it is given.

        rest: the other fields of Figure.
        """
        if value is None and samples:
            value = statistics.median(samples)
        figure = Figure(what=what, value=value, unit=unit, samples=tuple(samples), **rest)
        self._figures.append(figure)
        print("\n" + " | ".join(f"{name}: {cell}" for name, cell in zip(HEADER, figure.row(), strict=True) if cell))
        self._write()
        return figure

    def _write(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        figures = [{**asdict(figure), "reached": figure.reached} for figure in self._figures]
        report = {"title": self._title, "machine": self._machine, "figures": figures}
        path = self._directory / f"{self._name}.json"
        path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        path.with_suffix(".md").write_text(table(report), encoding="utf-8")
        collect(self._directory)


def collect(directory: Path) -> None:
    """Puts all reports of a directory into its all.md."""
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(directory.glob("*.json"))]
    (directory / "all.md").write_text("\n".join(table(report) for report in reports), encoding="utf-8")


def table(report: dict[str, Any]) -> str:
    """A report in Markdown."""
    names = Figure.__dataclass_fields__
    figures = [Figure(**{name: entry[name] for name in names}) for entry in report["figures"]]
    lines = [f"## {report['title']}", "", "; ".join(f"{key} {value}" for key, value in report["machine"].items()), ""]
    lines += [line(HEADER), line("---" for _ in HEADER), *(line(figure.row()) for figure in figures), ""]
    return "\n".join(lines)


def line(cells: Iterable[str]) -> str:
    """A row of a table in Markdown."""
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def fraction(number: float) -> str:
    """A ratio with three digits; a small one as one over something, too, as targets are given."""
    plain = f"{number:.3g}"
    return f"{plain} (1/{1 / number:.3g})" if 0 < number < 0.5 else plain


def machine() -> dict[str, Any]:
    """What figures depend on: hardware, kernel, versions, commit, and when it was."""
    cpu = next((value for key, value in fields("/proc/cpuinfo") if key == "model name"), platform.processor())
    memory = next((int(value.split()[0]) * 1024 for key, value in fields("/proc/meminfo") if key == "MemTotal"), 0)
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory": f"{memory / 1e9:.0f} GB",
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def fields(path: str) -> list[tuple[str, str]]:
    """Lines `key: value` of a file of /proc; none where there is no such file."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return [(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines)]


def commit() -> str:
    """The checkout's commit, with a sign where files differ from it."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"
