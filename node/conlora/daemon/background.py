"""Puts the daemon into the background, so that training does not notice it: less priority, one core, steady memory.

Exchanging at full speed, a daemon beside the trainer costs each step a third of its speed; at a nicer priority, next to
nothing. On Linux niceness is a thread's own, threads and processes inherit it from the thread that starts them, and it
can't be taken back. So one thread is started before the others become nicer, and the trainer is started from there.

Where the kernel groups processes by session (autogroups, see sched(7)), it shares the cores out between sessions first,
and niceness only counts within one. A daemon that leads a session makes that nicer, too, and its trainer gets another.
"""

import contextlib
import ctypes
import os
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

NICER = 10
AUTOGROUP = Path("/proc/self/autogroup")
TRIES, PAUSE_SECONDS = 20, 0.1  # the kernel lets all unprivileged processes together set one autogroup in 0.1 s
MIB = 1 << 20

# Of glibc's malloc.h. Snapshots come and go: without these, each is mapped afresh, and its pages are faulted in one by one.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -2, -3, -8
MEMORY = {M_MMAP_THRESHOLD: 8 * MIB, M_TRIM_THRESHOLD: 256 * MIB, M_TOP_PAD: 16 * MIB, M_ARENA_MAX: 2}

BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "OMP_NUM_THREADS")


@contextlib.contextmanager
def background() -> Iterator[Executor]:
    """Makes this thread, and all that it starts from now on, nicer; yields one thread that still has its priority.

    What the yielded executor runs, and processes that are started there, are as important as this process was.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="spawner") as spawner:
        spawner.submit(os.getpid).result()  # its thread is there now
        os.nice(NICER)
        if os.getsid(0) == os.getpid():
            spawner.submit(_make_session_nicer)  # before it starts a trainer
        yield spawner


def _make_session_nicer() -> None:
    with contextlib.suppress(OSError):  # no autogroups, so that niceness counts; or /proc is not to be written to
        for _ in range(TRIES):
            try:
                AUTOGROUP.write_text(str(NICER))
            except BlockingIOError:
                time.sleep(PAUSE_SECONDS)
            else:
                return


def steady_memory() -> None:
    """Has glibc keep and reuse the memory of snapshots; does nothing where the C library is another one."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in MEMORY.items():
            mallopt(parameter, value)


def one_arithmetic_thread() -> None:
    """Has numpy compute on one core. To be called before anything imports numpy; the trainer's environment stays as it is."""
    before = {name: os.environ.get(name) for name in BLAS_THREADS}
    os.environ |= dict.fromkeys(BLAS_THREADS, "1")
    import numpy  # noqa: F401  # reads the environment once, now

    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
