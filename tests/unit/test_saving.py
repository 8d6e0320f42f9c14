"""Checkpoints at the trainer's end, where disk or daemon won't have them: training goes on, and the last one is tried again."""

import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
from safetensors import SafetensorError

from conlora.core.robustness import Screen
from conlora.training import gossip as module
from conlora.training.channel import Channel
from conlora.training.gossip import Gossip
from conlora.training.messages import FROM_TRAINER, Checkpoint, Pause, Saved, Sealed, Stop, Unchanged, line

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
TORCH = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")
pytestmark = pytest.mark.timeout(30)


class Daemon:
    """Answers each Saved as the test has it, and keeps what it was told."""

    def __init__(self, end: socket.socket, answers: Callable[[Saved, int], list[Sealed | Stop]]) -> None:
        self.told: list[object] = []
        self._end = end
        self._answers = answers
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def say(self, message: Checkpoint | Pause | Stop) -> None:
        self._end.sendall(line(message))

    def _run(self) -> None:
        for data in self._end.makefile("rb"):
            message = FROM_TRAINER.validate_json(data)
            self.told.append(message)
            if isinstance(message, Saved):
                for answer in self._answers(message, sum(isinstance(told, Saved) for told in self.told)):
                    self._end.sendall(line(answer))

    def close(self) -> None:
        self._thread.join()
        self._end.close()


Meet = Callable[[Callable[[Saved, int], list[Sealed | Stop]]], tuple[Daemon, Gossip]]


@pytest.fixture
def meet(monkeypatch: pytest.MonkeyPatch) -> Iterator[Meet]:
    """A daemon that answers so, and a trainer's gossip at step 0."""
    monkeypatch.setattr(module, "SAVE_AGAIN_SECONDS", 0.01)
    closing: list[Channel | Daemon] = []

    def pair(answers: Callable[[Saved, int], list[Sealed | Stop]]) -> tuple[Daemon, Gossip]:
        ours, theirs = socket.socketpair()
        daemon, channel = Daemon(ours, answers), Channel(theirs, guest=True)
        closing.extend((channel, daemon))
        screen = mock.create_autospec(Screen, instance=True)
        return daemon, Gossip(
            mock.Mock(), None, channel, screen=screen, publish=0, local_steps=1, rounds_mixed=4, step=0
        )

    yield pair
    for each in closing:
        each.close()


def honest(saved: Saved, nth: int) -> list[Sealed | Stop]:
    return [Sealed(intact=not saved.problem)]


def failing(times: int, error: Exception) -> Callable[[], None]:
    left = [times]

    def write() -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise error

    return write


@pytest.mark.parametrize(
    "error", [FULL, TORCH, SafetensorError("Error while serializing: I/O error: No space left on")]
)
def test_a_full_disk_is_told_and_training_goes_on(meet: Meet, error: Exception) -> None:
    daemon, gossip = meet(honest)
    gossip.save(Path("staged"), 8, failing(1, error), last=False)
    assert not gossip.is_saved(8)
    (saved,) = daemon.told
    assert saved == Saved(path="staged", round=4, step=8, problem=str(error))
    gossip.save(Path("staged"), 8, failing(0, error), last=False)
    assert gossip.is_saved(8)
    assert not gossip.is_saved(9)


def test_the_last_checkpoint_is_tried_until_there_is_room(meet: Meet) -> None:
    daemon, gossip = meet(honest)
    gossip.save(Path("staged"), 8, failing(3, FULL), last=True)
    assert [bool(saved.problem) for saved in daemon.told if isinstance(saved, Saved)] == [True, True, True, False]
    assert gossip.is_saved(8)


def test_the_last_checkpoint_is_tried_until_the_daemon_can_seal_it(meet: Meet) -> None:
    daemon, gossip = meet(lambda saved, nth: [Sealed(intact=nth == 3)])
    gossip.save(Path("staged"), 8, failing(0, FULL), last=True)
    assert len(daemon.told) == 3


def test_a_stop_ends_the_trying(meet: Meet) -> None:
    daemon, gossip = meet(lambda saved, nth: [Sealed(intact=False), *([Stop()] if nth == 2 else [])])
    gossip.save(Path("staged"), 8, failing(100, FULL), last=True)
    assert not gossip.is_saved(8)
    assert len(daemon.told) == 3, "once more after the stop"


def test_what_could_not_be_sealed_is_not_said_to_be_unchanged(meet: Meet) -> None:
    daemon, gossip = meet(lambda saved, nth: [Sealed(intact=nth > 1)])
    gossip.save(Path("staged"), 8, failing(0, FULL), last=False)
    daemon.say(Checkpoint())
    gossip.channel.wait_while(lambda: not gossip.channel.checkpoint_wanted)
    assert gossip.stand_still(8), "a checkpoint is to be written"
    gossip.save(Path("staged"), 8, failing(0, FULL), last=False)
    assert gossip.is_saved(8)
    daemon.say(Checkpoint())
    gossip.channel.wait_while(lambda: not gossip.channel.checkpoint_wanted)
    assert not gossip.stand_still(8)
    gossip.channel.close()
    daemon.close()
    assert daemon.told[-1] == Unchanged()


def test_an_error_that_is_not_the_disks_ends_the_trainer(meet: Meet) -> None:
    _, gossip = meet(honest)
    with pytest.raises(RuntimeError, match="out of memory"):
        gossip.save(Path("staged"), 8, failing(1, RuntimeError("CUDA out of memory")), last=False)
