"""A node's daemon from a program of your own: adapt a model, train it as you like, and gossip after your steps.

    node = conlora.join("mercy")                 # the node's directory; its task is `type: guest`
    model = node.adapt(model)                    # a PEFT model that begins as on all other nodes
    Trainer(model=model, ..., callbacks=[node.callback()]).train()

or, in a loop of your own, `node.step(loss)` after each optimizer step, until it says that the run is over. Under torchrun
or accelerate launch all ranks say the same three lines; rank 0 joins, and the others follow it.
"""

import os
import socket
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from peft import PeftModel, TaskType, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from conlora.config import NodeConfig, load_config
from conlora.errors import ConfigError, NodeUnreachable, TrainingFailed
from conlora.training.arena import Arena
from conlora.training.channel import Channel
from conlora.training.fingerprint import fingerprint
from conlora.training.gossip import Gossip
from conlora.training.messages import Finished, Layout, Ready, RoundDone, Setup, evaluated, finite
from conlora.training.model import Adapted, adapt
from conlora.training.ranks import launched
from conlora.training.tasks import Base

CONFIG_FILE = "conlora.yaml"


def join(node: str | Path) -> "Guest":
    """Joins a running daemon as its trainer.

    node: its configuration or the directory that holds it. Raises ConfigError for a configuration that does not fit, and
    NodeUnreachable where no daemon waits for a program; on all ranks of the program.
    """
    ranks = launched()
    connection, memory = ranks.together(lambda: _connected(Path(node)) if ranks.rank == 0 else (None, None))
    channel = Channel(connection, guest=True, ranks=ranks)
    return Guest(channel, channel.expect(Setup), memory)


def _connected(path: Path) -> tuple[socket.socket, int]:
    """The connection to the daemon, and the descriptor of the memory."""
    config = load_config(path / CONFIG_FILE if path.is_dir() else path)
    if not config.guest:
        raise ConfigError(f"{path}: task.type: {config.task.type} has a trainer of its own; set it to guest to join")
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(config.guest_socket))
        _, (memory,), _, _ = socket.recv_fds(connection, 1, 1)
    except (OSError, ValueError) as error:
        connection.close()
        raise NodeUnreachable(
            f"{config.guest_socket}: no daemon waits there ({error}); start it with `conlora run`, one program at a time"
        ) from error
    return connection, memory


