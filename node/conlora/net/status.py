"""What the admin service tells of a node, as plain values; the fields are those of the messages in admin.proto."""

from dataclasses import dataclass, field

from conlora.core.figures import Consensus, EdgeError

LINK_STATES = ("up", "down", "refused", "quarantined", "left")


@dataclass(slots=True)
class PeerStatus:
    """See PeerStatus in admin.proto."""

    name: str
    node_id: str
    address: str
    link: str
    last_error: str
    retry_in_seconds: float
    bytes_sent: int
    bytes_received: int
    snapshots_rejected: int
    sketches_rejected: int = 0
    sketch_bytes_sent: int = 0
    snapshot_round: int | None = None
    snapshot_age_seconds: float | None = None
    weight: float | None = None
    edge_error: float | None = None
    encoding: str | None = None
    delivery_seconds: float | None = None
    refused: dict[str, int] = field(default_factory=dict)
    quarantine: str | None = None
    quarantined_seconds: float | None = None
    certificate_expires: float | None = None
    certificate_warns: float | None = None
    knows_next_certificate: bool = False


@dataclass(slots=True)
class NodeStatus:
    """See StatusReply in admin.proto."""

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
    loss: float | None
    accuracy: float | None
    trainer_restarts: int
    pid: int
    trainer_pid: int
    uptime_seconds: float
    consensus: float | None
    peers: list[PeerStatus] = field(default_factory=list)
    evaluation: dict[str, float] = field(default_factory=dict)
    certificate_expires: float | None = None
    certificate_warns: float | None = None
    next_certificate_at: float | None = None
    troubles: list[str] = field(default_factory=list)
    checkpoint_round: int | None = None
    checkpoint_written: float | None = None


@dataclass(slots=True)
class EdgeConsensus:
    """See EdgeConsensus in admin.proto."""

    name: str
    node_id: str
    snapshot_round: int
    weight: float
    error: EdgeError
    layers: list[EdgeError]


@dataclass(slots=True)
class Federation:
    """See Federation in admin.proto."""

    figures: Consensus
    bars: Consensus
    layers: list[Consensus]


@dataclass(slots=True)
class FederationNode:
    """See FederationNode in admin.proto."""

    node_id: str
    name: str
    round: int
    age_seconds: float
    distance_before: float
    distance_after: float


@dataclass(slots=True)
class FederationEdge:
    """See FederationEdge in admin.proto."""

    node_id: str
    other_id: str
    error_before: float
    error_after: float


@dataclass(slots=True)
class ConsensusView:
    """See ConsensusReply in admin.proto."""

    name: str
    node_id: str
    rule: str
    round: int
    sketched: bool
    modules: list[str] = field(default_factory=list)
    edges: list[EdgeConsensus] = field(default_factory=list)
    amplification: float | None = None
    before: Federation | None = None
    after: Federation | None = None
    nodes: list[FederationNode] = field(default_factory=list)
    graph: list[FederationEdge] = field(default_factory=list)
    rho: float | None = None
    s: float | None = None


@dataclass(slots=True)
class Changes:
    """See ReloadReply in admin.proto."""

    added: list[str]
    removed: list[str]
    changed: list[str]
    keys: list[str]
    operators: list[str] = field(default_factory=list)


@dataclass(slots=True)
class RoundRecord:
    """See RoundRecord in admin.proto."""

    round: int
    time: float
    seconds: float
    loss: float | None = None
    accuracy: float | None = None
    edge_error: float | None = None
    amplification: float | None = None
    before: Consensus | None = None
    after: Consensus | None = None
    nodes: int = 0
