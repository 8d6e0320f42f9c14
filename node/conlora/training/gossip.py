"""A node's rounds at the trainer's end: publish, mix, and do what operators ask for between two steps."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from conlora.core.robustness import Received, Screen
from conlora.core.schema import Vector
from conlora.errors import ConfigError, StateError, TrainingFailed
from conlora.training.arena import Arena
from conlora.training.blending import lerp
from conlora.training.channel import Channel
from conlora.training.messages import (
    Adopted,
    Contributions,
    Mixed,
    Offer,
    Paused,
    Published,
    Rejoining,
    Saved,
    Unchanged,
)
from conlora.training.model import Adapted

SAVE_AGAIN_SECONDS = 10.0  # where the last checkpoint of all could not be written


class Gossip:
    """The rounds of one model, whoever makes its optimizer steps.

    After each `local_steps` of them: the vector y goes to the arena, the daemon answers with the neighbours'
    contributions, and `x = y + sum_j w_ij (y_j - y)` goes back into the model. Of several ranks the first does that, and
    the others get its x.
    """

    def __init__(
        self,
        adapted: Adapted,
        arena: Arena | None,
        channel: Channel,
        *,
        screen: Screen,
        publish: int,
        local_steps: int,
        rounds_mixed: int,
        step: int,
    ) -> None:
        """arena: None on ranks other than 0. screen: of what neighbours sent. publish: the slot to publish in first.
        rounds_mixed and step: what the model's values already contain, from the checkpoint.
        """
        self.channel = channel
        self.rounds_mixed = rounds_mixed
        self.round_began = time.monotonic()
        self._saved_step = step
        self._adapted = adapted
        self._arena = arena
        self._screen = screen
        self._publish = publish
        self._local_steps = local_steps

    def round_is_over(self, step: int) -> bool:
        """Whether step is the last of a round that has not been mixed yet."""
        return step % self._local_steps == 0 and step // self._local_steps == self.rounds_mixed + 1

    def exchange(self) -> None:
        """Publishes this round's vector and mixes what the neighbours have published. Raises TrainingFailed, and
        ConfigError where the ranks of a program don't train one model together.
        """
        schema, adapter = self._adapted.shared, self._adapted.adapter
        round_ = self.rounds_mixed + 1
        own = adapter.read(schema, into=self._arena.own(self._publish) if self._arena else None)
        if not math.isfinite(np.dot(own, own)):
            raise TrainingFailed(
                f"round {round_}: the adapter is no longer finite; lower training.learning_rate, then start again from "
                "the last checkpoint"
            )
        if not self.channel.ranks.alike(own):
            raise ConfigError(
                f"round {round_}: the ranks of this program have trained apart; wrap the model that adapt returned in "
                "DistributedDataParallel or fully_shard it, or start one process"
            )
        self.channel.send(Published(round=round_, radius=self._screen.radius))
        answer = self.channel.expect(Contributions)
        self._publish = answer.publish
        if answer.interrupted:
            return
        mixed, weights = self._mix(self._arena, own, answer) if self._arena else (own, [])
        adapter.write(schema, self.channel.ranks.broadcast(mixed))
        self.rounds_mixed = round_
        self.channel.send(Mixed(round=round_, weights=weights))

    def _mix(self, arena: Arena, own: Vector, answer: Contributions) -> tuple[Vector, list[float]]:
        """What becomes of `own`, in the arena; and the weight that the screen has left of each neighbour."""
        received = [Received(item.weight, arena.inbox(item.place, item.slot), item.radius) for item in answer.items]
        screened = self._screen(own, received)
        mixed = arena.own(answer.mix)
        self._adapted.rule.mix(self._adapted.shared, own, screened.neighbours, out=mixed, blend=lerp)
        return mixed, screened.weights

    def rejoin(self) -> None:
        """Once after an absence, and before the node goes on: what the daemon offers of a neighbour becomes the model's values.

        The optimizer's moments and the count of rounds stay: they are this node's own.
        """
        channel, adapted = self.channel, self._adapted
        if not channel.absent or channel.stopping:
            return
        channel.absent = False
        channel.send(Rejoining(round=self.rounds_mixed))
        item = channel.expect(Offer).item
        if item is None:
            return
        schema = adapted.shared
        # The others make room only: a model that is sharded over the ranks is read by all of them or by none.
        vector = self._arena.inbox(item.place, item.slot) if self._arena else np.empty(schema.size, np.float32)
        adapted.adapter.write(schema, channel.ranks.broadcast(vector))
        channel.send(Adopted(round=self.rounds_mixed))

    def seconds_of_round(self) -> float:
        """Since the last call, pauses left out."""
        now = time.monotonic()
        seconds, self.round_began = now - self.round_began, now
        return seconds

    def save(self, path: Path, step: int, write: Callable[[], object], last: bool) -> None:
        """Has a checkpoint written to `path` and sealed. Where the disk won't have it the daemon says so, and training goes on.

        last: training is over; then it is tried again until it succeeds, or the node is stopped.
        """
        channel = self.channel
        while True:
            channel.checkpoint_wanted = False
            problem = self._written(write)
            self._saved_step = step
            channel.unsaved = False
            channel.sealing += 1
            channel.send(Saved(path=str(path), round=self.rounds_mixed, step=step, problem=problem))
            if channel.stopping or not last or self.is_saved(step):
                return
            channel.wait_while(lambda: not (channel.stopping or channel.checkpoint_wanted), SAVE_AGAIN_SECONDS)

    def is_saved(self, step: int) -> bool:
        """Whether there is a checkpoint of this step, for which the daemon's answer is awaited."""
        self.channel.wait_while(lambda: self.channel.sealing > 0)
        return self._saved_step == step and not self.channel.unsaved

    def _written(self, write: Callable[[], object]) -> str:
        """Nothing, or why one of the ranks could not."""

        def attempt() -> None:
            try:
                write()
            except (OSError, SafetensorError) as error:
                raise StateError(str(error)) from error
            except RuntimeError as error:  # torch has no other
                if "inline_container" not in str(error) and "iostream" not in str(error):
                    raise
                raise StateError(" ".join(str(error).split())) from error

        try:
            self.channel.ranks.together(attempt)
        except StateError as error:
            return str(error)
        return ""

    def stand_still(self, step: int) -> bool:
        """Waits while the node is paused. Returns whether the caller has to see to a checkpoint, or a stop, first."""
        channel = self.channel
        channel.poll()
        if self._standing(step):
            channel.send(Paused(round=self.rounds_mixed))
            before = time.monotonic()
            while self._standing(step):
                channel.wait_while(lambda: self._standing(step) and not channel.checkpoint_wanted)
                if channel.checkpoint_wanted and not self.is_saved(step):
                    break
                self._decline_checkpoint(step)
            self.round_began += time.monotonic() - before
        self._decline_checkpoint(step)
        return channel.checkpoint_wanted or channel.stopping

    def _standing(self, step: int) -> bool:
        channel = self.channel
        return channel.paused and not channel.stopping and (not channel.after_round or step % self._local_steps == 0)

    def _decline_checkpoint(self, step: int) -> None:
        if self.channel.checkpoint_wanted and self.is_saved(step):
            self.channel.checkpoint_wanted = False
            self.channel.send(Unchanged())
