from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("name", "node_id", "version", "federation", "rule", "mode", "state", "message", "round", "rounds", "step", "loss", "accuracy", "trainer_restarts", "pid", "trainer_pid", "uptime_seconds", "peers", "consensus")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FEDERATION_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    TRAINER_RESTARTS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    TRAINER_PID_FIELD_NUMBER: _ClassVar[int]
    UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    CONSENSUS_FIELD_NUMBER: _ClassVar[int]
    name: str
    node_id: str
    version: str
    federation: str
    rule: str
    mode: str
    state: str
    message: str
    round: int
    rounds: int
    step: int
    loss: float
    accuracy: float
    trainer_restarts: int
    pid: int
    trainer_pid: int
    uptime_seconds: float
    peers: _containers.RepeatedCompositeFieldContainer[PeerStatus]
    consensus: float
    def __init__(self, name: _Optional[str] = ..., node_id: _Optional[str] = ..., version: _Optional[str] = ..., federation: _Optional[str] = ..., rule: _Optional[str] = ..., mode: _Optional[str] = ..., state: _Optional[str] = ..., message: _Optional[str] = ..., round: _Optional[int] = ..., rounds: _Optional[int] = ..., step: _Optional[int] = ..., loss: _Optional[float] = ..., accuracy: _Optional[float] = ..., trainer_restarts: _Optional[int] = ..., pid: _Optional[int] = ..., trainer_pid: _Optional[int] = ..., uptime_seconds: _Optional[float] = ..., peers: _Optional[_Iterable[_Union[PeerStatus, _Mapping]]] = ..., consensus: _Optional[float] = ...) -> None: ...

class PeerStatus(_message.Message):
    __slots__ = ("name", "node_id", "address", "link", "last_error", "retry_in_seconds", "snapshot_round", "snapshot_age_seconds", "weight", "edge_error", "bytes_sent", "bytes_received", "snapshots_rejected")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LINK_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    RETRY_IN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_ROUND_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_AGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    EDGE_ERROR_FIELD_NUMBER: _ClassVar[int]
    BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    BYTES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOTS_REJECTED_FIELD_NUMBER: _ClassVar[int]
    name: str
    node_id: str
    address: str
    link: str
    last_error: str
    retry_in_seconds: float
    snapshot_round: int
    snapshot_age_seconds: float
    weight: float
    edge_error: float
    bytes_sent: int
    bytes_received: int
    snapshots_rejected: int
    def __init__(self, name: _Optional[str] = ..., node_id: _Optional[str] = ..., address: _Optional[str] = ..., link: _Optional[str] = ..., last_error: _Optional[str] = ..., retry_in_seconds: _Optional[float] = ..., snapshot_round: _Optional[int] = ..., snapshot_age_seconds: _Optional[float] = ..., weight: _Optional[float] = ..., edge_error: _Optional[float] = ..., bytes_sent: _Optional[int] = ..., bytes_received: _Optional[int] = ..., snapshots_rejected: _Optional[int] = ...) -> None: ...

class PauseRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PauseReply(_message.Message):
    __slots__ = ("round",)
    ROUND_FIELD_NUMBER: _ClassVar[int]
    round: int
    def __init__(self, round: _Optional[int] = ...) -> None: ...

class ResumeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ResumeReply(_message.Message):
    __slots__ = ("round",)
    ROUND_FIELD_NUMBER: _ClassVar[int]
    round: int
    def __init__(self, round: _Optional[int] = ...) -> None: ...

class CheckpointRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CheckpointReply(_message.Message):
    __slots__ = ("path", "round")
    PATH_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    path: str
    round: int
    def __init__(self, path: _Optional[str] = ..., round: _Optional[int] = ...) -> None: ...

class ExportRequest(_message.Message):
    __slots__ = ("path", "overwrite")
    PATH_FIELD_NUMBER: _ClassVar[int]
    OVERWRITE_FIELD_NUMBER: _ClassVar[int]
    path: str
    overwrite: bool
    def __init__(self, path: _Optional[str] = ..., overwrite: _Optional[bool] = ...) -> None: ...

class ExportReply(_message.Message):
    __slots__ = ("path", "round")
    PATH_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    path: str
    round: int
    def __init__(self, path: _Optional[str] = ..., round: _Optional[int] = ...) -> None: ...

class StopRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StopReply(_message.Message):
    __slots__ = ("checkpoint", "round")
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    checkpoint: str
    round: int
    def __init__(self, checkpoint: _Optional[str] = ..., round: _Optional[int] = ...) -> None: ...
