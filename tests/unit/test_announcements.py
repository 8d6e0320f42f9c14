"""What peers announce of their next certificates: what is stored and believed, and what is not."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from tests.certificates import named_like, names, successor
from tests.meshes import FakeNode

from conlora.errors import (
    ProtocolError,
    StateError,
)
from conlora.net.certificates import tls_name
from conlora.net.identity import Identity, Peer, create_identity
from conlora.net.introductions import Introductions
from conlora.net.mailbox import Mailbox
from conlora.net.mesh import Mesh
from conlora.net.rotation import Announced, rotate
from conlora.net.wire import Frame, SnapshotTaken, next_certificate, taken

DAY = 86400.0


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
def test_a_damaged_file_gives_no_trust_back_to_a_key_that_was_replaced(
    tmp_path: Path, card: Peer, mercy: Identity, content: bytes
) -> None:
    announced = Announced(tmp_path)
    announced.keep(card.succeeded(successor(mercy).certificate, time.time()))
    (file,) = (tmp_path / "certificates").iterdir()
    file.write_bytes(content)
    with pytest.raises(
        StateError, match=r"what mercy has announced can't be read .*restore the file, or remove it"
    ) as caught:
        announced.known(card)
    assert str(file) in str(caught.value)
    file.unlink()
    assert announced.known(card) == card


def test_what_can_not_be_stored_is_not_believed(card: Peer, mercy: Identity) -> None:
    """Else it would be forgotten at the next start, and the peer refused."""

    def full(peer: Peer) -> None:
        raise StateError("no space left on the device; make room")

    class Other:
        peer, kept = card, frozenset[bytes]()

    other, identity = Other(), successor(mercy)
    (frame,) = Introductions(replace(mercy, next=identity), full).announcements()
    with capture_logs() as logs:
        assert Introductions(mercy, full).heard(other, frame) is None
    assert other.peer == card
    assert logs[-1]["reason"] == "no space left on the device; make room"


def test_an_announcement_of_any_size_is_not_read(card: Peer, mercy: Identity) -> None:
    class Other:
        peer, kept = card, frozenset[bytes]()

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


def test_what_is_acknowledged_outlives_a_power_cut(
    tmp_path: Path, card: Peer, mercy: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file's content, its name, and the name of the folder that is made for it."""
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    Announced(tmp_path).keep(card.succeeded(successor(mercy).certificate, time.time()))
    folder = tmp_path / "certificates"
    assert synced == [f"{folder / tls_name(mercy.node_id)}.pem.new", str(folder), str(tmp_path)]


def test_a_file_that_can_not_be_read_or_holds_anothers_certificate(tmp_path: Path, card: Peer, mercy: Identity) -> None:
    announced = Announced(tmp_path)
    announced.keep(card.succeeded(successor(mercy).certificate, time.time()))
    (file,) = (tmp_path / "certificates").iterdir()
    file.write_bytes(named_like(successor(mercy), create_identity(tmp_path / "anna")).certificate)
    with pytest.raises(StateError, match=r"can't be read \(the certificate is for another name\); restore the file"):
        announced.known(card)
    file.unlink()
    file.mkdir()
    with pytest.raises(StateError, match=r"can't be read .*Is a directory.*; restore the file"):
        announced.known(card)


def test_a_card_that_is_read_again_takes_back_nothing_that_was_announced(card: Peer, mercy: Identity) -> None:
    second = successor(mercy)
    third = successor(second)
    known = replace(card, successors=(second.certificate, third.certificate))
    moved = replace(card, address="127.0.0.1:1")
    assert known.on_card(moved) == replace(moved, successors=known.successors), "the file was removed"
    half = replace(moved, successors=(second.certificate,))
    assert known.on_card(half) == replace(moved, successors=known.successors), "the third came after the file was read"
    newer = replace(moved, certificate=second.certificate)
    assert known.on_card(newer) == replace(newer, successors=(third.certificate,))
    assert known.on_card(replace(newer, certificate=third.certificate)).successors == ()
    rival = replace(moved, certificate=successor(mercy).certificate)
    assert known.on_card(rival) == rival, "whom to believe is its operator's to say"
    fourth = replace(known, successors=(*known.successors, successor(third).certificate))
    assert known.on_card(fourth) == fourth
    mesh = Mesh("us", mercy, [known], FakeNode(), 1)
    mesh.change([card])
    assert [state.peer for state in mesh.states.values()] == [known]


def test_what_is_announced_and_who_knows_it(tmp_path: Path, card: Peer, mercy: Identity) -> None:
    """A takeover without an overlap leaves no next certificate; and whoever has missed one is told it with the next."""
    second = rotate(tmp_path / "mercy", 0)
    assert second.next is None
    third = successor(second, time.time() + DAY)

    class Other:
        peer, kept = card, frozenset[bytes]()

    for identity, announced in (
        (mercy, []),
        (replace(mercy, next=second), [second]),
        (second, [second]),
        (replace(second, next=third), [second, third]),
    ):
        us, them, other = Introductions(identity, lambda peer: None), Introductions(mercy, lambda peer: None), Other()
        frames = us.announcements()
        assert [frame.next_certificate for frame in frames] == [each.certificate for each in announced]
        for frame in frames:
            assert not us.known_by(other)
            answer = them.heard(other, frame)
            assert answer is not None
            us.heard(other, answer)
        assert us.known_by(other) == bool(announced)
        assert other.peer.successors == tuple(each.certificate for each in announced)
