"""Generates most pages of docs/reference (see PAGES) from the code; with --check, fails where they differ.

`python docs/generate_reference.py` after a change of a configuration section, a command, an error,
a metric or a message.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from pages.commands import commands
from pages.configuration import configuration
from pages.failures import error_sentences, exit_codes
from pages.messages import messages
from pages.metrics import metrics

REFERENCE = Path(__file__).resolve().parent / "reference"
PAGES: dict[str, Callable[[], str]] = {
    "configuration.md": configuration,
    "commands.md": commands,
    "exit-codes.md": exit_codes,
    "errors.md": error_sentences,
    "metrics.md": metrics,
    "messages.md": messages,
}


def main(arguments: list[str]) -> None:
    """Writes the pages, or with --check exits with 1 and names those that differ."""
    pages = {REFERENCE / name: page() for name, page in PAGES.items()}
    if "--check" in arguments:
        differing = [path.name for path, text in pages.items() if not path.exists() or path.read_text() != text]
        if differing:
            raise SystemExit(f"docs/reference: {', '.join(differing)} differ; run `python docs/generate_reference.py`")
        return
    for path, text in pages.items():
        path.write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
