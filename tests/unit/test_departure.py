"""The order in which a node leaves and comes back, with a trainer, links and operators that only play their parts."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from conlora.core.gossip import Mode
from conlora.daemon.departure import RESTS, Departure
from conlora.daemon.progress import Progress, State
from conlora.errors import Refused


class FakeSupervisor:
    """Rests when `rested` is set."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self.progress = Progress(State.TRAINING, round=4)
        self.rested = asyncio.Event()
        self.loaded = asyncio.Event()
        self.loaded.set()
        self._note = note

    async def rest(self) -> Any:
        self._note("rest")
        await self.rested.wait()
        self.check_at_rest()
        return SimpleNamespace(path=Path("/state/step-8"))

    def check_at_rest(self) -> None:
        if self.progress.state is State.TRAINING and self.rested.is_set():
            raise Refused("not drained: the node was resumed meanwhile; drain it again")

    async def resume(self, absent: bool = False) -> int:
        self._note("resume absent" if absent else "resume")
        await self.loaded.wait()
        self.progress.state = State.TRAINING
        return 4


class FakeMesh:
    """Is there or away."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self.away = False
        self._note = note

    async def leave(self) -> None:
        self._note("good-bye")
        self.away = True

    def come_back(self) -> None:
        self._note("dial")
        self.away = False


class Stage:
    """A departure, and what was done in its course."""

    def __init__(self, mode: Mode = Mode.ASYNC, adopts: bool = False) -> None:
        self.done: list[str] = []
        self.supervisor, self.mesh = FakeSupervisor(self.done.append), FakeMesh(self.done.append)
        self.changing = asyncio.Lock()
        config: Any = SimpleNamespace(federation=SimpleNamespace(mode=mode), mixing=SimpleNamespace(adopts=adopts))
        exchange: Any = SimpleNamespace(forget=lambda: self.done.append("forget"))
        supervisor: Any = self.supervisor
        mesh: Any = self.mesh
        self.departure = Departure(config, supervisor, mesh, exchange, self.changing)

    def at_rest(self, state: State = State.PAUSED) -> None:
        self.supervisor.progress.state = state
        self.supervisor.rested.set()

    async def stop(self) -> tuple[Path | None, int]:
        self.done.append("stop")
        return None, 5


async def test_peers_are_told_once_the_round_is_over() -> None:
    stage = Stage()
    draining = asyncio.create_task(stage.departure.drain())
    await asyncio.sleep(0.01)
    assert (stage.done, stage.departure.state[0]) == (["rest"], State.DRAINING)
    stage.at_rest()
    assert await draining == (Path("/state/step-8"), 4)
    assert (stage.done, stage.departure.state) == (["rest", "good-bye"], (State.DRAINED, RESTS))


async def test_who_leaves_ends_after_its_good_bye() -> None:
    stage = Stage()
    stage.at_rest()
    assert await stage.departure.leave(stage.stop) == (None, 5)
    assert stage.done == ["rest", "good-bye", "stop"]


@pytest.mark.parametrize("asked", ["drain", "leave"])
async def test_it_goes_on_though_the_operator_hangs_up(asked: str) -> None:
    stage = Stage()
    asking = asyncio.create_task(stage.departure.drain() if asked == "drain" else stage.departure.leave(stage.stop))
    await asyncio.sleep(0.01)
    asking.cancel()
    await asyncio.sleep(0.01)
    stage.at_rest()
    await asyncio.sleep(0.01)
    assert stage.done == ["rest", "good-bye", *(["stop"] if asked == "leave" else [])]


async def test_a_resume_between_rest_and_good_bye_keeps_the_node_in() -> None:
    stage = Stage()
    async with stage.changing:  # a reload, say
        draining = asyncio.create_task(stage.departure.drain())
        stage.at_rest()
        await asyncio.sleep(0.01)
        stage.supervisor.progress.state = State.TRAINING
    with pytest.raises(Refused, match="resumed meanwhile; drain it again"):
        await draining
    assert not stage.mesh.away
    assert stage.departure.state == (State.TRAINING, "")


@pytest.mark.parametrize("adopts", [False, True])
async def test_who_comes_back_links_up_and_then_trains(adopts: bool) -> None:
    stage = Stage(adopts=adopts)
    stage.at_rest()
    await stage.departure.drain()
    stage.done.clear()
    assert await stage.departure.resume() == 4
    assert stage.done == [*(["forget"] if adopts else []), "dial", "resume absent"]
    await stage.departure.resume()
    assert stage.done[-1] == "resume", "after a pause it was not away"


@pytest.mark.parametrize("away", [False, True])
async def test_nobody_waits_for_a_node_that_loads_before_it_trains(away: bool) -> None:
    stage = Stage()
    stage.at_rest()
    if away:
        await stage.departure.drain()
    stage.supervisor.loaded.clear()
    resuming = asyncio.create_task(stage.departure.resume())
    await asyncio.sleep(0.01)
    async with asyncio.timeout(1), stage.changing:  # a reload, say
        assert stage.done[-1] == ("resume absent" if away else "resume")
    stage.supervisor.loaded.set()
    assert await resuming == 4


async def test_who_has_finished_comes_back_with_its_last_snapshot() -> None:
    stage = Stage(adopts=True)
    stage.at_rest(State.FINISHED)
    await stage.departure.drain()
    assert await stage.departure.resume() == 4
    assert stage.done == ["rest", "good-bye", "dial"]
    assert stage.departure.state[0] is State.FINISHED


async def test_lockstep_can_not_do_without_a_node() -> None:
    stage = Stage(Mode.SYNC)
    with capture_logs() as logs, pytest.raises(Refused, match="can't leave: in sync mode") as caught:
        await stage.departure.leave(stage.stop)
    assert logs == [{"event": "not drained", "log_level": "error", "reason": str(caught.value)}]
    assert stage.done == []
