"""Real daemons with real trainers on loopback: a run from start to end, operators' wishes, crashes, exports."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from tests.daemons import Daemons, is_alive, wait_until

from conlora.errors import Refused
from conlora.store.history import History
from conlora.store.recording import Recording

ENDLESS = {"rounds": 1_000_000}


def test_two_nodes_train_mix_export_and_leave(daemons: Daemons, tmp_path: Path) -> None:
    a, b = daemons.pair({"rounds": 6, "record_vectors": True}, exchange={"encoding": "fp32"})
    a.start("--paused")
    b.start("--paused")
    for node in (a, b):
        node.wait_for(lambda s: s.state == "paused" and s.peers[0].link == "up", "paused and linked")
    assert [node.admin.resume() for node in (a, b)] == [0, 0]
    finished = a.wait_for(lambda s: s.state == "finished", "finished")
    b.wait_for(lambda s: s.state == "finished", "finished")
    assert (finished.round, finished.step, finished.trainer_pid) == (6, 12, 0)
    assert finished.accuracy is not None
    assert finished.peers[0].snapshot_round == 6
    assert finished.peers[0].bytes_received > 0

    # what a mixed is y_a + w (y_b of some round - y_a), with w = 1/2 on a single edge
    recordings = [Recording(node.state_dir / "recording") for node in (a, b)]
    y_a, x_a = recordings[0].load(6)
    candidates = [recordings[1].load(r)[0] for r in recordings[1].rounds()]
    assert min(np.abs(x_a - (y_a + 0.5 * (y_b - y_a))).max() for y_b in candidates) < 1e-6

    assert a.admin.export(tmp_path / "adapter") == 6
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert f"`{b.identity.node_id}`" in card
    weights = hashlib.sha256((Path(a.config["model"]["base"]) / "model.safetensors").read_bytes()).digest()
    assert f"SHA-256 `{hashlib.sha256(weights).hexdigest()}`" in card
    assert "from sketches of 2 nodes" in card
    assert str(tmp_path) not in card
    with History(a.state_dir / "history.db") as history:
        assert [row["round"] for row in history.rows("rounds")] == [1, 2, 3, 4, 5, 6]
        assert {row["round"] for row in history.rows("evaluations")} == {2, 4, 6}

    path, round_ = a.admin.stop()
    assert path is not None
    assert (path.is_dir(), round_) == (True, 6)
    assert a.exit_code() == 0
    b.wait_for(
        lambda s: s.peers[0].link == "down" and s.peers[0].snapshot_round is None, "edge dead at b, snapshot gone"
    )
    assert b.process is not None
    b.process.send_signal(signal.SIGTERM)
    assert b.exit_code() == 0
    assert not a.config["admin_socket"] or not Path(a.config["admin_socket"]).exists()

    a.start()  # there is nothing left to train, and the figures are still known
    again = a.wait_for(lambda s: s.state == "finished", "finished again")
    assert (again.round, again.loss, again.accuracy) == (6, finished.loss, finished.accuracy)
    assert a.admin.history(5)[0].loss == finished.loss


def test_the_exported_adapter_gives_the_trained_models_logits(daemons: Daemons, tmp_path: Path) -> None:
    """Loaded by `PeftModel.from_pretrained` in a process of its own, against the vector that the trainer had."""
    node = daemons.make("a", {"rounds": 4, "record_vectors": True})
    node.start()
    node.wait_for(lambda s: s.state == "finished", "finished")
    node.admin.export(tmp_path / "adapter")
    texts = ["the film was good", "the day was awful", "a great day"]
    loaded = subprocess.run(
        [sys.executable, "-c", _LOAD, node.config["model"]["base"], str(tmp_path / "adapter"), json.dumps(texts)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    _, final = Recording(node.state_dir / "recording").load(4)

    import torch

    from conlora.config import load_config
    from conlora.training.model import build_model

    built = build_model(load_config(node.config_path))
    start = built.adapter.read(built.shared)
    built.adapter.write(built.shared, final)
    built.model.eval()
    with torch.no_grad():
        batch = built.task.collator()([built.task.encode({"text": text, "label": "negative"}) for text in texts])
        logits = built.model(**batch).logits
    assert np.abs(final - start).max() > 1e-3, "it has learnt something"
    np.testing.assert_allclose(np.array(json.loads(loaded.stdout)), logits.numpy(), atol=1e-5)


_LOAD = """
import json, sys
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer
base, adapter, texts = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(base, num_labels=2), adapter).eval()
with torch.no_grad():
    inputs = AutoTokenizer.from_pretrained(base)(json.loads(texts), return_tensors="pt", padding=True)
    print(json.dumps(model(**inputs).logits.tolist()))
