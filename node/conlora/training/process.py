"""The daemon's end: starts the trainer process, talks with it, and ends it."""

import asyncio
import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel

from conlora.errors import StateError, TrainingFailed
from conlora.training.ending import in_words, memory_kills
from conlora.training.messages import FROM_TRAINER, FromTrainer, line
from conlora.training.output import Output

FORKSERVER = (
    "CONLORA_FORKSERVER"  # environment variable: the socket of a `conlora.training.forkserver`, if there is one
)
MAX_LINE_BYTES = 1 << 26  # Ready carries the schema of the whole adapter
EXIT_SECONDS = 30.0  # a step and a checkpoint; afterwards the process is killed


class Process(Protocol):
    """What is needed of a process."""

    @property
    def pid(self) -> int:
        """Its number."""

    @property
    def returncode(self) -> int | None:
        """Its exit status, or minus the signal that ended it; None while it runs."""

    async def wait(self) -> int:
        """Waits for its end and returns `returncode`."""

    def kill(self) -> None:
        """Ends it now."""


class TrainerProcess:
    """One run of the trainer, from spawn to exit."""

    def __init__(
        self, process: Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, output: Output | None
    ) -> None:
        """output: None for a program of the user's."""
        self._process = process
        self._reader = reader
        self._writer = writer
        self._output = output
        self._memory_kills = memory_kills()

    @classmethod
    async def spawn(cls, spawner: Executor, memory: int, threads: int | None, log: Path) -> "TrainerProcess":
        """Starts `conlora.training` in a process of its own that inherits the memory's descriptor.

        spawner: the thread whose priority it gets, unless a forkserver starts it. threads: torch threads, or None for
        torch's choice. log: where its output is appended. Raises TrainingFailed where there should be a forkserver and
        is none.
        """
        ours, theirs = socket.socketpair()
        output = Output(log)
        with contextlib.ExitStack() as on_failure, contextlib.ExitStack() as on_spawned:
            on_failure.callback(ours.close)
            on_failure.callback(output.close)
            on_spawned.callback(os.close, output.writing)
            with theirs:
                forkserver = os.environ.get(FORKSERVER)
                descriptors = (theirs.fileno(), memory, output.writing)
                process: Process
                if forkserver:
                    process = await _forked(forkserver, *descriptors)
                else:
                    process = Executed(spawner.submit(_execute, *descriptors, threads).result())
            on_failure.pop_all()
        reader, writer = await asyncio.open_connection(sock=ours, limit=MAX_LINE_BYTES)
        return cls(process, reader, writer, output)

    @classmethod
    async def joined(cls, guests: socket.socket, memory: int) -> "TrainerProcess":
        """Waits for a program of the user's to join, and hands it the memory. guests: a listening Unix socket."""
        connection, _ = await asyncio.get_running_loop().sock_accept(guests)
        socket.send_fds(connection, [b"\0"], [memory])
        pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        reader, writer = await asyncio.open_connection(sock=connection, limit=MAX_LINE_BYTES)
        return cls(GuestProcess(pid, writer), reader, writer, None)

    @property
    def pid(self) -> int:
        """The trainer's process id."""
        return self._process.pid

    def send(self, message: BaseModel) -> None:
        """Tells the trainer; silently nothing when it has just died, which `messages` reports."""
        if not self._writer.is_closing():
            self._writer.write(line(message))

    async def messages(self) -> AsyncIterator[FromTrainer]:
        """What the trainer says, until it ends or dies."""
        try:
            while (data := await self._reader.readline()).endswith(b"\n"):  # else it was cut off
                yield FROM_TRAINER.validate_json(data)
        except ConnectionError:  # also one that this side's writing has met
            return

    async def exited(self) -> str:
        """Waits for the process to end (killing it after a while) and says in words how it ended; empty: in good order."""
        try:
            async with asyncio.timeout(EXIT_SECONDS):
                code = await self._process.wait()
        except TimeoutError:
            self.kill()
            code = await self._process.wait()
        self._writer.close()
        if self._output is None:
            return ""
        last_line = await self._output.last_line()
        return in_words(code, last_line, self._output.log, memory_kills() > self._memory_kills)

    def kill(self) -> None:
        """Ends the process now."""
        if self._process.returncode is None:
            self._process.kill()


def _execute(channel: int, memory: int, log: int, threads: int | None) -> "subprocess.Popen[bytes]":
    """Starts a trainer in a fresh interpreter; in a session of its own where ours is the daemon's own and nicer."""
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "PASSIVE"}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    return subprocess.Popen(
        [sys.executable, "-m", "conlora.training", str(channel), str(memory)],
        pass_fds=(channel, memory), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
        start_new_session=os.getsid(0) == os.getpid(),
    )  # fmt: skip


async def _forked(forkserver: str, channel: int, memory: int, log: int) -> Process:
    """A trainer that the forkserver has forked."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(forkserver)  # to a process that listens since before this one began
        socket.send_fds(connection, [b"\0"], [channel, memory, log])
        reader, writer = await asyncio.open_connection(sock=connection)
        return Forked(int(await reader.readline()), reader, writer)
    except (OSError, ValueError) as error:
        connection.close()
        raise TrainingFailed(f"{forkserver}: no trainer is started there ({error})") from error


@contextlib.contextmanager
def waiting_room(path: Path) -> Iterator[socket.socket]:
    """A Unix socket that listens for guests, for the node's own user only; gone afterwards. Raises StateError."""
    with socket.socket(socket.AF_UNIX) as guests:
        try:
            path.unlink(missing_ok=True)  # of a daemon that was killed
            guests.bind(str(path))
            path.chmod(0o600)
        except OSError as error:
            raise StateError(f"{path}: no program can join there ({error}); a shorter state_dir may help") from error
        guests.listen()
        guests.setblocking(False)
        try:
            yield guests
        finally:
            path.unlink(missing_ok=True)


class GuestProcess:
    """A program of the user's, which the daemon neither starts nor ends: for the daemon it ends when it leaves."""

    def __init__(self, pid: int, writer: asyncio.StreamWriter) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._writer = writer

    async def wait(self) -> int:
        """See `Process`; called once there is nothing more to read."""
        self.returncode = 0
        return 0

    def kill(self) -> None:
        """Shows it out."""
        self._writer.close()


class Executed:
    """A trainer that is this process's child, whichever thread has started it."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.pid = process.pid
        self.returncode: int | None = None
        self._process = process
        self._ended = asyncio.Event()
        self._watched = os.pidfd_open(process.pid)
        asyncio.get_running_loop().add_reader(self._watched, self._end)

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._watched)
        os.close(self._watched)
        self.returncode = self._process.wait()
        self._ended.set()

    async def wait(self) -> int:
        """See `Process`."""
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def kill(self) -> None:
        """See `Process`."""
        self._process.kill()


class Forked:
    """A trainer that is the forkserver's child."""

    def __init__(self, pid: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._writer = writer
        self._ended = asyncio.create_task(self._end(reader))

    async def _end(self, reader: asyncio.StreamReader) -> int:
        status = await reader.readline()
        self._writer.close()
        self.returncode = int(status) if status else -signal.SIGKILL  # a forkserver dies with all its trainers
        return self.returncode

    async def wait(self) -> int:
        """See `Process`."""
        return await asyncio.shield(self._ended)

    def kill(self) -> None:
        """See `Process`."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
