from conlora.v1 import adapter_pb2 as _adapter_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Frame(_message.Message):
    __slots__ = ("hello", "snapshot", "chunk", "heartbeat", "goodbye", "sketch", "snapshot_end", "taken", "next_certificate", "certificate_kept")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    SKETCH_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_END_FIELD_NUMBER: _ClassVar[int]
    TAKEN_FIELD_NUMBER: _ClassVar[int]
    NEXT_CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_KEPT_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    snapshot: _adapter_pb2.SnapshotHeader
    chunk: bytes
    heartbeat: Heartbeat
    goodbye: Goodbye
    sketch: _adapter_pb2.SketchHeader
    snapshot_end: _adapter_pb2.SnapshotEnd
    taken: _adapter_pb2.SnapshotTaken
    next_certificate: bytes
    certificate_kept: bytes
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., snapshot: _Optional[_Union[_adapter_pb2.SnapshotHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., goodbye: _Optional[_Union[Goodbye, _Mapping]] = ..., sketch: _Optional[_Union[_adapter_pb2.SketchHeader, _Mapping]] = ..., snapshot_end: _Optional[_Union[_adapter_pb2.SnapshotEnd, _Mapping]] = ..., taken: _Optional[_Union[_adapter_pb2.SnapshotTaken, _Mapping]] = ..., next_certificate: _Optional[bytes] = ..., certificate_kept: _Optional[bytes] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol_version", "name", "instance", "settings", "probe", "encodings")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    PROBE_FIELD_NUMBER: _ClassVar[int]
    ENCODINGS_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    name: str
    instance: bytes
    settings: _adapter_pb2.FederationSettings
    probe: bool
    encodings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, protocol_version: _Optional[int] = ..., name: _Optional[str] = ..., instance: _Optional[bytes] = ..., settings: _Optional[_Union[_adapter_pb2.FederationSettings, _Mapping]] = ..., probe: _Optional[bool] = ..., encodings: _Optional[_Iterable[str]] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Goodbye(_message.Message):
    __slots__ = ("reason", "detail")
    class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        REASON_UNSPECIFIED: _ClassVar[Goodbye.Reason]
        REASON_LEAVING: _ClassVar[Goodbye.Reason]
        REASON_DUPLICATE: _ClassVar[Goodbye.Reason]
        REASON_MISMATCH: _ClassVar[Goodbye.Reason]
        REASON_PROTOCOL: _ClassVar[Goodbye.Reason]
        REASON_QUARANTINED: _ClassVar[Goodbye.Reason]
        REASON_LEFT: _ClassVar[Goodbye.Reason]
    REASON_UNSPECIFIED: Goodbye.Reason
    REASON_LEAVING: Goodbye.Reason
    REASON_DUPLICATE: Goodbye.Reason
    REASON_MISMATCH: Goodbye.Reason
    REASON_PROTOCOL: Goodbye.Reason
    REASON_QUARANTINED: Goodbye.Reason
    REASON_LEFT: Goodbye.Reason
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    reason: Goodbye.Reason
    detail: str
    def __init__(self, reason: _Optional[_Union[Goodbye.Reason, str]] = ..., detail: _Optional[str] = ...) -> None: ...
