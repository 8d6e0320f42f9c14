"""Child processes that never outlive the testbed: started, watched, and stopped whatever happens."""

import contextlib
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any, Self

from conlora.errors import ConLoRAError, TrainingFailed, error_of

WATCH_SECONDS = 0.5  # between two looks at what we wait for
POLL_SECONDS = 0.1  # the same while stopping
STOP_SECONDS = 15.0  # from the request to stop until a process is killed, where something went wrong or we were told to
LEAVE_SECONDS = 60.0  # the same at the regular end, where all nodes write checkpoints at once
GROUP_SECONDS = 5.0  # for what a process leaves behind, such as its trainer, to notice and leave by itself
TAIL_BYTES = 16_384


class Interrupts:
    """While entered, SIGINT, SIGTERM and SIGHUP are noted; `check`, called wherever we wait, raises KeyboardInterrupt.

    Raised by the signal itself it could come between the start of a process and our taking note of it.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self._received = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in self.SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup stays in force
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = True

    def check(self) -> None:
        """Raises KeyboardInterrupt where a signal came."""
        if self._received:
            raise KeyboardInterrupt


@dataclass(frozen=True, slots=True)
class Child:
    """One started process and the file that its standard error goes to."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def failure(self) -> ConLoRAError:
        """What a process that has exited says for itself."""
        code = self.process.returncode
        if code < 0:
            return TrainingFailed(f"{self.name} was killed by {signal.Signals(-code).name} (its log: {self.log})")
        last_words = last_line(self.log).removeprefix("conlora: ") or "it left no message"
        return error_of(code)(f"{self.name} exited with code {code}: {last_words} (its log: {self.log})")


class NodeProcesses:
    """Owns child processes; leaving the context stops every one of them and what they started."""

    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts
        self._children: list[Child] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        env: dict[str, str],
        stdout: Path | None = None,
        pass_fds: Sequence[int] = (),
    ) -> Child:
        """Starts a process; its standard error, and its standard output where no file is named, go to `log`."""
        with log.open("wb") as errors, _opened(stdout) as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output or errors,
                stderr=errors,
                env=env,
                pass_fds=pass_fds,
                start_new_session=True,  # the terminal's Ctrl-C is for the testbed, which stops its nodes in order
            )
            child = Child(name, process, log)
            self._children.append(child)
        return child

    def check(self) -> None:
        """Raises the first failure of a process that has exited before it was asked to."""
        for child in self._children:
            if child.process.poll() is not None:
                raise child.failure

    def wait_until(self, condition: Callable[[], bool], what: str, seconds: float = math.inf) -> None:
        """Polls until the condition holds. Raises where a process exits first, or TrainingFailed after `seconds`."""
        deadline = time.monotonic() + seconds
        self.check()
        while not condition():
            self._pause(what, seconds, deadline)
            self.check()

    def finish(self, child: Child, seconds: float) -> None:
        """Waits for a process that ends by itself. Raises its failure, or TrainingFailed after `seconds`."""
        deadline = time.monotonic() + seconds
        while child.process.poll() is None:
            self._pause(child.name, seconds, deadline)
        if child.process.returncode != 0:
            raise child.failure

    def _pause(self, what: str, seconds: float, deadline: float) -> None:
        self._interrupts.check()
        if time.monotonic() > deadline:
            logs = ", ".join(str(child.log) for child in self._children)
            raise TrainingFailed(f"{what} took longer than {seconds:.0f} s; the logs may say why: {logs}")
        time.sleep(WATCH_SECONDS)

    def leave(self) -> None:
        """The regular end: stops all, with more patience, and raises the failure of one that did not end well."""
        children = list(self._children)
        self.stop(LEAVE_SECONDS)
        for child in children:
            if child.process.returncode != 0:
                raise child.failure

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Asks every process to leave, kills those that don't, and then what is left of their process groups."""
        for child in self._children:
            child.process.terminate()  # a node's daemon takes SIGTERM as Stop: it checkpoints and leaves
        _wait(lambda: all(child.process.poll() is not None for child in self._children), seconds)
        for child in self._children:
            child.process.kill()
            child.process.wait()
        groups = [child.process.pid for child in self._children]  # each leads its own
        _wait(lambda: not any(_alive(group) for group in groups), GROUP_SECONDS)
        for group in filter(_alive, groups):
            with contextlib.suppress(ProcessLookupError):  # left between the check and now
                os.killpg(group, signal.SIGKILL)
        self._children.clear()


def last_line(log: Path) -> str:
    """The last line of a log that is not empty, or the empty string."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _wait(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def _alive(group: int) -> bool:
    """Whether a process group still has a member."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@contextlib.contextmanager
def _opened(path: Path | None) -> Iterator[IO[bytes] | None]:
    if path is None:
        yield None
    else:
        with path.open("wb") as file:
            yield file
