"""Runs a grid of testbeds, cell by cell: what is finished is kept, and the same command goes on where it was cut off."""

import datetime
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from conlora.errors import ConfigError, StateError
from conlora.files import filling
from conlora.store.history import History
from conlora.testbed.data import deal
from conlora.testbed.federation import run_federation
from conlora.testbed.grid import Cell, GridSpec
from conlora.testbed.layout import NodeSetup, RunPlan, environment, lay_out
from conlora.testbed.measuring import measure_run
from conlora.testbed.processes import Interrupts
from conlora.testbed.progress import Progress
from conlora.testbed.study import Study
from conlora.testbed.study_plots import write_figures
from conlora.testbed.study_tables import as_csv, as_markdown
from conlora.testbed.summary import json_ready, versions, write_json
from conlora.testbed.trainers import forkserver

GRID_FILE = "grid.yaml"
GRID_HEADING = "# What `conlora testbed compare` runs to fill this directory.\n"
CELLS, WORK = "cells", "work"


def compare(grid: GridSpec, cells: Sequence[Cell], output: Path, console: Console) -> Study:
    """Runs every cell that `output` has no result of, then writes figures and tables of all cells.

    Raises ConLoRAError subclasses, and KeyboardInterrupt on SIGINT, SIGTERM or SIGHUP; finished cells stay either way.
    """
    _prepare(grid, output)
    results = {cell.name: result for cell in cells if (result := _finished(cell, output)) is not None}
    if results:
        console.print(f"{len(results)} of {len(cells)} cells are finished already", highlight=False)
    to_run = [cell for cell in cells if cell.name not in results]
    with filling(output), Interrupts() as interrupts, Progress(console, len(cells), done=len(results)) as progress:
        if to_run:
            (output / WORK).mkdir()
            with forkserver(environment(to_run[0].spec), output / WORK / "forkserver.log", interrupts) as env:
                for cell in to_run:
                    seconds = [result["seconds_in_all"] for result in results.values()]
                    progress.begin(cell.name, _remaining(seconds, len(cells) - len(results)))
                    results[cell.name] = _run(cell, output, env, progress, interrupts)
        shutil.rmtree(output / WORK, ignore_errors=True)
        progress.show("drawing figures")
        study = Study(grid.name, [results[cell.name] for cell in cells])
        _write(study, output)
    return study


def _write(study: Study, output: Path) -> None:
    try:
        (output / "table.md").write_text(as_markdown(study), "utf-8")
        (output / "table.csv").write_text(as_csv(study), "utf-8")
        write_figures(study, output / "figures")
    except OSError as error:
        raise StateError(f"{output}: can't be written ({error}); free space or make it writable") from error


def _remaining(seconds: list[float], cells: int) -> str:
    """How long the rest will take, as far as finished cells tell."""
    left = f"{cells} cell{'' if cells == 1 else 's'} to go"
    return f"{left}, about {statistics.mean(seconds) * cells / 60:.0f} min" if seconds else left


def _prepare(grid: GridSpec, output: Path) -> None:
    described = output / GRID_FILE
    try:
        if output.exists() and any(output.iterdir()) and not _is_ours(described):
            raise ConfigError(f"{output}: holds something else than a grid's results; choose another directory with -o")
        shutil.rmtree(output / WORK, ignore_errors=True)  # of a cell that was cut off
        (output / CELLS).mkdir(parents=True, exist_ok=True)
        settings = grid.model_dump(mode="json", exclude_none=True)
        described.write_text(GRID_HEADING + yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), "utf-8")
        (output / "versions.json").write_text(json.dumps(versions(), indent=1))
    except OSError as error:
        raise StateError(f"{output}: can't be written ({error}); choose a writable directory with -o") from error


def _is_ours(described: Path) -> bool:
    return described.is_file() and described.read_text("utf-8", errors="replace").startswith(GRID_HEADING)


def _finished(cell: Cell, output: Path) -> dict[str, Any] | None:
    """The result of an earlier run of this very cell."""
    path = output / CELLS / f"{cell.name}.json"
    try:
        result: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return result if result.get("digest") == cell.digest else None


def _run(cell: Cell, output: Path, env: dict[str, str], progress: Progress, interrupts: Interrupts) -> dict[str, Any]:
    """One cell from nothing to its result, which is written whole or not at all."""
    began = time.monotonic()
    work = output / WORK / cell.name
    work.mkdir(parents=True)
    dealt = deal(cell.spec, work / "datasets")
    test = work / "test.parquet"
    dealt.test.write(test)
    shares = dict(zip(cell.spec.names, dealt.shares, strict=True))
    plan = RunPlan("federated", cell.name, cell.rule, work / "nodes", shares, cell.spec.graph, test)
    with tempfile.TemporaryDirectory(prefix="conlora-") as sockets:
        setups = lay_out(cell.spec, plan, Path(sockets))
        trained = run_federation(setups, env, progress, interrupts, export=False)
    progress.show("measuring consensus")
    measured = measure_run(plan.graph, setups, interrupts)
    result = {
        **cell.axes,
        "digest": cell.digest,
        "spec": cell.spec.to_json(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        **_last_evaluations(setups),
        **measured,
        **trained.to_json(),
        "seconds_in_all": time.monotonic() - began,
    }
    write_json(result, output / CELLS / f"{cell.name}.json")
    shutil.rmtree(work)
    progress.end(f"D {result['consensus']['D']:.4f}, {result['seconds_in_all']:.0f} s")
    ready: dict[str, Any] = json_ready(result)
    return ready


def _last_evaluations(setups: Sequence[NodeSetup]) -> dict[str, Any]:
    """The task's metric on the common test rows, which are every node's evaluation rows here, after the last mix."""
    found: list[dict[str, float]] = []
    for setup in setups:
        with History(setup.state / "history.db") as history:
            found.append(json.loads(history.rows("evaluations")[-1]["figures"]))
    metric = next((name for name in found[0] if name != "loss"), "loss")
    return {"metric": metric, "after": [figures.get(metric) for figures in found]}
