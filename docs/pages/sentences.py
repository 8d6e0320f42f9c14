"""The sentences with which ConLoRA refuses, fails or warns, as they stand in its code."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from conlora import errors

CODE = Path(errors.__file__).parent
LEFT_OUT = "v1"  # generated code
LOGGED = ("warning", "error")
# where a ValueError comes to the user, from pydantic; elsewhere it is a defect, or part of another sentence
VALIDATORS = ("config/", "testbed/", "core/topology.py")
PLACEHOLDER = "…"


@dataclass(frozen=True, slots=True)
class Sentence:
    """module: a path under node/conlora. raised: the error's class; None in the log. pieces: what stands between values."""

    module: str
    raised: type[errors.ConLoRAError] | None
    pieces: tuple[str, ...]

    @property
    def text(self) -> str:
        """The sentence with an ellipsis for each value."""
        return PLACEHOLDER.join(self.pieces)


@cache
def sentences() -> tuple[Sentence, ...]:
    """All of them, in the order of the modules; a sentence that a module says twice is there once."""
    found = (
        Sentence(path.relative_to(CODE).as_posix(), raised, pieces)
        for path in sorted(CODE.rglob("*.py"))
        if LEFT_OUT not in path.relative_to(CODE).parts
        for raised, pieces in _said(path)
    )
    return tuple(dict.fromkeys(found))


def _said(path: Path) -> Iterator[tuple[type[errors.ConLoRAError] | None, tuple[str, ...]]]:
    validates = path.relative_to(CODE).as_posix().startswith(VALIDATORS)
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Call(func=ast.Name(id=name), args=[*_, said]) if hasattr(errors, name) or (
                validates and name == "ValueError"
            ):
                yield from ((_raised(name), pieces) for pieces in _texts(said))
            case ast.Call(func=ast.Attribute(attr=level, value=ast.Name(id="log")), args=[said, *_]) if level in LOGGED:
                yield from ((None, pieces) for pieces in _texts(said))


def _raised(name: str) -> type[errors.ConLoRAError]:
    """Pydantic turns a validator's ValueError into a mistake of the file that it reads."""
    raised: type[errors.ConLoRAError] = errors.ConfigError if name == "ValueError" else getattr(errors, name)
    return raised


def _texts(expression: ast.expr) -> Iterator[tuple[str, ...]]:
    """What an expression can come to, cut where values go; nothing for what is no literal."""
    match expression:
        case ast.Constant(value=str(text)):
            yield (text,)
        case ast.JoinedStr(values=parts):
            yield _pieces(parts)
        case ast.IfExp(body=body, orelse=orelse):
            yield from _texts(body)
            yield from _texts(orelse)


def _pieces(parts: list[ast.expr]) -> tuple[str, ...]:
    pieces = [""]
    for part in parts:
        if isinstance(part, ast.Constant):
            pieces[-1] += str(part.value)
        else:
            pieces.append("")
    return tuple(pieces)
