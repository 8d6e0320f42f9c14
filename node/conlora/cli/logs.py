"""The daemon's log: one line an event on standard error, coloured on a terminal."""

import os
import sys
from typing import TextIO, cast

import structlog


class Lines:
    """Standard error, line by line; what a full disk has no room for is left out, and counted once there is room again."""

    def __init__(self) -> None:
        self._lost = 0

    def write(self, text: str) -> int:
        """One line, or the end of one."""
        if self._lost and self._written(f"({self._lost} lines could not be written)\n"):
            self._lost = 0
        if text.strip() and not self._written(text.rstrip("\n") + "\n"):
            self._lost += 1
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""

    def _written(self, line: str) -> bool:
        data = line.encode(errors="replace")
        try:
            return os.write(sys.stderr.fileno(), data) == len(data)
        except OSError:
            return False


def set_up_logging() -> None:
    """Configures structlog for a daemon."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S", utc=False),
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0),
        ],
        logger_factory=structlog.PrintLoggerFactory(file=cast(TextIO, Lines())),
        cache_logger_on_first_use=True,
    )
