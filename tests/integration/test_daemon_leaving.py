"""Real daemons that leave their federation and come back, and neighbours that are stopped while their connections live."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.daemons import Daemon, Daemons, wait_until

from conlora.errors import Refused
from conlora.net.status import NodeStatus

ENDLESS = {"rounds": 1_000_000, "slowdown": 5}
ALARMS = re.compile(r"\[(warning|error)")

pytestmark = pytest.mark.usefixtures("forks")


def conlora(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "conlora", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def mixes(status: NodeStatus) -> bool:
    return [peer.weight for peer in status.peers] == [0.5]


def linked(daemons: Daemons, **sections: object) -> tuple[Daemon, Daemon]:
    a, b = daemons.pair(ENDLESS, **sections)
    a.start()
    b.start()
    for node in (a, b):
        node.wait_for(mixes, "they mix")
    return a, b


def test_a_drained_node_is_out_of_the_mix_at_once_and_comes_back(daemons: Daemons, tmp_path: Path) -> None:
    a, b = linked(daemons)
    seen = len(b.log.read_text())
    done = conlora("drain", "-c", a.config_path, "--export", tmp_path / "adapter")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(rf"drained after round \d+; checkpoint \S+; adapter {tmp_path}/adapter\n", done.stdout)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()

    alone = b.wait_for(lambda s: s.peers[0].link == "left", "b knows")
    assert alone.peers[0].last_error == "a has left; the link comes up again when it comes back"
    assert (alone.peers[0].weight, alone.peers[0].snapshot_round) == (None, None)
    b.wait_for(lambda s: s.round >= alone.round + 2 and s.peers[0].link == "left", "b goes on alone")
    assert not ALARMS.search(b.log.read_text()[seen:]), "nothing is wrong"

    drained = a.status()
    assert drained is not None
    assert (drained.state, drained.step) == ("drained", 2 * drained.round), "at the end of a round"
    assert "conlora resume" in drained.message
    path, round_ = a.admin.checkpoint()
    assert (path, round_) == a.admin.drain(), "once more changes nothing"
    assert f"checkpoint {path};" in done.stdout

    assert a.admin.resume() == round_
    for node in (a, b):
        node.wait_for(mixes, "they mix again")
    back = a.wait_for(lambda s: s.round > round_, "a trains")
    assert (back.state, back.trainer_pid, back.trainer_restarts) == ("training", drained.trainer_pid, 0)


def test_a_node_leaves_for_good_and_its_neighbour_is_not_alarmed(daemons: Daemons) -> None:
    a, b = linked(daemons)
    seen = len(b.log.read_text())
    done = conlora("leave", "-c", a.config_path, "--json")
    assert done.returncode == 0, done.stderr
    assert a.exit_code() == 0
    left = b.wait_for(lambda s: s.peers[0].link == "left", "b knows")
    b.admin.reload()  # which dials all who are down
    b.wait_for(
        lambda s: s.round >= left.round + 2 and s.peers[0].retry_in_seconds > 10, "b trains and asks now and then"
    )
    assert not ALARMS.search(b.log.read_text()[seen:])
    a.start()
    for node in (a, b):
        node.wait_for(mixes, "it has come back")


def test_an_operator_who_hangs_up_does_not_stop_a_drain_but_a_resume_and_a_stop_do(daemons: Daemons) -> None:
    node = daemons.make("a", {"rounds": 3, "local_steps": 1_000_000})
    node.start()
    node.wait_for(lambda s: s.state == "training", "trains")
    command = [sys.executable, "-m", "conlora", "drain", "-c", str(node.config_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as asking:
        node.wait_for(lambda s: s.state == "draining", "finishes its round")
        asking.send_signal(signal.SIGINT)
        assert asking.wait() == 130
    before = node.wait_for(lambda s: True, "up")
    assert before.state == "draining"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as asking:
        wait_until(lambda: (node.admin.resume(), asking.poll())[1] is not None, "it is told")
        assert asking.stderr is not None
        assert asking.stderr.read() == "conlora: not drained: the node was resumed meanwhile; drain it again\n"
        assert asking.returncode == 5
    assert node.wait_for(lambda s: s.state == "training", "trains on").trainer_pid == before.trainer_pid
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as asking:
        node.wait_for(lambda s: s.state == "draining", "finishes its round")
        node.admin.stop()
        assert asking.stderr is not None
        assert asking.stderr.read() == "conlora: can't drain: the node is stopping\n"
        assert asking.wait() == 5


def test_lockstep_can_not_do_without_a_node(daemons: Daemons) -> None:
    a, b = daemons.pair(ENDLESS, federation={"seed": 1, "rule": "lora", "mode": "sync"})
    for node in (a, b):
        node.start()
    before = a.wait_for(lambda s: s.round >= 1, "trains")
    with pytest.raises(Refused, match="can't leave: in sync mode the neighbours can't go on without this node"):
        a.admin.leave()
    refused = conlora("drain", "-c", a.config_path)
    assert (refused.returncode, "can't drain: in sync mode" in refused.stderr) == (5, True)
    a.wait_for(lambda s: s.round > before.round, "trains on")


@pytest.mark.parametrize("rejoin", [pytest.param("adopt", marks=pytest.mark.long), "mix"])
def test_a_node_that_was_away_for_long_goes_on_from_a_neighbours_snapshot_if_it_is_to(
    daemons: Daemons, rejoin: str
) -> None:
    a, b = daemons.pair({"rounds": 1_000_000})
    a.config["mixing"] = {"rejoin": rejoin}
    a.write()
    for node in (a, b):
        node.start()
        node.wait_for(lambda s: s.round >= 1, "trains")
    _, round_ = a.admin.leave()
    assert a.exit_code() == 0
    assert "adopts" not in a.log.read_text(), "it had not missed anything before"
    b.wait_for(lambda s: s.round >= round_ + 60, "b is far ahead")
    a.start()
    a.wait_for(lambda s: mixes(s) and s.round > round_, "back")
    adopted = re.search(rf"was away for long.* peer=b round={round_} snapshot=(\d+)", a.log.read_text())
    assert bool(adopted) is (rejoin == "adopt")
    assert a.status().trainer_restarts == 0  # type: ignore[union-attr]
    a.admin.drain()
    a.admin.resume()
    a.wait_for(lambda s: mixes(s), "back at once")
    assert a.log.read_text().count("was away for long") == bool(adopted), "a short absence"


def test_a_stopped_process_is_out_of_the_mix_until_it_goes_on(daemons: Daemons) -> None:
    """SIGSTOP: its machine answers for it, so that connections live, but nothing comes."""
    a, b = linked(daemons)
    assert b.process is not None
    os.kill(b.process.pid, signal.SIGSTOP)
    try:
        stopped = a.wait_for(lambda s: s.peers[0].link == "down", "a notices")
        assert stopped.peers[0].last_error == "nothing heard from b for 15 s"
        alone = a.wait_for(lambda s: s.round >= stopped.round + 2 and not s.peers[0].weight, "a goes on alone")
        assert alone.peers[0].snapshot_round is None
    finally:
        os.kill(b.process.pid, signal.SIGCONT)
    for node in (a, b):
        node.wait_for(mixes, "they mix again")
