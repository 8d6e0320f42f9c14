"""The figures of a study, each as PNG and as SVG: consensus error against topology and round, the task's metric, other axes."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from conlora.testbed.metric import Metric
from conlora.testbed.plot_style import LIGHT, plain
from conlora.testbed.study import REFERENCE, SETTING, Group, Interval, Study, late, score

DPI = 200
BASE = "T1"  # what other topologies are compared with: the ring
AT_THE_END = "at the end: after mixing, over the last quarter of the rounds"  # see `conlora.testbed.study.late`
LABEL_OF = {"partition": "partition", "rank": "rank r", "mode": "mode", "rate": "learning rate"}
SHORT = {"rank": "r{}", "rate": "lr{:g}"}  # in names of files
LONG = {"rank": "rank {}", "rate": "learning rate {:g}"}  # in titles
CAPS: dict[str, Any] = {"capsize": 3, "ecolor": LIGHT.ink, "error_kw": {"elinewidth": 1.1}}


def write_figures(study: Study, directory: Path) -> list[Path]:
    """Draws everything that the grid has cells for; returns the files."""
    directory.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for setting in study.settings:
        part = study.within(setting)
        suffix = "-".join(SHORT.get(axis, "{}").format(value) for axis, value in setting.items() if value is not None)
        if len(part.values("topology")) > 1:
            written += _save(partial(against_topology, part), directory / f"consensus-by-topology-{suffix}")
        written += _save(partial(against_round, part), directory / f"consensus-by-round-{suffix}")
    written += _save(partial(scores, study), directory / "evaluation")
    for axis in SETTING:
        if len(study.values(axis)) > 1:
            written += _save(partial(against_axis, study, axis), directory / f"consensus-by-{axis}")
    return written


def _save(figure: Callable[[], Figure], stem: Path) -> list[Path]:
    settings: dict[Any, Any] = {**LIGHT.settings, "svg.fonttype": "none", "svg.hashsalt": "conlora"}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        drawn = figure()
        files = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg")]
        for file in files:
            drawn.savefig(file, dpi=DPI, metadata={"Date": None} if file.suffix == ".svg" else None)
    return files


def against_topology(study: Study) -> Figure:
    """D and the relative spread by topology, and D beside the reference's fall and the one that `s` predicts."""
    figure = Figure(figsize=(12.5, 4.3), layout="constrained")
    absolute, relative, fall = figure.subplots(1, 3)
    _bars(absolute, study, lambda group: group.late("D"))
    absolute.set_title(r"$D$ at the end")
    _bars(relative, study, lambda group: group.late("relative"))
    relative.set_title(r"$V\,/\,\|\bar B\bar A\|$ at the end")
    _fall(fall, study)
    colours = LIGHT.rule_colours(study.values("rule"))
    handles: list[Any] = [Patch(color=colours[rule], label=plain(rule)) for rule in study.values("rule")]
    n = max(len(group.results) for group in study.groups)
    bars = "one seed" if n == 1 else f"mean and 95 % confidence interval, {n} seeds"
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), title=f"{bars}; {AT_THE_END}")
    return figure


def _bars(axes: Axes, study: Study, value: Callable[[Group], Interval]) -> None:
    """A group of bars for each topology, a bar for each rule."""
    topologies, rules = study.values("topology"), study.values("rule")
    colours = LIGHT.rule_colours(rules)
    width = 0.8 / len(rules)
    for i, rule in enumerate(rules):
        found = {group.axes["topology"]: value(group) for group in study.groups if group.axes["rule"] == rule}
        places = [x for x, topology in enumerate(topologies) if topology in found]
        intervals = [found[topologies[x]] for x in places]
        axes.bar(
            np.array(places) + (i - (len(rules) - 1) / 2) * width,
            [interval.mean for interval in intervals],
            width * 0.92,
            yerr=_halves(intervals),
            color=colours[rule],
            **CAPS,
        )
    axes.set_xticks(range(len(topologies)), topologies)
    axes.grid(visible=False, axis="x")
    axes.set_ylim(bottom=0)


