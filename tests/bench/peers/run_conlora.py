"""Rounds of ConLoRA: daemons all to all in sync mode, and a program per node that joins its daemon and only steps.

Default settings, but that no checkpoint falls into the measured rounds; both factors are exchanged, as in all other systems.
"""

import argparse
from pathlib import Path

import torch
from common import SHAPES, Place, Processes, as_node, main
from safetensors.torch import save_file
from tests.daemons import Daemons
from torch import nn

import conlora

RANK, WIDTH = SHAPES[0]


class Toy(nn.Module):
    """As many square matrices as the payload has adapters for. They are one in memory, for nothing is computed with them."""

    def __init__(self) -> None:
        super().__init__()
        weight = nn.Parameter(torch.zeros(WIDTH, WIDTH))
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False, device="meta") for _ in SHAPES[::2])
        for layer in self.layers:
            layer.weight = weight


def node(place: Place) -> None:
    torch.set_num_threads(1)
    with conlora.join(place.folder / f"node-{place.node}") as guest:
        model = guest.adapt(Toy())
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        assert sum(parameter.numel() for parameter in trained) == sum(a * b for a, b in SHAPES)
        for _ in range(place.total):
            with torch.no_grad():
                for parameter in trained:
                    parameter.add_(1e-3)  # the training
            place.rounds.trained()
            guest.step(0.0)
            place.rounds.mixed()
        place.rounds.save()
        place.meet("done")


def launch(args: argparse.Namespace, folder: Path, processes: Processes) -> None:
    """Daemons first; the programs join them when all edges are up."""
    base = folder / "base"
    base.mkdir()
    save_file({"weight": torch.zeros(1)}, base / "model.safetensors")  # whose digest nodes compare
    with Daemons(folder, base, folder) as daemons:
        nodes = [
            daemons.make(
                f"node-{i}",
                {"rounds": 1_000_000, "local_steps": 1, "checkpoint_every": 1_000_000},
                lora={"rank": RANK, "alpha": RANK},
                federation={"seed": 1, "rule": "lora", "mode": "sync"},
                task={"type": "guest"},
            )
            for i in range(args.nodes)
        ]
        for one in nodes:
            for other in nodes:
                if one is not other:
                    one.knows(other)
            del one.config["data"]
            one.write()
            one.start()
        for one in nodes:
            one.wait_for(lambda status: status.state == "waiting", "waits for a program")
        for i in range(args.nodes):
            processes.start(f"guest-{i}", as_node(args, folder, i))
        processes.wait(*(f"guest-{i}" for i in range(args.nodes)))


if __name__ == "__main__":
    main("conlora", launch, node)
