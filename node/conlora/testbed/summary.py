"""The summary of a testbed: the JSON file that reports are made from, and the table printed at the end."""

import datetime
import json
import math
import platform
import statistics
from importlib import metadata
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from conlora.files import replace_file
from conlora.testbed.metric import metric_of
from conlora.testbed.spec import TestbedSpec

SUMMARY_FILE = "summary.json"


def versions() -> dict[str, str]:
    """Of everything that results may depend on."""
    packages = ("conlora", "torch", "transformers", "peft", "grpcio")
    return {**{name: metadata.version(name) for name in packages}, "python": platform.python_version()}


def new_summary(spec: TestbedSpec, test_rows: int) -> dict[str, Any]:
    """Of a testbed that has no results yet."""
    return {
        "name": spec.name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "spec": spec.to_json(),
        "test_rows": test_rows,
        "runs": [],
        "baselines": {"alone": [], "pooled": []},
    }


def write_summary(summary: dict[str, Any], output: Path) -> Path:
    """Writes `summary.json`, whole or not at all. Figures that JSON can't hold, such as infinity, become null."""
    return write_json(summary, output / SUMMARY_FILE)


def write_json(value: dict[str, Any], path: Path) -> Path:
    """Writes any JSON file likewise; durably, so that a power cut leaves it whole or not there."""
    replace_file(path, json.dumps(json_ready(value), indent=1, allow_nan=False).encode())
    return path


def json_ready(value: Any) -> Any:
    """The value with every number that is not finite replaced by None."""
    match value:
        case dict():
            return {key: json_ready(item) for key, item in value.items()}
        case list() | tuple():
            return [json_ready(item) for item in value]
        case float() if not math.isfinite(value):
            return None
        case _:
            return value


def result_tables(summary: dict[str, Any]) -> list[Table]:
    """The task's metric on the common test rows, and final consensus error; one line per rule in each."""
    return [_metric_table(summary), _consensus_table(summary)]


def _metric_table(summary: dict[str, Any]) -> Table:
    metric = metric_of(summary)
    title = f"{summary['name']}: mean {metric.name} on {summary['test_rows']} common test rows"
    table = _table(title, "rule", "before", "alone", "federated", "worst node", "pooled")
    for run in summary["runs"]:
        after = [metric.of(node) for node in run["nodes"]]
        table.add_row(
            run["rule"],
            metric.text(metric.before(run["nodes"][0])),
            _baseline(summary, "alone", run["rule"]),
            metric.text(statistics.fmean(after)),
            metric.text(metric.worst(after)),
            _baseline(summary, "pooled", run["rule"]),
        )
    return table


def _consensus_table(summary: dict[str, Any]) -> Table:
    table = _table("consensus error after the last mix", "rule", "D", "V", "E_A", "E_B", "amplification", "relative")
    for run in summary["runs"]:
        consensus = run["consensus"]
        table.add_row(
            run["rule"],
            *(f"{consensus[figure]:.4f}" for figure in ("D", "V", "E_A", "E_B")),
            f"{consensus['amplification']:.2f}",
            f"{consensus['relative']:.1%}",
        )
    return table


def _table(title: str, first: str, *others: str) -> Table:
    """A table that fits 80 columns and survives copying into a mail."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first)
    for heading in others:
        table.add_column(heading, justify="right")
    return table


def _baseline(summary: dict[str, Any], kind: str, rule: str) -> str:
    for baseline in summary["baselines"][kind]:
        if baseline["rule"] == rule:
            metric = metric_of(summary)
            return metric.text(statistics.fmean(metric.of(node) for node in baseline["nodes"]))
    return "-"
