"""The daemon's end: starts the trainer process, talks with it, and ends it."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from pydantic import BaseModel

from conlora.training.messages import FROM_TRAINER, FromTrainer, line

MAX_LINE_BYTES = 1 << 26  # Ready carries the schema of the whole adapter
EXIT_SECONDS = 30.0  # a step and a checkpoint; afterwards the process is killed


class TrainerProcess:
    """One run of the trainer, from spawn to exit."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, log: Path
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._log = log
        self._log_start = log.stat().st_size

    @classmethod
    async def spawn(cls, memory: int, threads: int | None, log: Path) -> "TrainerProcess":
        """Starts `conlora.training.trainer` in a fresh interpreter that inherits the memory's descriptor.

        threads: torch threads, or None for torch's choice. log: where its output is appended.
        """
        ours, theirs = socket.socketpair()
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "PASSIVE"}
        if threads is not None:
            environment["OMP_NUM_THREADS"] = str(threads)
        start = log.stat().st_size if log.exists() else 0
        with theirs, log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "conlora.training.trainer", str(theirs.fileno()), str(memory),
                pass_fds=(theirs.fileno(), memory), stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output,
                env=environment,
            )  # fmt: skip
        reader, writer = await asyncio.open_connection(sock=ours, limit=MAX_LINE_BYTES)
        trainer = cls(process, reader, writer, log)
        trainer._log_start = start
        return trainer

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
            while data := await self._reader.readline():
                yield FROM_TRAINER.validate_json(data)
        except ConnectionResetError:
            return

    async def exited(self) -> str:
        """Waits for the process to end (killing it after a while) and says in words how it ended; empty: in good order."""
        try:
            code = await asyncio.wait_for(self._process.wait(), EXIT_SECONDS)
        except TimeoutError:
            self.kill()
            code = await self._process.wait()
        self._writer.close()
        if code == 0:
            return ""
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"
        return f"the trainer {how}{self._last_words()}"

    def kill(self) -> None:
        """Ends the process now."""
        if self._process.returncode is None:
            self._process.kill()

    def _last_words(self) -> str:
        """The last line of this run's output, for the log message."""
        with self._log.open("rb") as file:
            file.seek(self._log_start)
            lines = file.read().decode(errors="replace").strip().splitlines()
        return f" ({lines[-1].strip()[:300]}; more in {self._log})" if lines else ""
