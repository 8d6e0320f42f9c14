"""Figures: how long a trainer's step takes while its node exchanges with two neighbours without a pause, against alone.

And beside processes that do nothing but compute, or copy memory, on another core: what of it is no scheduler's to mend.
"""

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tests.bench.adapters import join, program, toy_node
from tests.bench.figures import Figures
from tests.daemons import Daemon, Daemons

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3600)]

MEGABYTES = 33.6
STEPS = 40
TURNS = 5  # alone and exchanging, one after the other
WARM_UP = 4

BUSY = {
    "computes all the time": "while True: pass",
    "copies 268 MB to and fro all the time": "import numpy\na, b = numpy.ones((2, 1 << 25))\nwhile True: b[:] = a",
}


def test_steps_beside_an_exchange(tmp_path: Path, figures: Figures) -> None:
    """The trainer has one thread. Its neighbours publish round after round, as fast as their own daemons answer.

    They have to be content with one core, since on machines of their own they would take none of this node's.
    """
    with Daemons(tmp_path, tmp_path, tmp_path) as daemons:
        nodes = [toy_node(daemons, name, tmp_path) for name in "abc"]
        for node in nodes:
            for other in nodes:
                if node is not other:
                    node.knows(other)
            node.start()
            node.wait_for(lambda status: status.state == "waiting", "waits for a program")
        a = nodes[0]
        with contextlib.ExitStack() as programs:
            neighbours = [programs.enter_context(program(node, MEGABYTES, nicer=10)) for node in nodes[1:]]
            for process in (*neighbours, *(node.process for node in nodes[1:])):
                assert process is not None
                keep_to_one_core(process.pid)
            guest, _ = join(a.directory, MEGABYTES)
            programs.enter_context(guest)
            a.wait_for(lambda status: all(peer.link == "up" for peer in status.peers), "both links", 300)
            step = training_step()
            alone, beside = [], []
            before = received(a)
            for turn in range(TURNS):
                pids = [started.pid for started in neighbours]
                if turn == 0:
                    for started in neighbours:
                        assert started.stdin is not None
                        started.stdin.write(b"go\n")
                        started.stdin.flush()
                    a.wait_for(lambda status: all(peer.snapshot_round for peer in status.peers), "their snapshots")
                    before = received(a)
                began = time.monotonic()
                beside += timed(step, lambda: guest.step(0.0))
                seconds = time.monotonic() - began
                arrived = (received(a) - before) / seconds
                with stopped(pids):
                    alone += timed(step, lambda: False)
                before = received(a)
    ratio = statistics.median(beside) / statistics.median(alone)
    figures.record(
        f"training step while {MEGABYTES} MB are exchanged with 2 neighbours all the time", unit="s", samples=beside,
        against=f"alone: {statistics.median(alone):.3f} s", ratio=ratio, at_most=1.03,
        remark=f"{arrived / 1e6:.0f} MB/s arrived meanwhile; the step itself, without the time in which it mixes",
    )  # fmt: skip


@pytest.mark.parametrize("doing", BUSY)
def test_steps_beside_another_core_that_is_busy(figures: Figures, doing: str) -> None:
    """Its process is as nice as a daemon, and kept to one core as the neighbours above are."""
    step = training_step()
    alone, beside = [], []
    with busy(BUSY[doing]) as pid:
        for _ in range(TURNS):
            beside += timed(step, lambda: False)
            with stopped([pid]):
                alone += timed(step, lambda: False)
    ratio = statistics.median(beside) / statistics.median(alone)
    figures.record(
        f"training step beside a process on another core that {doing}", unit="s", samples=beside,
        against=f"alone: {statistics.median(alone):.3f} s", ratio=ratio,
    )  # fmt: skip


@contextlib.contextmanager
def busy(code: str) -> Iterator[int]:
    """A process of that code, in the background as a daemon is; its number."""
    prologue = (
        "from conlora.daemon.background import background\n"
        f"import os\nos.sched_setaffinity(0, {{{max(os.sched_getaffinity(0))}}})\n"
        "with background() as spawner: spawner.submit(print, 'ready', flush=True).result()\n"
    )
    command = [sys.executable, "-c", prologue + code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            yield process.pid
        finally:
            process.kill()


def training_step() -> Callable[[], None]:
    """Forward, backward and optimizer of a model of MiniLM's size, 8 rows of 32 tokens, in one thread."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    torch.set_num_threads(1)
    model = BertForSequenceClassification(config)
    optimizer = torch.optim.SGD(model.parameters())
    words, labels = torch.randint(0, 30_000, (8, 32)), torch.randint(0, 2, (8,))

    def step() -> None:
        model(input_ids=words, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def timed(step: Callable[[], None], between: Callable[[], bool]) -> list[float]:
    """Seconds of steps, what is done between two of them not counted."""
    seconds = []
    for _ in range(WARM_UP + STEPS):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
        between()
    return seconds[WARM_UP:]


def keep_to_one_core(pid: int) -> None:
    """All threads of a process, and those that they start, on the last core that this program may use."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {max(os.sched_getaffinity(0))})


def received(node: Daemon) -> int:
    status = node.status()
    assert status is not None
    return sum(peer.bytes_received for peer in status.peers)


@contextlib.contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    """Processes stand still meanwhile."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
