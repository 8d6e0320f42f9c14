"""What a trainer prints: through a pipe, so that a full disk does not stop it, into a log file of bounded size."""

import asyncio
import contextlib
import os
from pathlib import Path

MOST_BYTES = 8 << 20  # of the file; one that is larger becomes `.1`, and the one before that goes
LAST_BYTES = 1 << 12
DRAIN_SECONDS = 1.0  # a process of the trainer's own may outlive it, and hold the pipe


class Output:
    """The daemon's end of the pipe. What can't be written is lost, but for the last line; training matters more."""

    def __init__(self, log: Path) -> None:
        """log: where it is appended. Needs a running event loop."""
        self.log = log
        with contextlib.suppress(OSError):
            log.touch()  # so that who looks for it finds it, empty
        self._reading, self.writing = os.pipe()
        os.set_blocking(self._reading, False)
        self._last = b""
        self._ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._reading, self._read)

    async def last_line(self) -> str:
        """Waits until the trainer has printed all, and returns the last line of it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                await self._ended.wait()
        self.close()
        lines = self._last.decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""

    def close(self) -> None:
        """Takes nothing more."""
        if self._reading >= 0:
            asyncio.get_running_loop().remove_reader(self._reading)
            os.close(self._reading)
            self._reading = -1
        self._ended.set()

    def _read(self) -> None:
        data = os.read(self._reading, 1 << 16)
        if not data:
            self.close()
            return
        self._last = (self._last + data)[-LAST_BYTES:]
        with contextlib.suppress(OSError):  # of which the node will hear when it saves
            if self.log.exists() and self.log.stat().st_size > MOST_BYTES:
                self.log.replace(self.log.with_name(f"{self.log.name}.1"))
            with self.log.open("ab") as file:
                file.write(data)
