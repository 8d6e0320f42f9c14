"""Plain dataclasses to protobuf messages of the same fields, and back; None is a field that is not set."""

import dataclasses
import types
import typing
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import Message

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

M = TypeVar("M", bound=Message)
T = TypeVar("T", bound="DataclassInstance")


def to_message(value: Any, message: M) -> M:
    """Fills `message` from a dataclass whose fields have the same names; nested ones, lists of them and plain maps included."""
    for field in dataclasses.fields(value):
        content, name = getattr(value, field.name), field.name
        if content is None:
            continue
        if dataclasses.is_dataclass(content):
            getattr(message, name).SetInParent()
            to_message(content, getattr(message, name))
        elif isinstance(content, dict):
            getattr(message, name).update(content)
        elif isinstance(content, list | tuple):
            target = getattr(message, name)
            for item in content:
                if dataclasses.is_dataclass(item):
                    to_message(item, target.add())
                else:
                    target.append(item)
        else:
            setattr(message, name, content)
    return message


def from_message(message: Any, kind: type[T]) -> T:
    """A dataclass `kind` from a message."""
    hints = typing.get_type_hints(kind)
    values = {field.name: _value(message, field.name, hints[field.name]) for field in dataclasses.fields(kind)}
    return kind(**values)


def _value(message: Any, name: str, hint: Any) -> Any:
    if message.DESCRIPTOR.fields_by_name[name].has_presence and not message.HasField(name):
        return None
    content = getattr(message, name)
    if typing.get_origin(hint) is dict:
        return dict(content)
    if typing.get_origin(hint) is list:
        return [_converted(item, typing.get_args(hint)[0]) for item in content]
    if typing.get_origin(hint) is types.UnionType:
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    return _converted(content, hint)


def _converted(content: Any, kind: type[Any]) -> Any:
    return from_message(content, kind) if dataclasses.is_dataclass(kind) else content
