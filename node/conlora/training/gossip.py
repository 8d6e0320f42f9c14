"""A node's rounds at the trainer's end: publish, mix, measure, and do what operators ask for between two steps."""

import time
from collections.abc import Sequence

import numpy as np

from conlora.core.consensus import edge_errors, factors
from conlora.core.schema import Schema, Vector
from conlora.core.sketch import Sketcher, SketchLayout
from conlora.errors import ConfigError, TrainingFailed
from conlora.training.arena import Arena
from conlora.training.channel import Channel
from conlora.training.messages import Contributions, Mixed, Paused, Published, Unchanged
from conlora.training.model import Adapted

Errors = list[list[tuple[float, float, float]]]  # of each neighbour, module by module: product, A, B


class Meter:
    """What is measured at each mix: edge errors before it, and sketches of before and after."""

    def __init__(self, full: Schema, shared: Schema, start: Vector, seed: int) -> None:
        """start: values of the whole adapter, shape `(full.size,)`, of which the frozen ones stay. seed: the federation's."""
        exchanged = {spec.name for spec in shared.tensors}
        self._shared = shared
        self._frozen = {name: view for name, view in full.views(start).items() if name not in exchanged}
        self._sketcher = Sketcher(SketchLayout.of(full, shared), seed)

    def measure(self, own: Vector, mixed: Vector, others: Sequence[Vector]) -> tuple[Errors, Vector, Vector]:
        """Errors on the edges to `others` before the mix, and the sketches of `own` and `mixed`; all are shared vectors."""
        before, after, *neighbours = (factors(self._shared, v, self._frozen) for v in (own, mixed, *others))
        errors = [
            [(module.product, module.a, module.b) for module in edge_errors(before, neighbour)]
            for neighbour in neighbours
        ]
        sketch_before, sketch_after = self._sketcher.sketch(before, after)
        return errors, sketch_before, sketch_after


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
        local_steps: int,
        rounds_mixed: int,
        step: int,
        seed: int,
    ) -> None:
        """arena: None on ranks other than 0. rounds_mixed and step: what the model's values already contain, from the
        checkpoint. seed: the federation's.
        """
        self.channel = channel
        self.rounds_mixed = rounds_mixed
        self.round_began = time.monotonic()
        self.saved_step = step
        self._adapted = adapted
        self._arena = arena
        self._local_steps = local_steps
        full = adapted.adapter.schema
        self._meter = Meter(full, adapted.shared, adapted.adapter.read(full), seed)

    def round_is_over(self, step: int) -> bool:
        """Whether step is the last of a round that has not been mixed yet."""
        return step % self._local_steps == 0 and step // self._local_steps == self.rounds_mixed + 1

    def exchange(self) -> None:
        """Publishes this round's vector and mixes what the neighbours have published. Raises TrainingFailed, and
        ConfigError where the ranks of a program don't train one model together.
        """
        schema, adapter = self._adapted.shared, self._adapted.adapter
        round_ = self.rounds_mixed + 1
        own = adapter.read(schema)
        if not np.isfinite(own).all():
            raise TrainingFailed(
                f"round {round_}: the adapter is no longer finite; lower training.learning_rate, then start again from "
                "the last checkpoint"
            )
        if not self.channel.ranks.alike(own):
            raise ConfigError(
                f"round {round_}: the ranks of this program have trained apart; wrap the model that adapt returned in "
                "DistributedDataParallel or fully_shard it, or start one process"
            )
        if self._arena is not None:
            self._arena.published[:] = own
        self.channel.send(Published(round=round_))
        answer = self.channel.expect(Contributions)
        if answer.interrupted:
            return
        mixed, errors = (own, []) if self._arena is None else self._mix(self._arena, own, answer)
        adapter.write(schema, self.channel.ranks.broadcast(mixed))
        self.rounds_mixed = round_
        self.channel.send(Mixed(round=round_, errors=errors))

    def _mix(self, arena: Arena, own: Vector, answer: Contributions) -> tuple[Vector, Errors]:
        """What becomes of `own`, which the arena gets too, with the sketches, and the errors on the edges."""
        neighbours = [(item.weight, arena.inbox(item.peer, item.slot)) for item in answer.items]
        mixed = self._adapted.rule.mix(self._adapted.shared, own, neighbours)
        arena.mixed[:] = mixed
        errors, before, after = self._meter.measure(own, mixed, [vector for _, vector in neighbours])
        arena.sketch_before[:], arena.sketch_after[:] = before, after
        return mixed, errors

    def seconds_of_round(self) -> float:
        """Since the last call, pauses left out."""
        now = time.monotonic()
        seconds, self.round_began = now - self.round_began, now
        return seconds

    def stand_still(self, step: int) -> bool:
        """Waits while the node is paused. Returns whether the caller has to see to a checkpoint, or a stop, first."""
        channel = self.channel
        channel.poll()
        if channel.paused and not channel.stopping:
            channel.send(Paused(round=self.rounds_mixed))
            before = time.monotonic()
            while channel.paused and not channel.stopping:
                channel.wait_while(lambda: channel.paused and not channel.stopping and not channel.checkpoint_wanted)
                if channel.checkpoint_wanted and self.saved_step != step:
                    break
                self._decline_checkpoint(step)
            self.round_began += time.monotonic() - before
        self._decline_checkpoint(step)
        return channel.checkpoint_wanted or channel.stopping

    def _decline_checkpoint(self, step: int) -> None:
        if self.channel.checkpoint_wanted and self.saved_step == step:
            self.channel.checkpoint_wanted = False
            self.channel.send(Unchanged())
