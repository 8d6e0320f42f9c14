"""Rounds of NVFLARE's swarm learning with its recipe for PyTorch, in its proof-of-concept mode.

In each round a site that is drawn for it gathers and averages the models of all, and hands the average to all. The training
runs in the process of its site's job. Default settings, but that no model is picked by a metric.
"""

from pathlib import Path

import poc
import torch
from common import SHAPES, Place, main
from nvflare.app_opt.pt.recipes.swarm import SwarmLearningRecipe
from torch import nn


class Weights(nn.Module):
    """The payload as a model."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.zeros(shape) for shape in SHAPES)


def node(place: Place) -> None:
    """Starts all nodes, and their job."""
    recipe = SwarmLearningRecipe(
        name="swarm", model=Weights(), num_rounds=place.total + 1, min_clients=place.nodes, key_metric=None,
        train_script=str(Path(__file__).with_name("swarm_site.py")),
    )  # fmt: skip
    poc.run(place, lambda env: recipe.execute(env).get_job_id())


if __name__ == "__main__":
    main("nvflare", poc.launch, node)
