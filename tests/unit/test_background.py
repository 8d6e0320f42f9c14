"""What a daemon sets for itself, each in a fresh interpreter: it can't be taken back."""

import subprocess
import sys


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_numpy_computes_on_one_core_and_the_environment_stays_as_it_was() -> None:
    # More rows than a BLAS leaves to one thread; OpenBLAS starts its threads when it is loaded.
    told = run(
        """
import os
os.environ.pop("OMP_NUM_THREADS", None)
os.environ["OPENBLAS_NUM_THREADS"] = "2"
before = dict(os.environ)
from conlora.daemon.background import one_arithmetic_thread
one_arithmetic_thread()
import numpy
numpy.ones((512, 512)) @ numpy.ones((512, 512))
print(dict(os.environ) == before, len(os.listdir("/proc/self/task")))
"""
    )
    assert told == "True 1"


def test_the_yielded_thread_keeps_its_priority() -> None:
    told = run(
        """
import os
def niceness():
    return os.getpriority(os.PRIO_PROCESS, 0)
before = niceness()
from conlora.daemon.background import background
with background() as spawner:
    print(niceness() > before, spawner.submit(niceness).result() == before)
"""
    )
    assert told == "True True"


def test_memory_is_steady_where_there_is_glibc_and_elsewhere_nothing_happens() -> None:
    told = run(
        """
import ctypes
from conlora.daemon import background
libc, taken = ctypes.CDLL(None), {}
class Watched:
    def mallopt(self, parameter, value):
        taken[parameter] = value
        return getattr(libc, "mallopt", lambda *_: 1)(parameter, value)
ctypes.CDLL = lambda name: Watched()
background.steady_memory()
ctypes.CDLL = lambda name: object()  # a C library without mallopt
background.steady_memory()
print(taken == background.MEMORY and len(taken) == 4)
"""
    )
    assert told == "True"
