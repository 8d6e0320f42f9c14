"""A trainer whose node was away: what it asks before it goes on, what becomes of the answer, and pauses at a round's end."""

import os
import socket
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from conlora.core.robustness import Trust
from conlora.core.schema import Role, Schema, TensorSpec, Vector
from conlora.training.arena import Arena, arena_bytes, create_memory
from conlora.training.channel import Channel
from conlora.training.gossip import Gossip
from conlora.training.messages import FROM_TRAINER, Contribution, Offer, Pause, Resume, line
from conlora.training.ranks import OneRank

SCHEMA = Schema((TensorSpec("q.lora_B.weight", "q", Role.B, (4, 2)),))
STEPS = 3


class FakeAdapter:
    """Values of a model."""

    def __init__(self) -> None:
        self.values = np.zeros(SCHEMA.size, np.float32)

    def read(self, schema: Schema) -> Vector:
        return self.values.copy()

    def write(self, schema: Schema, vector: Vector) -> None:
        self.values = vector.copy()


class Daemon:
    """The other end of a trainer's channel."""

    def __init__(self) -> None:
        memory = create_memory()
        os.ftruncate(memory, arena_bytes(SCHEMA.size, 2))
        self.arena = Arena(memory, SCHEMA.size)
        os.close(memory)
        self.socket, theirs = socket.socketpair()
        self.channel = Channel(theirs, guest=True)
        self.adapter = FakeAdapter()
        adapted: Any = SimpleNamespace(adapter=self.adapter, shared=SCHEMA)
        self.gossip = Gossip(
            adapted, self.arena, self.channel, screen=Trust(), publish=0, local_steps=STEPS, rounds_mixed=7, step=21
        )

    def say(self, *said: Any) -> None:
        self.socket.sendall(b"".join(line(message) for message in said))

    def heard(self) -> list[str]:
        """What the trainer has said by now, in words."""
        self.socket.setblocking(False)
        try:
            lines = self.socket.recv(1 << 16).splitlines()
        except BlockingIOError:
            lines = []
        self.socket.setblocking(True)
        return [FROM_TRAINER.validate_json(each).type for each in lines]

    def close(self) -> None:
        self.socket.close()
        self.channel.close()


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    daemon = Daemon()
    yield daemon
    daemon.close()


@pytest.mark.timeout(20)
def test_it_takes_over_what_it_is_offered_and_asks_once(daemon: Daemon) -> None:
    daemon.arena.inbox(1, 2)[:] = np.arange(SCHEMA.size)
    daemon.channel.absent = True
    daemon.say(Offer(item=Contribution(place=1, slot=2, weight=1.0)))
    daemon.gossip.rejoin()
    assert np.array_equal(daemon.adapter.values, np.arange(SCHEMA.size))
    assert daemon.gossip.rounds_mixed == 7, "rounds are counted by who makes them"
    assert daemon.heard() == ["rejoining", "adopted"]
    daemon.gossip.rejoin()
    assert daemon.heard() == []


@pytest.mark.timeout(20)
def test_it_goes_on_from_its_own_where_nothing_is_offered(daemon: Daemon) -> None:
    daemon.adapter.values[:] = 5
    daemon.channel.absent = True
    daemon.say(Offer(item=None))
    daemon.gossip.rejoin()
    assert (daemon.adapter.values == 5).all()
    assert daemon.heard() == ["rejoining"]


@pytest.mark.timeout(20)
def test_who_was_not_away_or_is_to_stop_asks_nothing(daemon: Daemon) -> None:
    daemon.gossip.rejoin()
    daemon.channel.absent = daemon.channel.stopping = True
    daemon.gossip.rejoin()
    assert daemon.heard() == []


class SecondRank(OneRank):
    """Hears what the first has heard."""

    rank, size = 1, 2

    def tell(self, data: bytes) -> bytes:
        return line(Offer(item=Contribution(place=1, slot=2, weight=1.0)))

    def broadcast(self, vector: Vector) -> Vector:
        assert vector.shape == (SCHEMA.size,)
        return np.arange(SCHEMA.size, dtype=np.float32)


def test_the_other_ranks_take_over_the_same_and_read_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """To read a model that is sharded takes all ranks, and the first does not."""
    adapter = FakeAdapter()
    monkeypatch.setattr(adapter, "read", None)
    adapted: Any = SimpleNamespace(adapter=adapter, shared=SCHEMA)
    channel = Channel(None, guest=True, ranks=SecondRank())
    channel.absent = True
    gossip = Gossip(adapted, None, channel, screen=Trust(), publish=0, local_steps=STEPS, rounds_mixed=7, step=21)
    gossip.rejoin()
    assert np.array_equal(adapter.values, np.arange(SCHEMA.size))


@pytest.mark.timeout(20)
def test_a_resumed_node_that_was_away_asks_before_its_next_step(daemon: Daemon) -> None:
    daemon.say(Pause(), Resume(absent=True), Resume())
    daemon.channel.wait_while(lambda: not daemon.channel.absent)
    assert not daemon.channel.paused


@pytest.mark.parametrize(("step", "stands"), [(21, True), (22, False), (23, False), (24, True)])
def test_a_drained_node_stands_still_at_the_end_of_a_round_only(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, step: int, stands: bool
) -> None:
    daemon.say(Pause(after_round=True))
    daemon.channel.wait_while(lambda: not daemon.channel.paused)
    waits: list[bool] = []

    def resumed(condition: Callable[[], bool]) -> None:
        waits.append(condition())
        daemon.channel.paused = False

    monkeypatch.setattr(daemon.channel, "wait_while", resumed)
    daemon.gossip.stand_still(step)
    assert waits == [True] * stands
    assert daemon.heard() == ["paused"] * stands
    daemon.channel.paused, daemon.channel.after_round = True, False
    daemon.gossip.stand_still(step)
    assert daemon.heard() == ["paused"], "an ordinary pause begins after any step"
