"""The sentence for what ends a testbed: a directory in the way, a federation that stands still, results that are none."""

import errno
import json
import os
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import yaml
from rich.console import Console
from tests.fakes import DOWN, REFUSED, UP, status
from tests.unit.test_report import summary
from tests.unit.test_study import result

from conlora.cli import main as cli
from conlora.core.schema import Role, Schema, TensorSpec
from conlora.errors import ConfigError, StateError, TrainingFailed
from conlora.net.status import NodeStatus
from conlora.store.recording import Recorder
from conlora.testbed import compare, federation, layout
from conlora.testbed.data import deal
from conlora.testbed.federation import Admin, Watch
from conlora.testbed.grid import load_grid
from conlora.testbed.layout import NodeSetup
from conlora.testbed.measuring import consensus_by_round, evaluate
from conlora.testbed.processes import Interrupts
from conlora.testbed.progress import Progress
from conlora.testbed.report import write_report
from conlora.testbed.run import prepare_output
from conlora.testbed.spec import load_spec

COMMON: dict[str, Any] = {
    "name": "demo",
    "model": {"base": "model"},
    "task": {"labels": ["negative", "positive"]},
    "data": {"path": "rows.csv", "test_rows": 2},
}
SPEC = COMMON | {"nodes": 2, "topology": "ring", "rules": ["lora"]}
GRID = COMMON | {"nodes": 7, "grid": [{"rules": ["lora"], "topologies": ["T1"]}]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With data, a base, a testbed's specification and a grid."""
    rows = [f"text {i},{'positive' if i % 2 else 'negative'}" for i in range(20)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *rows]))
    (tmp_path / "model").mkdir()
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(SPEC))
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(GRID))
    return tmp_path


Testbed = Callable[..., tuple[int, str]]


