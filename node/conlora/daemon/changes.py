"""What may change while a node trains, and what needs a start."""

from typing import Any

from conlora.config import NodeConfig
from conlora.core.gossip import Mode
from conlora.errors import ConfigError, Refused
from conlora.net.identity import Peer
from conlora.net.operators import Operator
from conlora.net.status import Changes

# Whatever the trainer and the peers don't know of.
CHANGEABLE = {
    "advertise",
    "operators_dir",
    "federation.sync_deadline_seconds",
    "exchange.encoding",
    "exchange.encodings",
}


def changes(config: NodeConfig, peers: list[Peer], new_config: NodeConfig, new_peers: list[Peer]) -> Changes:
    """From what a node runs with to what its files say now. Raises Refused where that needs a start."""
    before, after = _flat(config), _flat(new_config)
    keys = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
    if fixed := [key for key in keys if key not in CHANGEABLE]:
        raise Refused(
            f"nothing was reloaded: {', '.join(fixed)} can't change while the node runs; put the old value back, or restart "
            "the daemon"
        )
    old, new = {peer.node_id: peer for peer in peers}, {peer.node_id: peer for peer in new_peers}
    added = [peer.name for peer in new_peers if peer.node_id not in old]
    removed = [peer.name for peer in peers if peer.node_id not in new]
    if (added or removed) and config.federation.mode is Mode.SYNC:
        raise Refused(
            f"nothing was reloaded: peers ({', '.join(added + removed)}) can't change in sync mode, where all neighbours are "
            f"in the same round; put the cards in {config.peers_dir} back, or restart the daemon, here and at the peers"
        )
    changed = [peer.name for peer in new_peers if peer != old.get(peer.node_id, peer)]
    return Changes(added, removed, changed, keys)


def changes_of_operators(operators: list[Operator], new_operators: list[Operator]) -> list[str]:
    """Names of those who came, went, or have another card or another role."""
    return sorted({operator.name for operator in {*operators} ^ {*new_operators}})


def check_encodings(config: NodeConfig, peers: list[Peer]) -> None:
    """Raises ConfigError where an encoding is for nobody."""
    if strangers := config.exchange.encodings.keys() - {peer.name for peer in peers}:
        raise ConfigError(
            f"exchange.encodings: {', '.join(sorted(strangers))} is no peer's name; the cards in {config.peers_dir} have them"
        )


def _flat(config: NodeConfig) -> dict[str, Any]:
    """Values by their keys, such as name and training.rounds."""
    flat: dict[str, Any] = {}
    for name, value in config.model_dump().items():
        flat |= {f"{name}.{key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
    return flat
