"""What commands share: finding the configuration, printing figures and JSON."""

import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

PIPE_COLUMNS = 200  # what is written into a file or a pipe has no width of its own; in Rich's 80 an address is cut off
console = Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPE_COLUMNS)
SYSTEM_CONFIG = Path("/etc/conlora/conlora.yaml")

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        envvar="CONLORA_CONFIG",
        help="The node's file. Default: ./conlora.yaml, then /etc/conlora.",
        show_default=False,
    ),
]
PlaceOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        envvar="CONLORA_CONFIG",
        help="The node's file, or an operator's. Default: ./conlora.yaml, then /etc/conlora.",
        show_default=False,
    ),
]
ConfigArgument = Annotated[
    Path | None,
    typer.Argument(
        envvar="CONLORA_CONFIG", help="The node's file. Default: ./conlora.yaml, then /etc/conlora.", show_default=False
    ),
]


class LogFormat(StrEnum):
    """How a daemon's log is written."""

    TEXT = "text"
    JSON = "json"


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def config_path(given: Path | None) -> Path:
    """The node's configuration file."""
    if given is not None:
        return given / "conlora.yaml" if given.is_dir() else given
    local = Path("conlora.yaml")
    return local if local.exists() or not SYSTEM_CONFIG.exists() else SYSTEM_CONFIG


def print_json(body: Any) -> None:
    """One JSON document on standard output, without colours or line breaks that depend on the terminal."""
    typer.echo(json.dumps(body, indent=2))


def human_bytes(count: int) -> str:
    """1234567 as `1.2 MB`."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def human_seconds(seconds: float) -> str:
    """A duration as `42 s`, `4 min` or `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def one_line(text: str) -> str:
    """What others have worded, with nothing in it that moves the cursor."""
    return "".join(c if c.isprintable() else " " for c in text)


def quiet_grpc() -> None:
    """gRPC's own log lines on standard error tell an operator nothing that our sentences don't."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
