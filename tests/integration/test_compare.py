"""A grid of real federations, interrupted once and run again: what was finished is kept."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml
from tests.daemons import PATIENCE, wait_until

from conlora.testbed.grid import load_grid


@pytest.mark.long
def test_an_interrupted_grid_goes_on_with_what_is_missing(tmp_path: Path, tiny_model: Path, tiny_data: Path) -> None:
    grid = {
        "name": "small",
        "nodes": 3,
        "grid": [{"rules": ["freeze-a", "lora"], "topologies": ["complete"], "seeds": [3]}],
        "model": {"base": str(tiny_model)},
        "task": {"labels": ["negative", "positive"], "max_length": 16},
        "training": {"rounds": 3, "local_steps": 2, "batch_size": 8, "device": "cpu"},
        "data": {"path": str(tiny_data), "rows_per_node": 40, "test_rows": 50},
    }
    path, output = tmp_path / "grid.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(grid))
    first, second = (output / "cells" / f"{cell.name}.json" for cell in load_grid(path)[1])
    command = [sys.executable, "-m", "conlora", "testbed", "compare", str(path), "-o", str(output)]

    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    wait_until(lambda: first.exists() and list(output.glob("work/*/nodes/node-3/daemon.log")), "the second cell runs")
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=PATIENCE)[0].decode()
    assert process.returncode == 130
    assert "the same command goes on from there" in told
    assert not [child for child in started if child.is_running()]
    assert not second.exists()
    kept = first.stat()

    told = subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL, text=True).stdout
    assert "1 of 2 cells are finished already" in told
    assert "1 cell to go, about" in told
    assert "holds: after a synchronous mix on the complete graph nothing is left but rounding" in told
    assert (first.stat().st_mtime_ns, first.stat().st_ino) == (kept.st_mtime_ns, kept.st_ino)
    result = json.loads(second.read_text())
    assert [entry["round"] for entry in result["consensus_by_round"]] == [1, 2, 3]
    assert result["metric"] == "accuracy"
    assert len(result["after"]) == 3
    assert all(0 <= accuracy <= 1 for accuracy in result["after"])
    assert not (output / "work").exists()
    assert {file.name for file in (output / "figures").iterdir()} >= {"evaluation.svg", "evaluation.png"}
    assert "| lora | complete | iid | 8 | sync |  |" in (output / "table.md").read_text()

    unchanged = second.stat().st_mtime_ns
    subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)  # nothing left to run
    assert second.stat().st_mtime_ns == unchanged

    other = [*command[:-1], str(tmp_path)]
    refused = subprocess.run(other, capture_output=True, stdin=subprocess.DEVNULL, text=True, check=False)
    assert refused.returncode == 2
    assert "holds something else than a grid's results" in refused.stderr
