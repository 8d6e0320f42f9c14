"""What a testbed's summary says, in sentences: each is computed from its figures, and says no more than they do."""

import math
from pathlib import PurePath

from conlora.core.rules import RULES
from conlora.testbed.metric import Metric, metric_of
from conlora.testbed.plot_style import Summary
from conlora.testbed.plots import groups

NOTHING = "–"
NOTABLE = 0.05  # relative difference of two figures whose sampling error is not known
ROUNDING = 1e-9  # errors this small are those of the arithmetic


def what_was_run(summary: Summary) -> str:
    """The set-up in a few sentences."""
    spec, run = summary["spec"], summary["runs"][0]
    nodes, training = run["nodes"], spec["training"]
    rows = sorted({node["rows"] for node in nodes})
    share = f"{rows[0]} rows" if len(rows) == 1 else f"{rows[0]} to {rows[-1]} rows"
    base = spec["model"]["base"]
    base = PurePath(base).name if PurePath(base).is_absolute() else base
    names = [entry["rule"] for entry in summary["runs"]]
    rules = f"with the rule {names[0]}" if len(names) == 1 else f"once with each of the rules {_listed(names)}"
    pace = "each at its own pace" if run["mode"] == "async" else "in lockstep"
    text = (
        f"{_count(len(nodes), 'node')} ({_topology(run)}) fine-tuned adapters for {base}, each on {share} of its own, for "
        f"{_count(training['rounds'], 'round')} of {_count(training['local_steps'], 'local step')}, {pace}; {rules}. "
    )
    baselines = []
    if summary["baselines"]["alone"]:
        baselines.append("the same nodes without neighbours (alone)")
    if summary["baselines"]["pooled"]:
        baselines.append("a single node that has everybody's rows (pooled)")
    if baselines:
        text += f"For comparison, the same was done with {_listed(baselines)}. "
    return text + (
        f"Afterwards each exported adapter was loaded again and evaluated on the same {summary['test_rows']} test rows, "
        "which nobody had trained on."
    )


def findings(summary: Summary) -> list[str]:
    """What the figures say: about each rule, about rules among themselves, about consensus."""
    said = [_reached(summary, run) for run in summary["runs"]]
    if len(summary["runs"]) > 1:
        said.append(_rules_compared(summary))
    if len(summary["runs"][0]["nodes"]) > 1:
        said += [sentence for run in summary["runs"] if (sentence := _disagreement(run))]
        said += _disagreement_compared(summary)
    return said


def _reached(summary: Summary, run: Summary) -> str:
    metric, by_group = metric_of(summary), groups(summary, run)
    federated = by_group["federated"]
    text = f"With {run['rule']}, nodes reach {metric.article} of {_mean_and_worst(metric, federated)}"
    if alone := by_group.get("alone"):
        text += f", against {_mean_and_worst(metric, alone)} alone"
    if pooled := by_group.get("pooled"):
        text += f"; pooled training reaches {metric.text(mean(pooled))}"
    text += f". All of them start at {metric.text(metric.before(run['nodes'][0]))}."
    if alone:
        better = sum(metric.better(after, before) for before, after in zip(alone, federated, strict=True))
        which = f"All {better}" if better == len(federated) else f"{better} of {len(federated)}"
        text += f" {which} nodes do better in the federation than alone"
        if pooled and metric.better(mean(pooled), mean(alone)) and _apart(summary, mean(pooled), mean(alone)):
            way = (mean(federated) - mean(alone)) / (mean(pooled) - mean(alone))
            text += f", and on average it takes them {way:.0%} of the way from alone to pooled"
        text += "."
    return text


def _mean_and_worst(metric: Metric, values: list[float]) -> str:
    bound = "at most" if metric.lower_is_better else "at least"
    return f"{metric.text(mean(values))} on average and {metric.text(metric.worst(values))} {bound}"


def _apart(summary: Summary, one: float, other: float) -> bool:
    """Whether two means differ by more than the choice of test rows may explain, as far as that is known."""
    error = standard_error(summary)
    return abs(one - other) > (NOTABLE * abs(other) if error is None else 2 * error)


def _rules_compared(summary: Summary) -> str:
    metric, error = metric_of(summary), standard_error(summary)
    means = {run["rule"]: mean(groups(summary, run)["federated"]) for run in summary["runs"]}
    worst, *_, best = sorted(means, key=means.__getitem__, reverse=metric.lower_is_better)
    text = (
        f"Between {best} and {worst} the mean {metric.name} differs by {metric.text(abs(means[best] - means[worst]))}"
    )
    if error is not None:
        verdict = "more than" if _apart(summary, means[best], means[worst]) else "no more than"
        text += (
            f", {verdict} the choice of test rows may explain (the standard error of {metric.article} on "
            f"{summary['test_rows']} rows is about {error:.3f})"
        )
    return text + "; how much chance in training matters, a single run can't tell."


