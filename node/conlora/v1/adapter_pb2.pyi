from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FederationSettings(_message.Message):
    __slots__ = ("federation", "base_model_fingerprint", "peft", "seed", "rule", "mode", "local_steps", "task", "schema")
    FEDERATION_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    PEFT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    LOCAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_FIELD_NUMBER: _ClassVar[int]
    federation: str
    base_model_fingerprint: str
    peft: str
    seed: int
    rule: str
    mode: str
    local_steps: int
    task: str
    schema: str
    def __init__(self, federation: _Optional[str] = ..., base_model_fingerprint: _Optional[str] = ..., peft: _Optional[str] = ..., seed: _Optional[int] = ..., rule: _Optional[str] = ..., mode: _Optional[str] = ..., local_steps: _Optional[int] = ..., task: _Optional[str] = ..., schema: _Optional[str] = ...) -> None: ...

class SketchHeader(_message.Message):
    __slots__ = ("nbytes", "public_key", "signature", "age_seconds", "lineage")
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    AGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_FIELD_NUMBER: _ClassVar[int]
    nbytes: int
    public_key: bytes
    signature: bytes
    age_seconds: float
    lineage: bytes
    def __init__(self, nbytes: _Optional[int] = ..., public_key: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., age_seconds: _Optional[float] = ..., lineage: _Optional[bytes] = ...) -> None: ...

class SketchRecord(_message.Message):
    __slots__ = ("federation", "name", "epoch", "sequence", "round", "neighbours", "before", "after", "lifetime_seconds", "still")
    FEDERATION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    NEIGHBOURS_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LIFETIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    STILL_FIELD_NUMBER: _ClassVar[int]
    federation: bytes
    name: str
    epoch: int
    sequence: int
    round: int
    neighbours: _containers.RepeatedScalarFieldContainer[str]
    before: bytes
    after: bytes
    lifetime_seconds: int
    still: bool
    def __init__(self, federation: _Optional[bytes] = ..., name: _Optional[str] = ..., epoch: _Optional[int] = ..., sequence: _Optional[int] = ..., round: _Optional[int] = ..., neighbours: _Optional[_Iterable[str]] = ..., before: _Optional[bytes] = ..., after: _Optional[bytes] = ..., lifetime_seconds: _Optional[int] = ..., still: _Optional[bool] = ...) -> None: ...

class SnapshotHeader(_message.Message):
    __slots__ = ("round", "degree", "nbytes", "encoding", "id", "base", "radius", "number")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    DEGREE_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    RADIUS_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    round: int
    degree: int
    nbytes: int
    encoding: str
    id: int
    base: int
    radius: float
    number: int
    def __init__(self, round: _Optional[int] = ..., degree: _Optional[int] = ..., nbytes: _Optional[int] = ..., encoding: _Optional[str] = ..., id: _Optional[int] = ..., base: _Optional[int] = ..., radius: _Optional[float] = ..., number: _Optional[int] = ...) -> None: ...

class SnapshotEnd(_message.Message):
    __slots__ = ("digest",)
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    def __init__(self, digest: _Optional[bytes] = ...) -> None: ...

class SnapshotTaken(_message.Message):
    __slots__ = ("id", "outcome", "detail")
    class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        OUTCOME_UNSPECIFIED: _ClassVar[SnapshotTaken.Outcome]
        OUTCOME_KEPT: _ClassVar[SnapshotTaken.Outcome]
        OUTCOME_UNUSED: _ClassVar[SnapshotTaken.Outcome]
        OUTCOME_REJECTED: _ClassVar[SnapshotTaken.Outcome]
    OUTCOME_UNSPECIFIED: SnapshotTaken.Outcome
    OUTCOME_KEPT: SnapshotTaken.Outcome
    OUTCOME_UNUSED: SnapshotTaken.Outcome
    OUTCOME_REJECTED: SnapshotTaken.Outcome
    ID_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    id: int
    outcome: SnapshotTaken.Outcome
    detail: str
    def __init__(self, id: _Optional[int] = ..., outcome: _Optional[_Union[SnapshotTaken.Outcome, str]] = ..., detail: _Optional[str] = ...) -> None: ...
