"""The figures of a testbed's summary: the task's metric, consensus error by round, training, topology."""

import math
from collections.abc import Iterable, Sequence

import networkx as nx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Wedge
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from conlora.core.topology import graph_of, metropolis_matrix
from conlora.testbed.metric import metric_of
from conlora.testbed.plot_style import LABELS, OTHER_LABELS, Style, Summary, plain

Values = NDArray[np.float64]

LEGEND_NODES = 10  # naming and numbering more nodes than that would crowd out the figure
DOTS_WIDTH = 0.13  # half of what a group of dots takes; groups are 1 apart
FEW_POINTS = 8  # a curve of fewer shows each of them
LOG_FROM = 8.0  # ratio of largest to smallest value from which a logarithmic axis shows more
LOG_FLOOR = 1e-5  # of the largest value; what lies below is zero but for rounding
CONSENSUS_PANELS = (  # title, measures, whether a logarithmic axis may help
    (r"$D$: mean distance from $\bar B\bar A$", ("D",), True),
    (r"$V$: spread of the updates $BA$", ("V",), True),
    (r"$V\,/\,\|\bar B\bar A\|$: relative spread", ("relative",), True),
    (r"$E_B$ and $E_A$ (dotted): spread of factors", ("E_B", "E_A"), False),
    (r"amplification: $V\,/\,\sqrt{E_A^2+E_B^2}$", ("amplification",), False),
    (r"$C$: cross term of $dB$ and $dA$", ("C",), False),
)


def groups(summary: Summary, run: Summary) -> dict[str, list[float]]:
    """The task's metric of every node on the common test set, by how it was trained, as far as that was run."""
    metric = metric_of(summary)
    found = {"alone": summary["baselines"]["alone"], "federated": [run], "pooled": summary["baselines"]["pooled"]}
    return {
        name: [metric.of(node) for node in candidate["nodes"]]
        for name, candidates in found.items()
        for candidate in candidates
        if candidate["rule"] == run["rule"]
    }


def evaluation(summary: Summary, style: Style) -> Figure:
    """Every node's metric on the common test set: before training, alone, federated, pooled; a panel per rule."""
    metric, runs = metric_of(summary), summary["runs"]
    colours = style.rule_colours(run["rule"] for run in runs)
    figure = Figure(figsize=(1.2 + 4.8 * len(runs), 4.4), layout="constrained")
    panels = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    for axes, run in zip(panels, runs, strict=True):
        before = metric.before(run["nodes"][0])  # the same start on all nodes
        shown = {"before": [before], **groups(summary, run)}
        axes.plot([0, len(shown)], [before, before], color=style.ink, linewidth=1, linestyle=(0, (4, 3)), alpha=0.6)
        for x, values in enumerate(shown.values()):
            colour = colours[run["rule"]] if x else style.ink
            axes.plot(x + _spread(values), values, "o", color=colour, markeredgecolor=style.paper, zorder=3)
            mean = _mean(values)
            axes.plot([x - 0.2, x + 0.2], [mean, mean], color=style.ink, linewidth=3, solid_capstyle="butt")
            side, away = ("left", 0.24) if x > 1 else ("right", -0.24)  # clear of the lines from alone to federated
            axes.text(x + away, mean, metric.text(mean), ha=side, va="center", fontweight="bold")
        if "alone" in shown:  # the same nodes in the same order: a line shows what the federation gave to each
            places = 1 + _spread(shown["alone"]), 2 + _spread(shown["federated"])
            ends = [shown["alone"], shown["federated"]]
            axes.plot(places, ends, color=colours[run["rule"]], linewidth=0.9, alpha=0.5)
        axes.set_title(plain(run["rule"]), color=colours[run["rule"]], fontweight="bold")
        axes.set_xticks(range(len(shown)), list(shown))
        axes.set_xlim(-0.8, len(shown) - 0.25)
        axes.grid(visible=False, axis="x")
    if metric.name == "perplexity":  # of which ratios count
        _logarithmic(panels[0])
    better = ", lower is better" if metric.lower_is_better else ""
    panels[0].set_ylabel(f"{plain(metric.name)} on {summary['test_rows']} common test rows{better}")
    return figure


def _spread(values: Sequence[float]) -> Values:
    """Places beside one another, so that nodes with the same figure can all be seen."""
    return np.linspace(-1, 1, len(values)) * DOTS_WIDTH if len(values) > 1 else np.zeros(1)


