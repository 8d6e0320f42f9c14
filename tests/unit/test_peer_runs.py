"""Runs of the comparison with other systems: what they tell, and that nothing of them stays behind."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.bench.peers.common import Failed, Processes, wait_for
from tests.bench.test_peers import NotMeasured, seconds_of
from tests.daemons import is_alive

PEERS = Path(__file__).resolve().parents[1] / "bench" / "peers"
SYSTEM = f"""
import sys
sys.path.insert(0, {str(PEERS)!r})
from common import main, one_process_a_node

def node(place):
    place.meet("ready")
    if place.tuned and place.node == 1:
        sys.exit("it has lost its way")
    for _ in range(place.total):
        place.rounds.trained()
        place.rounds.mixed()
    place.rounds.save()

main("pytest", one_process_a_node, node)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A runner of a system that does nothing, and whose second node fails if it is tuned."""
    path = tmp_path / "run_nothing.py"
    path.write_text(SYSTEM)
    return path


def test_a_run_tells_each_round_of_each_node(script: Path) -> None:
    command = [sys.executable, script, "--nodes", "3", "--rounds", "4"]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert (told["system"], told["version"], told["nodes"]) == ("pytest", pytest.__version__, 3)
    assert [len(seconds) for seconds in told["seconds"]] == [4, 4, 4]


def test_a_node_that_fails_is_the_reason(script: Path) -> None:
    with pytest.raises(NotMeasured, match=r"pytest: node-1 ended with 1: it has lost its way"):
        seconds_of(Path(sys.executable), str(script), 2, 1, ["--tuned"])


def test_what_a_run_starts_ends_with_it(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        processes.start("away", ["sh", "-c", "setsid sh -c 'echo $$ > new; mv new pid; exec sleep 600' & wait"])
        wait_for((tmp_path / "pid").exists, "a process in a session of its own")
        pid = int((tmp_path / "pid").read_text())
        assert is_alive(pid)
    assert not is_alive(pid)


def test_a_process_that_fails_ends_the_waiting_for_others(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        processes.start("good", ["sleep", "600"])
        processes.start("bad", ["sh", "-c", "echo; echo one; echo two; exit 3"])
        with pytest.raises(Failed, match="bad ended with 3: one / two"):
            processes.wait("good")
