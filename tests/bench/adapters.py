"""Adapters of any size for benches, on a model of which nothing is ever computed; and programs that join a daemon with one.

`python -m tests.bench.adapters NODE MEGABYTES [SECONDS]` joins the daemon of the node's directory and says `joined`. Told to on
standard input, it publishes round after round, as fast as the daemon answers or every so many seconds.
"""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tests.daemons import Daemon, Daemons
from torch import nn

import conlora
from conlora.training.joining import Guest

RANK, WIDTH = 16, 4096
BYTES_PER_LAYER = 2 * RANK * WIDTH * 4  # A and B of one square matrix in fp32


class Toy(nn.Module):
    """Square matrices with an adapter each. They are one in memory, for nothing is computed with them. Below half a megabyte
    there is a smaller one.
    """

    def __init__(self, megabytes: float) -> None:
        super().__init__()
        count = max(1, round(megabytes * 1e6 / BYTES_PER_LAYER))
        width = min(WIDTH, round(megabytes * 1e6 / BYTES_PER_LAYER * WIDTH))
        weight = nn.Parameter(torch.zeros(width, width))
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False, device="meta") for _ in range(count))
        for layer in self.layers:
            layer.weight = weight


def toy_node(daemons: Daemons, name: str, folder: Path, **exchange: object) -> Daemon:
    """A node that a program of ours trains: both factors, and no checkpoint falls into what is measured."""
    base = folder / "base"
    if not base.exists():
        base.mkdir()
        save_file({"weight": torch.zeros(1)}, base / "model.safetensors")  # whose digest nodes compare
    node = daemons.make(
        name,
        {"rounds": 1_000_000, "local_steps": 1, "checkpoint_every": 1_000_000},
        model={"base": str(base)},
        lora={"rank": RANK, "alpha": RANK},
        task={"type": "guest"},
        exchange=exchange,
    )
    del node.config["data"]
    node.write()
    return node


def join(directory: Path, megabytes: float) -> tuple[Guest, list[nn.Parameter]]:
    """Joins, with one thread; returns the parameters too."""
    torch.set_num_threads(1)
    guest = conlora.join(directory)
    model = guest.adapt(Toy(megabytes))
    return guest, [parameter for parameter in model.parameters() if parameter.requires_grad]


@contextlib.contextmanager
def program(
    node: Daemon, megabytes: float, *more: float, module: str = "tests.bench.adapters", nicer: int = 0
) -> Iterator["subprocess.Popen[bytes]"]:
    """A module, by default this one, as a program that has joined the node's daemon; it is ended in the end."""
    command = [sys.executable, "-m", module, node.directory, megabytes, *more]
    nice = ["nice", "-n", nicer] if nicer else []
    with subprocess.Popen(
        [str(word) for word in (*nice, *command)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"joined\n"
            yield process
        finally:
            process.kill()


@dataclass(frozen=True, slots=True)
class OneWay:
    """Two nodes with a link, and the program of the first; that of the other has joined, and does no more."""

    a: Daemon
    b: Daemon
    guest: Guest
    parameters: list[nn.Parameter]

    def publish(self) -> None:
        """Another snapshot from a to b."""
        change(self.parameters)
        self.guest.step(0.0)


@contextlib.contextmanager
def one_way(daemons: Daemons, folder: Path, megabytes: float, encoding: str) -> Iterator[OneWay]:
    """The nodes stay up until the caller ends its daemons."""
    a, b = (toy_node(daemons, name, folder, encoding=encoding) for name in "ab")
    a.knows(b)
    b.knows(a)
    for node in (a, b):
        node.start()
        node.wait_for(lambda status: status.state == "waiting", "waits for a program")
    with program(b, megabytes):
        guest, parameters = join(a.directory, megabytes)
        a.wait_for(lambda status: status.peers[0].link == "up", "the link")
        with guest:
            yield OneWay(a, b, guest, parameters)


def change(parameters: list[nn.Parameter]) -> None:
    """What stands for training."""
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(1e-3)


def main(directory: Path, megabytes: float, seconds: float) -> None:
    guest, parameters = join(directory, megabytes)
    with guest:
        print("joined", flush=True)
        if sys.stdin.readline():
            began = time.monotonic()
            while not guest.finished:
                change(parameters)
                time.sleep(max(0.0, began + seconds - time.monotonic()))  # which stands for training
                began = time.monotonic()
                guest.step(0.0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(float, (*sys.argv[2:], 0)[:2]))
