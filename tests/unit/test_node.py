"""What a node tells of its last mix while peers come and go."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from conlora.config import load_config
from conlora.core.consensus import EdgeError
from conlora.core.gossip import Contribution
from conlora.daemon.exchange import EdgeFigures
from conlora.daemon.node import Node
from conlora.net.edge import PeerState
from conlora.net.identity import Peer, create_identity
from conlora.store.history import History


def figures(peer: str, error: float) -> EdgeFigures:
    return EdgeFigures(Contribution(peer, 0, 0, 3, 0.5, None), EdgeError(error, 1.0, 1.0), [])


async def test_a_peer_that_is_being_removed_is_no_longer_in_the_picture(tmp_path: Path) -> None:
    """A reload takes it out of the mesh first, and out of the last mix when it has been told."""
    path = tmp_path / "conlora.yaml"
    path.write_text(yaml.safe_dump({"name": "mercy", "model": {"base": "owner/model"}, "task": {"type": "guest"}}))
    config = load_config(path)
    create_identity(config.identity_dir)
    config.peers_dir.mkdir()
    spawner: Any = SimpleNamespace()
    with History(tmp_path / "history.db") as history:
        node = Node(path, config, history, spawner, paused=False)
        node._exchange.last_mix = {"ANNA": figures("ANNA", 2.0), "GONE": figures("GONE", 9.0)}
        node._mesh.states = {"ANNA": PeerState(Peer("anna", "ANNA", None, b""))}
        view = node.consensus()
        assert [(edge.name, edge.error.product) for edge in view.edges] == [("anna", 2.0)]
        assert view.amplification == figures("ANNA", 2.0).error.product / 2**0.5
        node._mesh.states = {}
        assert (node.consensus().edges, node.consensus().amplification) == ([], None)
