"""Where a node's training stands, and how to wait until it stands elsewhere."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from conlora.daemon.tally import Tally
from conlora.errors import Refused


class State(StrEnum):
    """What a node does, in a word."""

    WAITING = "waiting"  # for a program of the user's to join
    LOADING = "loading"
    PAUSED = "paused"
    TRAINING = "training"
    FINISHED = "finished"
    RESTARTING = "restarting"
    DRAINING = "draining"
    DRAINED = "drained"  # out of the federation until it is resumed
    STOPPING = "stopping"


SAVING = (State.TRAINING, State.PAUSED)  # a trainer that is asked for a checkpoint makes one
STILL = (State.PAUSED, State.WAITING)
GOING_ON = (State.TRAINING, State.WAITING)
AT_REST = (State.PAUSED, State.FINISHED, State.WAITING)
HOPELESS = (State.FINISHED, State.STOPPING)  # nothing follows


@dataclass
class Progress:
    """Where training stands. Whoever changes what others may wait for calls `announce`."""

    state: State = State.LOADING
    message: str = ""
    round: int = 0
    step: int = 0
    loss: float | None = None
    evaluation: dict[str, float] = field(default_factory=dict)  # the newest, by figure
    restarts: int = 0
    trainer_pid: int = 0
    tally: Tally = field(default_factory=Tally)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition, init=False, repr=False, compare=False)

    async def announce(self) -> None:
        """Has all who wait look again."""
        async with self._changed:
            self._changed.notify_all()

    async def until(self, condition: Callable[[], bool], verb: str) -> None:
        """Waits for a condition that the trainer brings about. Raises Refused, naming the verb, when it no longer can."""
        async with self._changed:
            await self._changed.wait_for(lambda: condition() or self.state in HOPELESS)
        if not condition():
            raise Refused(f"can't {verb}: the node is {self.state}")
