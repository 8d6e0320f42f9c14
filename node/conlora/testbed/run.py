"""A whole testbed: deal out the data, run every rule and its baselines, measure, summarise, report."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from conlora.core.topology import named_graph
from conlora.errors import ConfigError, StateError
from conlora.files import filling
from conlora.testbed.data import Deal, deal
from conlora.testbed.federation import Trained, run_federation
from conlora.testbed.layout import NodeSetup, RunPlan, environment, lay_out
from conlora.testbed.measuring import describe_federation, describe_nodes, evaluate
from conlora.testbed.processes import Interrupts
from conlora.testbed.progress import Progress
from conlora.testbed.report import write_report
from conlora.testbed.spec import TestbedSpec
from conlora.testbed.summary import SUMMARY_FILE, json_ready, new_summary, result_tables, write_summary
from conlora.testbed.trainers import forkserver

SPEC_FILE = "spec.yaml"
SPEC_HEADING = "# What `conlora testbed run` ran to fill this directory.\n"


def run_testbed(spec: TestbedSpec, output: Path, overwrite: bool, keep: list[Path], console: Console) -> None:
    """Runs everything that the specification asks for; `output`, `overwrite` and `keep` as in `prepare_output`.

    Raises ConLoRAError subclasses, and KeyboardInterrupt on SIGINT, SIGTERM or SIGHUP; no process is left either way.
    """
    with tempfile.TemporaryDirectory(prefix="conlora-") as cache:
        dealt = deal(spec, Path(cache))
        prepare_output(output, overwrite, keep)
        with filling(output):
            _run_all(spec, dealt, output, console)


def _run_all(spec: TestbedSpec, dealt: Deal, output: Path, console: Console) -> None:
    test = output / "test.parquet"
    dealt.test.write(test)
    (output / SPEC_FILE).write_text(
        SPEC_HEADING + yaml.safe_dump(spec.to_json(), sort_keys=False, allow_unicode=True), encoding="utf-8"
    )
    summary = new_summary(spec, len(dealt.test))
    plans = {rule: _plans(spec, rule, dealt, output) for rule in spec.rules}
    with (
        Interrupts() as interrupts,
        Progress(console, sum(map(len, plans.values()))) as progress,
        forkserver(environment(spec), output / "forkserver.log", interrupts) as env,
    ):
        for rule in spec.rules:
            finished = [_run(spec, plan, env, progress, interrupts) for plan in plans[rule]]
            progress.show("evaluating on the common test rows")
            setups = [setup for run in finished for setup in run.setups]
            evaluation = evaluate(setups, output / f"evaluation-{rule}", test, env, interrupts)
            summary["metric"] = evaluation["metric"]
            for run in finished:
                kind = run.plan.kind
                destination = summary["runs"] if kind == "federated" else summary["baselines"][kind]
                destination.append(_result(spec, run, evaluation, output, interrupts))
            write_summary(summary, output)  # after each rule: a later failure does not take this one's results away
        progress.show("writing the report")
        write_report(json_ready(summary), output)
    for table in result_tables(summary):
        console.print(table)
    console.print(f"report: {output / 'report.html'}", highlight=False, soft_wrap=True)


def _plans(spec: TestbedSpec, rule: str, dealt: Deal, output: Path) -> list[RunPlan]:
    """The federation's run of one rule, and the baselines that were asked for."""
    shares = dict(zip(spec.names, dealt.shares, strict=True))
    topology = spec.topology or f"{spec.graph.number_of_edges()} edges"
    plans = [RunPlan("federated", f"{rule}, {topology}", rule, output / rule, shares, spec.graph)]
    if "alone" in spec.baselines:
        isolated = named_graph("isolated", spec.nodes)
        plans.append(RunPlan("alone", f"{rule}, each node alone", rule, output / "alone" / rule, shares, isolated))
    if "pooled" in spec.baselines:
        single = named_graph("isolated", 1)
        pool = {"pooled": dealt.pool}
        plans.append(RunPlan("pooled", f"{rule}, all rows pooled", rule, output / "pooled" / rule, pool, single))
    return plans


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run whose nodes have trained, exported and left."""

    plan: RunPlan
    setups: list[NodeSetup]
    trained: Trained


def _run(
    spec: TestbedSpec, plan: RunPlan, env: dict[str, str], progress: Progress, interrupts: Interrupts
) -> FinishedRun:
    """One run from empty directories to exported adapters."""
    progress.begin(plan.title)
    with tempfile.TemporaryDirectory(prefix="conlora-") as sockets:  # a socket's path may have about 100 bytes
        setups = lay_out(spec, plan, Path(sockets))
        trained = run_federation(setups, env, progress, interrupts)
    progress.end(f"trained in {trained.seconds:.0f} s")
    return FinishedRun(plan, setups, trained)


def _result(
    spec: TestbedSpec, run: FinishedRun, evaluation: dict[str, Any], output: Path, interrupts: Interrupts
) -> dict[str, Any]:
    """A run's part of the summary."""
    if run.plan.kind == "federated":
        return describe_federation(spec, run.plan.rule, run.trained, run.setups, evaluation, output, interrupts)
    nodes = describe_nodes(run.setups, evaluation, output)
    return {"rule": run.plan.rule, **run.trained.to_json(), "nodes": nodes}


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