def _fall(axes: Axes, study: Study) -> None:
    """D of each topology as a share of the ring's: ours, the reference's, and what `s` predicts."""
    rules, colours = study.values("rule"), LIGHT.rule_colours(study.values("rule"))
    topologies = [t for t in study.values("topology") if t in REFERENCE["lora"]]
    axes.set_title(rf"$D$ as a share of that on {BASE}")
    if BASE not in topologies:
        axes.text(0.5, 0.5, f"the grid has no {BASE}", ha="center", transform=axes.transAxes)
        return
    s = {r["topology"]: r["s"] for r in study.results}
    places = range(len(topologies))
    axes.plot(places, [s[t] / s[BASE] for t in topologies], color=LIGHT.ink, linewidth=1, linestyle="--", zorder=1)
    for i, rule in enumerate(rules):
        shares = [_shares(study, rule, topology) for topology in topologies]
        shift = (i - (len(rules) - 1) / 2) * 0.14
        at = [x + shift for x, values in zip(places, shares, strict=True) if values]
        found = [Interval.of(values) for values in shares if values]
        axes.errorbar(
            at, [f.mean for f in found], _halves(found), fmt="o", color=colours[rule], capsize=3, linewidth=1.3
        )
        if rule in REFERENCE:
            ours = [REFERENCE[rule][t] / REFERENCE[rule][BASE] for t in topologies]
            axes.plot([x + shift for x in places], ours, "D", color=colours[rule], fillstyle="none", markersize=7)
    axes.set_xticks(places, topologies)
    axes.set_ylim(bottom=0)
    marks = [
        Line2D([], [], color=LIGHT.ink, marker="o", linestyle="", label="this study"),
        Line2D([], [], color=LIGHT.ink, marker="D", fillstyle="none", linestyle="", label="reference"),
        Line2D([], [], color=LIGHT.ink, linestyle="--", linewidth=1, label=r"prediction of $s$"),
    ]
    axes.legend(handles=marks, loc="upper right")


def _shares(study: Study, rule: str, topology: str) -> list[float]:
    """D as a share of the ring's, seed by seed."""
    of_rule = Study(study.name, [result for result in study.results if result["rule"] == rule])
    if topology == BASE:
        return [1.0 for result in of_rule.results if result["topology"] == BASE]
    pairs = of_rule.pairs("topology", BASE, topology)
    return [late(other, "D") / late(ring, "D") for ring, other in pairs]


def _halves(intervals: Sequence[Interval]) -> list[float]:
    return [0.0 if np.isnan(interval.half) else interval.half for interval in intervals]


def against_round(study: Study) -> Figure:
    """D (top) and the relative spread (bottom) after each mix; a column for each topology, bands over seeds."""
    topologies, rules = study.values("topology"), study.values("rule")
    colours = LIGHT.rule_colours(rules)
    figure = Figure(figsize=(1.2 + 2.5 * len(topologies), 5.4), layout="constrained")
    panels = figure.subplots(2, len(topologies), sharex=True, sharey="row", squeeze=False)
    for column, topology in zip(panels.T, topologies, strict=True):
        for group in study.groups:
            if group.axes["topology"] == topology:
                for axes, name in zip(column, ("D", "relative"), strict=True):
                    _band(axes, group, name, colours[group.axes["rule"]])
        column[0].set_title(plain(topology))
        column[1].set_xlabel("round")
    panels[0, 0].set_ylabel(r"$D$ after the mix")
    panels[1, 0].set_ylabel(r"$V\,/\,\|\bar B\bar A\|$ after the mix")
    panels[0, 0].set_ylim(bottom=0)
    panels[1, 0].set_ylim(bottom=0, top=_readable_top(study))
    handles = [Line2D([], [], color=colours[rule], linewidth=3, label=plain(rule)) for rule in rules]
    figure.legend(
        handles=handles, loc="outside upper center", ncols=len(handles), title="mean, lowest and highest seed"
    )
    return figure


def _band(axes: Axes, group: Group, name: str, colour: str) -> None:
    rounds = [entry["round"] for entry in group.results[0]["consensus_by_round"]]
    curves: NDArray[np.float64] = np.array(
        [[entry["after"][name] for entry in result["consensus_by_round"]] for result in group.results], float
    )
    axes.fill_between(rounds, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.18, linewidth=0)
    axes.plot(rounds, curves.mean(axis=0), color=colour, linewidth=2)


