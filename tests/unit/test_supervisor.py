"""A trainer's life as its daemon sees it, with trainers that only play their part: what it goes on from, and where it stands."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from structlog.testing import capture_logs
from tests.meshes import until
from tests.sketch_records import SCHEMA

from conlora.config import load_config
from conlora.daemon import supervisor as supervisor_module
from conlora.daemon.progress import State
from conlora.daemon.supervisor import Supervisor
from conlora.errors import ConfigError, Refused, Unavailable
from conlora.store.checkpoints import MANIFEST
from conlora.store.history import History
from conlora.training import messages

TENSORS = SCHEMA.to_json()
READY = messages.Ready(fingerprint="print", peft="1", adapter_schema=TENSORS, shared_schema=TENSORS)


class Observatory:
    """Hears whether the node trains."""

    def stand(self, still: bool) -> None:
        """Nobody asks."""

    def open(self, *_: object) -> None:
        """Nobody asks."""


class Trainer:
    """Says that its model is there, and ends."""

    pid = 1

    def send(self, message: object) -> None:
        """Hears nothing."""

    def kill(self) -> None:
        """Is about to end anyway."""

    async def messages(self) -> AsyncIterator[messages.FromTrainer]:
        """The only one."""
        yield READY

    async def exited(self) -> str:
        """In good order."""
        return ""


def supervisor_in(folder: Path, history: History, trainers: Iterator[Any], paused: bool = False) -> Supervisor:
    """One whose trainers these are, one after the other."""

    class WithTrainers(Supervisor):
        async def _start(self) -> Any:
            return next(trainers)

    nobody: Any = None
    observatory: Any = Observatory()
    exchange: Any = SimpleNamespace(outbox=SimpleNamespace(next_slot=0))
    exchange.go_on = exchange.open = exchange.interrupt = lambda *_: None
    path = folder / "conlora.yaml"
    path.write_text(yaml.safe_dump({"name": "mercy", "model": {"base": "owner/model"}, "task": {"type": "guest"}}))
    return WithTrainers(
        load_config(path), exchange, observatory, history, nobody,
        paused=paused, on_ready=lambda _: None, on_publish=lambda _: None,
    )  # fmt: skip


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    with History(tmp_path / "history.db") as history:
        yield supervisor_in(tmp_path, history, iter([Trainer()]))


class Played(Trainer):
    """Says what the test says, until it is killed or dies."""

    def __init__(self) -> None:
        self.heard: list[object] = []
        self.killed = False
        self._said: asyncio.Queue[messages.FromTrainer | None] = asyncio.Queue()
        self._ending = ""

    def send(self, message: object) -> None:
        """Keeps it."""
        self.heard.append(message)

    def say(self, *said: messages.FromTrainer) -> None:
        """To the daemon."""
        for message in said:
            self._said.put_nowait(message)

    def die(self, ending: str) -> None:
        """So the daemon finds it; nothing is an end in good order."""
        self._ending = ending
        self._said.put_nowait(None)

    def kill(self) -> None:
        """At once."""
        if not self.killed:
            self.killed = True
            self.die("killed")

    async def messages(self) -> AsyncIterator[messages.FromTrainer]:
        """As they come."""
        while (message := await self._said.get()) is not None:
            yield message

    async def exited(self) -> str:
        """As the test has it."""
        return self._ending


DIED = "the trainer was ended by SIGKILL"


class Life:
    """A supervisor at work, and its trainers in the order in which they are started."""

    def __init__(self, folder: Path, history: History, paused: bool) -> None:
        self.trainers: list[Played] = []
        self.supervisor = supervisor_in(folder, history, self._started(), paused)
        self.running = asyncio.create_task(self.supervisor.run())

    def _started(self) -> Iterator[Played]:
        while True:
            self.trainers.append(Played())
            yield self.trainers[-1]

    @property
    def state(self) -> State:
        return self.supervisor.progress.state

    async def until(self, *states: State) -> None:
        """The supervisor stands there."""
        async with asyncio.timeout(5):
            await self.supervisor.progress.until(lambda: self.state in states, "test")

    async def has_heard(self, kind: type, number: int = 0) -> Played:
        """That trainer has been told."""

        def heard() -> Played | None:
            trainer = next(iter(self.trainers[number:]), None)
            return trainer if trainer and any(isinstance(message, kind) for message in trainer.heard) else None

        trainer: Played = await until(heard, f"{kind.__name__} is heard")
        return trainer


@contextlib.asynccontextmanager
async def living(folder: Path, paused: bool = False) -> AsyncIterator[Life]:
    """From start to stop."""
    with History(folder / "history.db") as history:
        life = Life(folder, history, paused)
        await life.has_heard(messages.Setup)
        try:
            yield life
        finally:
            life.supervisor.stop()
            life.trainers[-1].die("")
            await asyncio.wait_for(life.running, 5)


def seal(supervisor: Supervisor, step: int) -> Path:
    """A checkpoint of another model."""
    store = supervisor.seals.store
    store.prepare()
    (staged := store.staging / "staged").mkdir()
    return store.seal(staged, step // 4, step, "another schema").path


async def test_before_anything_is_trained_there_is_nothing_to_save(supervisor: Supervisor) -> None:
    with pytest.raises(Refused, match=r"^there is no checkpoint yet: nothing has been trained$"):
        await supervisor.checkpoint()


async def test_another_model_does_not_go_on_from_a_checkpoint(supervisor: Supervisor) -> None:
    path = seal(supervisor, 4)
    with pytest.raises(ConfigError) as caught:
        await supervisor.run()
    assert str(caught.value) == (
        f"{path}: was made with another model or other LoRA settings; put those back, or start anew with another state_dir"
    )


async def test_a_damaged_checkpoint_is_in_the_log_and_the_one_before_counts(supervisor: Supervisor) -> None:
    intact, damaged = seal(supervisor, 4), seal(supervisor, 8)
    (damaged / MANIFEST).write_text("{")
    with capture_logs() as logs, pytest.raises(ConfigError, match=rf"^{intact}: was made with another model"):
        await supervisor.run()
    found = [entry for entry in logs if entry["log_level"] == "error"]
    assert [entry["event"] for entry in found] == ["damaged checkpoint"]
    assert found[0]["reason"].startswith(f"{damaged}: not an intact checkpoint (")


async def test_a_trainer_that_gives_up_has_the_node_end_likewise(tmp_path: Path) -> None:
    trainer = Played()
    trainer.say(messages.Failed(message="no hub answers", exit_code=Unavailable.exit_code))
    trainer.die("exited")
    with History(tmp_path / "history.db") as history, pytest.raises(Unavailable, match="no hub answers"):
        await supervisor_in(tmp_path, history, iter([trainer])).run()


async def test_who_resumes_a_node_before_it_stands_still_has_it_train(tmp_path: Path) -> None:
    """Its trainer has loaded, and says once more that it stands, as it was told at first."""
    async with living(tmp_path, paused=True) as life:
        trainer = life.trainers[0]
        trainer.say(READY)
        await life.has_heard(messages.Layout)
        async with asyncio.timeout(5):
            await life.supervisor.resume()
        trainer.say(messages.Paused(round=0))
        await asyncio.sleep(0.01)
        assert life.state is State.TRAINING
        life.supervisor.stop()
        assert not trainer.killed, "what it has trained would be lost"
        assert isinstance(trainer.heard[-1], messages.Stop)


async def test_a_node_that_starts_paused_is_paused_once_its_trainer_stands(tmp_path: Path) -> None:
    async with living(tmp_path, paused=True) as life:
        life.trainers[0].say(READY, messages.Paused(round=0))
        await life.until(State.PAUSED)


async def test_who_stops_a_node_that_drains_into_the_end_of_a_round_loses_nothing(tmp_path: Path) -> None:
    """It was told while it loaded a checkpoint from the middle of a round, and trains on to the end of that."""
    async with living(tmp_path) as life:
        draining = asyncio.create_task(life.supervisor.rest())
        await life.has_heard(messages.Pause)
        life.trainers[0].say(READY)
        await life.until(State.TRAINING)
        assert not draining.done(), "it does not stand yet"
        life.supervisor.stop()
        assert not life.trainers[0].killed
        draining.cancel()


@pytest.mark.parametrize(
    ("wish", "told", "sentence"),
    [
        ("rest", messages.Pause, "can't drain: the node is stopping"),
        ("pause", messages.Pause, "can't pause: the node is stopping"),
        ("checkpoint", messages.Checkpoint, "no new checkpoint: the trainer ended before it was saved; ask again"),
    ],
)
async def test_who_waits_for_a_trainer_hears_that_somebody_has_stopped_the_node(
    tmp_path: Path, wish: str, told: type, sentence: str
) -> None:
    """Before the admin socket closes, so that it does not look as if no daemon had been there."""
    async with living(tmp_path) as life:
        life.trainers[0].say(READY)
        await life.until(State.TRAINING)
        asking = asyncio.create_task(getattr(life.supervisor, wish)())
        await life.has_heard(told)
        life.supervisor.stop()
        life.trainers[0].die("")
        await asyncio.wait_for(life.running, 5)
        with pytest.raises(Refused, match=f"^{sentence}"):
            await asyncio.wait_for(asking, 5)


async def test_who_resumes_hears_that_somebody_has_paused_meanwhile(tmp_path: Path) -> None:
    async with living(tmp_path, paused=True) as life:
        resuming = asyncio.create_task(life.supervisor.resume())
        await life.has_heard(messages.Resume)
        pausing = asyncio.create_task(life.supervisor.pause())
        life.trainers[0].say(READY, messages.Paused(round=0))
        async with asyncio.timeout(5):
            with pytest.raises(Refused, match=r"^not resumed: the node was paused meanwhile; resume it again$"):
                await resuming
            assert await pausing == 0


async def test_who_pauses_hears_that_somebody_has_resumed_meanwhile(tmp_path: Path) -> None:
    async with living(tmp_path) as life:
        life.trainers[0].say(READY)
        await life.until(State.TRAINING)
        pausing = asyncio.create_task(life.supervisor.pause())
        await life.has_heard(messages.Pause)
        async with asyncio.timeout(5):
            assert await life.supervisor.resume() == 0
            with pytest.raises(Refused, match=r"^not paused: the node was resumed meanwhile; pause it again$"):
                await pausing


@pytest.mark.parametrize("ending", [DIED, ""], ids=["dies", "leaves"])
async def test_who_drains_waits_for_the_next_trainer_where_one_ends_before_it_has_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """A program of the user's may also leave, which is no crash."""
    monkeypatch.setattr(supervisor_module, "LONGEST_BACKOFF_SECONDS", 0.01)
    async with living(tmp_path) as life:
        life.trainers[0].say(READY)
        draining = asyncio.create_task(life.supervisor.rest())
        (await life.has_heard(messages.Pause)).say(messages.Paused(round=0))
        (await life.has_heard(messages.Checkpoint)).die(ending)
        second = await life.has_heard(messages.Setup, 1)
        second.say(READY, messages.Paused(round=0))
        await life.has_heard(messages.Checkpoint, 1)
        second.say(messages.Unchanged())
        async with asyncio.timeout(5):
            assert await draining is None, "nothing has been trained"
        assert life.state is State.PAUSED


async def test_who_asks_for_a_checkpoint_hears_that_the_trainer_ended_over_it(tmp_path: Path) -> None:
    async with living(tmp_path) as life:
        life.trainers[0].say(READY)
        await life.until(State.TRAINING)
        asking = asyncio.create_task(life.supervisor.checkpoint())
        (await life.has_heard(messages.Checkpoint)).die(DIED)
        async with asyncio.timeout(5):
            with pytest.raises(Refused, match=r"^no new checkpoint: the trainer ended before it was saved; ask again"):
                await asking
