"""What peers announce of their next certificates: what is stored and believed, and what is not."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from tests.certificates import names, successor

from conlora.errors import (
    ProtocolError,
    StateError,
)
from conlora.net.identity import Identity, Peer
from conlora.net.introductions import Introductions
from conlora.net.mailbox import Mailbox
from conlora.net.rotation import Announced
from conlora.net.wire import Frame, SnapshotTaken, next_certificate, taken


def test_what_is_announced_outlives_a_restart(tmp_path: Path, card: Peer, mercy: Identity) -> None:
    announced = Announced(tmp_path)
    assert announced.known(card) == card
    peer = card.succeeded(successor(mercy).certificate, time.time())
    announced.keep(peer)
    assert Announced(tmp_path).known(card) == peer
    assert names(tmp_path / "certificates") == {f"{mercy.node_id.replace('-', '').lower()}.pem"}


def test_a_newer_card_needs_no_announcements(tmp_path: Path, card: Peer, mercy: Identity) -> None:
    second = successor(mercy)
    third = successor(second)
    peer = card.succeeded(second.certificate, time.time()).succeeded(third.certificate, time.time())
    Announced(tmp_path).keep(peer)
    newer = replace(card, certificate=second.certificate)
    assert Announced(tmp_path).known(newer) == replace(newer, successors=(third.certificate,))
    newest = replace(card, certificate=third.certificate)
    assert Announced(tmp_path).known(newest) == newest


@pytest.mark.parametrize("content", [b"", b"hello", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_damaged_file_leaves_the_card(tmp_path: Path, card: Peer, mercy: Identity, content: bytes) -> None:
    announced = Announced(tmp_path)
    announced.keep(card.succeeded(successor(mercy).certificate, time.time()))
    next((tmp_path / "certificates").iterdir()).write_bytes(content)
    with capture_logs() as logs:
        assert announced.known(card) == card
    assert [entry["event"] for entry in logs] == ["what a peer has announced can't be read; its card counts"]


def test_what_can_not_be_stored_is_not_believed(card: Peer, mercy: Identity) -> None:
    """Else it would be forgotten at the next start, and the peer refused."""

    def full(peer: Peer) -> None:
        raise StateError("no space left on the device; make room")

    class Other:
        peer, kept = card, b""

    other, identity = Other(), successor(mercy)
    frame = Introductions(replace(mercy, next=identity), full).announcement()
    assert frame is not None
    with capture_logs() as logs:
        assert Introductions(mercy, full).heard(other, frame) is None
    assert other.peer == card
    assert logs[-1]["reason"] == "no space left on the device; make room"


def test_an_announcement_of_any_size_is_not_read(card: Peer, mercy: Identity) -> None:
    class Other:
        peer, kept = card, b""

    with pytest.raises(ProtocolError, match="mercy announced a certificate of 16385 bytes"):
        Introductions(mercy, lambda peer: None).heard(Other(), Frame(next_certificate=bytes(16 * 1024 + 1)))


def test_an_announcement_that_waits_is_no_answer_that_is_owed() -> None:
    """A neighbour that sends a snapshot meanwhile breaks no rule."""
    mailbox = Mailbox(1)
    mailbox.answer(next_certificate(b"x"))
    assert mailbox.answering
    assert not mailbox.owing
    mailbox.answer(taken(1, SnapshotTaken.OUTCOME_KEPT))
    assert mailbox.owing
