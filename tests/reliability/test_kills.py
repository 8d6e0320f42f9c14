"""kill -9 at random moments of a training run, of daemons, trainers and both: every restart resumes, and nothing is lost.

Three nodes learn whether a sentence has more good words than bad ones. Each is killed again and again, at moments drawn at
random: in a round, while a checkpoint is written and sealed, and while it starts.
"""

import contextlib
import json
import os
import random
import signal
import sqlite3
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

import pytest
from tests.bench.figures import Figures
from tests.conftest import VOCABULARY
from tests.daemons import Daemon, Daemons, is_alive, wait_until

from conlora.core.topology import named_graph
from conlora.net.status import NodeStatus
from conlora.store.checkpoints import CheckpointStore
from conlora.store.history import History
from conlora.testbed.processes import Interrupts
from conlora.testbed.trainers import forkserver
from conlora.training.process import FORKSERVER

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]

KILLS = int(os.environ.get("CONLORA_KILLS", "200"))
NODES = 3
ROUNDS = max(60, 3 * KILLS // 2)
AGAIN = 0.25  # of the kills that are followed by one while the node starts
STARTING_SECONDS = 3.0
ROUND_SECONDS = 0.3
UNDISTURBED = 2  # runs
MOST_LOSS = 0.02  # of accuracy; two standard errors of the difference of two such runs
STALL_SECONDS = 120.0


class Victim(StrEnum):
    """What a kill is of."""

    DAEMON = "daemon"
    TRAINER = "trainer"
    BOTH = "both"


def write_rows(path: Path, count: int, seed: int) -> None:
    """Sentences of seven words, good or bad as most of them are."""
    draw = random.Random(seed)
    lines = ["text,label"]
    for _ in range(count):
        words = [draw.choice(VOCABULARY[5:11]) for _ in range(7)]
        good = sum(word in VOCABULARY[5:8] for word in words)
        lines.append(f"{' '.join(words)},{'positive' if good > 3 else 'negative'}")
    path.write_text("\n".join(lines) + "\n")


def federation(daemons: Daemons, folder: Path) -> list[Daemon]:
    """A ring of nodes, each with rows of its own, and held-out rows that are the same for all."""
    folder.mkdir(exist_ok=True)
    write_rows(folder / "held-out.csv", 1000, seed=-1)
    nodes = []
    for i in range(NODES):
        write_rows(folder / f"rows-{i}.csv", 1000, seed=i)
        data = {"path": str(folder / f"rows-{i}.csv"), "evaluation_path": str(folder / "held-out.csv")}
        training = {
            "rounds": ROUNDS, "local_steps": 8, "batch_size": 16, "learning_rate": 0.01, "checkpoint_every": 1,
            "evaluate_every": ROUNDS,
        }  # fmt: skip
        nodes.append(daemons.make(f"n{i}", training, data=data))
    for i, j in named_graph("ring", NODES).edges:
        nodes[i].knows(nodes[j])
        nodes[j].knows(nodes[i])
    return nodes


class Life:
    """One node that is killed at some rounds, and looked at after each kill."""

    def __init__(self, node: Daemon, rounds: list[int], draw: random.Random, counts: Counter[str]) -> None:
        """rounds: sorted; at each of them it is killed. counts: kills of each kind."""
        self.node = node
        self._rounds = rounds
        self._draw = draw
        self._counts = counts
        self._kill_at: float | None = None  # on the clock
        self._safe = 0  # the round that no kill may take back any more
        self._moved = time.monotonic()
        self._last = (-1, "")

    def begin(self) -> None:
        self.node.start()

    def look(self) -> bool:
        """Kills where it is due; returns whether the node has finished."""
        if self._kill_at is not None and time.monotonic() >= self._kill_at:
            self._kill_at = None
            self._kill(self._draw.choice(list(Victim)))
            return False
        status = self.node.status()
        self._watch(status)
        if status is None:
            return False
        if status.state in ("training", "finished"):
            assert status.round >= self._safe, f"{self.node.name} was at {self._safe}, and went on from {status.round}"
            self._safe = max(self._safe, status.round - 1)
        if self._kill_at is None and self._rounds and status.round >= self._rounds[0]:
            self._rounds.pop(0)
            self._kill_at = time.monotonic() + self._draw.random() * ROUND_SECONDS
        return status.state == "finished" and self._kill_at is None

    def _watch(self, status: NodeStatus | None) -> None:
        seen = (status.round, status.state) if status else (-1, "")
        if seen != self._last:
            self._moved, self._last = time.monotonic(), seen
        stalled = time.monotonic() - self._moved > STALL_SECONDS
        assert not stalled, f"{self.node.name} stands still at {seen}:\n{self.node.log.read_text()[-3000:]}"

    def _kill(self, victim: Victim) -> None:
        status = self.node.status()
        trainer = status.trainer_pid if status else 0
        if not trainer:
            victim = Victim.DAEMON
        if victim is not Victim.DAEMON:
            with contextlib.suppress(ProcessLookupError):
                os.kill(trainer, signal.SIGKILL)
        if victim is not Victim.TRAINER:
            self.node.kill()
        staging = self.node.state_dir / "checkpoints" / "staging"
        self._counts[victim] += 1
        self._counts["in a checkpoint"] += staging.is_dir() and any(staging.iterdir())
        self._counts["in a start"] += status is None or status.state != "training"
        if victim is not Victim.TRAINER:
            if trainer:
                wait_until(lambda: not is_alive(trainer), "a trainer ends with its daemon")
            self._inspect()
            self.node.start()
        if self._draw.random() < AGAIN and self._rounds:
            self._rounds.pop(0)
            self._kill_at = time.monotonic() + self._draw.random() * STARTING_SECONDS

    def _inspect(self) -> None:
        """What lies on the disk while nothing runs: the newest checkpoint is intact, and so is the history."""
        _, damaged = CheckpointStore(self.node.state_dir / "checkpoints", keep=3).newest()
        assert damaged == []
        with contextlib.closing(sqlite3.connect(self.node.state_dir / "history.db")) as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def accuracies(daemons: Daemons, folder: Path, kills: int, draw: random.Random) -> tuple[list[float], Counter[str]]:
    """Of all nodes at the end of a run, and what was killed."""
    counts: Counter[str] = Counter()
    nodes = federation(daemons, folder)
    points = [sorted(draw.choices(range(1, ROUNDS - 1), k=kills // NODES + (i < kills % NODES))) for i in range(NODES)]
    lives = [Life(node, rounds, draw, counts) for node, rounds in zip(nodes, points, strict=True)]
    for life in lives:
        life.begin()
    while not all([life.look() for life in lives]):
        time.sleep(0.01)
    found = []
    for node in nodes:
        status = node.status()
        assert status is not None
        assert (status.round, status.message) == (ROUNDS, "")
        found.append(status.evaluation["accuracy"])
        with History(node.state_dir / "history.db") as history:
            assert [row["round"] for row in history.rows("rounds")] == list(range(1, ROUNDS + 1))
        log = node.log.read_text()
        assert "Traceback" not in log
        assert "damaged" not in log
    return found, counts


@pytest.fixture
def forks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trainers are forked, so that a start takes a second and not ten."""
    with forkserver(dict(os.environ), tmp_path / "forkserver.log", Interrupts()) as environment:
        monkeypatch.setenv(FORKSERVER, environment[FORKSERVER])
        yield


@pytest.mark.usefixtures("forks")
def test_a_run_that_is_killed_again_and_again_learns_what_an_undisturbed_one_does(
    tmp_path: Path, tiny_model: Path, figures: Figures
) -> None:
    draw = random.Random(1)
    began = time.monotonic()
    calm: list[float] = []
    for i in range(UNDISTURBED):
        folder = tmp_path / f"undisturbed-{i}"
        folder.mkdir()
        with Daemons(folder, tiny_model, tmp_path) as daemons:
            found, _ = accuracies(daemons, tmp_path / "data", 0, draw)
        calm.append(statistics.mean(found))
    undisturbed, begin_kills = time.monotonic() - began, time.monotonic()
    (tmp_path / "killed").mkdir()
    with Daemons(tmp_path / "killed", tiny_model, tmp_path) as daemons:
        found, counts = accuracies(daemons, tmp_path / "data", KILLS, draw)
    killed = statistics.mean(found)
    kills = sum(counts[victim] for victim in Victim)
    for victim in Victim:
        figures.record(f"kills: {victim}", counts[victim], remark=f"of {kills}")
    figures.record("kills while a checkpoint was being written", counts["in a checkpoint"], remark=f"of {kills}")
    figures.record("kills while a node was starting", counts["in a start"], remark=f"of {kills}")
    figures.record(
        "time of the run", time.monotonic() - begin_kills, "s", against="one that is not disturbed",
        ratio=(time.monotonic() - begin_kills) / (undisturbed / UNDISTURBED),
    )  # fmt: skip
    figures.record("accuracy, undisturbed", samples=calm)
    lost = statistics.mean(calm) - killed
    figures.record(f"accuracy after {kills} kills", killed, samples=found, remark=json.dumps(counts))
    figures.record("accuracy lost", lost, at_most=MOST_LOSS, remark="negative: gained")
    assert kills == KILLS
    assert statistics.mean(calm) > 0.8, "it has to be something to lose"
    assert lost <= MOST_LOSS
