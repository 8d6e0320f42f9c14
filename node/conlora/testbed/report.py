"""The report of a testbed: four figures as PNG files, and one HTML page that holds everything and asks for nothing."""

import base64
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import yaml
from matplotlib.figure import Figure

from conlora.errors import StateError
from conlora.testbed import findings, plots
from conlora.testbed.metric import metric_of
from conlora.testbed.plot_style import DARK, DPI, LIGHT, Style, Summary, draw

REPORT_FILE = "report.html"
TEMPLATE = "report.html.j2"
CSS_PIXELS = 96  # per inch
FIGURES: dict[str, Callable[[Summary, Style], Figure]] = {
    "evaluation": plots.evaluation,
    "consensus": plots.consensus,
    "training": plots.training,
    "topology": plots.topology,
}


@dataclass(frozen=True, slots=True)
class Image:
    """A figure on light and on dark paper, as data URIs, with its natural size in CSS pixels."""

    light: str
    dark: str
    width: int
    height: int


def write_report(summary: Summary, output: Path) -> None:
    """Writes `report.html` and a PNG of each figure into the directory `output`. Raises StateError where it can't."""
    images = {}
    try:
        for name, figure in FIGURES.items():
            light, dark = (draw(figure, summary, style) for style in (LIGHT, DARK))
            (output / f"{name}.png").write_bytes(light)
            images[name] = _image(light, dark)
        partial = output / f".{REPORT_FILE}.partial"
        partial.write_text(_page(summary, images), encoding="utf-8")
        partial.rename(output / REPORT_FILE)
    except OSError as error:
        raise StateError(f"{output}: the report can't be written ({error}); free space or make it writable") from error


def _image(light: bytes, dark: bytes) -> Image:
    # a PNG starts with its signature and the header chunk, whose first eight bytes are width and height
    width, height = (int.from_bytes(light[start : start + 4]) * CSS_PIXELS // DPI for start in (16, 20))
    return Image(_data_uri(light), _data_uri(dark), width, height)


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _page(summary: Summary, images: dict[str, Image]) -> str:
    metric = metric_of(summary)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["figure"] = findings.figure
    environment.filters["after"] = lambda node: metric.text(metric.of(node))
    environment.filters["score"] = metric.text
    environment.filters["href"] = lambda path: quote(f"{path}/")
    template = environment.from_string(resources.files("conlora.testbed").joinpath(TEMPLATE).read_text("utf-8"))
    rules = [run["rule"] for run in summary["runs"]]
    return template.render(
        summary=summary,
        metric=metric,
        images=images,
        what=findings.what_was_run(summary),
        findings=findings.findings(summary),
        caveats=findings.caveats(summary),
        results=[_result(summary, run) for run in summary["runs"]],
        pooled=[(baseline["rule"], node) for baseline in summary["baselines"]["pooled"] for node in baseline["nodes"]],
        light=LIGHT.rule_colours(rules),
        dark=DARK.rule_colours(rules),
        papers=(LIGHT, DARK),
        spec=yaml.safe_dump(summary["spec"], sort_keys=False, allow_unicode=True),
    )


def _result(summary: Summary, run: Summary) -> dict[str, Any]:
    """One rule's line in the tables, and its nodes."""
    metric = metric_of(summary)
    alone = {
        node["name"]: node
        for baseline in summary["baselines"]["alone"]
        if baseline["rule"] == run["rule"]
        for node in baseline["nodes"]
    }
    return {
        "rule": run["rule"],
        "learning_rate": findings.learning_rate(summary, run["rule"]),
        "before": metric.before(run["nodes"][0]),
        "groups": {
            name: {"mean": findings.mean(values), "worst": metric.worst(values), "nodes": len(values)}
            for name, values in plots.groups(summary, run).items()
        },
        "seconds": run["seconds"],
        "consensus": run["consensus"],
        "nodes": [(node, alone.get(node["name"]), _seconds_a_round(node)) for node in run["nodes"]],
    }


def _seconds_a_round(node: Summary) -> float | None:
    seconds = [entry["seconds"] for entry in node["history"] if entry["seconds"] is not None]
    return statistics.median(seconds) if seconds else None