def _disagreement(run: Summary) -> str | None:
    last = run["consensus"]
    if any(last[key] is None for key in ("V", "C", "relative", "amplification")):
        return f"With {run['rule']}, consensus figures grew beyond all bounds: training diverged."
    if last["V"] < ROUNDING:
        return f"With {run['rule']}, all nodes hold the same update after the last mix."
    cross = "There is no cross term." if last["C"] < ROUNDING else f"The cross term C is {figure(last['C'])}."
    return (
        f"With {run['rule']}, the nodes' updates BA lie {figure(last['V'])} (V) from their mean after the last mix, "
        f"{last['relative']:.1%} of the update itself. Each unit of disagreement in the factors shows as "
        f"{figure(last['amplification'])} in the product. {cross}"
    )


def _disagreement_compared(summary: Summary) -> list[str]:
    """The rule with the larger absolute error need not have the larger relative one; the report has to say which is so."""
    runs = [run for run in summary["runs"] if run["consensus"]["D"] and run["consensus"]["relative"]]
    if len(runs) < 2:
        return []
    most = max(runs, key=lambda run: run["consensus"]["D"])
    least = min(runs, key=lambda run: run["consensus"]["D"])
    absolute = most["consensus"]["D"] / least["consensus"]["D"]
    relative = most["consensus"]["relative"] / least["consensus"]["relative"]
    text = f"The literature's error D is {absolute:.3g} times as large with {most['rule']} as with {least['rule']}. "
    if relative >= 1:
        return [text + f"Relative to the size of the update, the spread V is {relative:.3g} times as large."]
    text += f"Relative to the size of the update it is the other way round: {least['rule']} has the larger spread V."
    return [text]


def caveats(summary: Summary) -> list[str]:
    """What to keep in mind when reading the figures."""
    run, rates = summary["runs"][0], {entry["rule"]: learning_rate(summary, entry["rule"]) for entry in summary["runs"]}
    told = []
    if len(rates) > 1:
        listed = _listed([f"{rule} {NOTHING if rate is None else f'{rate:g}'}" for rule, rate in rates.items()])
        told.append(
            f"Rules train at their own learning rates ({listed}), because frozen A needs larger steps; whether each is the "
            "best for these data was not searched."
            if len(set(rates.values())) > 1
            else f"All rules train at the same learning rate ({listed}), though frozen A usually needs larger steps."
        )
    once = f"This is one run with one seed ({run['seed']}). Repeat it with others before you rely on a difference"
    if (error := standard_error(summary)) is not None:
        name = metric_of(summary).article
        once += f"; on {summary['test_rows']} test rows, {name} has a standard error of about {error:.3f}"
    told.append(f"{once}.")
    if run["mode"] == "async":
        told.append(
            "Nodes do not wait for one another. Curves align them by round number, not by time: one node's round 10 may "
            "be over before another's begins, and a mix uses whatever neighbours had sent by then."
        )
    told.append(
        "D, V, E and C are absolute: a rule that learns smaller updates has smaller errors for that reason alone. That is "
        "why the relative spread stands beside them."
    )
    if summary["baselines"]["pooled"]:
        told.append(
            f"Pooled training took as many optimizer steps as a node, with {len(run['nodes'])} times the rows in each: it "
            "has seen as much as the whole federation, and each node alone only its part of that."
        )
    told.append("All nodes shared one machine, so times say little about nodes that have one each.")
    return told


def learning_rate(summary: Summary, rule: str) -> float | None:
    """The rate that a rule's runs used; None for a rule that this version does not know."""
    spec = summary["spec"]
    default = RULES[rule].default_learning_rate if rule in RULES else None
    rate: float | None = spec.get("learning_rates", {}).get(rule) or spec["training"].get("learning_rate") or default
    return rate


def standard_error(summary: Summary) -> float | None:
    """Of one accuracy on the test rows, as far as their choice goes: binomial, at the mean of all; None for other metrics."""
    if not metric_of(summary).is_share:
        return None
    share = mean([value for run in summary["runs"] for value in groups(summary, run)["federated"]])
    return math.sqrt(share * (1 - share) / summary["test_rows"])


def mean(values: list[float]) -> float:
    """Arithmetic mean of at least one value."""
    return sum(values) / len(values)


def figure(value: float | None) -> str:
    """Three significant digits; zero but for rounding is zero; figures that were not finite are null in a summary."""
    if value is None:
        return NOTHING
    return f"{value:.3g}" if value >= ROUNDING else "0"


def _topology(run: Summary) -> str:
    edges = _count(len(run["edges"]), "edge")
    return f"own graph, {edges}" if run["topology"] == "custom" else f"{run['topology']}, {edges}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
