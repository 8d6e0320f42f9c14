"""docs/reference/{exit-codes,errors}.md: how a command ends, and every sentence with which something is refused or fails."""

import inspect
import re
from collections.abc import Iterable

from pages.markdown import GENERATED, prose, table
from pages.sentences import Sentence, sentences

from conlora import errors

ABOUT_PEERS = errors.PeerError


def exit_codes() -> str:
    """The exit codes, from the tree in the errors' docstring."""
    rows: list[tuple[str, ...]] = [("0", "", "done")]
    internal: list[tuple[str, ...]] = []
    for line in (inspect.getdoc(errors) or "").splitlines():
        if found := re.fullmatch(r"[│├└─ ]*(\w+) +(\d+|-) +(.+)", line):
            name, code, meaning = found.groups()
            if not hasattr(errors, name):
                continue
            if code == "-":
                internal.append((f"`{name}`", meaning))
            else:
                rows.append((code, f"`{name}`", meaning))
    rows.append(
        ("130", "", "interrupted; not `conlora run`, which takes SIGINT and SIGTERM as `conlora stop` and ends with 0")
    )
    rows.sort(key=lambda row: int(row[0]))
    return "\n".join(
        [
            GENERATED,
            "# Exit codes\n",
            prose(
                "Every error that ConLoRA raises on purpose has an exit code, and is printed as one sentence or two: what is "
                "wrong, where, and what to do. A mistake in a command's arguments ends with 2 as well. A traceback is a bug."
            ),
            table(("code", "error", "meaning"), rows),
            "These are about one peer. They never end a node; `conlora status` shows the last one of each peer:\n",
            table(("error", "meaning"), internal),
        ]
    )


def error_sentences() -> str:
    """Every sentence, by where it is met."""
    ending = [s for s in sentences() if s.raised and not issubclass(s.raised, ABOUT_PEERS)]
    about_peers = [s for s in sentences() if s.raised and issubclass(s.raised, ABOUT_PEERS)]
    logged = [s for s in sentences() if not s.raised]
    return "\n".join(
        [
            GENERATED,
            "# Errors\n",
            prose(
                "Every sentence with which ConLoRA refuses, fails or warns; an ellipsis stands for a name, a path or a number. "
                "To find one, look for words of it. The module, under `node/conlora`, is the place in the code that says it."
            ),
            "## What ends a command or a node\n",
            prose(
                "On standard error; the [exit code](exit-codes.md) is the one in the table. A node that is started again goes on "
                "from its last checkpoint. The same sentences come from the library, as exceptions."
            ),
            table(("code", "sentence", "module"), [(_code(s), s.text, _module(s)) for s in _by_code(ending)]),
            "## What is said of a peer\n",
            prose(
                "In the log and in `conlora peers`. The node goes on; what the peer sent is not used. The peer is told that a "
                "snapshot was rejected and why, and nothing when it is not admitted."
            ),
            table(("error", "sentence", "module"), [(f"`{_name(s)}`", s.text, _module(s)) for s in about_peers]),
            "## Warnings in the log\n",
            "Each with fields that say whom it is about and why. None of them ends the node.\n",
            table(("event", "module"), [(s.text, _module(s)) for s in logged]),
        ]
    )


def _by_code(ending: Iterable[Sentence]) -> list[Sentence]:
    return sorted(ending, key=lambda s: (s.raised.exit_code if s.raised else 0, s.module))


def _code(sentence: Sentence) -> str:
    return str(sentence.raised.exit_code) if sentence.raised else ""


def _name(sentence: Sentence) -> str:
    return sentence.raised.__name__ if sentence.raised else ""


def _module(sentence: Sentence) -> str:
    return f"`{sentence.module.removesuffix('.py')}`"
