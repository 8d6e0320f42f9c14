"""How a node leaves its federation and comes back: after a whole round, and with a word to its peers."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeAlias

import structlog

from conlora.config import NodeConfig
from conlora.core.gossip import Mode
from conlora.daemon.exchange import Exchange
from conlora.daemon.progress import State
from conlora.daemon.supervisor import Supervisor
from conlora.errors import ConLoRAError, Refused
from conlora.net.mesh import Mesh

log = structlog.get_logger()

RESTS = "its peers know that it has left; `conlora resume` brings it back"

Standing: TypeAlias = tuple[Path | None, int]  # the last checkpoint, if any, and the round


class Departure:
    """Joins what trains and what links up where a node drains, leaves and resumes."""

    def __init__(
        self, config: NodeConfig, supervisor: Supervisor, mesh: Mesh, exchange: Exchange, changing: asyncio.Lock
    ) -> None:
        """changing: held while links are ended or made; one operator at a time."""
        self._config = config
        self._supervisor = supervisor
        self._mesh = mesh
        self._exchange = exchange
        self._changing = changing
        self._under_way: set[asyncio.Task[Any]] = set()

    @property
    def state(self) -> tuple[State, str]:
        """The node's, and why, as far as the supervisor does not know better."""
        progress = self._supervisor.progress
        if self._mesh.away:
            return State.DRAINED, RESTS
        return State.DRAINING if self._under_way else progress.state, progress.message

    async def drain(self) -> Standing:
        """Leaves after this round, until `resume`. Raises Refused."""
        return await self._to_its_end(self._drain("drain"))

    async def leave(self, stop: Callable[[], Awaitable[Standing]]) -> Standing:
        """Leaves after this round, and stops the node. Raises Refused."""

        async def leave() -> Standing:
            await self._drain("leave")
            return await stop()

        return await self._to_its_end(leave())

    async def resume(self) -> int:
        """Goes on, and back into the federation where the node has left it; returns the round. Raises Refused."""
        async with self._changing:  # no longer than that: until a model is loaded, others may change something
            away, finished = self._mesh.away, self._supervisor.progress.state is State.FINISHED
            if away:
                if self._config.mixing.adopts and not finished:
                    self._exchange.forget()
                self._mesh.come_back()
                log.info("back in the federation")
        return self._supervisor.progress.round if away and finished else await self._supervisor.resume(absent=away)

    async def _to_its_end(self, operation: Coroutine[Any, Any, Standing]) -> Standing:
        """A round may take long: who asked may hang up meanwhile."""
        task = asyncio.create_task(operation)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return await asyncio.shield(task)

    async def _drain(self, verb: str) -> Standing:
        try:
            if self._config.federation.mode is Mode.SYNC:
                raise Refused(
                    f"can't {verb}: in sync mode the neighbours can't go on without this node; `conlora pause` lets them wait, "
                    "up to federation.sync_deadline_seconds, and `conlora stop` ends it"
                )
            checkpoint = await self._supervisor.rest()
            async with self._changing:
                self._supervisor.check_at_rest()
                await self._mesh.leave()
        except ConLoRAError as error:
            log.error("not drained", reason=str(error))
            raise
        log.info("drained", round=self._supervisor.progress.round)
        return (checkpoint.path if checkpoint else None), self._supervisor.progress.round