"""


@pytest.mark.usefixtures("forks")
def test_kill_9_of_a_daemon_costs_at_most_the_round_in_progress(daemons: Daemons) -> None:
    a, b = daemons.pair({"rounds": 40, "slowdown": 20, "checkpoint_every": 1})
    a.start()
    b.start()
    linked = a.wait_for(lambda s: s.round >= 3 and s.peers[0].link == "up", "three rounds")
    trainer = linked.trainer_pid
    a.kill()
    b_round = b.wait_for(lambda s: s.peers[0].link == "down", "the edge is dead at b").round
    wait_until(lambda: not is_alive(trainer), "a's orphaned trainer ends by itself")
    b.wait_for(lambda s: s.round >= b_round + 3, "b goes on meanwhile")
    a.start()
    resumed = a.wait_for(lambda s: s.state == "training", "training again")
    assert resumed.round >= linked.round - 1
    assert "going on from a checkpoint" in a.log.read_text()
    a.wait_for(lambda s: s.peers[0].link == "up" and s.peers[0].weight is not None, "mixes with b again")
    for node in (a, b):
        node.wait_for(lambda s: s.state == "finished", "the run completes")
    with History(a.state_dir / "history.db") as history:
        rounds = [row["round"] for row in history.rows("rounds")]
    assert rounds == sorted(set(rounds))
    assert rounds[-1] == 40


@pytest.mark.usefixtures("forks")
def test_nobody_waits_for_a_slow_neighbour(daemons: Daemons) -> None:
    fast, slow = daemons.pair({"rounds": 30, "slowdown": 3})
    slow.config["training"]["slowdown"] = 60
    slow.write()
    for node in (fast, slow):
        node.start("--paused")
    for node in (fast, slow):
        node.wait_for(lambda s: s.state == "paused" and s.peers[0].link == "up", "linked")
    slow.admin.resume()
    slow.wait_for(lambda s: s.round >= 1, "has published")
    fast.admin.resume()
    finished = fast.wait_for(lambda s: s.state == "finished", "finished")
    behind = slow.admin.status()
    assert finished.round == 30
    assert behind.round < 20
    assert finished.peers[0].weight == 0.5, "the slow one's last snapshot kept its weight"


def test_a_trainer_that_dies_is_started_again_from_the_last_checkpoint(daemons: Daemons) -> None:
    node = daemons.make("a", {**ENDLESS, "checkpoint_every": 1})
    node.start()
    before = node.wait_for(lambda s: s.round >= 3, "three rounds")
    os.kill(before.trainer_pid, signal.SIGKILL)
    after = node.wait_for(lambda s: s.trainer_restarts == 1 and s.state == "training", "trained again")
    assert after.pid == before.pid
    assert after.trainer_pid != before.trainer_pid
    assert "was ended by SIGKILL" in node.log.read_text()
    node.wait_for(lambda s: s.round > before.round, "goes beyond where it died")


@pytest.mark.usefixtures("forks")
def test_operators_wishes_take_effect_between_steps(daemons: Daemons, tmp_path: Path) -> None:
    node = daemons.make("a", {**ENDLESS, "slowdown": 5, "checkpoint_every": 1_000_000})
    node.start("--paused")
    node.wait_for(lambda s: s.state == "paused", "paused")
    with pytest.raises(Refused, match="no checkpoint yet"):
        node.admin.checkpoint()
    with pytest.raises(Refused, match="no checkpoint yet"):
        node.admin.export(tmp_path / "adapter")
    node.admin.resume()
    node.wait_for(lambda s: s.round >= 1, "a round")
    _, round_ = node.admin.checkpoint()
    assert round_ >= 1
    paused = node.admin.pause()
    status = node.admin.status()
    assert (status.state, status.round) == ("paused", paused)
    path, _ = node.admin.checkpoint()  # while it stands still
    assert node.admin.checkpoint()[0] == path, "nothing has changed since, so it is the same one"
    assert node.admin.export(tmp_path / "adapter") == paused
    with pytest.raises(Refused, match="exists already"):
        node.admin.export(tmp_path / "adapter")
    assert node.admin.status().state == "paused"
    node.admin.resume()
    node.wait_for(lambda s: s.round > paused, "goes on")
    node.admin.stop()
    assert node.exit_code() == 0


def test_stop_before_the_first_step_leaves_nothing_behind(daemons: Daemons) -> None:
    node = daemons.make("a")
    node.start("--paused")
    node.wait_for(lambda s: s.state == "paused", "paused")
    assert node.admin.stop() == (None, 0)
    assert node.exit_code() == 0


@pytest.mark.usefixtures("forks")
def test_resuming_continues_exactly_where_it_stopped(daemons: Daemons) -> None:
    """A run that is stopped in the middle ends with the very weights of one that is not: optimizer, data, dropout."""
    settings = {"rounds": 12, "record_vectors": True, "checkpoint_every": 3}
    straight = daemons.make("straight", settings, lora={"rank": 2, "alpha": 4, "dropout": 0.3})
    broken = daemons.make("broken", settings, lora={"rank": 2, "alpha": 4, "dropout": 0.3})
    straight.config["name"] = broken.config["name"] = "same"  # the name is part of the local seed
    straight.write()
    broken.config["training"]["slowdown"] = 20
    broken.write()
    straight.start()
    broken.start()
    broken.wait_for(lambda s: s.round >= 4, "four rounds")
    broken.admin.stop()
    assert broken.exit_code() == 0
    broken.start()
    for node in (straight, broken):
        node.wait_for(lambda s: s.state == "finished", "finished")
    ends = [Recording(node.state_dir / "recording").load(12)[1] for node in (straight, broken)]
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-6)


@pytest.mark.usefixtures("forks")
def test_a_users_mistake_ends_the_daemon_with_a_sentence(daemons: Daemons, tmp_path: Path) -> None:
    data = tmp_path / "wrong.csv"
    data.write_text("text,label\nthe film was good,positive\nthe day was bad,meh\n")
    node = daemons.make("a", data={"path": str(data)})
    node.start()
    assert node.exit_code() == 2
    log = node.log.read_text()
    assert "wrong.csv, row " in log
    assert "label 'meh' is not one of task.labels (negative, positive)" in log
    assert "Traceback" not in log


@pytest.mark.usefixtures("forks")
def test_a_second_daemon_of_the_same_node_is_refused(daemons: Daemons) -> None:
    node = daemons.make("a", ENDLESS)
    node.start("--paused")
    node.wait_for(lambda s: s.state in ("loading", "paused"), "up")
    second = subprocess.run(
        [sys.executable, "-m", "conlora", "run", str(node.config_path)], capture_output=True, text=True, check=False
    )
    assert second.returncode == 7
    assert "another daemon of this node is running" in second.stderr
    assert node.status() is not None


@pytest.mark.usefixtures("forks")
def test_sync_without_a_neighbour_ends_with_a_clear_error(daemons: Daemons) -> None:
    federation = {"seed": 1, "rule": "lora", "mode": "sync", "sync_deadline_seconds": 2}
    a, _ = daemons.pair(federation=federation)
    a.start()
    assert a.exit_code() == 6
    assert "no snapshot of this round from b within 2 s" in a.log.read_text()


@pytest.mark.usefixtures("forks")
def test_a_daemon_stays_small(daemons: Daemons) -> None:
    node = daemons.make("a", ENDLESS)
    node.start()
    status = node.wait_for(lambda s: s.round >= 2, "two rounds")
    assert psutil.Process(status.pid).memory_info().rss < 120e6


def test_check_finds_what_is_wrong_and_what_is_not(daemons: Daemons) -> None:
    a, b = daemons.pair(ENDLESS)
    b.config["federation"]["rule"] = "freeze-a"
    b.write()
    b.start("--paused")
    b.wait_for(lambda s: s.state == "paused", "loaded")

    def check() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "conlora", "check", str(a.config_path)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    wrong = check()
    assert wrong.returncode == 4
    assert "rule: ours is lora, theirs freeze-a" in wrong.stdout
    a.config["federation"]["rule"] = "freeze-a"
    a.write()
    right = check()
    assert right.returncode == 0, right.stdout + right.stderr
    assert "reachable, certificate accepted, same federation" in right.stdout
    assert "540 rows to train on, 60 held out" in right.stdout
