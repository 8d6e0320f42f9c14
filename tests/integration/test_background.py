"""The daemon in the background: nicer than its trainer, however that was started, and alone in what it sets for itself."""

import os
import signal
from pathlib import Path

import psutil
import pytest
from tests.daemons import Daemon, Daemons, wait_until

from conlora.daemon.background import AUTOGROUP, BLAS_THREADS, NICER

LEAST_IMPORTANT = 19


def niceness(pid: int) -> list[int]:
    """Of each of a process's threads."""
    threads = [int(thread.name) for thread in Path(f"/proc/{pid}/task").iterdir()]
    return sorted(os.getpriority(os.PRIO_PROCESS, thread) for thread in threads)


def new_trainer(node: Daemon, other_than: int = 0) -> int:
    """Waits for a trainer; which has the priority of whoever started it long before its model is loaded."""
    return node.wait_for(lambda s: s.trainer_pid not in (0, other_than), "a trainer is there").trainer_pid


@pytest.mark.parametrize("forked", [False, True], ids=["executed", "forked"])
def test_the_daemon_yields_to_its_trainer(daemons: Daemons, request: pytest.FixtureRequest, forked: bool) -> None:
    if forked:
        request.getfixturevalue("forks")
    own = os.getpriority(os.PRIO_PROCESS, 0)
    if own >= LEAST_IMPORTANT:
        pytest.skip("nothing is nicer than this process")
    node = daemons.make("a", {"rounds": 1_000_000})
    node.start()
    trainer = new_trainer(node)
    assert set(niceness(trainer)) == {own}

    assert node.process is not None
    spawner, *others = niceness(node.process.pid)
    assert spawner == own
    assert len(others) > 3, "gRPC has threads, too"
    assert set(others) == {min(own + NICER, LEAST_IMPORTANT)}

    assert os.getsid(node.process.pid) == node.process.pid, "our daemons lead sessions"
    assert os.getsid(trainer) != node.process.pid, "or the session would count for both"
    if AUTOGROUP.exists():
        groups = {pid: Path(f"/proc/{pid}/autogroup").read_text().split() for pid in (node.process.pid, trainer)}
        assert groups[node.process.pid][-1] == str(NICER)
        assert groups[trainer][-1] == "0", "as every new session's, whatever this one's is"

    os.kill(trainer, signal.SIGKILL)
    assert set(niceness(new_trainer(node, other_than=trainer))) == {own}


def test_what_the_daemon_sets_for_itself_does_not_reach_the_trainer(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    node = daemons.make("a", {"threads": None})
    node.start()
    trainer = psutil.Process(new_trainer(node))
    wait_until(lambda: "conlora.training" in trainer.cmdline(), "the trainer has begun")
    environment = trainer.environ()
    assert {name: environment.get(name) for name in BLAS_THREADS} == {
        name: os.environ.get(name) for name in BLAS_THREADS
    }
