"""The Trainer callback that makes fine-tuning decentralised: publish, mix and go on, every `local_steps` steps."""

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from conlora.core.consensus import edge_errors, factors
from conlora.core.schema import Vector
from conlora.core.sketch import Sketcher, SketchLayout
from conlora.errors import TrainingFailed
from conlora.training.arena import Arena
from conlora.training.channel import Channel
from conlora.training.messages import (
    Contributions,
    Evaluated,
    Mixed,
    Paused,
    Published,
    RoundDone,
    Saved,
    Unchanged,
)
from conlora.training.model import Built

LARGEST_EXPONENT = 700.0  # of e that float64 can hold


class GossipCallback(TrainerCallback):
    """Runs a node's rounds inside a Hugging Face Trainer.

    After each `local_steps` optimizer steps: the vector y goes to the arena, the daemon answers with the neighbours'
    contributions, and `x = y + sum_j w_ij (y_j - y)` goes back into the model. Operators' wishes (pause, checkpoint, stop)
    take effect between two steps.
    """

    def __init__(
        self,
        built: Built,
        arena: Arena,
        channel: Channel,
        *,
        local_steps: int,
        evaluate_every: int,
        checkpoint_every: int,
        rounds_mixed: int,
        step: int,
        seed: int,
    ) -> None:
        """rounds_mixed and step: what the model's values already contain, from the checkpoint. seed: the federation's."""
        self.rounds_mixed = rounds_mixed
        self._built = built
        self._arena = arena
        self._channel = channel
        self._local_steps = local_steps
        self._evaluate_every = evaluate_every
        self._checkpoint_every = checkpoint_every
        self._saved_step = step
        self._round_began = time.monotonic()
        full, shared = built.adapter.schema, built.shared
        exchanged = {spec.name for spec in shared.tensors}
        initial = full.views(built.adapter.read(full))
        self._frozen = {name: view for name, view in initial.items() if name not in exchanged}
        self._sketcher = Sketcher(SketchLayout.of(full, shared), seed)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Makes up for a mix that a stop had cut off."""
        self._round_began = time.monotonic()
        if self._round_is_over(state.global_step):
            self._exchange()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ends a round where one is over, then does what operators asked for."""
        if self._round_is_over(state.global_step):
            self._exchange()
            last = state.global_step >= state.max_steps
            control.should_evaluate = last or self.rounds_mixed % self._evaluate_every == 0
            control.should_save = last or self.rounds_mixed % self._checkpoint_every == 0
        self._channel.poll()
        if self._channel.checkpoint_wanted or self._channel.stopping:
            control.should_save = True
        elif not control.should_save:
            # otherwise the pause begins once the checkpoint is written, in on_save
            control.should_save = self.stand_still(state.global_step)
        control.should_training_stop |= self._channel.stopping

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """The Trainer logs once a round, right after its last step: the round is complete."""
        if logs and "loss" in logs:
            now = time.monotonic()
            seconds, self._round_began = now - self._round_began, now
            self._channel.send(
                RoundDone(
                    round=self.rounds_mixed, step=state.global_step, seconds=seconds, loss=_finite(float(logs["loss"]))
                )
            )

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **kwargs: Any
    ) -> None:
        """Reports an evaluation."""
        wanted = {"loss", *self._built.task.figures}
        figures = {name: float(metrics[f"eval_{name}"]) for name in wanted if f"eval_{name}" in metrics}
        if "perplexity" in wanted and "loss" in figures:
            figures["perplexity"] = math.exp(min(figures["loss"], LARGEST_EXPONENT))
        told = {name: value for name, value in figures.items() if math.isfinite(value)}
        self._channel.send(Evaluated(round=self.rounds_mixed, figures=told))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Hands the written checkpoint to the daemon, which seals it."""
        path = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        self._channel.checkpoint_wanted = False
        self._saved_step = state.global_step
        self._channel.send(Saved(path=str(path), round=self.rounds_mixed, step=state.global_step))
        self.stand_still(state.global_step)
        control.should_training_stop |= self._channel.stopping

    def _round_is_over(self, step: int) -> bool:
        """Whether step is the last of a round that has not been mixed yet."""
        return step % self._local_steps == 0 and step // self._local_steps == self.rounds_mixed + 1

    def _exchange(self) -> None:
        """Publishes this round's vector and mixes what the neighbours have published."""
        schema, adapter = self._built.shared, self._built.adapter
        round_ = self.rounds_mixed + 1
        own = adapter.read(schema)
        if not np.isfinite(own).all():
            raise TrainingFailed(
                f"round {round_}: the adapter is no longer finite; lower training.learning_rate, then start again from "
                "the last checkpoint"
            )
        self._arena.published[:] = own
        self._channel.send(Published(round=round_))
        answer = self._channel.expect(Contributions)
        if answer.interrupted:
            return
        neighbours = [(item.weight, self._arena.inbox(item.peer, item.slot)) for item in answer.items]
        mixed = self._built.rule.mix(schema, own, neighbours)
        adapter.write(schema, mixed)
        self._arena.mixed[:] = mixed
        errors = self._measure(own, mixed, [vector for _, vector in neighbours])
        self.rounds_mixed = round_
        self._channel.send(Mixed(round=round_, errors=errors))

    def _measure(self, own: Vector, mixed: Vector, others: list[Vector]) -> list[list[tuple[float, float, float]]]:
        """Edge errors before the mix; sketches of before and after go to the arena."""
        before, after, *neighbours = (factors(self._built.shared, v, self._frozen) for v in (own, mixed, *others))
        self._arena.sketch_before[:], self._arena.sketch_after[:] = self._sketcher.sketch(before, after)
        errors = (edge_errors(before, neighbour) for neighbour in neighbours)
        return [[(module.product, module.a, module.b) for module in edge] for edge in errors]

    def stand_still(self, step: int) -> bool:
        """Waits while the node is paused. Returns whether the caller has to see to a checkpoint, or a stop, first."""
        channel = self._channel
        channel.poll()
        if channel.paused and not channel.stopping:
            channel.send(Paused(round=self.rounds_mixed))
            before = time.monotonic()
            while channel.paused and not channel.stopping:
                channel.wait_while(lambda: channel.paused and not channel.stopping and not channel.checkpoint_wanted)
                if channel.checkpoint_wanted and self._saved_step != step:
                    break
                self._decline_checkpoint(step)
            self._round_began += time.monotonic() - before
        self._decline_checkpoint(step)
        return channel.checkpoint_wanted or channel.stopping

    def _decline_checkpoint(self, step: int) -> None:
        if self._channel.checkpoint_wanted and self._saved_step == step:
            self._channel.checkpoint_wanted = False
            self._channel.send(Unchanged())


class ThrottleCallback(TrainerCallback):
    """Makes every step take `factor` times as long: a slow machine, for testbeds."""

    def __init__(self, channel: Channel, factor: float) -> None:
        self._channel = channel
        self._factor = factor
        self._began = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Starts the clock."""
        self._began = time.monotonic()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Stays idle for the rest of the slow step, but answers a stop at once."""
        spent = time.monotonic() - self._began
        self._channel.wait_while(lambda: not self._channel.stopping, seconds=(self._factor - 1) * spent)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
