"""A program that joins a node and learns a matrix of its own, near that of all.

`python -m tests.reliability.learner NODE NUMBER SECONDS` says `joined`, waits for a line, and then makes a round of one step
every so many seconds. Its learning rate falls from round to round, so that undisturbed nodes come ever closer to each other.
"""

import sys
import time
from pathlib import Path

import torch
from torch import nn

import conlora

WIDTH, BATCH = 32, 64
RATE, HALVED = 0.6, 20  # the learning rate of the first round, and after how many it is half of that


class Matrix(nn.Module):
    """One matrix, zero until it gets an adapter."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH, bias=False)
        nn.init.zeros_(self.layer.weight)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Their products."""
        return self.layer(rows)


def goal(number: int) -> torch.Tensor:
    """What a node's data are made with: half of it is everybody's."""
    common, own = (torch.Generator().manual_seed(seed) for seed in (0, 1 + number))
    return torch.randn(WIDTH, WIDTH, generator=common) + torch.randn(WIDTH, WIDTH, generator=own)


def main(directory: Path, number: int, seconds: float) -> None:
    torch.set_num_threads(1)
    wanted, draw = goal(number), torch.Generator().manual_seed(100 + number)
    with conlora.join(directory) as guest:
        model = guest.adapt(Matrix())
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], RATE)
        print("joined", flush=True)
        sys.stdin.readline()
        began, round_ = time.monotonic(), 0
        while not guest.finished:
            rows = torch.randn(BATCH, WIDTH, generator=draw)
            loss = nn.functional.mse_loss(model(rows), rows @ wanted.T)
            optimizer.param_groups[0]["lr"] = RATE / (1 + round_ / HALVED)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            round_ += 1
            time.sleep(max(0.0, began + round_ * seconds - time.monotonic()))
            guest.step(loss.item())


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