def consensus(summary: Summary, style: Style) -> Figure:
    """The measures of disagreement by round, before and after each mix, with all rules in each panel."""
    runs = summary["runs"]
    colours = style.rule_colours(run["rule"] for run in runs)
    figure = Figure(figsize=(11, 6.6), layout="constrained")
    panels = figure.subplots(2, 3, sharex=True)
    for axes, (title, measures, log) in zip(panels.flat, CONSENSUS_PANELS, strict=True):
        for run in runs:
            for measure, line in zip(measures, ("-", ":"), strict=False):
                _before_and_after(axes, run["consensus_by_round"], measure, line, colours[run["rule"]])
        axes.set_title(title)
        _scale(axes, log)
    for axes in panels[1]:
        axes.set_xlabel("round")
    handles = [Line2D([], [], color=colours[run["rule"]], linewidth=4, label=plain(run["rule"])) for run in runs]
    handles.append(Line2D([], [], color=style.ink, linewidth=1, alpha=0.5, marker=".", label="before the mix"))
    handles.append(Line2D([], [], color=style.ink, linewidth=2.2, marker="o", markersize=4, label="after the mix"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


def _before_and_after(axes: Axes, entries: list[Summary], measure: str, line: str, colour: str) -> None:
    rounds = [entry["round"] for entry in entries]
    before, after = (_array(entry[side][measure] for entry in entries) for side in ("before", "after"))
    axes.fill_between(rounds, before, after, color=colour, alpha=0.1, linewidth=0)
    axes.plot(rounds, before, line, color=colour, linewidth=1, alpha=0.5, marker=".", markersize=4)
    axes.plot(rounds, after, line, color=colour, linewidth=2.2, marker="o", markersize=3.5)


def _scale(axes: Axes, log: bool) -> None:
    """A logarithmic axis where that shows more, and otherwise one from zero."""
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines])
    values = values[np.isfinite(values)]
    top, bottom = np.max(values, initial=0.0), np.min(values, initial=math.inf)
    if log and top * LOG_FLOOR < bottom < top / LOG_FROM:
        _logarithmic(axes)
        axes.set_ylim(0.7 * bottom, 1.4 * top)
    else:
        axes.set_ylim(0, 1.08 * top or 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _logarithmic(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def training(summary: Summary, style: Style) -> Figure:
    """Training loss and held-out metric by round, node by node, with their mean; a column per rule."""
    name, runs = metric_of(summary).name, summary["runs"]
    colours = style.rule_colours(run["rule"] for run in runs)
    figure = Figure(figsize=(1.6 + 4.6 * len(runs), 6.4), layout="constrained")
    panels = figure.subplots(2, len(runs), sharex=True, sharey="row", squeeze=False)
    for (losses, evaluations), run in zip(panels.T, runs, strict=True):
        _curves(losses, [_points(node["history"], "loss") for node in run["nodes"]], style)
        _curves(evaluations, [_points(node["evaluations"], name) for node in run["nodes"]], style)
        losses.set_title(plain(run["rule"]), color=colours[run["rule"]], fontweight="bold")
        evaluations.set_xlabel("round")
    panels[0, 0].set_ylim(bottom=0)  # of the whole row, when all of its curves are there
    panels[0, 0].set_ylabel("training loss")
    panels[1, 0].set_ylabel(f"{plain(name)} on own held-out rows")
    handles = [Line2D([], [], color=style.ink, linewidth=2.8, label="mean")]
    nodes = runs[0]["nodes"]
    if len(nodes) <= LEGEND_NODES:
        shades = style.node_shades(len(nodes))
        handles += [Line2D([], [], color=s, label=plain(n["name"])) for n, s in zip(nodes, shades, strict=True)]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 3 * len(runs)))
    return figure


def _points(entries: list[Summary], key: str) -> dict[int, float | None]:
    return {entry["round"]: entry.get(key) for entry in entries}


