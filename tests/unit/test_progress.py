"""Waiting for training to stand elsewhere: until it does, or nothing follows any more."""

import asyncio
from collections.abc import Callable

import pytest

from conlora.daemon.progress import Progress, State
from conlora.errors import Refused


async def waiting(progress: Progress, condition: Callable[[], bool]) -> "asyncio.Task[None]":
    task = asyncio.create_task(progress.until(condition, "pause"))
    await asyncio.sleep(0)
    assert not task.done()
    return task


async def test_who_waits_hears_of_it() -> None:
    progress = Progress(State.TRAINING)
    task = await waiting(progress, lambda: progress.state is State.PAUSED)
    progress.state = State.PAUSED
    await progress.announce()
    await task


@pytest.mark.parametrize("end", [State.FINISHED, State.STOPPING])
async def test_what_can_not_come_any_more_is_refused(end: State) -> None:
    progress = Progress(State.TRAINING)
    task = await waiting(progress, lambda: progress.state is State.PAUSED)
    progress.state = end
    await progress.announce()
    with pytest.raises(Refused, match=rf"^can't pause: the node is {end}$"):
        await task


async def test_what_has_come_with_the_end_is_not_refused() -> None:
    progress = Progress(State.TRAINING)
    task = await waiting(progress, lambda: progress.round == 5)
    progress.round, progress.state = 5, State.FINISHED
    await progress.announce()
    await task
