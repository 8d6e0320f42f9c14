"""A whole testbed: deal out the data, run every rule and its baselines, measure, summarise, report."""

import datetime
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from conlora.core.topology import named_graph, spectrum
from conlora.errors import ConfigError, StateError
from conlora.testbed.data import Deal, deal, write_rows
from conlora.testbed.federation import run_federation
from conlora.testbed.layout import RunPlan, environment, lay_out
from conlora.testbed.measuring import consensus_by_round, describe_nodes, evaluate
from conlora.testbed.processes import Interrupts
from conlora.testbed.progress import Progress
from conlora.testbed.report import write_report
from conlora.testbed.spec import TestbedSpec
from conlora.testbed.summary import SUMMARY_FILE, json_ready, result_tables, versions, write_summary

SPEC_FILE = "spec.yaml"
SPEC_HEADING = "# What `conlora testbed run` ran to fill this directory.\n"


def run_testbed(spec: TestbedSpec, output: Path, overwrite: bool, keep: list[Path], console: Console) -> None:
    """Runs everything that the specification asks for; `output`, `overwrite` and `keep` as in `prepare_output`.

    Raises ConLoRAError subclasses, and KeyboardInterrupt on SIGINT, SIGTERM or SIGHUP; no process is left either way.
    """
    dealt = deal(spec)
    prepare_output(output, overwrite, keep)
    test = output / "test.csv"
    write_rows(test, dealt.test, spec.task)
    (output / SPEC_FILE).write_text(
        SPEC_HEADING + yaml.safe_dump(spec.to_json(), sort_keys=False, allow_unicode=True), encoding="utf-8"
    )
    summary: dict[str, Any] = {
        "name": spec.name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "spec": spec.to_json(),
        "test_rows": len(dealt.test),
        "runs": [],
        "baselines": {"alone": [], "pooled": []},
    }
    plans = [plan for rule in spec.rules for plan in _plans(spec, rule, dealt, output)]
    with Interrupts() as interrupts, Progress(console, len(plans)) as progress:
        for plan in plans:
            progress.begin(plan.title)
            result = _run(spec, plan, test, output, progress, interrupts)
            progress.end(f"trained in {result['seconds']:.0f} s")
            destination = summary["runs"] if plan.kind == "federated" else summary["baselines"][plan.kind]
            destination.append(result)
            write_summary(summary, output)  # after each run: a later failure does not take this one's result away
        progress.show("writing the report")
        write_report(json_ready(summary), output)
    for table in result_tables(summary):
        console.print(table)
    console.print(f"report: {output / 'report.html'}", highlight=False, soft_wrap=True)


def _plans(spec: TestbedSpec, rule: str, dealt: Deal, output: Path) -> list[RunPlan]:
    """The federation's run of one rule, and the baselines that were asked for."""
    shares = dict(zip(spec.names, dealt.shares, strict=True))
    everything = [row for share in dealt.shares for row in share]
    topology = spec.topology or f"{spec.graph.number_of_edges()} edges"
    plans = [RunPlan("federated", f"{rule}, {topology}", rule, output / rule, shares, spec.graph)]
    if "alone" in spec.baselines:
        isolated = named_graph("isolated", spec.nodes)
        plans.append(RunPlan("alone", f"{rule}, each node alone", rule, output / "alone" / rule, shares, isolated))
    if "pooled" in spec.baselines:
        single = named_graph("isolated", 1)
        pool = {"pooled": everything}
        plans.append(RunPlan("pooled", f"{rule}, all rows pooled", rule, output / "pooled" / rule, pool, single))
    return plans


def _run(
    spec: TestbedSpec, plan: RunPlan, test: Path, output: Path, progress: Progress, interrupts: Interrupts
) -> dict[str, Any]:
    """One run from empty directories to its part of the summary."""
    env = environment(spec)
    with tempfile.TemporaryDirectory(prefix="conlora-") as sockets:  # a socket's path may have about 100 bytes
        setups = lay_out(spec, plan, Path(sockets))
        seconds = run_federation(setups, env, progress, interrupts)
    progress.show("evaluating on the common test rows")
    accuracy = evaluate(setups, plan.directory, test, env, interrupts)
    result = {"rule": plan.rule, "seconds": seconds, "nodes": describe_nodes(setups, accuracy, output)}
    if plan.kind != "federated":
        return result
    progress.show("measuring consensus error")
    measured = consensus_by_round(setups, interrupts)
    rho, s = spectrum(plan.graph)
    return result | {
        "topology": spec.topology or "custom",
        "mode": spec.mode.value,
        "seed": spec.seed,
        "rho": rho,
        "s": s,
        "edges": sorted([i + 1, j + 1] for i, j in plan.graph.edges),
        "consensus": measured[-1]["after"],
        "consensus_by_round": measured,
    }


def prepare_output(output: Path, overwrite: bool, keep: list[Path]) -> None:
    """Makes an empty directory for a testbed's results.

    With `overwrite`, an earlier testbed's directory is removed first, unless it holds one of `keep`.
    Raises ConfigError where the directory is in the way, StateError where it can't be made.
    """
    try:
        if output.exists() and not (output.is_dir() and not any(output.iterdir())):
            _remove_earlier(output, overwrite, keep)
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StateError(f"{output}: can't be written ({error}); choose a writable directory with -o") from error


def _remove_earlier(output: Path, overwrite: bool, keep: list[Path]) -> None:
    if not overwrite:
        raise ConfigError(
            f"{output}: is there already and no empty directory; choose another with -o, or pass --overwrite"
        )
    if output.is_symlink() or not _holds_testbed(output):
        raise ConfigError(f"{output}: holds something else than a testbed's results; choose another directory with -o")
    for path in keep:
        if path.resolve().is_relative_to(output.resolve()):
            raise ConfigError(f"{output}: holds {path}, so it is not removed; choose another directory with -o")
    shutil.rmtree(output)


def _holds_testbed(directory: Path) -> bool:
    """Whether a testbed filled this directory, or began to."""
    spec, summary = directory / SPEC_FILE, directory / SUMMARY_FILE
    if spec.is_file() and spec.read_text(encoding="utf-8", errors="replace").startswith(SPEC_HEADING):
        return True
    return summary.is_file() and '"consensus_by_round"' in summary.read_text(encoding="utf-8", errors="replace")
