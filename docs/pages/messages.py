"""docs/reference/messages.md: every service, message and field on the wire, from the .proto files and their comments."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc
from pages.markdown import GENERATED, prose, table

PROTO = Path(__file__).resolve().parents[2] / "proto"
SOURCES = [PROTO / "conlora" / "v1" / f"{name}.proto" for name in ("peer", "adapter", "admin")]
# numbers of fields in descriptor.proto, of which a comment's path is made
MESSAGE, ENUM, SERVICE = 4, 5, 6
FIELD, NESTED_ENUM, METHOD, VALUE = 2, 4, 2, 2


def messages() -> str:
    """All of them, file by file."""
    intro = (
        "The messages of `proto/conlora/v1/`: `peer` and `adapter` go between nodes, `admin` between a node and its operator. "
        "[Protocol](protocol.md) says in which order, and what is checked."
    )
    return "\n".join([GENERATED, "# Messages\n", prose(intro), *(part for file in described() for part in _file(file))])


def described() -> list[FileDescriptorProto]:
    """The files as protoc reads them, comments included."""
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory) / "set"
        flags = ["--include_source_info", f"--descriptor_set_out={target}"]
        if protoc.main(["protoc", f"-I{PROTO}", *flags, *map(str, SOURCES)]) != 0:
            raise SystemExit("protoc failed")
        files = {file.name: file for file in FileDescriptorSet.FromString(target.read_bytes()).file}
    return [files[source.relative_to(PROTO).as_posix()] for source in SOURCES]


def _file(file: FileDescriptorProto) -> Iterator[str]:
    comments = {tuple(place.path): _comment(place) for place in file.source_code_info.location}
    yield f"## `{file.name}`\n"
    for i, service in enumerate(file.service):
        yield f"### service `{service.name}`\n"
        rows = [
            (f"`{method.name}`", f"{_stream(method.client_streaming)}`{_short(method.input_type)}` → "
             f"{_stream(method.server_streaming)}`{_short(method.output_type)}`", comments.get((SERVICE, i, METHOD, j), ""))
            for j, method in enumerate(service.method)
        ]  # fmt: skip
        yield table(("method", "", ""), rows)
    for i, message in enumerate(file.message_type):
        yield f"### `{message.name}`\n"
        if said := comments.get((MESSAGE, i)):
            yield prose(said)
        if message.field:
            maps = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
            rows = [
                (str(field.number), f"`{field.name}`", _kind(field, maps), comments.get((MESSAGE, i, FIELD, j), ""))
                for j, field in enumerate(message.field)
            ]
            yield table(("", "field", "type", ""), rows)
        else:
            yield "No fields.\n"
        for j, enum in enumerate(message.enum_type):
            rows = [
                (str(value.number), f"`{value.name}`", comments.get((MESSAGE, i, NESTED_ENUM, j, VALUE, k), ""))
                for k, value in enumerate(enum.value)
            ]
            yield table(("", f"`{enum.name}`", ""), rows)


def _kind(field: FieldDescriptorProto, maps: dict[str, Any]) -> str:
    if entry := maps.get(_short(field.type_name)):
        return f"map of {' to '.join(_kind(part, {}) for part in entry.field)}"
    plain = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    kind = f"`{_short(field.type_name) or plain}`"
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"list of {kind}"
    return f"{kind}, optional" if field.proto3_optional else kind


def _comment(place: Any) -> str:
    return " ".join(f"{place.leading_comments} {place.trailing_comments}".split())


def _short(name: str) -> str:
    return name.rpartition(".")[2]


def _stream(streams: bool) -> str:
    return "stream of " if streams else ""
