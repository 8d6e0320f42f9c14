"""Trainers forked by a real forkserver end as spawned ones do, say why in the log, and don't outlive it."""

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from tests.daemons import wait_until

from conlora.errors import TrainingFailed
from conlora.testbed.processes import Interrupts
from conlora.testbed.trainers import forkserver
from conlora.training.arena import create_memory
from conlora.training.messages import Setup
from conlora.training.process import FORKSERVER, TrainerProcess

Spawn = Callable[[str], Awaitable[TrainerProcess]]


@pytest.fixture
async def spawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Spawn]:
    """Has a trainer forked whose log has the given name."""
    memory = create_memory()

    async def trainer(name: str) -> TrainerProcess:
        return await TrainerProcess.spawn(unused, memory, None, tmp_path / name)

    with ThreadPoolExecutor() as unused, forkserver(dict(os.environ), tmp_path / "forkserver.log", Interrupts()) as env:
        monkeypatch.setenv(FORKSERVER, env[FORKSERVER])
        yield trainer
    assert (tmp_path / "forkserver.log").read_text() == ""
    os.close(memory)


async def test_forked_trainers_end_each_in_its_own_way(spawn: Spawn, tmp_path: Path) -> None:
    first, second, third, fourth = [await spawn(f"{i}.log") for i in range(4)]
    assert len({trainer.pid for trainer in (first, second, third, fourth)}) == 4
    second.kill()
    assert await second.exited() == "the trainer was ended by SIGKILL"
    second.kill()  # the end of one that has ended is none of our business
    third.send(Setup(config={}, staging="", resume_from=None, round=0, step=0, paused=False))
    ending = await third.exited()
    assert "exited with status 1 (" in ending, "a bug's traceback is in the log"
    assert "ValidationError" in (tmp_path / "2.log").read_text()
    fourth._writer.close()  # as when the daemon dies
    assert await fourth.exited() == "the trainer exited with status 70"
    assert psutil.pid_exists(first.pid), "the others' ends are not its own"
    first.kill()
    await first.exited()


async def test_trainers_end_with_their_forkserver(spawn: Spawn, tmp_path: Path) -> None:
    trainer = await spawn("trainer.log")
    server = psutil.Process(trainer.pid).parent()
    assert server is not None
    os.killpg(server.pid, signal.SIGKILL)
    assert await trainer.exited() == "the trainer was ended by SIGKILL"
    with pytest.raises(TrainingFailed, match=r"forkserver\.sock: no trainer is started there \(.*refused"):
        await spawn("another.log")


def test_a_testbed_that_fails_with_its_forkserver_says_so(tmp_path: Path) -> None:
    log = tmp_path / "forkserver.log"
    with pytest.raises(TrainingFailed, match=r"the forkserver was killed by SIGKILL \(its log: .*forkserver\.log\)"):
        fail_with_forkserver(log)


def fail_with_forkserver(log: Path) -> None:
    others = psutil.Process().children()
    with forkserver(dict(os.environ), log, Interrupts()):
        (server,) = (child for child in psutil.Process().children() if child not in others)
        server.kill()
        wait_until(lambda: server.status() == psutil.STATUS_ZOMBIE, "the forkserver is dead")
        raise TrainingFailed("a node exited with code 6")
