"""An identity and its card."""

from pathlib import Path

import pytest

from conlora.net.identity import Identity, Peer, create_identity


@pytest.fixture
def mercy(tmp_path: Path) -> Identity:
    """In the directory `mercy`."""
    return create_identity(tmp_path / "mercy")


@pytest.fixture
def card(mercy: Identity) -> Peer:
    """As her partners have it."""
    return Peer("mercy", mercy.node_id, None, mercy.certificate)
