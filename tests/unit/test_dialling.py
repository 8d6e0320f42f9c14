"""Who keeps edges dialled ends by being cancelled only."""

import asyncio
from collections.abc import Callable

from structlog.testing import capture_logs

from conlora.net.dialling import Dialler
from conlora.net.edge import PeerState
from conlora.net.identity import Peer


async def test_a_defect_that_ends_the_dialling_is_in_the_log() -> None:
    async def until(_: Callable[[], bool]) -> None:
        raise RuntimeError("a defect")

    async def dial(_: PeerState) -> None:
        raise AssertionError("not reached")

    dialler = Dialler(dial, lambda: False, until)
    with capture_logs() as logs:
        dialler.keep([PeerState(Peer("b", "B", "127.0.0.1:1", b""))])
        await asyncio.wait(dialler.tasks.values())
        await asyncio.sleep(0)  # what is called when a task is done is called after it
    assert logs == [
        {
            "event": "this edge is no longer dialled, restart the node",
            "log_level": "error",
            "reason": "RuntimeError('a defect')",
        }
    ]
