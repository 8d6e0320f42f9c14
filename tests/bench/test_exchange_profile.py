"""Figures: where the time of one way between two daemons goes: processor time by process, and what waits for the trainer's mix.

The mix is made at once, as it is, or only once the snapshot has been delivered: the difference is what it takes from the exchange
where two cores carry both ends and the trainer.
"""

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import psutil
import pytest
from tests.bench.adapters import one_way
from tests.bench.bare_grpc import BareGrpc
from tests.bench.figures import Figures
from tests.bench.test_exchange import WARM_UP, delivered, settle
from tests.daemons import Daemons

from conlora.training.gossip import Gossip

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3600)]

WAYS = ("at once", "afterwards")
MEGABYTES = 64
ROUNDS = 40  # half of them each way: the kernel counts processor time in steps of 10 ms
AFTERWARDS_SECONDS = 0.4  # a delivery takes a quarter of it


def test_where_the_time_goes(tmp_path: Path, figures: Figures, monkeypatch: pytest.MonkeyPatch) -> None:
    pause, mix = 0.0, Gossip._mix

    def later(gossip: Gossip, *arguments: Any) -> Any:
        time.sleep(pause)
        return mix(gossip, *arguments)

    monkeypatch.setattr(Gossip, "_mix", later)
    wall: dict[str, list[float]] = defaultdict(list)
    used: dict[str, list[float]] = defaultdict(list)
    with Daemons(tmp_path, tmp_path, tmp_path) as daemons, one_way(daemons, tmp_path, MEGABYTES, "fp32") as edge:
        clocks = {word: clock(node.process) for word, node in (("sending", edge.a), ("receiving", edge.b))}
        last = 0.0
        with BareGrpc(MEGABYTES, edge.a.directory / "identity") as bare:
            clocks |= {"bare sending": time.process_time, "bare receiving": clock(bare)}
            for i in range(2 * WARM_UP + ROUNDS):
                pause = AFTERWARDS_SECONDS * (i % 2)
                with noted(used, clocks, "sending", "receiving"):
                    edge.publish()
                    last = delivered(edge.a, last)
                    settle(edge.a, edge.b)
                wall[WAYS[i % 2]].append(last)
                with noted(used, clocks, "bare sending", "bare receiving"):
                    wall["bare"].append(bare.seconds())
    grpc = median(wall["bare"][2 * WARM_UP :])
    figures.record(f"{MEGABYTES} MB over a bare gRPC stream", unit="s", samples=wall["bare"][2 * WARM_UP :])
    for way in WAYS:
        figures.record(
            f"{MEGABYTES} MB one way, fp32, where the trainer mixes {way}", unit="s", samples=wall[way][WARM_UP:],
            against="bare gRPC", ratio=median(wall[way][WARM_UP:]) / grpc,
        )  # fmt: skip
    for name in ("sending", "receiving"):
        ours, theirs = (sum(used[which][2 * WARM_UP :]) / ROUNDS for which in (name, f"bare {name}"))
        figures.record(
            f"processor time of the {name} daemon, a snapshot", ours, "s", against=f"bare gRPC: {theirs:.3f} s",
            ratio=ours / theirs, remark="its measuring of the mix included" if name == "sending" else "",
        )  # fmt: skip


class HasPid(Protocol):
    """A process, or what stands for one."""

    pid: int


def clock(process: HasPid | None) -> Callable[[], float]:
    """What reads the seconds of processor time that a process has used."""
    assert process is not None
    reading = psutil.Process(process.pid)
    return lambda: sum(reading.cpu_times()[:2])


@contextlib.contextmanager
def noted(used: dict[str, list[float]], clocks: dict[str, Callable[[], float]], *names: str) -> Iterator[None]:
    """Adds what each of these uses in the context."""
    before = {name: clocks[name]() for name in names}
    yield
    for name, start in before.items():
        used[name].append(clocks[name]() - start)
