"""Figures: where the time of a round with two nodes goes: at the trainer by phase, and processor time by process.

33.6 MB in the default encoding, in lockstep, as beside other systems. Both nodes exchange at once on two cores. Beside it a bare
gRPC stream carries as many bytes as a snapshot has in bf16, once each way.
"""

import json
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import pytest
from tests.bench.adapters import program, toy_node
from tests.bench.bare_grpc import BareGrpc
from tests.bench.figures import Figures
from tests.bench.phases import PHASES
from tests.bench.test_exchange_profile import clock
from tests.daemons import Daemon, Daemons

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3600)]

MEGABYTES = 33.6
ROUNDS = 60  # the kernel counts processor time in steps of 10 ms
WARM_UP = 5
CORES = 2


def test_where_the_time_of_a_round_goes(tmp_path: Path, figures: Figures) -> None:
    with Daemons(tmp_path, tmp_path, tmp_path) as daemons:
        nodes = pair(daemons, tmp_path)
        bare, bare_processor = bare_exchange(nodes[0])
        with ExitStack() as stack:
            programs = [
                stack.enter_context(program(node, MEGABYTES, ROUNDS, module="tests.bench.phases")) for node in nodes
            ]
            for node in nodes:
                node.wait_for(lambda status: status.peers[0].link == "up", "the link")
            clocks = [clock(node.process) for node in nodes]
            before = [read() for read in clocks]
            told = answers(programs)
            daemon_processor = sum(read() - start for read, start in zip(clocks, before, strict=True)) / ROUNDS
    rounds = {name: [s for each in told for s in each[name][WARM_UP:]] for name in ("round", *PHASES)}
    whole = median(rounds["round"])
    figures.record("round of 33.6 MB with two nodes, in lockstep", unit="s", samples=rounds["round"])
    for phase in PHASES:
        figures.record(
            f"of that, the trainer's {phase}", unit="s", samples=rounds[phase], against="the round",
            ratio=median(rounds[phase]) / whole,
        )  # fmt: skip
    trainer_processor = sum(sum(each["processor"][WARM_UP:]) for each in told) / (ROUNDS - WARM_UP)
    for name, seconds in (("both daemons", daemon_processor), ("both trainers", trainer_processor)):
        figures.record(
            f"processor time of {name}, a round", seconds, "s", against=f"{CORES} cores for as long as a round",
            ratio=seconds / (CORES * whole),
        )  # fmt: skip
    figures.record(
        "two snapshots over a bare gRPC stream, one after the other", 2 * bare, "s", against="the round",
        ratio=2 * bare / whole, remark=f"{2 * bare_processor:.3f} s of processor time",
    )  # fmt: skip


def pair(daemons: Daemons, folder: Path) -> list[Daemon]:
    nodes = [toy_node(daemons, name, folder) for name in "ab"]
    for node, other in (nodes, nodes[::-1]):
        node.config["federation"] |= {"mode": "sync", "rule": "lora"}
        node.write()
        node.knows(other)
        node.start()
        node.wait_for(lambda status: status.state == "waiting", "waits for a program")
    return nodes


def answers(programs: list["subprocess.Popen[bytes]"]) -> list[dict[str, list[float]]]:
    """Has all programs begin; what they say in the end."""
    for process in programs:
        assert process.stdin is not None
        process.stdin.write(b"begin\n")
        process.stdin.flush()
    told = []
    for process in programs:
        assert process.stdout is not None
        told.append(json.loads(process.stdout.readline()))
    return told


def bare_exchange(node: Daemon) -> tuple[float, float]:
    """Seconds, and those of processor time at both ends, of as many bytes as a snapshot has in bf16."""
    with BareGrpc(MEGABYTES / 2, node.directory / "identity") as bare:
        receiving = clock(bare)
        for _ in range(WARM_UP):
            bare.seconds()
        before = time.process_time() + receiving()
        seconds = [bare.seconds() for _ in range(ROUNDS)]
        return median(seconds), (time.process_time() + receiving() - before) / ROUNDS
