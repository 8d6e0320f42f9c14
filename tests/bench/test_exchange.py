"""Figures: one way between two daemons, from the trainer's buffer to the checked slot, against raw TLS 1.3 and bare gRPC."""

import statistics
import time
from pathlib import Path

import psutil
import pytest
from tests.bench.adapters import one_way
from tests.bench.bare_grpc import BareGrpc
from tests.bench.figures import Figures
from tests.bench.raw_tls import RawTls
from tests.daemons import Daemon, Daemons, wait_until

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3600)]

ROUNDS = 12
WARM_UP = 3
SETTLED_SECONDS = 0.1


@pytest.mark.parametrize("encoding", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("megabytes", [64, 256])
def test_one_way(megabytes: int, encoding: str, tmp_path: Path, figures: Figures) -> None:
    with Daemons(tmp_path, tmp_path, tmp_path) as daemons, one_way(daemons, tmp_path, megabytes, encoding) as edge:
        a, b = edge.a, edge.b
        growth = {node.name: Memory(node) for node in (a, b)}
        identity = a.directory / "identity"
        with RawTls(megabytes, identity) as raw, BareGrpc(megabytes, identity) as bare:
            ours, theirs, grpcs = [0.0], [], []
            for _ in range(WARM_UP + ROUNDS):
                edge.publish()
                ours.append(delivered(a, ours[-1]))
                settle(a, b)  # what they measure of the mix would count against the socket
                theirs.append(raw.seconds())
                grpcs.append(bare.seconds())
        peaks = {name: memory.growth() for name, memory in growth.items()}
    ours, theirs, grpcs = ours[1 + WARM_UP :], theirs[WARM_UP:], grpcs[WARM_UP:]
    raw_seconds = statistics.median(theirs)
    figures.record(f"{megabytes} MB over a raw TLS 1.3 socket", unit="s", samples=theirs, remark=raw.cipher)
    figures.record(
        f"{megabytes} MB over a bare gRPC stream", unit="s", samples=grpcs, against=f"raw TLS 1.3 of {megabytes} MB",
        ratio=raw_seconds / statistics.median(grpcs), remark="mutual TLS 1.3; nobody looks at the bytes",
    )  # fmt: skip
    figures.record(
        f"{megabytes} MB one way, {encoding}", unit="s", samples=ours, against=f"raw TLS 1.3 of {megabytes} MB",
        ratio=raw_seconds / statistics.median(ours), at_least=0.7, remark="rate of the adapter's fp32 bytes in both",
    )  # fmt: skip
    for name, (total, shared) in peaks.items():
        figures.record(
            f"{megabytes} MB one way, {encoding}: growth of the {'sending' if name == 'a' else 'receiving'} daemon",
            total / 1e6, "MB", at_most=megabytes + 50,
            remark=f"{(total - shared) / 1e6:.0f} MB of its own, {shared / 1e6:.0f} MB of slots that it shares with the trainer",
        )  # fmt: skip


def delivered(a: Daemon, before: float) -> float:
    """Waits for another delivery than the one before; returns how long it took from publishing until a had b's answer."""

    def seconds() -> float | None:
        status = a.status()
        return status.peers[0].delivery_seconds if status else None

    wait_until(lambda: (found := seconds()) and found != before, "a delivery")
    found = seconds()
    assert found is not None
    return found


def settle(*nodes: Daemon) -> None:
    """Waits until the daemons leave the cores alone."""
    processes = [psutil.Process(node.process.pid) for node in nodes if node.process]

    def busy_seconds() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in processes)

    def idle() -> bool:
        before = busy_seconds()
        time.sleep(SETTLED_SECONDS)
        return busy_seconds() - before < SETTLED_SECONDS / 5

    wait_until(idle, "the daemons are done")


class Memory:
    """How much a daemon's resident memory grows from now on at its peak."""

    def __init__(self, node: Daemon) -> None:
        assert node.process is not None
        self._process = psutil.Process(node.process.pid)
        Path(f"/proc/{self._process.pid}/clear_refs").write_text("5")  # the peak counts from here
        self._before = self._process.memory_info()

    def growth(self) -> tuple[int, int]:
        """Bytes: in all at the peak, and what of it is shared memory now."""
        text = Path(f"/proc/{self._process.pid}/status").read_text()
        peak = next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmHWM"))
        shared = next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("RssShmem"))
        return peak - self._before.rss, shared
