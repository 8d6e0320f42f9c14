"""A program for several ranks that joins a node, as in `torchrun -m tests.ranked_loop NODE HOW NOTES`."""

import hashlib
import os
import sys
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaForCausalLM

from conlora.training.joining import join


def train(node_directory: str, how: str, notes: str) -> None:
    """how: the ranks train together: `ddp`, `fsdp`, or `apart`, which they must not; `alone` is one process.

    Each writes the digest of its adapter as it is at the start, after each mix and at the end to notes/RANK, one a line.
    """
    rank = int(os.environ.get("RANK", "0"))
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    if how == "fsdp":
        distributed.init_process_group("gloo")
    with join(node_directory) as node, Path(notes, str(rank)).open("a") as digests:
        adapted = node.adapt(LlamaForCausalLM.from_pretrained(node.config.model.base))
        model = shared(adapted, how)
        trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=0.01)
        mixed = -1
        while not node.finished:
            if node.round != mixed:
                mixed = node.round
                print(digest(trained), file=digests, flush=True)
            ids = torch.randint(5, 14, (4, 8))
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            node.step(loss.item())
        print(digest(trained), file=digests)
    if distributed.is_initialized():
        distributed.destroy_process_group()


def shared(adapted: torch.nn.Module, how: str) -> torch.nn.Module:
    if how == "ddp":
        distributed.init_process_group("gloo")  # after joining, as a Trainer does it
        return DistributedDataParallel(adapted)
    if how == "fsdp":
        for layer in adapted.get_base_model().model.layers:
            fully_shard(layer)
        fully_shard(adapted)
    return adapted


def digest(parameters: list[torch.nn.Parameter]) -> str:
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in parameters]
    return hashlib.sha256(b"".join(values.detach().numpy().tobytes() for values in whole)).hexdigest()


def forked(environment: dict[str, str], log: str, *arguments: str) -> None:
    """`train` in a process that has been forked for it."""
    os.environ.update(environment)
    with open(log, "wb") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    train(*arguments)


if __name__ == "__main__":
    train(*sys.argv[1:])
