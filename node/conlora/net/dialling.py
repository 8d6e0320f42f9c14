"""Keeps edges dialled: for each peer with an address a task that dials whenever there is no link, with backoff and jitter."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import TypeAlias

import structlog

from conlora.net.edge import PeerState

log = structlog.get_logger()

FIRST_RETRY_SECONDS = 0.25
LONGEST_RETRY_SECONDS = 30.0
# A mismatch or a wrong certificate stays until somebody changes a configuration, perhaps the peer's: ask rarely.
REFUSED_RETRY_SECONDS = 300.0

Until: TypeAlias = Callable[[Callable[[], bool]], Awaitable[None]]


class Dialler:
    """Has one task for each edge that is kept dialled."""

    def __init__(self, dial: Callable[[PeerState], Awaitable[None]], parting: Callable[[], bool], until: Until) -> None:
        """dial: makes a link if it can, and returns when that has ended. parting: whether the node takes and makes no links.
        until: waits for a condition that links bring about.
        """
        self._dial = dial
        self._parting = parting
        self._until = until
        self.tasks: dict[str, asyncio.Task[None]] = {}  # by node id

    def keep(self, states: Iterable[PeerState]) -> None:
        """Keeps these dialled, beginning now where there is no link."""
        for state in states:
            task = self.tasks.get(state.peer.node_id)
            if task and not task.done() and state.link:
                continue  # it watches over the link, or is the link; what has changed counts for the next one
            if task:
                task.cancel()
            if state.peer.address:
                self.tasks[state.peer.node_id] = task = asyncio.create_task(self._keep_dialled(state))
                task.add_done_callback(_tell_if_failed)

    async def end(self, states: Collection[PeerState]) -> None:
        """Dials these no more."""
        tasks = [task for state in states if (task := self.tasks.pop(state.peer.node_id, None))]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep_dialled(self, state: PeerState) -> None:
        """Keeps a link to one peer alive for as long as it has an address and the node takes links."""
        delay = FIRST_RETRY_SECONDS
        while not self._parting():
            await self._until(lambda: state.link is None and state.conduct.quarantine is None)
            if self._parting() or not state.peer.address:
                return
            started = time.monotonic()
            try:
                await self._dial(state)
            except Exception as error:  # a defect, perhaps a library's: it must not be the end of the edge
                log.error("a link has failed by a defect; it is tried again", peer=state.peer.name, exc_info=error)
            if time.monotonic() - started > LONGEST_RETRY_SECONDS:
                delay = FIRST_RETRY_SECONDS  # it was a real link: the next attempt is a first one again
            # Who has left says nothing when it comes back where only this side can dial.
            pause = REFUSED_RETRY_SECONDS if state.refused else LONGEST_RETRY_SECONDS if state.left else delay
            pause *= random.uniform(0.5, 1.5)
            state.retry_at = time.monotonic() + pause
            try:
                async with asyncio.timeout(pause):
                    await self._until(lambda: state.link is not None)
            except TimeoutError:
                delay = min(delay * 2, LONGEST_RETRY_SECONDS)
            finally:
                state.retry_at = 0.0


def _tell_if_failed(task: "asyncio.Task[None]") -> None:
    """A dial loop ends by being cancelled only; anything else is a defect that must not pass in silence."""
    if not task.cancelled() and (error := task.exception()):
        log.error("this edge is no longer dialled, restart the node", reason=repr(error))
