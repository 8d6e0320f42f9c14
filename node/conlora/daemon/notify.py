"""Tells the service manager how the node does (sd_notify(3)): ready, reloading, stopping, a line of status, and that it is alive.

Whatever is wrong with the manager's socket is logged once, and costs the node nothing.
"""

import asyncio
import contextlib
import faulthandler
import os
import socket
import time
from collections.abc import Callable, Iterator, MutableMapping

import structlog

log = structlog.get_logger()

STATUS_SECONDS = 5.0  # between two looks at what the node does
BEATS_PER_PERIOD = 3  # a late beat, or two, is no reason to end the node


class Notifier:
    """One service's line to its manager. Without a manager every method does nothing."""

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        """Takes the manager's variables out of the environment: processes that the node starts have nothing to say to it."""
        self._address = environment.pop("NOTIFY_SOCKET", "")
        period, pid = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
        mine = not pid or pid == str(os.getpid())
        self.watchdog_seconds = int(period) / 1e6 if self._address and mine and period.isdecimal() else 0.0
        self._untold = False
        self._ready_due = False
        self._stopping = False
        self._status = ""

    def ready(self) -> None:
        """The node has started, or is done with a reload."""
        self._ready_due = not self._send("READY=1")

    @contextlib.contextmanager
    def reloading(self) -> Iterator[None]:
        """For as long as the node reads its configuration again."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
        try:
            yield
        finally:
            self.ready()

    def stopping(self) -> None:
        """The node has begun to stop; said once."""
        if not self._stopping:
            self._stopping = True
            self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """One line for people; sent where it differs from the last."""
        if text != self._status:
            self._status = text
            self._send("STATUS=" + " ".join(text.split()))

    async def watch(self, describe: Callable[[], str]) -> None:
        """Says again and again that the event loop turns, and what the node does; for ever."""
        if not self._address:
            return
        if self.watchdog_seconds:
            faulthandler.enable()  # the manager ends a hung node with SIGABRT: the log then tells where it hung
        beat = self.watchdog_seconds / BEATS_PER_PERIOD
        while True:
            if self._ready_due:  # without it the manager would take the start for a failed one
                self.ready()
            if self.watchdog_seconds:
                self._send("WATCHDOG=1")
            try:
                self.status(describe())
            except Exception:
                log.exception("no status for the service manager")  # a mistake of ours; the node is alive all the same
            await asyncio.sleep(min(beat or STATUS_SECONDS, STATUS_SECONDS))

    def _send(self, *lines: str) -> bool:
        """Whether the manager was told; without one there is nobody to miss it."""
        if not self._address:
            return True
        # "@" stands for the zero byte that abstract addresses begin with
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
                manager.setblocking(False)  # a manager that does not read must not hold the event loop up
                manager.connect(address)
                manager.send("\n".join(lines).encode())
        except (OSError, ValueError) as error:
            if not self._untold:
                log.warning(
                    "the service manager can't be told; the node goes on", socket=self._address, reason=str(error)
                )
            self._untold = True
        else:
            self._untold = False
        return not self._untold
