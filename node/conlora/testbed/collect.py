"""Takes a compose testbed's results home: waits for the end, fetches adapters, evaluates them, and writes a run's report."""

import shutil
import time
from collections.abc import Sequence

from rich.console import Console

from conlora.store.history import History
from conlora.testbed.compose import TEST_FILE, ComposeTestbed
from conlora.testbed.containers import Containers
from conlora.testbed.federation import trained_in
from conlora.testbed.layout import NodeSetup, environment
from conlora.testbed.measuring import describe_federation, evaluate
from conlora.testbed.processes import Interrupts
from conlora.testbed.progress import Progress
from conlora.testbed.report import write_report
from conlora.testbed.summary import json_ready, new_summary, result_tables, write_summary

LOOK_SECONDS = 3.0  # between two looks at the nodes, each of which starts a process in every container


def collect(testbed: ComposeTestbed, console: Console) -> None:
    """Fills the testbed's directory with what `testbed run` writes for one rule, and prints the same tables.

    The nodes go on as they are. Raises ConLoRAError subclasses, and KeyboardInterrupt where it is interrupted.
    """
    spec, directory = testbed.spec, testbed.directory
    containers = Containers(testbed)
    with Interrupts() as interrupts, Progress(console, 1) as progress:
        progress.begin(f"{testbed.rule}, in containers")
        statuses = containers.statuses()
        while not all(status is not None and status.state == "finished" for status in statuses.values()):
            progress.show("training", statuses)
            interrupts.check()
            time.sleep(LOOK_SECONDS)
            statuses = containers.statuses()
        for setup in testbed.setups:
            progress.show(f"fetching the adapter of {setup.name}", statuses)
            containers.fetch(setup)
            interrupts.check()
        trained = trained_in(_seconds(testbed.setups), list(statuses.values()))
        progress.end(f"trained in {trained.seconds:.0f} s")
        progress.show("evaluating on the common test rows")
        scratch = directory / f"evaluation-{testbed.rule}"
        shutil.rmtree(scratch, ignore_errors=True)  # of an earlier time
        evaluation = evaluate(testbed.setups, scratch, directory / TEST_FILE, environment(spec), interrupts)
        summary = new_summary(spec, spec.data.test_rows) | {"metric": evaluation["metric"]}
        summary["runs"].append(
            describe_federation(spec, testbed.rule, trained, testbed.setups, evaluation, directory, interrupts)
        )
        write_summary(summary, directory)
        progress.show("writing the report")
        write_report(json_ready(summary), directory)
    for table in result_tables(summary):
        console.print(table)
    console.print(f"report: {directory / 'report.html'}", highlight=False, soft_wrap=True)


def _seconds(setups: Sequence[NodeSetup]) -> float:
    """From the first node's first step to the last node's last."""
    begun, ended = [], []
    for setup in setups:
        with History(setup.state / "history.db") as history:
            rounds = history.rows("rounds")
        begun.append(rounds[0]["time"] - rounds[0]["seconds"])
        ended.append(rounds[-1]["time"])
    return float(max(ended) - min(begun))
