"""What `testbed collect` asks of Docker, and its sentences where the answer is no: a script stands in for the command."""

import json
import os
import stat
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest

from conlora import __version__
from conlora.errors import ConfigError, NodeUnreachable, TrainingFailed
from conlora.net.status import NodeStatus, PeerStatus
from conlora.testbed import containers
from conlora.testbed.compose import ComposeTestbed
from conlora.testbed.containers import Containers
from conlora.testbed.layout import NodeSetup
from conlora.testbed.spec import TestbedSpec

ID = "demo-1234"
RUNNING = "node-1\tc1\trunning\tUp 2 minutes\nnode-2\tc2\tpaused\tUp 2 minutes (Paused)\n"
# Containers are files of the folder `engine`: `ps` lists them, cN/status is what the node says, cN/volume what it keeps.
DOCKER = """#!/bin/sh
engine={engine}
case "$1 $3 $4" in
  "ps "*) test "$4" = "label=org.conlora.testbed={id}" || exit 9; cat $engine/ps ;;
  "exec conlora status") exec cat $engine/$2/status ;;
  "exec conlora export") mkdir $engine/$2/volume/adapter && touch $engine/$2/volume/adapter/adapter_config.json ;;
  "exec sh -c") cd $engine/$2/volume && tar -c adapter state/recording state/history.db* ;;
  *) exit 9 ;;
esac
"""


def status(name: str, peer: str) -> NodeStatus:
    return NodeStatus(
        name=name, node_id="ID", version="0", federation="demo", rule="lora", mode="async", state="training", message="",
        round=3, rounds=9, step=6, loss=0.5, accuracy=None, trainer_restarts=0, pid=8, trainer_pid=9, uptime_seconds=1.0,
        consensus=None, evaluation={"loss": 0.4},
        peers=[PeerStatus(peer, "ID", "", "up", "", 0.0, 1, 2, 0, refused={"digest": 1})],
    )  # fmt: skip


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The first node answers, the second is paused."""
    folder = tmp_path / "engine"
    (folder / "c1" / "volume" / "state" / "recording").mkdir(parents=True)
    (folder / "c1" / "volume" / "state" / "history.db").write_text("rows")
    (folder / "c1" / "volume" / "state" / "history.db-wal").write_text("newer rows")
    (folder / "c1" / "volume" / "state" / "lock").touch()
    (folder / "c1" / "status").write_text(json.dumps(asdict(status("node-1", "node-2"))))
    (folder / "ps").write_text(RUNNING)
    command = tmp_path / "bin" / "docker"
    command.parent.mkdir()
    command.write_text(DOCKER.format(engine=folder, id=ID))
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    return folder


@pytest.fixture
def testbed(tmp_path: Path) -> ComposeTestbed:
    setups = [NodeSetup(name, tmp_path / name, Path("/nowhere"), [], 3, {}) for name in ("node-1", "node-2")]
    for setup in setups:
        setup.directory.mkdir()
    return ComposeTestbed(ID, TestbedSpec.model_construct(name="demo"), "lora", tmp_path, setups)


def test_statuses_are_what_nodes_say(engine: Path, testbed: ComposeTestbed) -> None:
    assert Containers(testbed).statuses() == {"node-1": status("node-1", "node-2"), "node-2": None}


def test_a_node_that_hangs_has_not_answered(
    engine: Path, testbed: ComposeTestbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no command is left behind that still waits for it."""
    (engine / "c2" / "volume").mkdir(parents=True)
    os.mkfifo(engine / "c2" / "status")  # nobody ever writes
    started: list[subprocess.Popen[bytes]] = []
    start = containers._start
    monkeypatch.setattr(containers, "_start", lambda *a: started.append(start(*a)) or started[-1])
    monkeypatch.setattr(containers, "ANSWER_SECONDS", 3.0)
    assert Containers(testbed).statuses() == {"node-1": status("node-1", "node-2"), "node-2": None}
    assert [process.poll() is None for process in started] == [False] * 3


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"mood": "good"}, r"NodeStatus.__init__\(\) got an unexpected keyword argument 'mood'"),
        ({"peers": [{"name": "node-2"}]}, r"PeerStatus.__init__\(\) missing 8 required positional arguments: .*"),
        ({"peers": None}, "'NoneType' object is not iterable"),
    ],
)
def test_a_node_of_another_version_is_named(
    engine: Path, testbed: ComposeTestbed, change: dict[str, object], why: str
) -> None:
    (engine / "c1" / "status").write_text(json.dumps(asdict(status("node-1", "node-2")) | change))
    sentence = (
        rf"^node-1: its status can't be read \({why}\); build the image of the version that runs here \({__version__}\)"
    )
    with pytest.raises(ConfigError, match=sentence + ", and start the containers again$"):
        Containers(testbed).statuses()


def test_results_come_home_without_what_is_the_nodes_own(engine: Path, testbed: ComposeTestbed) -> None:
    setup = testbed.setups[0]
    setup.adapter.mkdir()
    (setup.adapter / "of-an-earlier-time").touch()
    Containers(testbed).fetch(setup)
    assert [path.name for path in setup.adapter.iterdir()] == ["adapter_config.json"]
    assert sorted(path.name for path in setup.state.iterdir()) == ["history.db", "history.db-wal", "recording"]


def test_a_node_that_cannot_export_says_why(engine: Path, testbed: ComposeTestbed) -> None:
    (engine / "c1" / "volume" / "adapter").mkdir()
    with pytest.raises(TrainingFailed, match=r"docker exec failed: mkdir: .*File exists"):
        Containers(testbed).fetch(testbed.setups[0])


def test_a_container_that_has_ended_is_named(engine: Path, testbed: ComposeTestbed) -> None:
    (engine / "ps").write_text(RUNNING.replace("paused\tUp 2 minutes (Paused)", "exited\tExited (2) 1 minute ago"))
    with pytest.raises(
        TrainingFailed, match=r"node-2: its container does not run \(Exited \(2\) 1 minute ago\); `docker-c"
    ):
        Containers(testbed).statuses()


def test_a_container_that_is_not_there_is_named(engine: Path, testbed: ComposeTestbed) -> None:
    (engine / "ps").write_text(RUNNING.splitlines()[0])
    with pytest.raises(NodeUnreachable, match="node-2: has no container; run `docker-compose up -d` in "):
        Containers(testbed).statuses()


def test_an_engine_that_does_not_answer_is_told_in_its_own_words(engine: Path, testbed: ComposeTestbed) -> None:
    (engine / "ps").unlink()
    with pytest.raises(NodeUnreachable, match=r"docker ps failed: cat: .*No such file"):
        Containers(testbed).statuses()


def test_without_the_command_there_is_a_sentence(testbed: ComposeTestbed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NodeUnreachable, match=r"docker: can't be run .*; install Docker's command on this machine"):
        Containers(testbed).statuses()
