"""What the daemon hears of a trainer that dies: the end, whichever way the connection tells it."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from conlora.training.messages import Finished, Unchanged
from conlora.training.process import TrainerProcess

LINE = Unchanged().model_dump_json().encode() + b"\n"


async def heard(reader: asyncio.StreamReader) -> list[object]:
    trainer = TrainerProcess(cast(Any, SimpleNamespace(pid=1)), reader, cast(Any, None), None)
    return [message async for message in trainer.messages()]


@pytest.mark.parametrize("error", [BrokenPipeError, ConnectionResetError])
async def test_a_connection_that_breaks_is_the_end(error: type[Exception]) -> None:
    """The first is what asyncio makes of a write that a dead trainer did not take any more."""
    reader = asyncio.StreamReader()
    reader.feed_data(LINE)
    asyncio.get_running_loop().call_soon(reader.set_exception, error())
    assert await heard(reader) in ([], [Unchanged()])


async def test_a_line_that_is_cut_off_is_the_end() -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(LINE + Finished(complete=True).model_dump_json().encode()[:-4])
    reader.feed_eof()
    assert await heard(reader) == [Unchanged()]
