"""Members of test federations, closed in the end whatever happens, and a forkserver, which makes real nodes' trainers quick."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from tests.meshes import Member, until

from conlora.net import dialling
from conlora.testbed.processes import Interrupts
from conlora.testbed.trainers import forkserver
from conlora.training.process import FORKSERVER

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.fixture
async def member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[[str], Member]]:
    """Makes a member by name."""
    monkeypatch.setattr(dialling, "FIRST_RETRY_SECONDS", 0.05)
    made: list[Member] = []

    def make(name: str) -> Member:
        made.append(Member(name, tmp_path))
        return made[-1]

    yield make
    await asyncio.gather(*(each.close() for each in made))
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()}, "all tasks have ended")


@pytest.fixture(scope="session")
def forkserver_socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One for all tests of the session; it can import the documentation's examples, too."""
    log = tmp_path_factory.mktemp("forkserver") / "forkserver.log"
    paths = [str(EXAMPLES), *filter(None, [os.environ.get("PYTHONPATH")])]
    with forkserver({**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, log, Interrupts()) as env:
        yield env[FORKSERVER]


@pytest.fixture
def forks(forkserver_socket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes' own trainers are forked, as in testbeds."""
    monkeypatch.setenv(FORKSERVER, forkserver_socket)