def _curves(axes: Axes, curves: list[dict[int, float | None]], style: Style) -> None:
    """A thin line per node and a thick one for their mean."""
    for points, shade in zip(curves, style.node_shades(len(curves)), strict=True):
        axes.plot(list(points), _array(points.values()), _line(points), color=shade, linewidth=1.3, markersize=4)
    rounds = sorted({round_ for points in curves for round_ in points})
    means = [_mean(points.get(round_) for points in curves) for round_ in rounds]
    axes.plot(rounds, means, _line(rounds), color=style.ink, linewidth=2.8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if not rounds:
        axes.text(0.5, 0.5, "nothing recorded", transform=axes.transAxes, ha="center", va="center")


def _line(points: Iterable[int]) -> str:
    return "o-" if len(list(points)) < FEW_POINTS else "-"


def topology(summary: Summary, style: Style) -> Figure:
    """Who mixes with whom, each node's classes as a pie, and its metric under each rule."""
    metric, runs = metric_of(summary), summary["runs"]
    nodes = runs[0]["nodes"]
    colours = style.rule_colours(run["rule"] for run in runs)
    graph = graph_of([(i, j) for i, j in runs[0]["edges"]], len(nodes))
    places, radius = _layout(graph), min(0.19, 1.4 / len(nodes))
    labels = _label_colours([label for node in nodes for label in node["class_counts"]])
    figure = Figure(figsize=(8.4, 6.4), layout="constrained")
    axes = figure.subplots()
    _edges(axes, graph, places, style)
    for i, node in enumerate(nodes):
        _pie(axes, places[i], radius, node["class_counts"], labels, style)
        lines = [(plain(node["name"]), style.ink)]
        for run in runs if len(nodes) <= LEGEND_NODES else []:
            lines.append((f"{plain(run['rule'])} {metric.text(metric.of(run['nodes'][i]))}", colours[run["rule"]]))
        _write_beside(axes, places[i], radius, lines)
    handles = [Patch(facecolor=colour, label=plain(label)) for label, colour in labels.items()]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5))
    axes.set_aspect("equal")
    axes.set_xlim(-2.0, 2.0)
    axes.set_ylim(-1.6, 1.6)
    axes.axis("off")
    return figure


def _layout(graph: "nx.Graph[int]") -> dict[int, Values]:
    """Places on the unit circle, clockwise from the top; small trees, such as stars, as they grow."""
    n = graph.number_of_nodes()
    if 2 < n <= LEGEND_NODES and nx.is_tree(graph):
        places: dict[int, Values] = nx.spring_layout(graph, seed=1)
        return places
    angles = math.pi / 2 - 2 * math.pi * np.arange(n) / n
    return {i: np.array([math.cos(angle), math.sin(angle)]) for i, angle in enumerate(angles)}


def _edges(axes: Axes, graph: "nx.Graph[int]", places: dict[int, Values], style: Style) -> None:
    """Lines as wide as their mixing weight, which is written on them where there is room."""
    weights = metropolis_matrix(graph)
    box = {"facecolor": style.paper, "edgecolor": "none", "pad": 1.5}
    for i, j in graph.edges:
        x, y = zip(places[i], places[j], strict=True)
        axes.plot(x, y, color=style.ink, alpha=0.4, linewidth=1 + 5 * weights[i, j], zorder=1)
        if graph.number_of_edges() <= LEGEND_NODES:
            weight = f"{weights[i, j]:.2f}"
            axes.text(sum(x) / 2, sum(y) / 2, weight, ha="center", va="center", bbox=box, fontsize=9.5)


def _label_colours(labels: Sequence[str]) -> dict[str, str]:
    """Colours of class labels; where there are more labels than colours, the last ones share one."""
    names = list(dict.fromkeys(labels))
    if len(names) <= len(LABELS):
        return dict(zip(names, LABELS, strict=False))
    return {**dict(zip(names, LABELS[:-1], strict=False)), "other classes": OTHER_LABELS}


def _pie(
    axes: Axes, place: Values, radius: float, counts: dict[str, int], labels: dict[str, str], style: Style
) -> None:
    centre, angle, rows = (float(place[0]), float(place[1])), 90.0, sum(counts.values()) or 1
    axes.add_patch(Wedge(centre, radius, 0, 360, facecolor=OTHER_LABELS, zorder=2))
    for label, colour in labels.items():
        turn = 360 * counts.get(label, 0) / rows
        axes.add_patch(Wedge(centre, radius, angle - turn, angle, facecolor=colour, zorder=3))
        angle -= turn
    axes.add_patch(Wedge(centre, radius, 0, 360, facecolor="none", edgecolor=style.ink, zorder=4))


def _write_beside(axes: Axes, place: Values, radius: float, lines: list[tuple[str, str]]) -> None:
    """The lines under one another, on the side of the node that looks away from the middle."""
    out = place / (np.linalg.norm(place) or 1)
    x, y = place + out * (radius + 0.09)
    side = "left" if out[0] > 0.25 else "right" if out[0] < -0.25 else "center"
    pitch = 14.0  # points
    top = pitch * (len(lines) - 1) / 2 * (1 + out[1])
    for number, (text, colour) in enumerate(lines):
        weight = "normal" if number else "bold"
        below = (0, top - pitch * number)
        axes.annotate(text, (x, y), below, "data", "offset points", color=colour, ha=side, va="center", weight=weight)


def _array(values: Iterable[float | None]) -> Values:
    """Figures that were not finite are null in a summary; they become gaps."""
    return np.array([math.nan if value is None else value for value in values], float)


def _mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else math.nan
