"""What a testbed's summary says, in sentences: each is computed from its figures, and says no more than they do."""

import math
from pathlib import PurePath

from conlora.core.rules import RULES
from conlora.testbed.plot_style import Summary
from conlora.testbed.plots import groups

NOTHING = "–"
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
    said = [_accuracy(summary, run) for run in summary["runs"]]
    if len(summary["runs"]) > 1:
        said.append(_rules_compared(summary))
    if len(summary["runs"][0]["nodes"]) > 1:
        said += [sentence for run in summary["runs"] if (sentence := _disagreement(run))]
        said += _disagreement_compared(summary)
    return said


def _accuracy(summary: Summary, run: Summary) -> str:
    by_group = groups(summary, run)
    federated = by_group["federated"]
    text = f"With {run['rule']}, nodes reach an accuracy of {mean(federated):.3f} on average and {min(federated):.3f} at least"
    if alone := by_group.get("alone"):
        text += f", against {mean(alone):.3f} and {min(alone):.3f} alone"
    if pooled := by_group.get("pooled"):
        text += f"; pooled training reaches {mean(pooled):.3f}"
    text += f". All of them start at {run['nodes'][0]['accuracy_before']:.3f}."
    if alone:
        better = sum(after > before for before, after in zip(alone, federated, strict=True))
        which = f"All {better}" if better == len(federated) else f"{better} of {len(federated)}"
        text += f" {which} nodes do better in the federation than alone"
        if pooled and mean(pooled) - mean(alone) > 2 * standard_error(summary):
            way = (mean(federated) - mean(alone)) / (mean(pooled) - mean(alone))
            text += f", and on average it takes them {way:.0%} of the way from alone to pooled"
        text += "."
    return text


def _rules_compared(summary: Summary) -> str:
    means = {run["rule"]: mean(groups(summary, run)["federated"]) for run in summary["runs"]}
    worst, *_, best = sorted(means, key=means.__getitem__)
    gap, error = means[best] - means[worst], standard_error(summary)
    verdict = "no more than" if gap < 2 * error else "more than"
    return (
        f"Between {best} and {worst} the mean accuracy differs by {gap:.3f}, {verdict} the choice of test rows "
        f"may explain (the standard error of an accuracy on {summary['test_rows']} rows is about {error:.3f}); how much "
        "chance in training matters, a single run can't tell."
    )


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
    told.append(
        f"This is one run with one seed ({run['seed']}). Repeat it with others before you rely on a difference; on "
        f"{summary['test_rows']} test rows, an accuracy has a standard error of about {standard_error(summary):.3f}."
    )
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


def standard_error(summary: Summary) -> float:
    """Of one accuracy on the test rows, as far as their choice goes: binomial, at the mean of all accuracies."""
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
