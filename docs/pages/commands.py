"""docs/reference/commands.md: every command with its arguments and options, from the command line itself."""

from collections.abc import Iterator
from typing import Any

import typer
from pages.markdown import GENERATED, prose, table

from conlora.cli.main import app

COMPLETION = ("install_completion", "show_completion")


def commands() -> str:
    """Every command with its arguments and options, from the command line itself."""
    root = typer.main.get_command(app)
    parts = [
        GENERATED,
        "# Commands\n",
        prose(
            "`conlora COMMAND --help` shows the same. Where a command takes a configuration, the directory that holds a "
            "`conlora.yaml` will do; without one it uses the environment variable `CONLORA_CONFIG`, then `./conlora.yaml`, then "
            "`/etc/conlora/conlora.yaml`. With `--json` the result on standard output is one JSON document. "
            "[Exit codes](exit-codes.md) tell how a command ended; the reason is a sentence on standard error."
        ),
    ]
    for path, command in _commands("conlora", root):
        parts.append(f"## `{path}`\n")
        parts.append(f"{command.help}\n")
        parameters = [p for p in command.params if p.name not in COMPLETION]
        parts.append(f"```\n{_usage(path, command, parameters)}\n```\n")
        if parameters:
            rows = [(_named(p), p.help or "", "" if p.required else _preset(p)) for p in parameters]
            parts.append(table(("", "", "default"), rows))
    return "\n".join(parts)


def _commands(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from _commands(f"{path} {name}", inner)


def _usage(path: str, command: Any, parameters: list[Any]) -> str:
    words = [path]
    for parameter in sorted(parameters, key=_is_option):
        if not _is_option(parameter):
            words.append(_word(parameter) if parameter.required else f"[{_word(parameter)}]")
    if any(map(_is_option, parameters)):
        words.append("[OPTIONS]")
    if hasattr(command, "commands"):
        words.append("[COMMAND]" if command.invoke_without_command else "COMMAND")
    return " ".join(words)


def _is_option(parameter: Any) -> bool:
    return bool(parameter.opts[0].startswith("-"))


def _word(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _named(parameter: Any) -> str:
    if not _is_option(parameter):
        return f"`{_word(parameter)}`"
    value = "" if parameter.is_flag else f" {_word(parameter)}"
    return ", ".join(f"`{option}{value}`" for option in parameter.opts)


def _preset(parameter: Any) -> str:
    default = parameter.default
    return "" if default is None or default is False else f"`{default}`"