class Guest:
    """A program's end of its node."""

    def __init__(self, channel: Channel, setup: Setup, memory: int | None) -> None:
        """Use `join`."""
        self.config = NodeConfig.model_validate(setup.config)
        self._channel = channel
        self._setup = setup
        self._memory = memory
        self._adapted: Adapted | None = None
        self._gossip: Gossip | None = None
        self._step = setup.step
        self._losses: list[float] = []
        channel.paused, channel.absent = setup.paused, setup.absent

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The other ranks can't be asked for their part of a checkpoint after an error in one of them.
        self._leave(save=error is None or self._channel.ranks.size == 1)

    @property
    def round(self) -> int:
        """Rounds that the model has mixed."""
        return self._gossip.rounds_mixed if self._gossip else self._setup.round

    @property
    def finished(self) -> bool:
        """Whether all rounds are done, or the node is stopping."""
        return self.round >= self.config.training.rounds or self._channel.stopping

    def adapt(self, model: nn.Module, fresh: Iterable[str] = (), peft_type: TaskType | None = None) -> PeftModel:
        """The model with the node's LoRA settings, and the values of the federation's start or of the last checkpoint.

        fresh: names of parameters that are not in the base's files, such as those of a new head; they are seeded, trained
        and mixed. peft_type: PEFT's word for the task, which the exported adapter then bears. Wrap what you get in
        DistributedDataParallel, or fully_shard it, as you like. Raises ConfigError.
        """
        if self._gossip is not None:
            raise ConfigError("a node trains one model at a time; join again for another")
        ranks = self._channel.ranks
        base = Base(model, frozenset(fresh))
        adapted = ranks.together(lambda: adapt(self.config, base, peft_type, fingerprint(self.config.model)))
        if self._setup.resume_from and ranks.rank == 0:
            stored = load_file(Path(self._setup.resume_from) / "adapter_model.safetensors")
            set_peft_model_state_dict(adapted.model, stored)
        full = adapted.adapter.schema
        adapted.adapter.write(full, ranks.broadcast(adapted.adapter.read(full)))
        self._channel.send(
            Ready(
                fingerprint=adapted.fingerprint,
                peft=adapted.peft,
                adapter_schema=adapted.adapter.schema.to_json(),
                shared_schema=adapted.shared.to_json(),
            )
        )
        layout = self._channel.expect(Layout)
        self._adapted = adapted
        self._gossip = Gossip(
            adapted,
            Arena(self._memory, adapted.shared.size) if self._memory is not None else None,
            self._channel,
            screen=self.config.mixing.screen(),
            publish=layout.publish,
            local_steps=self.config.training.local_steps,
            rounds_mixed=self._setup.round,
            step=self._setup.step,
        )
        self._obey()
        if self._gossip.round_is_over(self._step) and not self._channel.stopping:
            self._gossip.exchange()  # which a stop had cut off
        return adapted.model

    def step(self, loss: float | None = None) -> bool:
        """To be called after each optimizer step; mixes where a round is over. Returns `finished`.

        loss: of the step, for the node's history, which gets the mean over the ranks. Raises TrainingFailed where the
        daemon has ended, and ConfigError where ranks have trained apart.
        """
        gossip = self._required()
        self._step += 1
        if loss is not None:
            self._losses.append(float(loss))
        if gossip.round_is_over(self._step):
            gossip.exchange()
            loss = self._channel.ranks.mean(sum(self._losses) / len(self._losses) if self._losses else None)
            self._losses.clear()
            seconds, loss = gossip.seconds_of_round(), None if loss is None else finite(loss)
            self._channel.send(RoundDone(round=self.round, step=self._step, seconds=seconds, loss=loss))
            if self.finished or self.round % self.config.training.checkpoint_every == 0:
                self._save()
        self._obey()
        return self.finished

    def evaluated(self, **figures: float) -> None:
        """Tells the node an evaluation on held-out rows: loss, accuracy, perplexity, or what you like."""
        told = {f"eval_{name}": value for name, value in figures.items()}
        self._channel.send(evaluated(self.round, told, figures.keys()))

    def callback(self) -> TrainerCallback:
        """For any Hugging Face Trainer that trains the model of `adapt`: SFTTrainer and your own subclasses too."""
        self._required()
        return JoinedCallback(self)

    def close(self) -> None:
        """Leaves the node, with a checkpoint of the last step. It waits for the next program, unless all rounds are done."""
        self._leave(save=True)

    def _leave(self, save: bool) -> None:
        try:
            if save and self._gossip and not self._gossip.is_saved(self._step):
                self._save()
            self._channel.send(Finished(complete=self.round >= self.config.training.rounds))
        except TrainingFailed:
            pass  # the daemon is gone already, and has said so in its log
        finally:
            self._channel.close()
            if self._memory is not None:
                os.close(self._memory)
                self._memory = None

    def _obey(self) -> None:
        """What operators have asked for meanwhile: pauses, checkpoints, a stop."""
        while self._required().stand_still(self._step):
            if self._gossip and not self._gossip.is_saved(self._step):
                self._save()
            if self._channel.stopping:
                return
        self._required().rejoin()

    def _save(self) -> None:
        gossip, adapted = self._required(), self._adapted
        assert adapted is not None
        path = Path(self._setup.staging) / f"checkpoint-{self._step}"

        def write() -> None:
            state = adapted.model.state_dict() | adapted.adapter.state()
            if self._channel.ranks.rank == 0:
                adapted.model.save_pretrained(str(path), state_dict=state)

        gossip.save(path, self._step, write, last=self.round >= self.config.training.rounds)

    def _required(self) -> Gossip:
        if self._gossip is None:
            raise ConfigError("there is no model yet; call adapt first")
        return self._gossip


class JoinedCallback(TrainerCallback):
    """Gossips after the steps of a Trainer that is the user's own.

    The loss that it passes on is the newest one that the Trainer has logged, which may be of the round before.
    """

    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """One optimizer step is done."""
        loss = next((entry["loss"] for entry in reversed(state.log_history) if "loss" in entry), None)
        control.should_training_stop |= self._guest.step(loss)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **kwargs: Any
    ) -> None:
        """The Trainer has evaluated."""
        numbers = {
            name.removeprefix("eval_"): value for name, value in (metrics or {}).items() if isinstance(value, float)
        }
        self._guest.evaluated(**numbers)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The Trainer is done."""
        self._guest.close()
