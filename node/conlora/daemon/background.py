"""Puts the daemon into the background, so that training does not notice it: less priority, one core, steady memory.

Exchanging at full speed, a daemon beside the trainer costs each step a third of its speed; at a nicer priority, next to
nothing. On Linux niceness is a thread's own, threads and processes inherit it from the thread that starts them, and it
can't be taken back. So one thread is started before the others become nicer, and the trainer is started from there.
"""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

NICER = 10
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
        yield spawner


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
