"""Callbacks for the Hugging Face Trainer: gossip every `local_steps` steps, and slowness for testbeds."""

import time
from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from conlora.training.channel import Channel
from conlora.training.gossip import Gossip
from conlora.training.messages import RoundDone, evaluated, finite

MOST_LOGS = 100  # that the Trainer keeps in memory, and in each checkpoint


class GossipCallback(TrainerCallback):
    """Runs a node's rounds inside the node's own Trainer, a NodeTrainer.

    Operators' wishes (pause, checkpoint, stop) take effect between two steps.
    """

    def __init__(self, gossip: Gossip, figures: Sequence[str], *, evaluate_every: int, checkpoint_every: int) -> None:
        """figures: what an evaluation tells beside the loss. evaluate_every, checkpoint_every: in rounds."""
        self._gossip = gossip
        self._figures = figures
        self._evaluate_every = evaluate_every
        self._checkpoint_every = checkpoint_every

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Catches up where the node was away, and makes up for a mix that a stop had cut off."""
        self._gossip.seconds_of_round()
        self._gossip.rejoin()
        if self._gossip.round_is_over(state.global_step):
            self._gossip.exchange()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Catches up where the node was away during a pause."""
        self._gossip.rejoin()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ends a round where one is over, then does what operators asked for."""
        gossip = self._gossip
        if gossip.round_is_over(state.global_step):
            gossip.exchange()
            last = state.global_step >= state.max_steps
            control.should_evaluate = last or gossip.rounds_mixed % self._evaluate_every == 0
            control.should_save = last or gossip.rounds_mixed % self._checkpoint_every == 0
        gossip.channel.poll()
        if gossip.channel.checkpoint_wanted or gossip.channel.stopping:
            control.should_save = True
        elif not control.should_save:
            # otherwise the pause begins once the checkpoint is written
            control.should_save = gossip.stand_still(state.global_step)
        control.should_training_stop |= gossip.channel.stopping

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """The Trainer logs once a round, right after its last step: the round is complete."""
        if logs and "loss" in logs:
            gossip = self._gossip
            seconds, loss = gossip.seconds_of_round(), finite(float(logs["loss"]))
            gossip.channel.send(
                RoundDone(round=gossip.rounds_mixed, step=state.global_step, seconds=seconds, loss=loss)
            )
        del state.log_history[:-MOST_LOGS]

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **kwargs: Any
    ) -> None:
        """Reports an evaluation."""
        self._gossip.channel.send(evaluated(self._gossip.rounds_mixed, metrics, self._figures))


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
