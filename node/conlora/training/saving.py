"""The node's own Trainer: hands the checkpoints that it writes to the daemon, and trains on where the disk won't have them."""

from pathlib import Path
from typing import Any

from torch import nn

from conlora.training.even import EvenTrainer
from conlora.training.gossip import Gossip


class NodeTrainer(EvenTrainer):
    """Saves by way of `Gossip.save`, then stands still where operators want it to."""

    def __init__(self, gossip: Gossip, **kwargs: Any) -> None:
        """The other arguments are those of the Trainer."""
        super().__init__(**kwargs)
        self._gossip = gossip

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        gossip, step, write = self._gossip, self.state.global_step, super()._save_checkpoint
        path = Path(str(self.args.output_dir)) / f"checkpoint-{step}"
        while True:
            stopping = gossip.channel.stopping
            gossip.save(path, step, lambda: write(model, trial), last=step >= self.state.max_steps)
            if not gossip.stand_still(step) or gossip.is_saved(step) or stopping:
                break
        self.control.should_training_stop |= gossip.channel.stopping
