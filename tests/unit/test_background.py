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


def written(setup: str, refusals: tuple[str, ...]) -> str:
    """What `background` writes into its session's niceness before a trainer could be started. refusals: by the kernel."""
    return run(
        f"""
import errno, os
from conlora.daemon import background
class Kernel:
    written, refusals = [], {[*refusals]}
    def write_text(self, text):
        if self.refusals:
            raise OSError(getattr(errno, self.refusals.pop()), "refused")
        self.written.append(text)
background.AUTOGROUP = Kernel()
background.PAUSE_SECONDS = 0
{setup}
with background.background() as spawner:
    spawner.submit(int).result()
    print(*Kernel.written)
"""
    )


def test_a_session_that_it_leads_becomes_nicer_though_the_kernel_says_not_so_often() -> None:
    assert written("os.setsid()", ("EAGAIN", "EAGAIN")) == "10"


def test_a_session_that_others_share_stays_as_it_is() -> None:
    assert written("", ()) == ""


def test_a_kernel_without_autogroups_is_no_error() -> None:
    assert written("os.setsid()", ("ENOENT",)) == ""
