"""Members of test federations, closed in the end whatever happens, with a look for tasks that they left behind."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from tests.meshes import Member, until

from conlora.net import mesh


@pytest.fixture
async def member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[[str], Member]]:
    """Makes a member by name."""
    monkeypatch.setattr(mesh, "FIRST_RETRY_SECONDS", 0.05)
    made: list[Member] = []

    def make(name: str) -> Member:
        made.append(Member(name, tmp_path))
        return made[-1]

    yield make
    await asyncio.gather(*(each.close() for each in made))
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()}, "all tasks have ended")
