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
    __slots__ = ("name", "node_id", "version", "federation", "rule", "mode", "state", "message", "round", "rounds", "step", "loss", "accuracy", "trainer_restarts", "pid", "trainer_pid", "uptime_seconds", "peers", "consensus", "evaluation", "certificate_expires", "certificate_warns", "next_certificate_at", "troubles", "checkpoint_round", "checkpoint_written")
    class EvaluationEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
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
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_EXPIRES_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_WARNS_FIELD_NUMBER: _ClassVar[int]
    NEXT_CERTIFICATE_AT_FIELD_NUMBER: _ClassVar[int]
    TROUBLES_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_ROUND_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_WRITTEN_FIELD_NUMBER: _ClassVar[int]
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
    evaluation: _containers.ScalarMap[str, float]
    certificate_expires: float
    certificate_warns: float
    next_certificate_at: float
    troubles: _containers.RepeatedScalarFieldContainer[str]
    checkpoint_round: int
    checkpoint_written: float
    def __init__(self, name: _Optional[str] = ..., node_id: _Optional[str] = ..., version: _Optional[str] = ..., federation: _Optional[str] = ..., rule: _Optional[str] = ..., mode: _Optional[str] = ..., state: _Optional[str] = ..., message: _Optional[str] = ..., round: _Optional[int] = ..., rounds: _Optional[int] = ..., step: _Optional[int] = ..., loss: _Optional[float] = ..., accuracy: _Optional[float] = ..., trainer_restarts: _Optional[int] = ..., pid: _Optional[int] = ..., trainer_pid: _Optional[int] = ..., uptime_seconds: _Optional[float] = ..., peers: _Optional[_Iterable[_Union[PeerStatus, _Mapping]]] = ..., consensus: _Optional[float] = ..., evaluation: _Optional[_Mapping[str, float]] = ..., certificate_expires: _Optional[float] = ..., certificate_warns: _Optional[float] = ..., next_certificate_at: _Optional[float] = ..., troubles: _Optional[_Iterable[str]] = ..., checkpoint_round: _Optional[int] = ..., checkpoint_written: _Optional[float] = ...) -> None: ...

class PeerStatus(_message.Message):
    __slots__ = ("name", "node_id", "address", "link", "last_error", "retry_in_seconds", "snapshot_round", "snapshot_age_seconds", "weight", "edge_error", "bytes_sent", "bytes_received", "snapshots_rejected", "sketches_rejected", "sketch_bytes_sent", "encoding", "delivery_seconds", "refused", "quarantine", "quarantined_seconds", "certificate_expires", "certificate_warns", "knows_next_certificate")
    class RefusedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
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
    SKETCHES_REJECTED_FIELD_NUMBER: _ClassVar[int]
    SKETCH_BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    DELIVERY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    QUARANTINE_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_EXPIRES_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_WARNS_FIELD_NUMBER: _ClassVar[int]
    KNOWS_NEXT_CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
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
    sketches_rejected: int
    sketch_bytes_sent: int
    encoding: str
    delivery_seconds: float
    refused: _containers.ScalarMap[str, int]
    quarantine: str
    quarantined_seconds: float
    certificate_expires: float
    certificate_warns: float
    knows_next_certificate: bool
    def __init__(self, name: _Optional[str] = ..., node_id: _Optional[str] = ..., address: _Optional[str] = ..., link: _Optional[str] = ..., last_error: _Optional[str] = ..., retry_in_seconds: _Optional[float] = ..., snapshot_round: _Optional[int] = ..., snapshot_age_seconds: _Optional[float] = ..., weight: _Optional[float] = ..., edge_error: _Optional[float] = ..., bytes_sent: _Optional[int] = ..., bytes_received: _Optional[int] = ..., snapshots_rejected: _Optional[int] = ..., sketches_rejected: _Optional[int] = ..., sketch_bytes_sent: _Optional[int] = ..., encoding: _Optional[str] = ..., delivery_seconds: _Optional[float] = ..., refused: _Optional[_Mapping[str, int]] = ..., quarantine: _Optional[str] = ..., quarantined_seconds: _Optional[float] = ..., certificate_expires: _Optional[float] = ..., certificate_warns: _Optional[float] = ..., knows_next_certificate: _Optional[bool] = ...) -> None: ...

class ConsensusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ConsensusReply(_message.Message):
    __slots__ = ("name", "node_id", "rule", "round", "sketched", "modules", "edges", "amplification", "before", "after", "nodes", "graph", "rho", "s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    SKETCHED_FIELD_NUMBER: _ClassVar[int]
    MODULES_FIELD_NUMBER: _ClassVar[int]
    EDGES_FIELD_NUMBER: _ClassVar[int]
    AMPLIFICATION_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    GRAPH_FIELD_NUMBER: _ClassVar[int]
    RHO_FIELD_NUMBER: _ClassVar[int]
    S_FIELD_NUMBER: _ClassVar[int]
    name: str
    node_id: str
    rule: str
    round: int
    sketched: bool
    modules: _containers.RepeatedScalarFieldContainer[str]
    edges: _containers.RepeatedCompositeFieldContainer[EdgeConsensus]
    amplification: float
    before: Federation
    after: Federation
    nodes: _containers.RepeatedCompositeFieldContainer[FederationNode]
    graph: _containers.RepeatedCompositeFieldContainer[FederationEdge]
    rho: float
    s: float
    def __init__(self, name: _Optional[str] = ..., node_id: _Optional[str] = ..., rule: _Optional[str] = ..., round: _Optional[int] = ..., sketched: _Optional[bool] = ..., modules: _Optional[_Iterable[str]] = ..., edges: _Optional[_Iterable[_Union[EdgeConsensus, _Mapping]]] = ..., amplification: _Optional[float] = ..., before: _Optional[_Union[Federation, _Mapping]] = ..., after: _Optional[_Union[Federation, _Mapping]] = ..., nodes: _Optional[_Iterable[_Union[FederationNode, _Mapping]]] = ..., graph: _Optional[_Iterable[_Union[FederationEdge, _Mapping]]] = ..., rho: _Optional[float] = ..., s: _Optional[float] = ...) -> None: ...

class EdgeConsensus(_message.Message):
    __slots__ = ("name", "node_id", "snapshot_round", "weight", "error", "layers")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_ROUND_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    node_id: str
    snapshot_round: int
    weight: float
    error: ErrorNorms
    layers: _containers.RepeatedCompositeFieldContainer[ErrorNorms]
    def __init__(self, name: _Optional[str] = ..., node_id: _Optional[str] = ..., snapshot_round: _Optional[int] = ..., weight: _Optional[float] = ..., error: _Optional[_Union[ErrorNorms, _Mapping]] = ..., layers: _Optional[_Iterable[_Union[ErrorNorms, _Mapping]]] = ...) -> None: ...

class ErrorNorms(_message.Message):
    __slots__ = ("product", "a", "b")
    PRODUCT_FIELD_NUMBER: _ClassVar[int]
    A_FIELD_NUMBER: _ClassVar[int]
    B_FIELD_NUMBER: _ClassVar[int]
    product: float
    a: float
    b: float
    def __init__(self, product: _Optional[float] = ..., a: _Optional[float] = ..., b: _Optional[float] = ...) -> None: ...

class Federation(_message.Message):
    __slots__ = ("figures", "bars", "layers")
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    BARS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    figures: Figures
    bars: Figures
    layers: _containers.RepeatedCompositeFieldContainer[Figures]
    def __init__(self, figures: _Optional[_Union[Figures, _Mapping]] = ..., bars: _Optional[_Union[Figures, _Mapping]] = ..., layers: _Optional[_Iterable[_Union[Figures, _Mapping]]] = ...) -> None: ...

class Figures(_message.Message):
    __slots__ = ("D", "V", "C", "E_A", "E_B", "amplification", "relative")
    D_FIELD_NUMBER: _ClassVar[int]
    V_FIELD_NUMBER: _ClassVar[int]
    C_FIELD_NUMBER: _ClassVar[int]
    E_A_FIELD_NUMBER: _ClassVar[int]
    E_B_FIELD_NUMBER: _ClassVar[int]
    AMPLIFICATION_FIELD_NUMBER: _ClassVar[int]
    RELATIVE_FIELD_NUMBER: _ClassVar[int]
    D: float
    V: float
    C: float
    E_A: float
    E_B: float
    amplification: float
    relative: float
    def __init__(self, D: _Optional[float] = ..., V: _Optional[float] = ..., C: _Optional[float] = ..., E_A: _Optional[float] = ..., E_B: _Optional[float] = ..., amplification: _Optional[float] = ..., relative: _Optional[float] = ...) -> None: ...

class FederationNode(_message.Message):
    __slots__ = ("node_id", "name", "round", "age_seconds", "distance_before", "distance_after")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    AGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DISTANCE_BEFORE_FIELD_NUMBER: _ClassVar[int]
    DISTANCE_AFTER_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    name: str
    round: int
    age_seconds: float
    distance_before: float
    distance_after: float
    def __init__(self, node_id: _Optional[str] = ..., name: _Optional[str] = ..., round: _Optional[int] = ..., age_seconds: _Optional[float] = ..., distance_before: _Optional[float] = ..., distance_after: _Optional[float] = ...) -> None: ...

class FederationEdge(_message.Message):
    __slots__ = ("node_id", "other_id", "error_before", "error_after")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    OTHER_ID_FIELD_NUMBER: _ClassVar[int]
    ERROR_BEFORE_FIELD_NUMBER: _ClassVar[int]
    ERROR_AFTER_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    other_id: str
    error_before: float
    error_after: float
    def __init__(self, node_id: _Optional[str] = ..., other_id: _Optional[str] = ..., error_before: _Optional[float] = ..., error_after: _Optional[float] = ...) -> None: ...

class HistoryRequest(_message.Message):
    __slots__ = ("after_round",)
    AFTER_ROUND_FIELD_NUMBER: _ClassVar[int]
    after_round: int
    def __init__(self, after_round: _Optional[int] = ...) -> None: ...

class HistoryReply(_message.Message):
    __slots__ = ("rounds",)
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    rounds: _containers.RepeatedCompositeFieldContainer[RoundRecord]
    def __init__(self, rounds: _Optional[_Iterable[_Union[RoundRecord, _Mapping]]] = ...) -> None: ...

class RoundRecord(_message.Message):
    __slots__ = ("round", "time", "seconds", "loss", "accuracy", "edge_error", "amplification", "before", "after", "nodes")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    EDGE_ERROR_FIELD_NUMBER: _ClassVar[int]
    AMPLIFICATION_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    round: int
    time: float
    seconds: float
    loss: float
    accuracy: float
    edge_error: float
    amplification: float
    before: Figures
    after: Figures
    nodes: int
    def __init__(self, round: _Optional[int] = ..., time: _Optional[float] = ..., seconds: _Optional[float] = ..., loss: _Optional[float] = ..., accuracy: _Optional[float] = ..., edge_error: _Optional[float] = ..., amplification: _Optional[float] = ..., before: _Optional[_Union[Figures, _Mapping]] = ..., after: _Optional[_Union[Figures, _Mapping]] = ..., nodes: _Optional[int] = ...) -> None: ...

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

class ReadIdentityRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReadIdentityReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainReply(_message.Message):
    __slots__ = ("checkpoint", "round")
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    checkpoint: str
    round: int
    def __init__(self, checkpoint: _Optional[str] = ..., round: _Optional[int] = ...) -> None: ...

class LeaveRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LeaveReply(_message.Message):
    __slots__ = ("checkpoint", "round")
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    checkpoint: str
    round: int
    def __init__(self, checkpoint: _Optional[str] = ..., round: _Optional[int] = ...) -> None: ...

class ReloadRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReloadReply(_message.Message):
    __slots__ = ("added", "removed", "changed", "keys", "operators")
    ADDED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    OPERATORS_FIELD_NUMBER: _ClassVar[int]
    added: _containers.RepeatedScalarFieldContainer[str]
    removed: _containers.RepeatedScalarFieldContainer[str]
    changed: _containers.RepeatedScalarFieldContainer[str]
    keys: _containers.RepeatedScalarFieldContainer[str]
    operators: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, added: _Optional[_Iterable[str]] = ..., removed: _Optional[_Iterable[str]] = ..., changed: _Optional[_Iterable[str]] = ..., keys: _Optional[_Iterable[str]] = ..., operators: _Optional[_Iterable[str]] = ...) -> None: ...

class LiftRequest(_message.Message):
    __slots__ = ("peer",)
    PEER_FIELD_NUMBER: _ClassVar[int]
    peer: str
    def __init__(self, peer: _Optional[str] = ...) -> None: ...

class LiftReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
