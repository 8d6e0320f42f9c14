"""A guest's end of its conversation with a daemon that dies: every way of asking says so, and nothing waits for ever."""

import socket
from collections.abc import Callable, Iterator

import pytest

from conlora.errors import TrainingFailed
from conlora.training.channel import Channel
from conlora.training.messages import Contributions, Pause, Paused, line


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Channel]]:
    daemon, guest = socket.socketpair()
    channel = Channel(guest, guest=True)
    yield daemon, channel
    daemon.close()
    channel.close()


ASKING: dict[str, Callable[[Channel], object]] = {
    "expects an answer": lambda channel: channel.expect(Contributions),
    "stands still": lambda channel: channel.wait_while(lambda: channel.paused),
}


@pytest.mark.parametrize("asking", ASKING)
@pytest.mark.timeout(20)
def test_the_daemons_death_is_told(ends: tuple[socket.socket, Channel], asking: str) -> None:
    daemon, channel = ends
    daemon.sendall(line(Pause()))
    channel.wait_while(lambda: not channel.paused)
    daemon.close()
    for _ in range(2):  # and again, whoever asks next
        with pytest.raises(TrainingFailed, match="the node's daemon has ended; start it again"):
            ASKING[asking](channel)


@pytest.mark.timeout(20)
def test_a_daemon_that_dies_before_it_has_read_all_is_told_too(ends: tuple[socket.socket, Channel]) -> None:
    daemon, channel = ends
    channel.send(Paused(round=1))
    daemon.close()  # which resets the connection
    with pytest.raises(TrainingFailed, match="the node's daemon has ended"):
        channel.expect(Contributions)


def test_what_can_not_be_said_is_told_too(ends: tuple[socket.socket, Channel]) -> None:
    daemon, channel = ends
    daemon.close()
    with pytest.raises(TrainingFailed, match="the node's daemon has ended"):
        channel.send(Paused(round=1))
