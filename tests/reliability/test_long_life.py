"""Two daemons that exchange for long, over a link that breaks again and again: nothing grows."""

import contextlib
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from tests.bench.adapters import program, toy_node
from tests.bench.figures import Figures
from tests.daemons import Daemon, Daemons, wait_until
from tests.reliability.proxy import Proxy

MEGABYTES = 0.03  # of an adapter
EXCHANGES = 20_000  # snapshots that have arrived, both ways together
SAMPLES = 400
BREAKS = 200
MOST_GROWTH = 0.02  # of the resident memory, from the second quarter to the last


@dataclass(frozen=True)
class Sample:
    """What a daemon's process has, bytes of memory among it."""

    resident: int
    descriptors: int
    threads: int


def sample(node: Daemon) -> Sample:
    assert node.process is not None
    process = psutil.Process(node.process.pid)
    return Sample(process.memory_info().rss, process.num_fds(), process.num_threads())


def arrived(nodes: list[Daemon], nbytes: float) -> int:
    """Snapshots that have come to either node."""
    statuses = [node.status() for node in nodes]
    peers = [status.peers[0] for status in statuses if status]
    return round(sum(peer.bytes_received - peer.sketch_bytes_sent for peer in peers) / nbytes)


def linked(nodes: list[Daemon]) -> bool:
    return all((status := node.status()) and status.peers[0].link == "up" for node in nodes)


def cut(proxy: Proxy, nodes: list[Daemon]) -> None:
    """Another connection takes the place of the one between the nodes, of which the last dials."""
    before = proxy.accepted
    assert proxy.cut(), "there was no connection to cut"
    wait_until(lambda: not linked(nodes[-1:]) or proxy.accepted > before, "the link is seen to be gone")
    nodes[-1].admin.reload()  # which dials at once
    wait_until(lambda: proxy.accepted > before and linked(nodes), "another link")


def exchange(folder: Path, exchanges: int, samples: int, breaks: int) -> tuple[dict[str, list[Sample]], int]:
    """Samples of both daemons, taken while they are linked, and how often their link has broken."""
    with Daemons(folder, folder, folder) as daemons, contextlib.ExitStack() as running:
        a, b = nodes = [toy_node(daemons, name, folder, encoding="fp32") for name in "ab"]
        proxy = running.enter_context(Proxy(a.config["advertise"]))
        a.knows(b, address=False)
        b.knows(a)
        card = b.directory / "peers" / "a.yaml"
        card.write_text(card.read_text().replace(a.config["advertise"], proxy.address))
        for node in nodes:
            node.start()
            node.wait_for(lambda status: status.state == "waiting", "waits for a program")
        for node in nodes:
            guest = running.enter_context(program(node, MEGABYTES))
            assert guest.stdin is not None
            guest.stdin.write(b"go\n")
            guest.stdin.flush()
        wait_until(lambda: linked(nodes), "a link")
        nbytes = MEGABYTES * 1e6
        taken: dict[str, list[Sample]] = {node.name: [] for node in nodes}
        broken, last = 0, time.monotonic()
        while len(taken["a"]) < samples:
            due = exchanges * (len(taken["a"]) + 1) / samples
            wait_until(lambda due=due: arrived(nodes, nbytes) >= due, f"{due:.0f} exchanges")  # type: ignore[misc]
            for node in nodes:
                taken[node.name].append(sample(node))
            if broken < breaks * len(taken["a"]) / samples:
                cut(proxy, nodes)
                broken += 1
        print(f"{exchanges / (time.monotonic() - last):.0f} exchanges a second")
        for node in nodes:
            node.status()  # fails where one has ended
    return taken, broken


def steady(taken: list[Sample], what: str) -> tuple[list[int], list[int]]:
    """A figure in the second and in the last quarter."""
    quarter = len(taken) // 4
    values = [int(getattr(each, what)) for each in taken]
    return values[quarter : 2 * quarter], values[3 * quarter :]


def test_descriptors_and_threads_stay_the_same(tmp_path: Path) -> None:
    taken, broken = exchange(tmp_path, 400, 20, 6)
    assert broken == 6
    for samples in taken.values():
        for what in ("descriptors", "threads"):
            second, last = steady(samples, what)
            assert max(last) <= max(second) + 2, what


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_memory_stays_flat(tmp_path: Path, figures: Figures) -> None:
    taken, broken = exchange(tmp_path, EXCHANGES, SAMPLES, BREAKS)
    remark = f"{EXCHANGES} exchanges, {broken} times a new link"
    flat = []
    for name, samples in taken.items():
        for what, unit, scale, most in (
            ("resident", "MB", 1e6, MOST_GROWTH),
            ("descriptors", "", 1, 0),
            ("threads", "", 1, 0),
        ):
            second, last = (statistics.median(values) for values in steady(samples, what))
            flat.append(figures.record(
                f"{what} of daemon {name}, last quarter", last / scale, unit, remark=remark, against="second quarter",
                ratio=last / second, at_most=1 + most,
            ))  # fmt: skip
    assert all(figure.reached for figure in flat)
