"""Several processes per node: they hold one adapter, bit for bit, learn as one would, and end together."""

import json
import multiprocessing
import os
import random
import re
import signal
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import psutil
import pytest
from tests.daemons import PATIENCE, Daemon, Daemons, free_port, is_alive, wait_until
from tests.families import WORDS, make_base
from tests.ranked_loop import forked

from conlora.core.gossip import FAR_BEHIND
from conlora.store.history import History
from conlora.store.recording import Recording

ENDLESS = {"rounds": 1_000_000}

Start = Callable[[Daemon, str, int], list[ForkServerProcess]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model without dropout, whose figures two runs can share."""
    return make_base("llama", tmp_path_factory.mktemp("base"))


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts the ranks of a program as a launcher does, but ends none because of another; all are ended at last.

    They are forked from one process that has imported the training stack.
    """
    running: list[ForkServerProcess] = []
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.ranked_loop", "conlora.training.joining", "transformers.models.llama"])

    def ranks(node: Daemon, how: str, size: int) -> list[ForkServerProcess]:
        notes = node.directory / how
        notes.mkdir(exist_ok=True)
        meeting = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        for rank in range(size):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), **meeting}
            log = node.directory / f"rank-{rank}.log"
            running.append(context.Process(target=forked, args=(own, str(log), str(node.directory), how, str(notes))))
            running[-1].start()
        return running[-size:]

    yield ranks
    for program in running:
        program.kill()
        program.join()


def ends(programs: list[ForkServerProcess]) -> list[int | None]:
    """Waits for the programs to end."""
    for program in programs:
        program.join(PATIENCE)
    return [program.exitcode for program in programs]


def guest(node: Daemon, base: Path) -> Daemon:
    node.config |= {"task": {"type": "guest"}, "model": {"base": str(base)}}
    del node.config["data"]
    node.write()
    return node


def said(node: Daemon, rank: int) -> str:
    return (node.directory / f"rank-{rank}.log").read_text()


def ranks_of(node: Daemon) -> list[int]:
    """Process ids of the ranks of a node's own trainer."""
    status = node.status()
    assert status is not None
    first = psutil.Process(status.trainer_pid)
    return [first.pid, *(child.pid for child in first.children())]


@pytest.mark.usefixtures("forks")
def test_two_processes_learn_as_one(daemons: Daemons, base: Path, tmp_path: Path) -> None:
    """At the same number of rows a step, whatever their lengths; the rows of a step are the same, too."""
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS[5:14], k=draw.randint(2, 9))) for _ in range(200)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    nodes = []
    for name, sizes in (
        ("one", {"batch_size": 8}),
        ("two", {"batch_size": 2, "gradient_accumulation": 2, "processes": 2}),
    ):
        node = daemons.make(name, {"rounds": 6, "record_vectors": True, "learning_rate": 0.03, **sizes})
        node.config |= {"name": "same", "task": {"type": "causal-lm"}, "model": {"base": str(base)}}
        node.config["data"] = {"path": str(tmp_path / "rows.jsonl")}
        node.write()
        node.start()
        nodes.append(node)
    curves, evaluations, adapters = [], [], []
    for node in nodes:
        node.wait_for(lambda s: s.state == "finished", "finished")
        with History(node.state_dir / "history.db") as history:
            curves.append([row["loss"] for row in history.rows("rounds")])
            evaluations.append(history.rows("evaluations")[-1]["loss"])
        adapters.append(Recording(node.state_dir / "recording").load(6)[1])
    apart = [float(np.abs(np.subtract(*both)).max()) for both in (curves, adapters)]
    print(f"largest differences: loss {apart[0]:.1e}, adapter {apart[1]:.1e}")
    assert len(curves[0]) == 6
    assert max(curves[0]) - min(curves[0]) > 0.02, "they learn"
    np.testing.assert_allclose(*curves, rtol=0, atol=1e-5)
    np.testing.assert_allclose(*evaluations, rtol=0.01)  # the Trainer fills up batches, to make them even
    np.testing.assert_allclose(*adapters, rtol=0, atol=1e-4)


def test_all_ranks_hold_what_the_first_has_mixed(daemons: Daemons, base: Path, start: Start) -> None:
    a, b = (guest(node, base) for node in daemons.pair({**ENDLESS, "checkpoint_every": 3}))
    for node in (a, b):
        node.start()
        node.wait_for(lambda s: s.state == "waiting", "waits for a program")
    start(b, "alone", 1)
    end = None
    for how in ("ddp", "fsdp"):
        last = mix_and_stop(a, start(a, how, 2))
        first, second = ((a.directory / how / str(rank)).read_text().splitlines() for rank in (0, 1))
        assert first == second, "bit for bit, after every mix"
        assert len(set(first)) > 5, "and there were some"
        assert end in (None, first[0]), "they begin where others have ended"
        end = first[-1]
        a.start()
        assert a.wait_for(lambda s: s.state == "waiting", "waits for the next").round == last


def mix_and_stop(node: Daemon, programs: list[ForkServerProcess]) -> int:
    """Has a program do all that operators may ask for; returns its last round."""
    begun = node.wait_for(lambda s: s.state == "training" and s.peers[0].weight == 0.5, "mixes")
    node.wait_for(lambda s: s.round >= begun.round + 3, "goes on")
    node.admin.pause()
    paused = node.wait_for(lambda s: s.state == "paused", "paused")
    path, round_ = node.admin.checkpoint()
    assert (path.is_dir(), round_) == (True, paused.round)
    node.admin.resume()
    node.wait_for(lambda s: s.round > paused.round + 1, "goes on again")
    node.admin.pause()  # for a stop may cut off a mix, which is made up for before the next step
    _, last = node.admin.stop()
    assert ends(programs) == [0, 0], said(node, 0) + said(node, 1)
    assert node.exit_code() == 0
    return last


