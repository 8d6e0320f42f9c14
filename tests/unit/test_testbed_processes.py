"""The testbed's child processes: watched, stopped in order, and none left behind whatever happens."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from conlora.errors import ConfigError, StateError, TrainingFailed, Unavailable
from conlora.testbed import processes as module
from conlora.testbed.processes import Interrupts, NodeProcesses, last_line

UP = "print('up', flush=True); time.sleep(60)"
OBEDIENT = f"import signal, sys, time; signal.signal(signal.SIGTERM, lambda *a: sys.exit(0)); {UP}"
DEAF = f"import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); {UP}"
PARENT = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {DEAF!r}])
print(child.pid, flush=True)
time.sleep(60)
"""


def start(processes: NodeProcesses, folder: Path, name: str, code: str) -> module.Child:
    return processes.start(name, [sys.executable, "-c", code], folder / f"{name}.log", dict(os.environ))


def wait_for_line(log: Path) -> str:
    deadline = time.monotonic() + 20
    while not (line := last_line(log)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return line


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "zombie" not in Path(f"/proc/{pid}/status").read_text()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GROUP_SECONDS", 0.3)
    monkeypatch.setattr(module, "WATCH_SECONDS", 0.05)


def test_stop_ends_all_even_the_deaf_and_what_they_started(tmp_path: Path) -> None:
    with NodeProcesses(Interrupts()) as processes:
        codes = {"a": OBEDIENT, "b": DEAF, "c": PARENT}
        children = [start(processes, tmp_path, name, code) for name, code in codes.items()]
        for child in children:
            wait_for_line(child.log)
        grandchild = next(int(word) for word in children[2].log.read_text().split() if word.isdigit())
        processes.stop(seconds=0.5)
    assert [child.process.returncode for child in children] == [0, -signal.SIGKILL, -signal.SIGTERM]
    deadline = time.monotonic() + 5
    while alive(grandchild) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(grandchild)


def test_an_error_stops_all(tmp_path: Path) -> None:
    children = []

    def fail_with_children() -> None:
        with NodeProcesses(Interrupts()) as processes:
            children.append(start(processes, tmp_path, "node-1", OBEDIENT))
            wait_for_line(children[0].log)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_with_children()
    assert children[0].process.returncode == 0


@pytest.mark.parametrize(
    ("code", "error"),
    [(1, TrainingFailed), (2, ConfigError), (6, TrainingFailed), (7, StateError), (9, Unavailable)],
)
def test_a_node_that_exits_is_quoted(tmp_path: Path, code: int, error: type[Exception]) -> None:
    with NodeProcesses(Interrupts()) as processes:
        start(processes, tmp_path, "node-1", OBEDIENT)
        start(processes, tmp_path, "node-2", f"import sys; print('first'); print('no such base'); sys.exit({code})")
        with pytest.raises(error, match=f"node-2 exited with code {code}: no such base .*node-2.log"):
            processes.wait_until(lambda: False, "anything", 20)


def test_a_condition_that_never_holds(tmp_path: Path) -> None:
    with NodeProcesses(Interrupts()) as processes:
        start(processes, tmp_path, "node-1", OBEDIENT)
        with pytest.raises(
            TrainingFailed, match=r"^linking took longer than 0 s; the logs may say why: .*node-1\.log$"
        ):
            processes.wait_until(lambda: False, "linking", 0.2)


def test_leave_wants_good_endings(tmp_path: Path) -> None:
    with NodeProcesses(Interrupts()) as processes:
        wait_for_line(start(processes, tmp_path, "node-1", OBEDIENT).log)
        processes.leave()
        wait_for_line(start(processes, tmp_path, "node-2", "import time; print('up', flush=True); time.sleep(60)").log)
        with pytest.raises(TrainingFailed, match="node-2 was killed by SIGTERM"):
            processes.leave()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_interrupt_waiting(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Interrupts() as interrupts, NodeProcesses(interrupts) as processes:
        child = start(processes, tmp_path, "node-1", OBEDIENT)
        wait_for_line(child.log)
        os.kill(os.getpid(), number)
        with pytest.raises(KeyboardInterrupt):
            processes.wait_until(lambda: False, "anything", 20)
    assert child.process.returncode == 0
    assert signal.getsignal(number) is before


def test_a_child_does_not_get_the_terminals_signals(tmp_path: Path) -> None:
    with NodeProcesses(Interrupts()) as processes:
        child = start(
            processes, tmp_path, "node-1", "import os; print(os.getsid(0) == os.getpid()); import time; time.sleep(60)"
        )
        child = start(
            processes,
            tmp_path,
            "node-2",
            "import os; print(os.getsid(0) == os.getpid(), flush=True); import time; time.sleep(60)",
        )
        assert wait_for_line(child.log) == "True"
