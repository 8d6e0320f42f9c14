"""Figures: CPU time that a round costs a node as its federation grows from 4 to 16 nodes, each with two neighbours."""

import contextlib
import statistics
from pathlib import Path

import psutil
import pytest
from tests.bench.adapters import program, toy_node
from tests.bench.figures import Figures
from tests.daemons import Daemon, Daemons

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3600)]

MEGABYTES = 8.4
SECONDS = 1.5  # of a round, the same for both, for what is measured and gossiped depends on time
TURNS = 2
WARM_UP = 10  # rounds: sketches of all nodes have gone round by then
ROUNDS = 20


def test_cost_of_a_round(tmp_path: Path, figures: Figures) -> None:
    costs: dict[int, list[float]] = {4: [], 16: []}
    for turn in range(TURNS):
        for nodes, found in costs.items():
            folder = tmp_path / f"{nodes}-{turn}"
            folder.mkdir()
            found.append(seconds_a_round(nodes, folder))
    four, sixteen = (statistics.fmean(found) for found in costs.values())
    figures.record(
        "CPU time of a node's daemon a round, 16 nodes on a ring", unit="s", samples=costs[16],
        against=f"4 nodes: {four:.4f} s", ratio=sixteen / four, at_most=1.1, at_least=0.9,
        remark=f"{MEGABYTES} MB, sync mode, a round every {SECONDS} s",
    )  # fmt: skip


def seconds_a_round(count: int, folder: Path) -> float:
    """CPU seconds of all daemons over their rounds and their number."""
    with Daemons(folder, folder, folder) as daemons, contextlib.ExitStack() as programs:
        nodes = [toy_node(daemons, f"n{i}", folder) for i in range(count)]
        for i, node in enumerate(nodes):
            node.config["federation"]["mode"] = "sync"
            node.write()
            for step in (1, -1):
                node.knows(nodes[(i + step) % count])
            node.start()
        for node in nodes:
            node.wait_for(lambda status: status.state == "waiting", "waits for a program")
        guests = [programs.enter_context(program(node, MEGABYTES, SECONDS)) for node in nodes]
        for node in nodes:
            node.wait_for(lambda status: all(peer.link == "up" for peer in status.peers), "both links", 300)
        for started in guests:
            assert started.stdin is not None
            started.stdin.write(b"go\n")
            started.stdin.flush()
        first = cost(nodes, WARM_UP)
        last = cost(nodes, WARM_UP + ROUNDS)
        for started in guests:
            started.kill()
        rounds = sum(b - a for (_, a), (_, b) in zip(first, last, strict=True))
        return sum(b - a for (a, _), (b, _) in zip(first, last, strict=True)) / rounds


def cost(nodes: list[Daemon], round_: int) -> list[tuple[float, int]]:
    """CPU seconds and rounds of each daemon, once the first node has come to that round."""
    nodes[0].wait_for(lambda status: status.round >= round_, f"round {round_}", 600)
    found = []
    for node in nodes:
        assert node.process is not None
        status = node.status()
        assert status is not None
        times = psutil.Process(node.process.pid).cpu_times()
        found.append((times.user + times.system, status.round))
    return found