@pytest.mark.usefixtures("forks")
@pytest.mark.long
def test_control_and_crashes_of_a_nodes_own_ranks(daemons: Daemons) -> None:
    node = daemons.make("a", {**ENDLESS, "processes": 2, "batch_size": 4, "checkpoint_every": 1})
    node.start("--paused")
    node.wait_for(lambda s: s.state == "paused", "loaded")
    node.admin.resume()
    node.wait_for(lambda s: s.round >= 2, "trains")
    node.admin.pause()
    before = node.wait_for(lambda s: s.state == "paused", "paused")
    assert node.admin.checkpoint()[1] == before.round
    node.admin.resume()

    first, second = ranks_of(node)
    os.kill(second, signal.SIGKILL)
    wait_until(lambda: not is_alive(first), "the first rank ends with the second")
    restarted = node.wait_for(lambda s: s.trainer_restarts == 1 and s.state == "training", "restarted")
    assert restarted.round >= before.round
    assert "rank 1 of the trainer was ended by SIGKILL" in node.log.read_text()
    node.wait_for(lambda s: s.round > restarted.round, "goes on from the checkpoint")

    first, second = ranks_of(node)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not is_alive(second), "the second rank ends with the first")
    node.wait_for(lambda s: s.trainer_restarts == 2 and s.state == "training", "restarted again")
    ranks = ranks_of(node)
    assert len(ranks) == 2
    path, _ = node.admin.stop()
    assert path is not None
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {file.name for file in path.iterdir()}
    assert node.exit_code() == 0
    assert not any(map(is_alive, ranks))


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("forks")
def test_a_nodes_own_ranks_go_on_from_a_neighbours_snapshot_after_a_long_absence(daemons: Daemons) -> None:
    a, b = daemons.pair({**ENDLESS, "batch_size": 4})
    a.config["mixing"], a.config["training"]["processes"] = {"rejoin": "adopt"}, 2
    a.write()
    for node in (a, b):
        node.start()
    a.wait_for(lambda s: s.peers[0].weight == 0.5, "they mix")
    comes_back_far_behind(a, b, a.admin.drain, a.admin.resume)
    assert len(ranks_of(a)) == 2
    comes_back_far_behind(a, b, a.admin.leave, lambda: (a.exit_code(), a.start()))
    assert len(ranks_of(a)) == 2
    assert a.status().trainer_restarts == 0  # type: ignore[union-attr]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_model_that_is_sharded_adopts_a_neighbours_snapshot_too(daemons: Daemons, base: Path, start: Start) -> None:
    a, b = (guest(node, base) for node in daemons.pair({**ENDLESS, "checkpoint_every": 3}))
    a.config["mixing"] = {"rejoin": "adopt"}
    a.write()
    for node in (a, b):
        node.start()
        node.wait_for(lambda s: s.state == "waiting", "waits for a program")
    start(b, "alone", 1)
    programs = start(a, "fsdp", 2)
    a.wait_for(lambda s: s.peers[0].weight == 0.5, "they mix")
    comes_back_far_behind(a, b, a.admin.drain, a.admin.resume)
    a.admin.pause()
    a.admin.stop()
    assert ends(programs) == [0, 0], said(a, 0) + said(a, 1)
    first, second = ((a.directory / "fsdp" / str(rank)).read_text().splitlines() for rank in (0, 1))
    assert first == second, "bit for bit"


def comes_back_far_behind(
    node: Daemon, other: Daemon, go: Callable[[], tuple[Path | None, int]], come: Callable[[], object]
) -> None:
    """It goes on from what the other has published, and both mix."""
    _, round_ = go()
    then = other.wait_for(lambda s: True, "up").round
    other.wait_for(lambda s: s.round >= then + 2 * FAR_BEHIND, "the other has gone far meanwhile")
    come()
    node.wait_for(lambda s: s.peers[0].weight == 0.5 and s.round > round_, "back")
    assert re.search(rf"was away for long.* peer={other.name} round={round_} snapshot=\d+", node.log.read_text())


@pytest.mark.usefixtures("forks")
def test_a_mistake_ends_a_nodes_own_ranks_with_one_sentence(daemons: Daemons) -> None:
    node = daemons.make("a", {"processes": 2})
    node.config["task"] |= {"text_column": "txt"}
    node.write()
    node.start()
    assert node.exit_code() == 2
    assert "has no column 'txt'" in node.log.read_text()
    assert "trainer died" not in node.log.read_text()
    assert "Traceback" not in (node.state_dir / "trainer.log").read_text()


def test_a_mistake_is_told_by_every_rank(daemons: Daemons, base: Path, start: Start) -> None:
    node = daemons.make("a", ENDLESS)
    programs = start(node, "ddp", 2)
    assert ends(programs) == [1, 1]
    for rank in (0, 1):
        last = said(node, rank).splitlines()[-1]
        assert last.startswith("conlora.errors.ConfigError: ")
        assert last.endswith("task.type: text-classification has a trainer of its own; set it to guest to join")

    guest(node, base).start()
    node.wait_for(lambda s: s.state == "waiting", "waits for a program")
    programs = start(node, "apart", 2)
    assert ends(programs) == [1, 1]
    for rank in (0, 1):
        assert "ConfigError: round 1: the ranks of this program have trained apart; wrap" in said(node, rank)

    programs = start(node, "ddp", 2)
    node.wait_for(lambda s: s.state == "training" and s.round > 2, "trains")
    node.kill()
    assert ends(programs) == [1, 1]
    for rank in (0, 1):
        assert "TrainingFailed: the node's daemon has ended; start it again" in said(node, rank)
