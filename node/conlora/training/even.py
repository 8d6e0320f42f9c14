"""The Trainer of transformers, but all rows of a step count alike, however it is cut into passes and processes."""

from typing import Any

import torch
import transformers
from torch import nn

from conlora.training.tasks.base import IGNORED


class EvenTrainer(transformers.Trainer):
    """Weighs each pass by its part of the step's items: rows, or the tokens that are learnt.

    transformers leaves that to the model, and believes that every model does it whose `forward` takes any keyword. Many
    don't, such as BERT's and T5's: their loss, and its gradients, would be multiplied by passes and processes.
    """

    loss_is_scaled_for_ga = True  # by what follows

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True  # has the items of a step counted

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The pass's own mean, times its part. num_items_in_batch: of the step, over all its passes and processes."""
        part = self._part(model, inputs, num_items_in_batch)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        return (loss * part, outputs) if return_outputs else loss * part

    def _part(self, model: nn.Module, inputs: dict[str, Any], items: torch.Tensor | int | None) -> Any:
        """Such that the parts of a step add up to the number of processes, over whose gradients the mean is taken."""
        if not model.training:  # an evaluation takes the mean over its batches by itself
            return 1
        if items is None:  # there are no labels
            return 1 / self.current_gradient_accumulation_steps
        labels = inputs["labels"][..., 1:] if self._loss_shifts_labels else inputs["labels"]
        return labels.ne(IGNORED).sum() / items * self.accelerator.num_processes
