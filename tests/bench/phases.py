"""A program that joins a daemon with a toy of some size, does rounds, and notes what its time goes to.

`python -m tests.bench.phases NODE MEGABYTES ROUNDS` says `joined`, begins when it is told to on standard input, and prints one
line of JSON: the seconds of each round, as a whole and by phase, and those of processor time.
"""

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.adapters import change, join

from conlora.training.adapter import Adapter
from conlora.training.channel import Channel
from conlora.training.gossip import Gossip

PHASES: dict[str, tuple[type, str]] = {
    "publishing": (Adapter, "read"),
    "waiting": (Channel, "expect"),
    "mixing": (Gossip, "_mix"),
    "writing": (Adapter, "write"),
}


def timed(method: Callable[..., Any], samples: list[float]) -> Callable[..., Any]:
    def measured(*arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return method(*arguments, **options)
        finally:
            samples.append(time.perf_counter() - began)

    return measured


def main(directory: Path, megabytes: float, rounds: int) -> None:
    guest, parameters = join(directory, megabytes)
    seconds: dict[str, list[float]] = defaultdict(list)
    for phase, (owner, name) in PHASES.items():
        setattr(owner, name, timed(getattr(owner, name), seconds[phase]))
    with guest:
        print("joined", flush=True)
        sys.stdin.readline()
        step = timed(guest.step, seconds["round"])
        for _ in range(rounds):
            change(parameters)
            before = time.process_time()
            step(0.0)
            seconds["processor"].append(time.process_time() - before)
        print(json.dumps(seconds), flush=True)
        sys.stdin.readline()  # a neighbour may still need what this node has published


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
