"""What a node tells of its last mix while peers come and go, what a reload that fails leaves as it was, and its history."""

import asyncio
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from tests.authorities import Authority

from conlora.config import load_config
from conlora.core.consensus import EdgeError
from conlora.core.gossip import Contribution
from conlora.daemon.exchange import EdgeFigures
from conlora.daemon.node import Node
from conlora.errors import ConLoRAError
from conlora.net.edge import PeerState
from conlora.net.identity import Peer, create_identity
from conlora.store.history import History


def figures(peer: str, error: float) -> EdgeFigures:
    return EdgeFigures(Contribution(peer, 0, 0, 3, 0.5, None), EdgeError(error, 1.0, 1.0), [])


def made(directory: Path, history: History, **keys: object) -> Node:
    """Not started, without peers."""
    path = directory / "conlora.yaml"
    path.write_text(
        yaml.safe_dump({"name": "mercy", "model": {"base": "owner/model"}, "task": {"type": "guest"}, **keys})
    )
    config = load_config(path)
    create_identity(config.identity_dir)
    config.peers_dir.mkdir()
    spawner: Any = SimpleNamespace()
    return Node(path, config, history, spawner, paused=False)


async def test_a_peer_that_is_being_removed_is_no_longer_in_the_picture(tmp_path: Path) -> None:
    """A reload takes it out of the mesh first, and out of the last mix when it has been told."""
    with History(tmp_path / "history.db") as history:
        node = made(tmp_path, history)
        node._exchange.last_mix = {"ANNA": figures("ANNA", 2.0), "GONE": figures("GONE", 9.0)}
        node._mesh.states = {"ANNA": PeerState(Peer("anna", "ANNA", None, b""))}
        view = node.consensus()
        assert [(edge.name, edge.error.product) for edge in view.edges] == [("anna", 2.0)]
        assert view.amplification == figures("ANNA", 2.0).error.product / 2**0.5
        node._mesh.states = {}
        assert (node.consensus().edges, node.consensus().amplification) == ([], None)


async def test_the_history_is_read_in_another_thread(tmp_path: Path) -> None:
    with History(tmp_path / "history.db") as history:
        node = made(tmp_path, history)
        history.add_round(1, 8, 0.1, 0.5, 0)
        (record,) = await asyncio.to_thread(node.history, 0)
        assert (record.round, record.loss) == (1, 0.5)


async def test_a_reload_that_fails_leaves_the_authorities_and_the_port_as_they_were(tmp_path: Path) -> None:
    ca_file = Authority().file(tmp_path / "ca.pem")
    before = ca_file.read_bytes()
    with socket.socket() as taken, History(tmp_path / "history.db") as history:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        node = made(tmp_path, history, ca_file=str(ca_file), listen=f"127.0.0.1:{taken.getsockname()[1]}")
        anna = create_identity(tmp_path / "anna").card("anna", None)
        (tmp_path / "peers" / "anna.yaml").write_text(anna)
        Authority().file(ca_file)
        with pytest.raises(ConLoRAError, match="can't be used"):
            await node.reload()
        authorities = node._mesh.introductions.authorities
        assert authorities is not None
        assert authorities.pem == before
        taken.close()
        ca_file.write_text("no certificate")
        with pytest.raises(ConLoRAError, match="ca_file"):
            await node.reload()
        assert node._mesh._service is None
        assert node._mesh.states == {}
