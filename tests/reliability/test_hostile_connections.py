"""Hostile connections to a daemon that exchanges with an honest neighbour meanwhile: it goes on as if nothing happened."""

import asyncio
import contextlib
import re
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from tests.bench.adapters import program, toy_node
from tests.bench.figures import Figures
from tests.daemons import Daemon, Daemons, wait_until
from tests.reliability.intruders import KINDS, Target, intrude, stays

from conlora.errors import Refused
from conlora.net.identity import create_identity

MEGABYTES = 0.03  # of an adapter
ROUND_SECONDS = 0.1
PARALLEL = 12
CONNECTIONS = 2000
LONGEST_HANDSHAKE = 20.0  # seconds that somebody may stay who says nothing
MOST_GROWTH = 150e6  # bytes


class Watch(threading.Thread):
    """Looks at the daemon and its honest neighbour all the time, and lifts quarantines, or the rest would be knocks at a door."""

    def __init__(self, node: Daemon, neighbour: Daemon) -> None:
        super().__init__()
        assert node.process is not None
        self._node, self._neighbour = node, neighbour
        self._process = psutil.Process(node.process.pid)
        self._ended = threading.Event()
        self.descriptors, self.resident = self.now()
        self.most_descriptors, self.most_resident = self.descriptors, self.resident
        self.longest_pause = 0.0
        self.lost: list[str] = []

    def now(self) -> tuple[int, int]:
        """Descriptors and resident bytes."""
        return self._process.num_fds(), self._process.memory_info().rss

    def run(self) -> None:
        """Until `end`."""
        seen, at = -1, time.monotonic()
        while not self._ended.wait(0.1):
            descriptors, resident = self.now()
            self.most_descriptors = max(self.most_descriptors, descriptors)
            self.most_resident = max(self.most_resident, resident)
            status = self._node.status()
            if status and any(peer.link == "quarantined" for peer in status.peers):
                with contextlib.suppress(Refused):
                    self._node.admin.lift("mallory")
            link = next((peer for peer in status.peers if peer.name == self._neighbour.name), None) if status else None
            if link is None or link.link != "up":
                self.lost.append(str(link))
            elif link.snapshot_round != seen:
                self.longest_pause = max(self.longest_pause, time.monotonic() - at)
                seen, at = link.snapshot_round, time.monotonic()

    def end(self) -> None:
        """Looks no more."""
        self._ended.set()
        self.join()


def attacked(folder: Path, connections: int) -> tuple[Watch, dict[str, int], list[float], Counter[str]]:
    """What the watch saw, connections by kind, how long silent ones could stay, and the reasons in the node's log."""
    with Daemons(folder, folder, folder) as daemons, contextlib.ExitStack() as running:
        node, honest = nodes = [toy_node(daemons, name, folder, encoding="fp32") for name in ("node", "honest")]
        node.knows(honest)
        honest.knows(node)
        trusted, _ = (create_identity(folder / name) for name in ("mallory", "stranger"))
        (node.directory / "peers" / "mallory.yaml").write_text(trusted.card("mallory", None))
        for each in nodes:
            each.start()
            each.wait_for(lambda status: status.state == "waiting", "waits for a program")
        for each in nodes:
            guest = running.enter_context(program(each, MEGABYTES, ROUND_SECONDS))
            assert guest.stdin is not None
            guest.stdin.write(b"go\n")
            guest.stdin.flush()
        for each in nodes:
            each.wait_for(lambda s: any(peer.link == "up" and peer.snapshot_round for peer in s.peers), "an exchange")
        target = Target(node.config["advertise"], node.identity, trusted, folder / "mallory", folder / "stranger")
        before = [status.round for each in nodes if (status := each.status())]
        told = [len(each.log.read_text()) for each in nodes]
        watch = Watch(node, honest)
        watch.start()
        try:
            made, silent = asyncio.run(everything(target, connections))
        finally:
            watch.end()
        wait_until(lambda: watch.now()[0] <= watch.descriptors + 4, "descriptors are given back", 30)
        for each, round_ in zip(nodes, before, strict=True):
            each.wait_for(lambda s, least=round_ + 10: s.round >= least, "rounds go on")  # type: ignore[misc]
        log, other = (each.log.read_text()[start:] for each, start in zip(nodes, told, strict=True))
        assert "Traceback" not in log
        assert not [line for line in log.splitlines() if "link" in line and "peer=honest" in line]
        assert not [line for line in other.splitlines() if "link" in line and "peer=node" in line]
        return watch, made, silent, reasons(log)


async def everything(target: Target, connections: int) -> tuple[dict[str, int], list[float]]:
    silent = [asyncio.create_task(stays(target)) for _ in range(5)]
    made = await intrude(target, connections, PARALLEL)
    return made, await asyncio.gather(*silent)


def reasons(log: str) -> Counter[str]:
    """Why links ended and callers were refused, without the numbers that differ from one to the next."""
    found: Counter[str] = Counter()
    for line in log.splitlines():
        for pattern in (
            r"reason=(['\"])(?P<why>.*?)\1(?: |$)",
            r"(?P<why>refused a caller[^=]*?)  ",
            r"(?P<why>Handshake failed.*)",
        ):
            if match := re.search(pattern, line):
                found[re.sub(r"\d+(\.\d+)?(e[+-]\d+)?", "…", match["why"])[:80]] += 1
                break
    return found


def sound(watch: Watch, silent: list[float]) -> None:
    assert not watch.lost
    assert watch.longest_pause < 10
    assert watch.most_resident - watch.resident < MOST_GROWTH
    assert max(silent) < LONGEST_HANDSHAKE
    assert watch.most_descriptors < watch.descriptors + 4 * PARALLEL


def test_an_honest_link_lives_through_hostile_connections(tmp_path: Path) -> None:
    watch, made, silent, found = attacked(tmp_path, 5 * len(KINDS))
    sound(watch, silent)
    assert set(made.values()) == {5}
    for subject in ("mallory", "certificate"):
        assert any(subject in reason for reason in found), found


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_two_thousand_hostile_connections(tmp_path: Path, figures: Figures) -> None:
    watch, made, silent, found = attacked(tmp_path, CONNECTIONS)
    figures.record(
        "hostile connections", sum(made.values()), at_least=CONNECTIONS, remark=", ".join(f"{n} {k}" for k, n in made.items())
    )  # fmt: skip
    figures.record("times that the honest link was seen down", len(watch.lost), at_most=0)
    figures.record("longest time without a snapshot of the honest neighbour", watch.longest_pause, "s", at_most=10)
    growth = watch.most_resident - watch.resident
    figures.record("growth of the daemon's resident memory, at its peak", growth / 1e6, "MB", at_most=MOST_GROWTH / 1e6)
    figures.record(
        "descriptors more, at the peak", watch.most_descriptors - watch.descriptors, at_most=4 * PARALLEL,
        remark=f"{PARALLEL} connections at a time, and 5 that stay",
    )  # fmt: skip
    figures.record("until somebody who says nothing is hung up on", unit="s", samples=silent, at_most=LONGEST_HANDSHAKE)
    for reason, count in found.most_common():
        figures.record("in the log", count, remark=reason)
    sound(watch, silent)
    assert any("sent" in reason for reason in found), found