@pytest.fixture
def testbed(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Testbed:
    """Runs `conlora testbed ...` in the folder; returns its exit code and what it says on standard error."""
    monkeypatch.chdir(folder)

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["conlora", "testbed", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return cast(int, caught.value.code), capsys.readouterr().err

    return run


# Where results go.


def test_results_don_t_replace_what_is_there(testbed: Testbed, folder: Path) -> None:
    output = folder / "out"
    output.mkdir()
    (output / "thesis.txt").write_text("three years")
    assert testbed("run", "spec.yaml", "-o", "out") == (
        2,
        f"conlora: {output}: is there already and no empty directory; choose another with -o, or pass --overwrite\n",
    )
    assert testbed("run", "spec.yaml", "-o", "out", "--overwrite") == (
        2,
        f"conlora: {output}: holds something else than a testbed's results; choose another directory with -o\n",
    )
    assert testbed("compare", "grid.yaml", "-o", "out") == (
        2,
        f"conlora: {output}: holds something else than a grid's results; choose another directory with -o\n",
    )
    assert [path.name for path in output.iterdir()] == ["thesis.txt"]


def test_results_that_hold_what_is_run_stay(testbed: Testbed, folder: Path) -> None:
    (folder / "summary.json").write_text('{"consensus_by_round": []}')
    assert testbed("run", "spec.yaml", "-o", ".", "--overwrite") == (
        2,
        f"conlora: {folder}: holds spec.yaml, so it is not removed; choose another directory with -o\n",
    )
    assert (folder / "rows.csv").exists()


def test_links_to_results_stay(folder: Path) -> None:
    (folder / "results").mkdir()
    (folder / "results" / "summary.json").write_text('{"consensus_by_round": []}')
    (folder / "out").symlink_to("results")
    with pytest.raises(ConfigError, match="out: holds something else than a testbed's results; choose another"):
        prepare_output(folder / "out", overwrite=True, keep=[])
    prepare_output(folder / "results", overwrite=True, keep=[folder / "rows.csv"])
    assert not any((folder / "results").iterdir())


@pytest.mark.parametrize(("command", "file"), [("run", "spec.yaml"), ("compare", "grid.yaml")])
def test_results_need_a_directory(testbed: Testbed, folder: Path, command: str, file: str) -> None:
    output = folder / "rows.csv" / "out"
    code, said = testbed(command, file, "-o", "rows.csv/out")
    assert code == 7
    assert re.fullmatch(
        rf"conlora: {output}: can't be written \(.*Not a directory.*\); choose a writable directory with -o\n", said
    )


def test_tables_of_a_finished_grid_that_can_not_be_written(testbed: Testbed, folder: Path) -> None:
    output = folder / "out"
    (output / compare.CELLS).mkdir(parents=True)
    (output / compare.GRID_FILE).write_text(compare.GRID_HEADING)
    for cell in load_grid(folder / "grid.yaml")[1]:
        told = result(cell.rule, cell.topology, cell.seed, cell.partition)
        finished = {**told, "digest": cell.digest, "seconds_in_all": 1.0}
        (output / compare.CELLS / f"{cell.name}.json").write_text(json.dumps(finished))
    (output / "table.md").mkdir()
    code, said = testbed("compare", "grid.yaml", "-o", "out")
    assert code == 7
    assert re.fullmatch(
        rf"conlora: {output}: can't be written \(.*Is a directory.*\); free space or make it writable\n", said
    )


@pytest.mark.parametrize(
    ("command", "file", "where"), [("run", "spec", "run._run_all"), ("compare", "grid", "compare.forkserver")]
)
def test_a_disk_that_fills_up_meanwhile(
    testbed: Testbed, folder: Path, monkeypatch: pytest.MonkeyPatch, command: str, file: str, where: str
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "history.db")

    monkeypatch.setattr(f"conlora.testbed.{where}", full)
    code, said = testbed(command, f"{file}.yaml", "-o", "out")
    assert (code, said) == (
        7,
        f"conlora: {folder}/out: what is made there can't be written ([Errno 28] No space left on device: 'history.db'); free "
        "space on that disk\n",
    )


def test_a_share_that_can_not_be_written(folder: Path) -> None:
    share = deal(load_spec(folder / "spec.yaml"), folder / "cache").shares[0]
    path = folder / "model"
    sentence = rf"^{path}: can't be written \(.*Is a directory.*\); free space or make it writable$"
    with pytest.raises(StateError, match=sentence):
        share.write(path)


def test_a_report_that_can_not_be_written(tmp_path: Path) -> None:
    with pytest.raises(
        StateError,
        match=rf"^{tmp_path / 'gone'}: the report can't be written \(.*No such file.*\); free space or make it writable$",
    ):
        write_report(summary(), tmp_path / "gone")


# Federations that come to nothing.


class Telling:
    """An `Admin` whose nodes tell this."""

    def __init__(self, **statuses: NodeStatus) -> None:
        self._statuses = statuses

    def statuses(self) -> dict[str, NodeStatus]:
        return self._statuses


@pytest.fixture
def progress() -> Progress:
    return Progress(Console(quiet=True), 1)


def test_an_edge_that_will_never_be(progress: Progress) -> None:
    nodes = Telling(mercy=status(peers=[UP, DOWN]), anna=status(peers=[UP, REFUSED]))
    with pytest.raises(ConfigError, match=r"^anna and lakeside don't link: does not fit: rule$"):
        federation._ready(cast(Admin, nodes), progress)


def test_a_federation_that_stands_still(progress: Progress, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Telling(mercy=status(), anna=status(state="paused", step=3))
    watch = Watch(cast(Admin, nodes), progress)
    assert not watch.finished()
    assert not watch.finished(), "for a moment"
    monkeypatch.setattr(federation, "STALL_SECONDS", 0.0)
    with pytest.raises(
        TrainingFailed,
        match=r"^no node took a step for 0 s \(mercy training at step 24, anna paused at step 3\); see each daemon\.log$",
    ):
        watch.finished()


def test_a_machine_without_free_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(layout, "PORTS", range(port, port + 1))
        with pytest.raises(TrainingFailed, match=rf"^no 2 free loopback ports in {port}-{port}; stop what holds them$"):
            layout.free_ports(2)


# What a run has left.


def setups(folder: Path) -> list[NodeSetup]:
    return [NodeSetup(name, folder / name, folder / f"{name}.sock", [], 8, {}) for name in ("mercy", "anna")]


def test_rounds_that_no_two_nodes_have_recorded(tmp_path: Path) -> None:
    schema = Schema((TensorSpec("m.lora_B.weight", "m", Role.B, (2, 1)),))
    for round_, setup in enumerate(setups(tmp_path), start=1):
        recorder = Recorder(setup.state / "recording", schema, {"m.lora_A.weight": np.ones((1, 2), np.float32)})
        recorder.add(round_, np.zeros(2, np.float32), np.zeros(2, np.float32))
    recording = tmp_path / "mercy" / "state" / "recording"
    with pytest.raises(TrainingFailed, match=rf"^{recording}: no round was recorded by every node$"):
        consensus_by_round(setups(tmp_path), Interrupts())


def test_an_evaluation_that_says_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chatty = tmp_path / "python"
    chatty.write_text("#!/bin/sh\necho good day\n")
    chatty.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(chatty))
    made = tmp_path / "evaluation"
    answer, log = made / "evaluation.json", made / "evaluation.log"
    with pytest.raises(
        TrainingFailed,
        match=rf"^{answer}: the evaluation's answer is not JSON \(Expecting value.*\); its log is {log}$",
    ):
        evaluate(setups(tmp_path), made, tmp_path / "test.parquet", {}, Interrupts())
