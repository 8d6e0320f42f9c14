"""The life of a node's trainer: started from the newest checkpoint, paused, saved, stopped, and started again when it dies.

What it says between two rounds goes to `rounds`, what it has saved to `seals`.
"""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Executor

import structlog

from conlora.config import NodeConfig
from conlora.core.federation import FederationSettings
from conlora.core.schema import Schema
from conlora.core.sketch import SketchLayout
from conlora.daemon.exchange import Exchange
from conlora.daemon.observatory import Observatory
from conlora.daemon.progress import AT_REST, GOING_ON, SAVING, STILL, Progress, State
from conlora.daemon.rounds import Rounds
from conlora.daemon.seals import Seals
from conlora.daemon.troubles import Troubles
from conlora.errors import Refused, StateError, TrainingFailed, error_of
from conlora.net.transfers import Outgoing
from conlora.store.checkpoints import Checkpoint
from conlora.store.history import History
from conlora.training import messages
from conlora.training.process import TrainerProcess, waiting_room

log = structlog.get_logger()

MOST_CRASHES = 5  # in a row, without a finished round between them
LONGEST_BACKOFF_SECONDS = 60.0


class Supervisor:
    """The life of a node's trainer."""

    def __init__(
        self,
        config: NodeConfig,
        exchange: Exchange,
        observatory: Observatory,
        history: History,
        spawner: Executor,
        *,
        paused: bool,
        on_ready: Callable[[FederationSettings], None],
        on_publish: Callable[[Outgoing], None],
    ) -> None:
        """spawner: one thread, from which the trainer is started.

        on_ready: called with the settings that peers compare. on_publish: called with each snapshot for the links.
        """
        self.progress = Progress()
        self.troubles = Troubles()
        self.seals = Seals(config, history, self.troubles)
        self._config = config
        self._exchange = exchange
        self._observatory = observatory
        self._rounds = Rounds(
            config,
            exchange,
            observatory,
            history,
            self.progress,
            self.troubles,
            tell=self._tell,
            on_publish=on_publish,
            on_failure=self._fail,
        )
        self._spawner = spawner
        self._on_ready = on_ready
        self._paused = paused
        self._stopping = asyncio.Event()
        self._trainer: TrainerProcess | None = None
        self._shared_digest = self._fingerprint = ""
        self._problem: BaseException | None = None  # ends training for good

    async def run(self) -> None:
        """Trains until all rounds are done or `stop`. Raises ConfigError, TrainingFailed and StateError."""
        self.seals.store.prepare()
        crashes = furthest = 0
        while not self._stopping.is_set():
            ending = await self._run_once()
            if not ending and self._config.guest and self.progress.round < self._config.training.rounds:
                continue  # the program has left; it, or another, may join again
            if not ending:
                break
            if self._rounds.furthest > furthest:  # what it has done again is no progress
                crashes, furthest = 0, self._rounds.furthest
            crashes += 1
            self.progress.restarts += 1
            if crashes >= MOST_CRASHES:
                raise TrainingFailed(
                    f"{ending}; it died {crashes} times without finishing a new round, so it is not restarted"
                )
            backoff = min(2.0 ** (crashes - 1), LONGEST_BACKOFF_SECONDS)
            log.error("trainer died", reason=ending, restart_in_seconds=backoff)
            await self._set_state(State.RESTARTING, ending)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(backoff):
                    await self._stopping.wait()
        if self._stopping.is_set() or not self.unsaved:
            await self._set_state(State.FINISHED)  # or STOPPING; who waits for a trainer hears that none will come
        if error := self.unsaved:
            raise error

    @property
    def unsaved(self) -> StateError | None:
        """Why the last checkpoint is older than it should be, if it is."""
        return self.seals.unsaved

    @property
    def last_checkpoint(self) -> Checkpoint | None:
        """The newest, of this life or of an earlier one."""
        return self.seals.last

    def stop(self) -> None:
        """Ends training after this step, with a checkpoint; `run` returns when that is done."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._exchange.interrupt()
        if self._trainer and self.progress.state is State.LOADING:
            self._trainer.kill()  # nothing to save yet, and a model may load for minutes
        else:
            self._tell(messages.Stop())

    async def pause(self) -> int:
        """Waits until the trainer stands still; returns the round. Raises Refused where it can't, or is resumed meanwhile."""
        self._paused = True
        self._tell(messages.Pause())
        await self.progress.until(lambda: self.progress.state in STILL or not self._paused, "pause")
        if not self._paused:
            raise Refused("not paused: the node was resumed meanwhile; pause it again")
        return self.progress.round

    async def rest(self) -> Checkpoint | None:
        """Waits until the round under way is over and the trainer stands still; returns a checkpoint of that.

        None: nothing has been trained. Raises Refused where it is resumed or stopped meanwhile, or can't be saved.
        """
        self._paused = True
        while True:
            if self.progress.state not in AT_REST:
                self._tell(messages.Pause(after_round=True))
                await self.progress.until(lambda: self.progress.state in AT_REST or not self._paused, "drain")
            self.check_at_rest()
            if self.progress.state is not State.PAUSED or await self._save():
                return self.last_checkpoint

    def check_at_rest(self) -> None:
        """Raises Refused where the node trains, or is about to."""
        if not self._paused or self.progress.state not in AT_REST:
            raise Refused("not drained: the node was resumed meanwhile; drain it again")

    async def resume(self, absent: bool = False) -> int:
        """Lets a paused trainer go on; returns the round. Raises Refused where it can't, or is paused meanwhile.

        absent: the node was away, and is to catch up where it adopts.
        """
        self._paused = False
        self._tell(messages.Resume(absent=absent and self._config.mixing.adopts))
        if self.progress.state is State.PAUSED:
            await self._set_state(State.TRAINING)
        await self.progress.announce()  # to those who wait for it to stand
        await self.progress.until(lambda: self.progress.state in GOING_ON or self._paused, "resume")
        if self._paused:
            raise Refused("not resumed: the node was paused meanwhile; resume it again")
        return self.progress.round

    async def checkpoint(self) -> Checkpoint:
        """A checkpoint of now (the last one where nothing has changed since). Raises Refused where there is none."""
        if self.progress.state in SAVING and not await self._save():
            raise Refused("no new checkpoint: the trainer ended before it was saved; ask again when the node trains")
        if self.last_checkpoint is None:
            raise Refused("there is no checkpoint yet: nothing has been trained")
        return self.last_checkpoint

    async def _save(self) -> bool:
        """Whether there is a checkpoint of now; there is none where the trainer has ended meanwhile."""
        before, trainer = self.seals.ended, self._trainer
        self._tell(messages.Checkpoint())
        await self.progress.until(
            lambda: self.seals.ended > before or self._trainer is not trainer or self.progress.state not in SAVING,
            "checkpoint",
        )
        if self.seals.ended > before and self.seals.problem:
            raise Refused(self.seals.problem)
        return self.seals.ended > before

    async def _run_once(self) -> str:
        """One trainer from spawn to exit. Returns how it died, or nothing when it ended in good order."""
        resume = await self.seals.newest()
        self._rounds.go_on_from(resume)
        trainer = await self._start()
        if trainer is None:
            return ""
        self._trainer = trainer
        self.progress.trainer_pid = trainer.pid
        if self._stopping.is_set():
            trainer.kill()  # nobody has told it
        await self._set_state(State.LOADING)
        trainer.send(
            messages.Setup(
                config=self._config.model_dump(mode="json"),
                staging=str(self.seals.store.staging),
                resume_from=str(resume.path) if resume else None,
                round=resume.round if resume else 0,
                step=resume.step if resume else 0,
                paused=self._paused,
                absent=self._config.mixing.adopts,
            )
        )
        try:
            async for message in trainer.messages():
                await self._handle(message)
        except BaseException:
            trainer.kill()
            raise
        finally:
            self._rounds.abandon()
            ending = await trainer.exited()
            self._trainer = None
            self.progress.trainer_pid = 0
            await self._rounds.end()
        if self._problem:
            raise self._problem
        return "" if self._stopping.is_set() else ending

    async def _start(self) -> TrainerProcess | None:
        """The node's own trainer, or whoever joins; None where the node was stopped while nobody had."""
        log_path = self._config.state_dir / "trainer.log"
        if not self._config.guest:
            threads = self._config.training.threads
            return await TrainerProcess.spawn(self._spawner, self._exchange.memory, threads, log_path)
        await self._set_state(State.WAITING, "no program has joined yet")
        with waiting_room(self._config.guest_socket) as guests:
            joined = asyncio.create_task(TrainerProcess.joined(guests, self._exchange.memory))
            stopped = asyncio.create_task(self._stopping.wait())
            await asyncio.wait({joined, stopped}, return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if joined.done():
                return joined.result()
            joined.cancel()
        return None

    async def _handle(self, message: messages.FromTrainer) -> None:
        match message:
            case messages.Ready():
                await self._ready(message)
            case messages.Saved():
                await self.seals.seal(message, self._shared_digest, self._fingerprint)
                self._tell(messages.Sealed(intact=not self.seals.problem))
                await self.progress.announce()
            case messages.Unchanged():
                self.seals.unchanged()
                await self.progress.announce()
            case messages.Paused():
                if self._paused:
                    await self._set_state(State.PAUSED)
            case messages.Finished():
                log.info("trainer finished", round=self.progress.round)
            case messages.Failed():
                self._problem = error_of(message.exit_code)(message.message)
            case _:
                self._rounds.hear(message)

    async def _ready(self, ready: messages.Ready) -> None:
        assert self._trainer is not None
        schema, shared = Schema.from_json(ready.adapter_schema), Schema.from_json(ready.shared_schema)
        self.seals.check(shared)
        await self._rounds.open(schema, shared)
        self._shared_digest, self._fingerprint = shared.digest, ready.fingerprint
        layout = SketchLayout.of(schema, shared)
        settings = self._config.settings(ready.fingerprint, ready.peft, shared)
        self._exchange.go_on(self.progress.round)
        self._observatory.open(settings, layout)
        self._trainer.send(messages.Layout(publish=self._exchange.outbox.next_slot))
        self._on_ready(settings)
        await self._set_state(State.TRAINING)  # also where it is to stand still: it says Paused once it does

    def _fail(self, error: BaseException) -> None:
        """Training can't go on, whatever the trainer does."""
        self._problem = error
        if self._trainer:
            self._trainer.kill()

    def _tell(self, message: messages.ToTrainer) -> None:
        if self._trainer:
            self._trainer.send(message)

    async def _set_state(self, state: State, message: str = "") -> None:
        if self._stopping.is_set():
            state = State.STOPPING
        self.progress.state, self.progress.message = state, message
        self._observatory.stand(still=state is not State.TRAINING)
        await self.progress.announce()
