"""Runs the trainer: starts it from the newest checkpoint, answers it, seals what it saves, and starts it again when it dies."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from enum import StrEnum

import structlog

from conlora.config import NodeConfig
from conlora.core.federation import FederationSettings
from conlora.core.gossip import Contribution
from conlora.core.schema import Schema
from conlora.core.seeding import initial_vector
from conlora.core.sketch import SketchLayout
from conlora.daemon.exchange import Exchange, Mix
from conlora.daemon.meter import Meter
from conlora.daemon.observatory import Observatory
from conlora.daemon.tally import Tally
from conlora.daemon.troubles import Troubles
from conlora.errors import ConfigError, Refused, StateError, TrainingFailed
from conlora.net.transfers import Outgoing
from conlora.store.checkpoints import Checkpoint, CheckpointStore
from conlora.store.history import EdgeRecord, History
from conlora.store.recording import Recorder
from conlora.training import messages
from conlora.training.process import TrainerProcess, waiting_room

log = structlog.get_logger()

MOST_CRASHES = 5  # in a row, without a finished round between them
LONGEST_BACKOFF_SECONDS = 60.0


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


AT_REST = (State.PAUSED, State.FINISHED, State.WAITING)


@dataclass
class Progress:
    """Where training stands."""

    state: State = State.LOADING
    message: str = ""
    round: int = 0
    step: int = 0
    loss: float | None = None
    evaluation: dict[str, float] = field(default_factory=dict)  # the newest, by figure
    restarts: int = 0
    trainer_pid: int = 0


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
        self.checkpoints = CheckpointStore(config.state_dir / "checkpoints", config.training.keep_checkpoints)
        self.last_checkpoint: Checkpoint | None = None
        self.troubles = Troubles()
        self.tally = Tally()
        self._config = config
        self._exchange = exchange
        self._observatory = observatory
        self._history = history
        self._spawner = spawner
        self._on_ready = on_ready
        self._on_publish = on_publish
        self._paused = paused
        self._stopping = asyncio.Event()
        self._changed = asyncio.Condition()
        self._trainer: TrainerProcess | None = None
        self._recorder: Recorder | None = None
        self._shared_digest = self._fingerprint = ""
        self._crashes = self._furthest = 0
        self._seals = 0  # checkpoint attempts that have ended, one way or the other
        self._seal_problem = ""
        self._problem: BaseException | None = None  # ends training for good
        self._answering: asyncio.Task[None] | None = None
        self._measuring: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Trains until all rounds are done or `stop`. Raises ConfigError, TrainingFailed and StateError."""
        self.checkpoints.prepare()
        while not self._stopping.is_set():
            ending = await self._run_once()
            if not ending and self._config.guest and self.progress.round < self._config.training.rounds:
                continue  # the program has left; it, or another, may join again
            if not ending:
                break
            self._crashes += 1
            self.progress.restarts += 1
            if self._crashes >= MOST_CRASHES:
                raise TrainingFailed(
                    f"{ending}; it died {self._crashes} times without finishing a new round, so it is not restarted"
                )
            backoff = min(2.0 ** (self._crashes - 1), LONGEST_BACKOFF_SECONDS)
            log.error("trainer died", reason=ending, restart_in_seconds=backoff)
            await self._set_state(State.RESTARTING, ending)
            try:
                async with asyncio.timeout(backoff):
                    await self._stopping.wait()
            except TimeoutError:
                continue
        if error := self.unsaved:
            raise error
        if not self._stopping.is_set():
            await self._set_state(State.FINISHED)

    @property
    def unsaved(self) -> StateError | None:
        """Why the last checkpoint is older than it should be, if it is."""
        if not self._seal_problem:
            return None
        last = self.last_checkpoint.round if self.last_checkpoint else 0
        return StateError(f"{self._seal_problem}; what was trained after round {last} is not saved")

    def stop(self) -> None:
        """Ends training after this step, with a checkpoint; `run` returns when that is done."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._exchange.interrupt()
        if self._trainer is None:
            return
        if self.progress.state is State.LOADING:
            self._trainer.kill()  # nothing to save yet, and a model may load for minutes
        else:
            self._trainer.send(messages.Stop())

    async def pause(self) -> int:
        """Waits until the trainer stands still; returns the round. Raises Refused where there is nothing to pause."""
        self._paused = True
        if self.progress.state is State.WAITING:
            return self.progress.round
        self._tell(messages.Pause())
        await self._until(lambda: self.progress.state is State.PAUSED, "pause")
        return self.progress.round

    async def rest(self) -> Checkpoint | None:
        """Waits until the round under way is over and the trainer stands still; returns a checkpoint of that.

        None: nothing has been trained. Raises Refused where it is resumed or stopped meanwhile, or can't be saved.
        """
        self._paused = True
        if self.progress.state not in AT_REST:
            self._tell(messages.Pause(after_round=True))
            await self._until(lambda: self.progress.state in AT_REST or not self._paused, "drain")
        self.check_at_rest()
        return await self._save() if self.progress.state is State.PAUSED else self.last_checkpoint

    def check_at_rest(self) -> None:
        """Raises Refused where the node trains, or is about to."""
        if not self._paused or self.progress.state not in AT_REST:
            raise Refused("not drained: the node was resumed meanwhile; drain it again")

    async def resume(self, absent: bool = False) -> int:
        """Lets a paused trainer go on; returns the round. Raises Refused where there is nothing to resume.

        absent: the node was away, and is to catch up where it adopts.
        """
        self._paused = False
        await self._announce()
        if self.progress.state is State.WAITING:
            return self.progress.round
        self._tell(messages.Resume(absent=absent and self._config.mixing.adopts))
        if self.progress.state is State.PAUSED:
            await self._set_state(State.TRAINING)
        await self._until(lambda: self.progress.state is State.TRAINING, "resume")
        return self.progress.round

    async def checkpoint(self) -> Checkpoint:
        """A checkpoint of now (the last one where nothing has changed since). Raises Refused where there is none."""
        saved = self.last_checkpoint
        if self.progress.state in (State.TRAINING, State.PAUSED):
            saved = await self._save()
        if saved is None:
            raise Refused("there is no checkpoint yet: nothing has been trained")
        return saved

    async def _save(self) -> Checkpoint | None:
        before = self._seals
        self._tell(messages.Checkpoint())
        await self._until(lambda: self._seals > before, "checkpoint")
        if self._seal_problem:
            raise Refused(self._seal_problem)
        return self.last_checkpoint

    async def _run_once(self) -> str:
        """One trainer from spawn to exit. Returns how it died, or nothing when it ended in good order."""
        self._seal_problem = ""
        resume = await self._newest_checkpoint()
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
                staging=str(self.checkpoints.staging),
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
            if self._answering:
                self._answering.cancel()  # whoever asked is gone
            ending = await trainer.exited()
            self._trainer = None
            self.progress.trainer_pid = 0
            if self._measuring:
                await asyncio.wait({self._measuring})  # what it fails with is in _problem
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

    async def _newest_checkpoint(self) -> Checkpoint | None:
        newest, damaged = await asyncio.to_thread(self.checkpoints.newest)
        for sentence in damaged:
            log.error("damaged checkpoint", reason=sentence)
        if damaged and not newest:
            raise StateError(
                f"{self.checkpoints.directory}: no checkpoint there is intact (see above in the log); put one back from a "
                "backup, or move the directory away to start anew"
            )
        self.progress.round = self.progress.step = 0
        if newest:
            self.last_checkpoint = newest
            self.progress.round, self.progress.step = newest.round, newest.step
            with self.troubles.of("history", heals=False):
                self.progress.loss, self.progress.evaluation = self._history.figures_at(newest.round)
            log.info("going on from a checkpoint", path=str(newest.path), round=newest.round)
        return newest

    async def _handle(self, message: messages.FromTrainer) -> None:
        match message:
            case messages.Ready():
                await self._ready(message)
            case messages.Published():
                self.tally.published()
                self._on_publish(self._exchange.publish(message.round, message.radius))
                self._answering = asyncio.create_task(self._answer(message.round))
                self._answering.add_done_callback(self._answered)
            case messages.Mixed():
                self._mixed(message)
            case messages.Rejoining():
                self._answering = asyncio.create_task(self._offer(message.round))
                self._answering.add_done_callback(self._answered)
            case messages.Adopted():
                self._exchange.adopted()
            case messages.RoundDone():
                self._round_done(message)
            case messages.Evaluated():
                self.progress.evaluation = message.figures
                with self.troubles.of("history"):
                    self._history.add_evaluation(message.round, message.figures)
                log.info("evaluated", round=message.round, **message.figures)
            case messages.Saved():
                await self._seal(message)
            case messages.Unchanged():
                await self._sealed(self._seal_problem)
            case messages.Paused():
                if self._paused:
                    await self._set_state(State.PAUSED)
            case messages.Finished():
                log.info("trainer finished", round=self.progress.round)
            case messages.Failed():
                kind = ConfigError if message.exit_code == ConfigError.exit_code else TrainingFailed
                self._problem = kind(message.message)

    async def _ready(self, ready: messages.Ready) -> None:
        assert self._trainer is not None
        config = self._config
        schema, shared = Schema.from_json(ready.adapter_schema), Schema.from_json(ready.shared_schema)
        if self.last_checkpoint and self.last_checkpoint.schema != shared.digest:
            raise ConfigError(
                f"{self.last_checkpoint.path}: was made with another model or other LoRA settings; put those back, or "
                f"start anew with another state_dir"
            )
        if not self._shared_digest:
            await self._open(schema, shared)
        self._shared_digest, self._fingerprint = shared.digest, ready.fingerprint
        layout = SketchLayout.of(schema, shared)
        settings = config.settings(ready.fingerprint, ready.peft, shared)
        self._exchange.go_on(self.progress.round)
        self._observatory.open(settings, layout)
        self._trainer.send(messages.Layout(publish=self._exchange.outbox.next_slot))
        self._on_ready(settings)
        if not self._paused:
            await self._set_state(State.TRAINING)

    async def _open(self, schema: Schema, shared: Schema) -> None:
        """Once the tensors are known; of a trainer that is started again they are the same."""
        config, seed = self._config, self._config.federation.seed
        start = await asyncio.to_thread(initial_vector, schema, seed, config.lora.orthonormal)
        self._exchange.open(shared, Meter(schema, shared, start, seed))
        if config.training.record_vectors:
            exchanged = {spec.name for spec in shared.tensors}
            frozen = {name: view for name, view in schema.views(start).items() if name not in exchanged}
            self._recorder = Recorder(config.state_dir / "recording", shared, frozen)
            self._exchange.recorded = True

    async def _answer(self, round_: int) -> None:
        """Gives the trainer its contributions, when lockstep has them all."""
        exchange = self._exchange
        mix = await exchange.plan(round_, last=round_ >= self._config.training.rounds)
        items = [_message(c) for c in (mix.plan.contributions if mix else ())]
        publish = exchange.outbox.next_slot
        slot = mix.slot if mix else publish
        self._tell(
            messages.Contributions(round=round_, items=items, mix=slot, publish=publish, interrupted=mix is None)
        )

    async def _offer(self, round_: int) -> None:
        """Gives a trainer that goes on after an absence what to go on from, if it was a long one."""
        item = await self._exchange.offer(round_, self._history.last_mixed(round_))
        if item:
            peer = self._exchange.name(item.peer)
            log.info("was away for long: adopts a neighbour's snapshot", round=round_, peer=peer, snapshot=item.round)
        self._tell(messages.Offer(item=_message(item) if item else None))

    def _answered(self, task: asyncio.Task[None]) -> None:
        """A failed answer ends training: the trainer waits for it. So does a measurement that can't be written down."""
        if not task.cancelled() and (error := task.exception()):
            self._problem = error
            if self._trainer:
                self._trainer.kill()

    def _mixed(self, message: messages.Mixed) -> None:
        round_, mix = message.round, self._exchange.mixed(message.weights)
        self.tally.mixed()
        if self._recorder:
            self._recorder.add(round_, mix.published.vector, self._exchange.arena.own(mix.slot))
        self.progress.round = round_
        with self.troubles.of("history", heals=False):  # there may be none
            self._history.add_edges(round_, [EdgeRecord(c.peer, c.round, c.weight) for c in mix.plan.contributions])
        if mix.measured:
            self._measuring = asyncio.create_task(self._measure(mix))
            self._measuring.add_done_callback(self._answered)
        else:
            self._exchange.release(mix)

    async def _measure(self, mix: Mix) -> None:
        round_ = mix.plan.round
        figures = await self._exchange.measure(mix)
        with self.troubles.of("history", heals=False):
            self._history.add_errors(round_, {f.contribution.peer: f.error for f in figures})
            if estimates := self._observatory.estimates():
                before, after, nodes = estimates
                self._history.add_federation(round_, nodes, before, after)

    def _round_done(self, done: messages.RoundDone) -> None:
        if done.round > self._furthest:  # what it has done again is no progress
            self._crashes, self._furthest = 0, done.round
        self.progress.step, self.progress.loss = done.step, done.loss
        self.tally.rounds.add(done.seconds)
        degree = self._exchange.degree
        with self.troubles.of("history"):
            self._history.add_round(done.round, done.step, done.seconds, done.loss, degree)
        log.info("round", round=done.round, loss=done.loss, neighbours=degree, seconds=round(done.seconds, 3))

    async def _seal(self, saved: messages.Saved) -> None:
        store, problem = self.checkpoints, ""
        staged = store.staging / f"checkpoint-{saved.step}"
        with self.troubles.of("checkpoint"):
            try:
                if saved.problem:
                    raise store.unwritten(staged, saved.step, saved.problem)
                self.last_checkpoint = await asyncio.to_thread(
                    store.seal, staged, saved.round, saved.step, self._shared_digest, self._fingerprint
                )
            except StateError as error:
                problem = str(error)
                raise
            log.info("checkpoint", path=str(self.last_checkpoint.path), round=saved.round)
            if "history" in self.troubles:  # after the last round nothing else would find that there is room again
                with self.troubles.of("history"):
                    self._history.touch()
        self._tell(messages.Sealed(intact=not problem))
        await self._sealed(problem)

    async def _sealed(self, problem: str) -> None:
        self._seals += 1
        self._seal_problem = problem
        await self._announce()

    def _tell(self, message: messages.ToTrainer) -> None:
        if self._trainer:
            self._trainer.send(message)

    async def _set_state(self, state: State, message: str = "") -> None:
        if self._stopping.is_set():
            state = State.STOPPING
        self.progress.state, self.progress.message = state, message
        self._observatory.stand(still=state is not State.TRAINING)
        await self._announce()

    async def _announce(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _until(self, condition: Callable[[], bool], verb: str) -> None:
        """Waits for a condition that the trainer brings about. Raises Refused when it no longer can."""
        hopeless = (State.FINISHED, State.STOPPING)
        async with self._changed:
            await self._changed.wait_for(lambda: condition() or self.progress.state in hopeless)
        if not condition():
            raise Refused(f"can't {verb}: the node is {self.progress.state}")


def _message(c: Contribution) -> messages.Contribution:
    return messages.Contribution(place=c.place, slot=c.slot, weight=c.weight, radius=c.radius)
