"""Seven nodes on T3 whose network falls into three and four, and heals: both halves go on, and then agree again."""

import contextlib
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.bench.adapters import toy_node
from tests.bench.figures import Figures
from tests.daemons import Daemon, Daemons
from tests.reliability.namespaces import Hosts, Unavailable

from conlora.core.consensus import consensus, factors, measure
from conlora.core.topology import named_graph
from conlora.net.status import NodeStatus
from conlora.store.recording import Recording

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

HALVES = 3, 4
ROUND_SECONDS = 1.0
ROUNDS = 20  # together, apart, and together again
SETTLED = 10  # the last rounds of each time, which are looked at


def test_seven_nodes_fall_apart_and_agree_again(tmp_path: Path, figures: Figures) -> None:
    try:
        hosts = Hosts(*HALVES).__enter__()
    except Unavailable as error:
        pytest.skip(f"no network namespaces here: {error}")
    with contextlib.ExitStack() as running:
        running.push(hosts)
        daemons = running.enter_context(Daemons(tmp_path, tmp_path, tmp_path))
        nodes = federation(daemons, hosts, tmp_path)
        for program in [running.enter_context(learner(node, i)) for i, node in enumerate(nodes)]:
            assert program.stdin is not None
            program.stdin.write(b"go\n")
            program.stdin.flush()
        together = rounds_on(nodes)

        hosts.pull()
        for node in nodes:
            node.wait_for(lambda s, node=node: links(s) == neighbours(node, apart=True), "edges across are dead", 60)  # type: ignore[misc]
        parted = rounds_on(nodes)
        weights = [weight_of(node, other) for node, other in across(nodes)]

        hosts.plug()
        for node in nodes:
            node.wait_for(lambda s, node=node: links(s) == neighbours(node, apart=False), "all edges live", 120)  # type: ignore[misc]
        rounds_on(nodes)
        healed = rounds_on(nodes)
        logs = [node.log.read_text() for node in nodes]
        v = errors(nodes)
    before, during, after = (settled(v, last) for last in (together, parted, healed))
    apart = f"{HALVES[0]} and {HALVES[1]} nodes apart"
    figures.record(f"V, {SETTLED} rounds up to round {together}, together", before)
    figures.record(f"V, up to round {parted}, {apart}", during, against="before", ratio=during / before, at_least=1.0)
    figures.record(
        f"V, up to round {healed}, together again", after, against="before", ratio=after / before, at_most=1.0
    )
    assert all(weight is None for weight in weights), "a dead edge has weight"
    assert not any("Traceback" in log for log in logs)
    assert during > 1.5 * before
    assert after < before


def federation(daemons: Daemons, hosts: Hosts, folder: Path) -> list[Daemon]:
    """Daemons that wait for their programs, each on a host of its own."""
    nodes = [toy_node(daemons, f"n{i}", folder) for i in range(sum(HALVES))]
    for i, j in named_graph("T3", len(nodes)).edges:
        for one, other in ((i, j), (j, i)):
            nodes[other].config["advertise"] = f"{hosts.addresses[other]}:7443"
            nodes[one].knows(nodes[other])
    for i, node in enumerate(nodes):
        node.config["listen"] = node.config["advertise"]
        node.config["training"]["record_vectors"] = True
        node.write()
        node.launcher = hosts.launcher(i)
        node.start()
    for node in nodes:
        node.wait_for(lambda status: status.state == "waiting", "waits for a program")
    return nodes


@contextlib.contextmanager
def learner(node: Daemon, number: int) -> Iterator["subprocess.Popen[bytes]"]:
    """A program that has joined; it is ended in the end."""
    command = [sys.executable, "-m", "tests.reliability.learner", str(node.directory), str(number), str(ROUND_SECONDS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"joined\n"
            yield process
        finally:
            process.kill()


def rounds_on(nodes: list[Daemon]) -> int:
    """Waits until every node has made so many rounds more; returns a round that all have finished."""
    began = [node.wait_for(lambda status: True, "answers").round for node in nodes]
    ended = [
        node.wait_for(lambda s, first=first: s.round >= first + ROUNDS, "goes on", 10 * ROUNDS * ROUND_SECONDS).round  # type: ignore[misc]
        for node, first in zip(nodes, began, strict=True)
    ]
    return min(ended)


def half(name: str) -> bool:
    return int(name[1:]) < HALVES[0]


def links(status: NodeStatus) -> set[str]:
    return {peer.name for peer in status.peers if peer.link == "up"}


def neighbours(node: Daemon, apart: bool) -> set[str]:
    """Those that it is to have a link to."""
    known = {card.stem for card in (node.directory / "peers").glob("*.yaml")}
    return {name for name in known if not apart or half(name) == half(node.name)}


def across(nodes: list[Daemon]) -> list[tuple[Daemon, str]]:
    return [(node, name) for node in nodes for name in neighbours(node, apart=False) - neighbours(node, apart=True)]


def weight_of(node: Daemon, other: str) -> float | None:
    status = node.status()
    assert status is not None
    return next(peer.weight for peer in status.peers if peer.name == other)


def errors(nodes: list[Daemon]) -> dict[int, float]:
    """V after the mix of every round that all nodes have recorded."""
    recordings = [Recording(node.state_dir / "recording") for node in nodes]
    rounds = set.intersection(
        *(set(recording.rounds()[:-1]) for recording in recordings)
    )  # the last may be half a file
    return {
        round_: consensus(measure([factors(r.schema, r.load(round_)[1], r.frozen) for r in recordings])).V
        for round_ in sorted(rounds)
    }


def settled(v: dict[int, float], last: int) -> float:
    """Mean of the last rounds up to this one."""
    return statistics.fmean(v[round_] for round_ in range(last - SETTLED + 1, last + 1) if round_ in v)
