"""Reads any of our YAML files; every mistake in one is a sentence with file, key and remedy."""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, Tag, ValidationError

from conlora.config.fields import Section
from conlora.errors import ConfigError

S = TypeVar("S", bound=Section)

ADDRESSES = ("listen", "advertise", "admin_listen", "address", "observing.metrics")  # keys that hold one


FIRST = "`conlora init DIR` writes a first configuration"


def load_section(path: Path, section: type[S], remedy: str = FIRST) -> S:
    """Reads any of our YAML files. Raises ConfigError with file, key path and remedy for every mistake in it.

    remedy: what to do where there is no such file.
    """
    return validated(path, read_mapping(path, remedy), section)


def read_mapping(path: Path, remedy: str = FIRST) -> dict[Any, Any]:
    """A YAML file's keys and values, as they stand there. Raises ConfigError."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; {remedy}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read ({error}); it has to be a readable UTF-8 text file") from error
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" in line {where.line + 1}" if where else ""
        problem = " ".join(str(getattr(error, "problem", error)).split())
        raise ConfigError(f"{path}: not valid YAML{line} ({problem}); mend that line") from error
    except ValueError as error:  # PyYAML lets it through where a date has a 13th month
        raise ConfigError(f"{path}: not valid YAML ({error}); mend that value, or quote it") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: has to be a YAML mapping of keys to values, not {type(data).__name__}")
    return data


def validated(path: Path, data: dict[Any, Any], section: type[S]) -> S:
    """The section that they make. Raises ConfigError, one line per mistake. path: of the file that they stand in."""
    try:
        return section.model_validate(data, context={"directory": path.resolve().parent})
    except ValidationError as error:
        raise ConfigError("\n".join(_sentence(path, section, item) for item in error.errors())) from error


def _sentence(path: Path, section: type[BaseModel], item: Any) -> str:
    parts, beside = _keys(section, item["loc"])
    key = ".".join(parts) or "(top level)"
    match item["type"]:
        case "extra_forbidden":
            near = difflib.get_close_matches(parts[-1], beside, n=1)
            hint = (
                f"did you mean {near[0]!r}?" if near else "remove it, or look it up in docs/reference/configuration.md"
            )
            return f"{path}: {key}: unknown key; {hint}"
        case "missing":
            return f"{path}: {key}: missing; add this key"
        case "union_tag_invalid":
            choice = item["ctx"]["expected_tags"].replace("'", "")
            return f"{path}: {key}.type: unknown type {item['ctx']['tag']!r}; choose one of {choice}"
        case "value_error" if not parts:  # of several keys, which it names itself
            return f"{path}: {item['ctx']['error']}"
        case "value_error":
            return f"{path}: {key}: {item['ctx']['error']}"
        case "string_pattern_mismatch" if key in ADDRESSES:
            return f"{path}: {key}: {item['input']!r} is not an address; write host:port, such as 0.0.0.0:7443"
        case _:
            return f"{path}: {key}: {item['msg']}, got {item['input']!r}; correct the value"


def _keys(section: type[BaseModel], location: tuple[int | str, ...]) -> tuple[list[str], list[str]]:
    """An error's place as keys of the file, and the keys that are allowed beside the last one."""
    parts: list[str] = []
    here: type[BaseModel] | None = section
    members: dict[str, type[BaseModel]] = {}
    for number, part in enumerate(map(str, location), start=1):
        if part in members:  # the type of a section that comes in several: pydantic names it, the file has no such key
            here, members = members[part], {}
            continue
        parts.append(part)
        if number == len(location):
            break
        field = here.model_fields.get(part) if here else None
        here = _section(field.annotation) if field else None
        members = {tag.tag: model for model, tag in _tagged(field.annotation)} if field else {}
    return parts, list(here.model_fields) if here else []


def _section(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _tagged(annotation: Any) -> Iterator[tuple[type[BaseModel], Tag]]:
    """The sections of a discriminated union, each with its tag."""
    for member in get_args(annotation):
        arguments = get_args(member)
        if len(arguments) == 2 and isinstance(arguments[1], Tag):
            yield arguments[0], arguments[1]
