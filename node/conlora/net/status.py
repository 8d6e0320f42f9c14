"""A node's status as plain values, and as the admin service's messages."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from conlora.v1 import admin_pb2 as pb


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
    snapshot_round: int | None = None
    snapshot_age_seconds: float | None = None
    weight: float | None = None
    edge_error: float | None = None


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


def to_message(status: NodeStatus) -> pb.StatusReply:
    """The reply of the admin service; what is None stays unset."""
    values = asdict(status)
    peers = [pb.PeerStatus(**_present(peer)) for peer in values.pop("peers")]
    return pb.StatusReply(**_present(values), peers=peers)


def from_message(reply: pb.StatusReply) -> NodeStatus:
    """The values in a reply; what is unset is None."""
    values = _values(reply, NodeStatus)
    values["peers"] = [PeerStatus(**_values(peer, PeerStatus)) for peer in reply.peers]
    return NodeStatus(**values)


def _present(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _values(message: Any, kind: type) -> dict[str, Any]:
    descriptors = message.DESCRIPTOR.fields_by_name
    return {
        f.name: None if descriptors[f.name].has_presence and not message.HasField(f.name) else getattr(message, f.name)
        for f in fields(kind)
    }
