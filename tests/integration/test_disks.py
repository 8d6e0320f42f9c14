"""Nodes whose disk is full, read-only or damaged, and trainers that die again and again: it is said, and nothing good is lost."""

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest
from tests.daemons import Daemon, Daemons, is_alive, wait_until

from conlora.errors import Refused
from conlora.net.status import NodeStatus
from conlora.store.checkpoints import read_checkpoint

ENDLESS = {"rounds": 1_000_000}
OWN_MOUNTS = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
mounts = pytest.mark.skipif(
    subprocess.run(OWN_MOUNTS, capture_output=True, check=False).returncode != 0, reason="nothing can be mounted here"
)


def put_on_a_disk(node: Daemon, options: str) -> None:
    """A small one, that only the node and its trainer see."""
    node.state_dir.mkdir()
    mount = f'mount -t tmpfs -o {options} tmpfs "$0" && exec "$@"'
    node.launcher = ["unshare", "-rm", "sh", "-c", mount, str(node.state_dir)]


def disk(node: Daemon) -> Path:
    """The node's state directory, seen from here."""
    assert node.process is not None
    return Path(f"/proc/{node.process.pid}/root{node.state_dir}")


def fill(node: Daemon) -> Path:
    path = disk(node) / "filler"
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return path


def in_want(status: NodeStatus) -> bool:
    return "the checkpoint can't be written" in status.message


@mounts
def test_a_full_disk_costs_checkpoints_and_a_stop_says_what_is_lost(daemons: Daemons) -> None:
    node = daemons.make("a", {**ENDLESS, "slowdown": 3, "checkpoint_every": 1})
    put_on_a_disk(node, "size=16m")
    node.start()
    node.wait_for(lambda s: s.round >= 4, "some rounds")
    paused = node.admin.pause()
    filler = fill(node)
    node.admin.resume()
    node.wait_for(lambda s: s.round >= paused + 3 and in_want(s), "trains on, and says so")
    with pytest.raises(Refused, match=r"can't be written \(.*free space or mend the disk, older ones are intact"):
        node.admin.checkpoint()
    kept = sorted((disk(node) / "checkpoints").glob("step-*"))
    assert read_checkpoint(kept[-1]).round == paused
    staging = disk(node) / "checkpoints" / "staging"
    wait_until(lambda: not list(staging.iterdir()), "nothing lies about between two attempts")

    filler.unlink()
    _, round_ = node.admin.checkpoint()
    assert round_ >= paused + 3
    node.wait_for(lambda s: not s.message, "all is well again")
    node.admin.pause()
    fill(node)
    node.admin.resume()
    node.wait_for(lambda s: s.round >= round_ + 2 and in_want(s), "full again")
    with pytest.raises(Refused, match=r"what was trained after round \d+ is not saved"):
        node.admin.stop()
    assert node.exit_code() == 7
    log = node.log.read_text()
    assert "no checkpoint, training goes on" in log
    assert "checkpoint is written again" in log
    assert "is not saved" in log.splitlines()[-1]
    assert "Traceback" not in log


@mounts
def test_the_last_checkpoint_waits_for_room_on_the_disk(daemons: Daemons, tmp_path: Path) -> None:
    node = daemons.make("a", {"rounds": 6})
    put_on_a_disk(node, "size=16m")
    node.start("--paused")
    node.wait_for(lambda s: s.state == "paused", "paused")
    filler = fill(node)
    node.admin.resume()
    full = node.wait_for(lambda s: s.round == 6 and in_want(s), "has trained")
    assert full.state == "training"
    filler.unlink()
    node.wait_for(lambda s: s.state == "finished" and not s.message, "finished")
    assert node.admin.export(tmp_path / "adapter") == 6


@mounts
def test_a_read_only_disk_is_a_sentence_at_a_start(daemons: Daemons) -> None:
    node = daemons.make("a")
    put_on_a_disk(node, "ro")
    node.start()
    assert node.exit_code() == 7
    assert node.log.read_text() == (
        f"conlora: {node.state_dir}: the state can't be written ([Errno 30] Read-only file system: '{node.state_dir}/lock'); "
        "mend the disk and mount it for writing\n"
    )


def test_a_node_none_of_whose_checkpoints_is_intact_does_not_start_anew(daemons: Daemons) -> None:
    node = daemons.make("a")
    damaged = node.state_dir / "checkpoints" / "step-000000008"
    damaged.mkdir(parents=True)
    (damaged / "manifest.json").write_text('{"round": 1')
    node.start()
    assert node.exit_code() == 7
    log = node.log.read_text()
    assert f"{damaged}: not an intact checkpoint" in log
    assert "put one back from a backup, or move the directory away to start anew" in log
    assert "Traceback" not in log
    assert (damaged / "manifest.json").exists()


@pytest.mark.usefixtures("forks")
@pytest.mark.long
def test_a_trainer_that_dies_at_the_same_place_again_and_again_is_given_up(daemons: Daemons) -> None:
    node = daemons.make("a", {**ENDLESS, "slowdown": 20, "checkpoint_every": 1000})
    node.start()
    for restarts in range(5):
        status = node.wait_for(
            lambda s, restarts=restarts: s.trainer_restarts == restarts and s.state == "training" and s.round >= 1,  # type: ignore[misc]
            "has done the first round, again",
        )
        if restarts:
            assert status.round == 1
        os.kill(status.trainer_pid, signal.SIGKILL)
        wait_until(lambda pid=status.trainer_pid: not is_alive(pid), "it is dead")  # type: ignore[misc]
    assert node.exit_code() == 6
    assert "died 5 times without finishing a new round, so it is not restarted" in node.log.read_text()
