"""Programs of the user's join real daemons: the examples of the documentation, crashes, operators' wishes."""

import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from tests.daemons import PATIENCE, Daemon, Daemons
from tests.families import WORDS, make_base
from transformers import AutoModelForSequenceClassification

import conlora
from conlora.core.gossip import FAR_BEHIND
from conlora.errors import ConfigError, NodeUnreachable
from conlora.store.history import History

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


@pytest.fixture
def rows(tiny_data: Path, tmp_path: Path) -> Path:
    """The tiny data with numbers for labels."""
    path = tmp_path / "rows.csv"
    with tiny_data.open(newline="") as source, path.open("w", newline="") as target:
        writer = csv.writer(target)
        writer.writerow(["text", "label"])
        writer.writerows([row["text"], int(row["label"] == "positive")] for row in csv.DictReader(source))
    return path


@pytest.fixture
def programs() -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Programs that are ended whatever happens."""
    running: list[subprocess.Popen[bytes]] = []
    yield running
    for program in running:
        program.kill()
        program.wait()


def start(
    programs: list["subprocess.Popen[bytes]"], example: str, node: Daemon, rows: Path, *launcher: str
) -> "subprocess.Popen[bytes]":
    with (node.directory / "program.log").open("ab") as log:
        command = [sys.executable, *launcher, str(EXAMPLES / example), str(node.directory), str(rows)]
        env = {**os.environ, "ACCELERATE_USE_CPU": "true"}
        programs.append(subprocess.Popen(command, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL))
    return programs[-1]


def guests(daemons: Daemons, rounds: int, mode: str = "async") -> tuple[Daemon, Daemon]:
    pair = daemons.pair({"rounds": rounds, "local_steps": 2, "checkpoint_every": 2})
    for node in pair:
        node.config["federation"] = {**node.config["federation"], "mode": mode}
        node.config["task"] = {"type": "guest", "options": {"classes": 2}}
        del node.config["data"]
        node.write()
        node.start()
    for node in pair:
        node.wait_for(lambda s: s.state == "waiting", "waits for a program")
    return pair


def test_the_examples_train_together(
    daemons: Daemons, rows: Path, tiny_model: Path, programs: list["subprocess.Popen[bytes]"], tmp_path: Path
) -> None:
    a, b = guests(daemons, 8, "sync")
    ours, theirs = start(programs, "own_loop.py", a, rows), start(programs, "own_trainer.py", b, rows)
    for node, program in ((a, ours), (b, theirs)):
        done = node.wait_for(lambda s: s.state == "finished", "finished")
        assert (done.round, done.step) == (8, 16)
        assert done.peers[0].snapshot_round is not None
        assert program.wait(PATIENCE) == 0, (node.directory / "program.log").read_text()
        with History(node.state_dir / "history.db") as history:
            assert [row["round"] for row in history.rows("rounds")] == list(range(1, 9))
            assert history.rows("rounds")[-1]["loss"] is not None
            assert history.rows("edges"), "they mixed"
    a.admin.export(tmp_path / "adapter")
    base = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=2)
    PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    assert not (a.state_dir / "trainer.sock").exists()


@pytest.mark.long
def test_an_example_trains_with_two_processes(
    daemons: Daemons, rows: Path, programs: list["subprocess.Popen[bytes]"]
) -> None:
    node = daemons.make("a", {"rounds": 4, "local_steps": 2})
    node.config["task"] = {"type": "guest"}
    node.write()
    node.start()
    node.wait_for(lambda s: s.state == "waiting", "waits for a program")
    program = start(programs, "own_trainer.py", node, rows, "-m", "torch.distributed.run", "--nproc-per-node=2")
    assert program.wait(PATIENCE) == 0, (node.directory / "program.log").read_text()
    done = node.wait_for(lambda s: s.state == "finished", "finished")
    assert (done.round, done.step) == (4, 8)
    assert done.loss == pytest.approx(math.log(2), abs=0.2), "the mean over the ranks, not their sum"


def test_sft_trainer_joins(daemons: Daemons, programs: list["subprocess.Popen[bytes]"], tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "llama")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"prompt": "the film was", "completion": f" {word}"}) + "\n" for word in WORDS[5:9])
    )
    node = daemons.make("a", {"rounds": 4, "local_steps": 2})
    node.config |= {"task": {"type": "guest"}, "model": {"base": str(base)}}
    node.write()
    node.start()
    node.wait_for(lambda s: s.state == "waiting", "waits for a program")
    program = start(programs, "sft.py", node, rows)
    assert program.wait(PATIENCE) == 0, (node.directory / "program.log").read_text()
    done = node.wait_for(lambda s: s.state == "finished", "finished")
    assert (done.round, done.step) == (4, 8)
    assert done.loss is not None
    node.admin.export(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"


@pytest.mark.long
def test_a_program_that_dies_is_followed_by_another(
    daemons: Daemons, rows: Path, programs: list["subprocess.Popen[bytes]"]
) -> None:
    a, _ = guests(daemons, 1_000_000)
    first = start(programs, "own_loop.py", a, rows)
    a.wait_for(lambda s: s.state == "training" and s.round >= 5, "trains")
    a.admin.pause()
    paused = a.wait_for(lambda s: s.state == "paused", "paused")
    a.admin.resume()
    a.wait_for(lambda s: s.round > paused.round, "goes on")
    first.send_signal(signal.SIGKILL)
    a.wait_for(lambda s: s.state == "waiting", "waits for the next")
    sealed = load_file(max(a.state_dir.glob("checkpoints/step-*")) / "adapter_model.safetensors")
    with conlora.join(a.directory) as guest:
        base = AutoModelForSequenceClassification.from_pretrained(guest.config.model.base, num_labels=2)
        model = guest.adapt(base, fresh=["classifier.weight", "classifier.bias"])
        values = get_peft_model_state_dict(model)
    assert sealed.keys() == values.keys()
    assert all(torch.equal(values[name], value) for name, value in sealed.items()), "it goes on from the checkpoint"
    a.wait_for(lambda s: s.state == "waiting", "waits once more")
    start(programs, "own_loop.py", a, rows)
    again = a.wait_for(lambda s: s.state == "training", "trains again")
    assert again.round >= paused.round - 2, "from the last checkpoint"
    assert again.trainer_restarts == 0
    a.wait_for(lambda s: s.round > paused.round, "goes beyond where the first one stood")
    _, round_ = a.admin.stop()
    assert a.exit_code() == 0
    assert round_ > paused.round
    assert programs[-1].wait(PATIENCE) == 0, "it was told that the run is over"


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_program_whose_node_was_away_for_long_goes_on_from_a_neighbours_snapshot(
    daemons: Daemons, rows: Path, programs: list["subprocess.Popen[bytes]"]
) -> None:
    """A node that was drained, under its program; and one that was stopped, which its next program brings back."""
    a, b = guests(daemons, 1_000_000)
    a.config["mixing"] = {"rejoin": "adopt"}
    a.write()
    a.admin.stop()
    assert a.exit_code() == 0
    a.start()
    a.wait_for(lambda s: s.state == "waiting", "waits for a program")
    program = start(programs, "own_loop.py", a, rows)
    start(programs, "own_trainer.py", b, rows)
    for node in (a, b):
        node.wait_for(lambda s: s.peers[0].weight == 0.5, "they mix")

    _, drained = a.admin.drain()
    then = b.wait_for(lambda s: True, "up").round
    b.wait_for(lambda s: s.round >= then + 2 * FAR_BEHIND, "b has gone far meanwhile")
    assert a.admin.resume() == drained
    a.wait_for(lambda s: s.peers[0].weight == 0.5 and s.round > drained, "back")
    assert re.search(rf"was away for long.* peer=b round={drained} snapshot=\d+", a.log.read_text())
    assert program.poll() is None, "the same program"

    _, left = a.admin.leave()
    assert (a.exit_code(), program.wait(PATIENCE)) == (0, 0), (a.directory / "program.log").read_text()
    then = b.wait_for(lambda s: True, "up").round
    b.wait_for(lambda s: s.round >= then + 2 * FAR_BEHIND, "b has gone far once more")
    a.start()
    a.wait_for(lambda s: s.state == "waiting", "waits for a program")
    start(programs, "own_loop.py", a, rows)
    a.wait_for(lambda s: s.peers[0].weight == 0.5 and s.round > left, "back once more")
    assert re.search(rf"was away for long.* peer=b round={left} snapshot=\d+", a.log.read_text())


def test_the_daemons_death_is_a_sentence(
    daemons: Daemons, rows: Path, programs: list["subprocess.Popen[bytes]"]
) -> None:
    a, _ = guests(daemons, 1_000_000)
    program = start(programs, "own_loop.py", a, rows)
    a.wait_for(lambda s: s.round >= 2, "trains")
    a.kill()
    assert program.wait(PATIENCE) == 1
    assert "TrainingFailed: the node's daemon has ended; start it again" in (a.directory / "program.log").read_text()


def test_who_can_not_join_is_told_why(daemons: Daemons) -> None:
    a, _ = daemons.pair({})
    with pytest.raises(ConfigError, match=r"task.type: text-classification has a trainer of its own; set it to guest"):
        conlora.join(a.directory)
    a.config["task"] = {"type": "guest"}
    a.write()
    with pytest.raises(NodeUnreachable, match=r"trainer\.sock: no daemon waits there"):
        conlora.join(a.directory)