def _readable_top(study: Study) -> float:
    """The first rounds divide by an update that is hardly there: the axis ends above what most rounds show."""
    values = [e["after"]["relative"] for r in study.results for e in r["consensus_by_round"] if e["after"]["relative"]]
    return 1.1 * float(np.quantile(values, 0.9)) if values else 1.0


def scores(study: Study) -> Figure:
    """Heat maps of the task's metric on the common test rows, mean over nodes and seeds: rules by topologies."""
    settings = study.settings
    rules, topologies = study.values("rule"), study.values("topology")
    figure = Figure(
        figsize=(2.2 + 1.15 * len(topologies), 1.0 + (0.9 + 0.62 * len(rules)) * len(settings)), layout="constrained"
    )
    panels = figure.subplots(len(settings), 1, squeeze=False)[:, 0]
    everything = [score(result) for result in study.results]
    low, high = min(everything), max(everything)
    image = None
    for axes, setting in zip(panels, settings, strict=True):
        found = {(g.axes["rule"], g.axes["topology"]): g.score for g in study.within(setting).groups}
        values = np.array([[found[r, t].mean if (r, t) in found else np.nan for t in topologies] for r in rules])
        image = axes.imshow(values, cmap="cividis", vmin=low, vmax=max(high, low + 1e-3), aspect="auto")
        for (y, x), value in np.ndenumerate(values):
            if not np.isnan(value):
                ink = "black" if value > (low + high) / 2 else "white"
                axes.text(
                    x,
                    y,
                    _brief(study.metric, found[rules[y], topologies[x]]),
                    ha="center",
                    va="center",
                    color=ink,
                    fontsize=9,
                )
        axes.set_xticks(range(len(topologies)), topologies)
        axes.set_yticks(range(len(rules)), [plain(rule) for rule in rules])
        axes.grid(visible=False)
        axes.set_title(
            ", ".join(LONG.get(axis, "{}").format(value) for axis, value in setting.items() if value is not None)
        )
    if image is not None:
        figure.colorbar(image, ax=list(panels), label=f"{study.metric.name} on common test rows")
    return figure


def _brief(metric: Metric, interval: Interval) -> str:
    return metric.text(interval.mean) + ("" if np.isnan(interval.half) else f"\n± {metric.text(interval.half)}")


def against_axis(study: Study, axis: str) -> Figure:
    """D, relative spread and the metric by partition, rank or mode, over the seeds and topologies that all values share."""
    values, rules = study.values(axis), study.values("rule")
    colours = LIGHT.rule_colours(rules)
    rest = [a for a in ("topology", *SETTING, "seed") if a != axis]
    common = set.intersection(*({tuple(r[a] for a in rest) for r in study.results if r[axis] == v} for v in values))
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    panels = figure.subplots(1, 3)
    figures: tuple[tuple[str, Callable[[Any], float]], ...] = (
        (r"$D$ at the end", lambda r: late(r, "D")),
        (r"$V\,/\,\|\bar B\bar A\|$ at the end", lambda r: late(r, "relative")),
        (study.metric.name, score),
    )
    width = 0.8 / len(rules)
    for axes, (title, figure_of) in zip(panels, figures, strict=True):
        for i, rule in enumerate(rules):
            cells = [
                [r for r in study.results if r["rule"] == rule and r[axis] == v and tuple(r[a] for a in rest) in common]
                for v in values
            ]
            intervals = [Interval.of([figure_of(r) for r in c]) if c else Interval(np.nan, np.nan, 0) for c in cells]
            places = np.arange(len(values)) + (i - (len(rules) - 1) / 2) * width
            means = [interval.mean for interval in intervals]
            axes.bar(places, means, width * 0.92, yerr=_halves(intervals), color=colours[rule], **CAPS)
        axes.set_title(title)
        axes.set_xticks(range(len(values)), [plain(str(v)) for v in values])
        axes.set_xlabel(LABEL_OF[axis])
        axes.grid(visible=False, axis="x")
    if study.metric.is_share:
        panels[2].set_ylim(0, 1)
    handles = [Patch(color=colours[rule], label=plain(rule)) for rule in rules]
    topologies = ", ".join(dict.fromkeys(str(key[0]) for key in sorted(common, key=str)))
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=len(handles),
        title=f"on {topologies}, mean and 95 % confidence interval; {AT_THE_END}",
    )
    return figure
