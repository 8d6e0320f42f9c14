"""A node's rounds, whichever trainer makes them: what it publishes goes out, what it mixes comes in, both are written down."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import TypeAlias

import structlog

from conlora.config import NodeConfig
from conlora.core.gossip import Contribution
from conlora.core.schema import Schema
from conlora.core.seeding import initial_vector
from conlora.daemon.exchange import Exchange, Mix
from conlora.daemon.meter import Meter
from conlora.daemon.observatory import Observatory
from conlora.daemon.progress import Progress
from conlora.daemon.troubles import Troubles
from conlora.net.transfers import Outgoing
from conlora.store.checkpoints import Checkpoint
from conlora.store.history import EdgeRecord, History
from conlora.store.recording import Recorder
from conlora.training import messages

log = structlog.get_logger()

OfARound: TypeAlias = (
    messages.Published
    | messages.Mixed
    | messages.Rejoining
    | messages.Adopted
    | messages.RoundDone
    | messages.Evaluated
)


class Rounds:
    """Answers a trainer between two rounds, and writes down what came of each."""

    def __init__(
        self,
        config: NodeConfig,
        exchange: Exchange,
        observatory: Observatory,
        history: History,
        progress: Progress,
        troubles: Troubles,
        *,
        tell: Callable[[messages.ToTrainer], None],
        on_publish: Callable[[Outgoing], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        """progress: kept up to date. tell: sends to the trainer, if there is one. on_publish: called with each snapshot for the
        links. on_failure: called with what an answer or a measurement failed with; training can't go on.
        """
        self._config = config
        self._exchange = exchange
        self._observatory = observatory
        self._history = history
        self._progress = progress
        self._troubles = troubles
        self._tell = tell
        self._on_publish = on_publish
        self._on_failure = on_failure
        self.furthest = 0  # round that was ever done in this life
        self._opened = False
        self._recorder: Recorder | None = None
        self._answering: asyncio.Task[None] | None = None
        self._measuring: asyncio.Task[None] | None = None

    async def open(self, schema: Schema, shared: Schema) -> None:
        """Once the tensors are known; of a trainer that is started again they are the same."""
        if self._opened:
            return
        config, seed = self._config, self._config.federation.seed
        start = await asyncio.to_thread(initial_vector, schema, seed, config.lora.orthonormal)
        self._exchange.open(shared, Meter(schema, shared, start, seed))
        if config.training.record_vectors:
            exchanged = {spec.name for spec in shared.tensors}
            frozen = {name: view for name, view in schema.views(start).items() if name not in exchanged}
            self._recorder = Recorder(config.state_dir / "recording", shared, frozen)
            self._exchange.recorded = True
        self._opened = True

    def go_on_from(self, checkpoint: Checkpoint | None) -> None:
        """A trainer is about to begin there, or anew."""
        progress = self._progress
        progress.round = progress.step = 0
        if checkpoint:
            progress.round, progress.step = checkpoint.round, checkpoint.step
            with self._troubles.of("history", heals=False):
                progress.loss, progress.evaluation = self._history.figures_at(checkpoint.round)

    def hear(self, message: OfARound) -> None:
        """What the trainer says of the round under way."""
        match message:
            case messages.Published():
                self._progress.tally.published()
                self._on_publish(self._exchange.publish(message.round, message.radius))
                self._answering = self._begin(self._answer(message.round))
            case messages.Mixed():
                self._mixed(message)
            case messages.Rejoining():
                self._answering = self._begin(self._offer(message.round))
            case messages.Adopted():
                self._exchange.adopted()
            case messages.RoundDone():
                self._done(message)
            case messages.Evaluated():
                self._evaluated(message)

    def abandon(self) -> None:
        """Whoever waits for an answer is gone."""
        if self._answering:
            self._answering.cancel()

    async def end(self) -> None:
        """Waits for what is still being measured."""
        if self._measuring:
            await asyncio.wait({self._measuring})  # what it fails with was handed to on_failure

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
        last: dict[str, int] = {}
        with self._troubles.of("history", heals=False):  # without it a node is taken for a newcomer
            last = self._history.last_mixed(round_)
        item = await self._exchange.offer(round_, last)
        if item:
            peer = self._exchange.name(item.peer)
            log.info("was away for long: adopts a neighbour's snapshot", round=round_, peer=peer, snapshot=item.round)
        self._tell(messages.Offer(item=_message(item) if item else None))

    def _mixed(self, message: messages.Mixed) -> None:
        round_, mix = message.round, self._exchange.mixed(message.weights)
        self._progress.tally.mixed()
        if self._recorder:
            self._recorder.add(round_, mix.published.vector, self._exchange.arena.own(mix.slot))
        self._progress.round = round_
        with self._troubles.of("history", heals=False):  # there may be none
            self._history.add_edges(round_, [EdgeRecord(c.peer, c.round, c.weight) for c in mix.plan.contributions])
        if mix.measured:
            self._measuring = self._begin(self._measure(mix))
        else:
            self._exchange.release(mix)

    async def _measure(self, mix: Mix) -> None:
        round_ = mix.plan.round
        figures = await self._exchange.measure(mix)
        with self._troubles.of("history", heals=False):
            self._history.add_errors(round_, {f.contribution.peer: f.error for f in figures})
            if estimates := self._observatory.estimates():
                before, after, nodes = estimates
                self._history.add_federation(round_, nodes, before, after)

    def _done(self, message: messages.RoundDone) -> None:
        self.furthest = max(self.furthest, message.round)
        self._progress.step, self._progress.loss = message.step, message.loss
        self._progress.tally.rounds.add(message.seconds)
        degree = self._exchange.degree
        with self._troubles.of("history"):
            self._history.add_round(message.round, message.step, message.seconds, message.loss, degree)
        seconds = round(message.seconds, 3)
        log.info("round", round=message.round, loss=message.loss, neighbours=degree, seconds=seconds)

    def _evaluated(self, message: messages.Evaluated) -> None:
        self._progress.evaluation = message.figures
        with self._troubles.of("history"):
            self._history.add_evaluation(message.round, message.figures)
        log.info("evaluated", round=message.round, **message.figures)

    def _begin(self, work: Coroutine[None, None, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[None]") -> None:
        """A failed answer ends training: the trainer waits for it. So does a measurement that can't be written down."""
        if not task.cancelled() and (error := task.exception()):
            self._on_failure(error)


def _message(c: Contribution) -> messages.Contribution:
    return messages.Contribution(place=c.place, slot=c.slot, weight=c.weight, radius=c.radius)
