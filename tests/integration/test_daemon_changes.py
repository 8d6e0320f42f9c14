"""Real daemons whose federation changes while they train: peers that are added, removed and moved, other settings."""

import os
import signal
import subprocess
import sys

import pytest
from tests.daemons import Daemon, Daemons, free_port, wait_until

from conlora.errors import Refused
from conlora.net.status import Changes, NodeStatus

ENDLESS = {"rounds": 1_000_000, "slowdown": 5}

pytestmark = pytest.mark.usefixtures("forks")


def weights(status: NodeStatus) -> list[float]:
    return [peer.weight for peer in status.peers if peer.weight is not None]


def conlora(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "conlora", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def goes_on(node: Daemon, before: NodeStatus) -> None:
    """Trains on in the very processes that it had."""
    after = node.wait_for(lambda s: s.round >= before.round + 2, "trains on")
    assert (after.pid, after.trainer_pid, after.trainer_restarts) == (before.pid, before.trainer_pid, 0)


def test_peers_come_and_go_while_nodes_train(daemons: Daemons) -> None:
    a, b = daemons.pair(ENDLESS)
    c = daemons.make("c", ENDLESS)
    c.knows(a)
    for node in (a, b, c):
        node.start()
    before = a.wait_for(lambda s: weights(s) == [0.5], "a mixes with b")
    c.wait_for(lambda s: s.round >= 1 and s.peers[0].last_error, "c trains alone")

    a.knows(c)
    assert a.admin.reload() == Changes(["c"], [], [], [])
    joined = a.wait_for(lambda s: weights(s) == [1 / 3, 1 / 3], "a has two neighbours, which each have one")
    assert [peer.name for peer in joined.peers] == ["b", "c"]
    for node in (b, c):
        node.wait_for(lambda s: weights(s) == [1 / 3], "a's degree is 2")
    goes_on(a, before)

    (a.directory / "peers" / "b.yaml").unlink()
    done = conlora("reload", "-c", a.config_path)
    assert (done.returncode, done.stdout) == (0, "reloaded: removed b\n"), done.stderr
    assert a.status().peers[0].name == "c"  # type: ignore[union-attr]
    for node in (a, c):
        node.wait_for(lambda s: weights(s) == [0.5], "a and c have one neighbour each")
    alone = b.wait_for(lambda s: s.peers[0].link == "down" and s.peers[0].snapshot_round is None, "the edge died at b")
    assert weights(alone) == []
    a.wait_for(lambda s: a.admin.consensus().edges[0].name == "c", "the view is of who is there")
    goes_on(a, before)
    assert "removed this node" in b.log.read_text()


def test_a_node_that_trained_alone_gets_its_first_peer(daemons: Daemons) -> None:
    a, b = daemons.make("a", ENDLESS), daemons.make("b", ENDLESS)
    b.knows(a)
    a.start()
    b.start()
    before = a.wait_for(lambda s: s.round >= 1, "a trains alone")
    a.knows(b, address=False)
    assert conlora("reload", "-c", a.config_path, "--json").returncode == 0
    for node in (a, b):
        node.wait_for(lambda s: weights(s) == [0.5], "they mix")
    goes_on(a, before)


def test_sighup_moves_a_peer_and_changes_its_encoding(daemons: Daemons) -> None:
    a, b = daemons.pair(ENDLESS)
    (b.directory / "peers" / "a.yaml").write_text(a.identity.card("a", None))
    a.start()
    b.start()
    a.wait_for(lambda s: s.peers[0].encoding == "bf16" and weights(s), "linked")
    b.admin.stop()
    assert b.exit_code() == 0
    b.config["listen"] = b.config["advertise"] = f"127.0.0.1:{free_port()}"
    b.write()
    b.start()
    b.wait_for(lambda s: s.state == "training", "b is somewhere else")
    assert a.process is not None

    a.knows(b)
    a.config["exchange"] = {"encodings": {"b": "int8"}}
    a.write()
    a.process.send_signal(signal.SIGHUP)
    moved = a.wait_for(lambda s: s.peers[0].link == "up" and s.peers[0].encoding == "int8", "linked with b elsewhere")
    assert moved.peers[0].address == b.config["advertise"]
    a.config["exchange"] = {"encoding": "fp32"}
    a.write()
    assert a.admin.reload() == Changes([], [], [], ["exchange.encoding", "exchange.encodings"])
    assert a.wait_for(lambda s: s.peers[0].encoding == "fp32", "on the same link").peers[0].link == "up"
    goes_on(a, moved)


def test_on_a_terminal_sighup_says_that_it_is_gone(daemons: Daemons) -> None:
    node = daemons.make("a", ENDLESS)
    ours, theirs = os.openpty()
    with os.fdopen(ours), os.fdopen(theirs):
        node.start(stdin=theirs)
        node.wait_for(lambda s: s.state == "training", "trains")
        assert node.process is not None
        node.process.send_signal(signal.SIGHUP)
        assert node.exit_code() == -signal.SIGHUP


def test_what_can_not_be_reloaded_changes_nothing(daemons: Daemons) -> None:
    a, b = daemons.pair(ENDLESS)
    a.start("--paused")
    b.start("--paused")
    a.wait_for(lambda s: s.state == "paused" and s.peers[0].link == "up", "linked")
    good = (a.directory / "peers" / "b.yaml").read_text()

    (a.directory / "peers" / "b.yaml").write_text(good.replace("id: ", "id: A"))
    with pytest.raises(Refused, match="is not the id of this certificate"):
        a.admin.reload()
    (a.directory / "peers" / "b.yaml").unlink()
    a.config["training"]["rounds"] = 7
    a.write()
    refused = conlora("reload", "-c", a.config_path)
    assert (refused.returncode, refused.stderr) == (
        5,
        "conlora: nothing was reloaded: training.rounds can't change while the node runs; put the old value back, or restart "
        "the daemon\n",
    )
    a.config_path.write_text("name: [")
    assert a.process is not None
    a.process.send_signal(signal.SIGHUP)
    logged = wait_until(
        lambda: [line for line in a.log.read_text().splitlines() if "not valid YAML" in line],
        "the reason is in the log",
    )
    assert "not reloaded" in logged[0]
    status = a.wait_for(lambda s: True, "up")
    assert [(peer.name, peer.link) for peer in status.peers] == [("b", "up")]
    assert status.rounds == ENDLESS["rounds"]
