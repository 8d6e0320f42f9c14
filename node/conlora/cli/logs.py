"""The daemon's log on standard error: a line an event, coloured on a terminal, or a JSON object a line for programs."""

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from conlora.cli.common import LogFormat
from conlora.errors import ConLoRAError


class Lines:
    """Standard error, line by line; what a full disk has no room for is left out, and counted once there is room again."""

    def __init__(self, lost: Callable[[int], str] = "({} lines could not be written)".format) -> None:
        """lost: the line that says how many are missing."""
        self._lost = 0
        self._line_of_lost = lost

    def write(self, text: str) -> int:
        """One line, or the end of one."""
        if self._lost and self._written(self._line_of_lost(self._lost) + "\n"):
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


def set_up_logging(form: LogFormat = LogFormat.TEXT, node: str = "") -> None:
    """Configures structlog for a daemon. node: its name, which each object of JSON bears."""
    to_json = _json(node)
    if form is LogFormat.JSON:
        lines, last = Lines(lambda n: _line_of_lost(to_json, n)), to_json
    else:
        lines, last = Lines(), _text()
    structlog.configure(
        processors=[structlog.processors.add_log_level, *last],
        logger_factory=structlog.PrintLoggerFactory(file=cast(TextIO, lines)),
        cache_logger_on_first_use=True,
    )


def _text() -> list[Processor]:
    return [
        structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S", utc=False),
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0),
    ]


def _json(node: str) -> list[Processor]:
    def object_of(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        first = {name: event.pop(name) for name in ("timestamp", "level", "event")}
        return first | {"node": node} | {name: _finite(value) for name, value in event.items()}

    return [
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        object_of,
        structlog.processors.JSONRenderer(serializer=json.dumps, default=str),
    ]


def _line_of_lost(to_json: list[Processor], n: int) -> str:
    event: Any = {"level": "warning", "event": "lines of the log could not be written", "lines": n}
    for processor in to_json:
        event = processor(None, "warning", event)
    return str(event)


def _finite(value: object) -> object:
    """JSON has no NaN and no infinity."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def ending_in_log() -> Iterator[None]:
    """Puts the sentence with which a node ends into the log, instead of beside it; the exit code stays."""
    log = structlog.get_logger()
    try:
        yield
    except ConLoRAError as error:
        log.critical("node ended", reason=str(error), exit_code=error.exit_code)
        sys.exit(error.exit_code)
    except Exception:
        log.critical("node ended by a defect", exc_info=True, exit_code=1)
        sys.exit(1)
