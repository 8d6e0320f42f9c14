"""Certificates and keys that follow each other: whose they are, which are accepted when, what a rotation leaves on disk."""

import asyncio
import errno
import itertools
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from tests.certificates import named_like, shifted, successor
from tests.meshes import FakeNode

from conlora.daemon.certificates import REMIND_SECONDS, TAKEN_OVER, Certificates
from conlora.daemon.node import Node
from conlora.errors import (
    CardError,
    CertificateRejected,
    ConfigError,
    ProtocolError,
    Refused,
    SketchRejected,
    StateError,
)
from conlora.net import identity as identity_module
from conlora.net.certificates import (
    HANDOVER_BYTES,
    LAG_SECONDS,
    MOST_HANDOVERS,
    Handover,
    expires,
    founder,
    handovers,
    public_bytes,
    self_signed,
    tls_name,
)
from conlora.net.expiry import WARNING_SECONDS, warning
from conlora.net.identity import Identity, Peer, create_identity, load_card, load_identity
from conlora.net.introductions import Introductions
from conlora.net.mailbox import Mailbox
from conlora.net.mesh import Mesh
from conlora.net.rotation import Announced, rotate, take_over
from conlora.net.sketches import Scribe
from conlora.net.wire import Frame, SketchHeader, SnapshotTaken, Transfer, next_certificate, taken

DAY = 86400.0


@pytest.fixture
def mercy(tmp_path: Path) -> Identity:
    return create_identity(tmp_path / "mercy")


@pytest.fixture
def card(mercy: Identity) -> Peer:
    return Peer("mercy", mercy.node_id, None, mercy.certificate)


def at(monkeypatch: pytest.MonkeyPatch, moment: float) -> None:
    """The clock stands there."""
    monkeypatch.setattr(time, "time", lambda: moment)


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


# Whose a certificate is


def test_the_id_stays_that_of_the_first_key(mercy: Identity) -> None:
    second = successor(mercy)
    third = successor(second)
    assert mercy.node_id == second.node_id == third.node_id
    assert len({mercy.key, second.key, third.key}) == 3
    assert [len(handovers(each.lineage)) for each in (mercy, second, third)] == [0, 1, 2]


@settings(deadline=None)
@given(st.integers(0, HANDOVER_BYTES * 2 - 1), st.integers(1, 255))
def test_whatever_is_changed_in_a_lineage_is_seen(position: int, change: int) -> None:
    lineage, key = THIRD
    forged = bytearray(lineage)
    forged[position] ^= change
    with pytest.raises(ValueError, match="lineage"):
        founder(bytes(forged), key)


def _third() -> tuple[bytes, bytes]:
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(3)]
    steps = (Handover.sign(a, public_bytes(b.public_key()), 1) for a, b in itertools.pairwise(keys))
    return b"".join(step.to_bytes() for step in steps), public_bytes(keys[2].public_key())


THIRD = _third()


@pytest.mark.parametrize("length", [1, HANDOVER_BYTES - 1, HANDOVER_BYTES * (MOST_HANDOVERS + 1)])
def test_a_malformed_lineage_is_refused_before_it_is_read(length: int) -> None:
    with pytest.raises(ValueError, match="its lineage is malformed"):
        founder(bytes(length), THIRD[1])


def test_another_keys_lineage_is_no_use(mercy: Identity, tmp_path: Path) -> None:
    """A thief can't put mercy's lineage into a certificate of his own."""
    key = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(ValueError, match="not vouched for by the one before it"):
        self_signed(key, successor(mercy).lineage)


def test_a_card_after_a_rotation_has_the_same_id(tmp_path: Path, mercy: Identity) -> None:
    path = tmp_path / "card.yaml"
    second = successor(mercy)
    path.write_text(second.card("mercy", None))
    assert load_card(path) == Peer("mercy", mercy.node_id, None, second.certificate)


def test_a_sketch_says_whose_it_is_after_a_rotation(mercy: Identity) -> None:
    second, zeros = successor(successor(mercy)), np.zeros(3, np.float32)
    scribe = Scribe(second, b"f", 3)
    transfer = scribe.sign("mercy", 1, 1, 1, [], zeros, zeros).payload
    assert isinstance(transfer, Transfer)
    header = SketchHeader.FromString(transfer.header.SerializeToString())
    assert scribe.read(header, bytearray(transfer.payload)).node_id == mercy.node_id
    header.lineage = header.lineage[HANDOVER_BYTES:]
    assert scribe.read(header, bytearray(transfer.payload)).node_id != mercy.node_id
    header.lineage = mercy.key[:HANDOVER_BYTES]
    with pytest.raises(SketchRejected, match="key: the owner's public key is not what it claims: a key in its lineage"):
        scribe.read(header, bytearray(transfer.payload))


# Which certificates a peer may show


def test_one_after_the_other_is_accepted_and_both_in_between(card: Peer, mercy: Identity) -> None:
    now = float(int(time.time()))
    second = successor(mercy, until=now + 100)
    third = successor(second, until=now + DAY)
    peer = card.succeeded(second.certificate, now).succeeded(third.certificate, now)
    assert peer.successors == (second.certificate, third.certificate)
    assert peer.accepted(now) == [mercy.certificate, second.certificate, third.certificate]
    assert peer.accepted(now + 100 + LAG_SECONDS - 1) == peer.accepted(now)
    assert peer.accepted(now + 100 + LAG_SECONDS) == [second.certificate, third.certificate]
    assert peer.accepted(now + DAY + LAG_SECONDS) == [third.certificate]


def test_who_has_missed_one_learns_the_next(card: Peer, mercy: Identity) -> None:
    third = successor(successor(mercy))
    assert card.succeeded(third.certificate, time.time()).successors == (third.certificate,)


def test_who_has_missed_one_trusts_the_one_before_it_no_longer_for_that(card: Peer, mercy: Identity) -> None:
    now = float(int(time.time()))
    second = successor(mercy, until=now + 100)
    third = successor(second, until=now + DAY)
    peer = card.succeeded(third.certificate, now)
    assert peer.accepted(now + 100 + LAG_SECONDS - 1) == [mercy.certificate, third.certificate]
    assert peer.accepted(now + 100 + LAG_SECONDS) == [third.certificate]


def test_one_that_was_missed_is_learnt_for_as_long_as_it_is_shown(card: Peer, mercy: Identity) -> None:
    """The link was up all the time, so the third was announced while the peer still showed the second."""
    now = float(int(time.time()))
    second = successor(mercy, until=now - DAY)
    third, rival = successor(second, until=now + DAY), successor(mercy, until=now - DAY)
    peer = card.succeeded(third.certificate, now)
    shown = peer.succeeded(second.certificate, now + DAY + LAG_SECONDS - 1)
    assert shown == replace(card, successors=(second.certificate, third.certificate))
    assert shown.accepted(now) == [second.certificate, third.certificate]
    assert shown.succeeded(second.certificate, now) is shown
    with pytest.raises(CertificateRejected, match="not-vouched"):
        peer.succeeded(rival.certificate, now)
    for known in (peer, shown):
        with pytest.raises(CertificateRejected, match="replaced: the certificate was replaced by a newer one"):
            known.succeeded(second.certificate, now + DAY + LAG_SECONDS)
    newer_card = replace(card, certificate=third.certificate)
    with pytest.raises(CertificateRejected, match="replaced: the certificate was replaced by the one on the card"):
        newer_card.succeeded(second.certificate, now)


def test_a_known_certificate_changes_nothing(card: Peer, mercy: Identity) -> None:
    peer = card.succeeded(successor(mercy, until=time.time() + DAY).certificate, time.time())
    for known in (peer.certificate, peer.newest):
        assert peer.succeeded(known, time.time()) is peer


def refused(peer: Peer, certificate: bytes) -> str:
    with pytest.raises(CertificateRejected) as caught:
        peer.succeeded(certificate, time.time())
    return str(caught.value)


def test_what_is_refused_and_why(card: Peer, mercy: Identity, tmp_path: Path) -> None:
    anna, second, rival = create_identity(tmp_path / "anna"), successor(mercy), successor(mercy)
    assert refused(card, b"hello") == "format: no PEM certificate"
    for other in (anna, successor(anna)):
        assert refused(card, other.certificate) == f"another-node: the certificate is that of node {anna.node_id}"
    named = shifted(second, -1, 5, tls_name(anna.node_id))
    assert refused(card, named.certificate) == "format: the certificate holds other extensions than those of a node's"
    claiming = shifted(mercy, -1, 5, lineage=b"x")
    assert refused(card, claiming.certificate) == "format: the certificate is malformed (its lineage is malformed)"
    assert refused(card, shifted(second, -20, -10).certificate).startswith("expired: the certificate has expired on 20")
    early = refused(card, shifted(second, 10, 20).certificate)
    assert early.startswith("not-yet-valid: the certificate is not valid before 20")
    peer = card.succeeded(second.certificate, time.time())
    assert refused(peer, mercy.certificate) == "replaced: the certificate was replaced by a newer one"
    assert refused(peer, rival.certificate) == (
        "not-vouched: the key that is known does not vouch for that of the certificate"
    ), "who has the old key still can't name another next one"


def test_a_successor_is_signed_by_its_own_key(card: Peer, mercy: Identity) -> None:
    """Whoever has mercy's old key, but not the new one, can't put other dates on the new certificate."""
    second = successor(mercy)
    assert refused(card, shifted(replace(second, key=mercy.key), -1, 5).certificate) == (
        "format: the certificate is malformed (it is not signed by its own key)"
    )


def test_a_key_that_is_no_p256(mercy: Identity) -> None:
    other = ec.generate_private_key(ec.SECP384R1()).public_key()
    handover = Handover.sign(_key(mercy), public_bytes(other), 1)
    with pytest.raises(ValueError, match="lineage"):
        founder(handover.to_bytes()[:-1], public_bytes(other))


def _key(identity: Identity) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(identity.key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


# What a rotation leaves on disk


def test_a_rotation_from_beginning_to_end(tmp_path: Path, mercy: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, now = tmp_path / "mercy", float(int(time.time()))
    at(monkeypatch, now)
    rotated = rotate(directory, DAY)
    assert rotated.next is not None
    assert (rotated.certificate, rotated.next.takes_over_at) == (mercy.certificate, now + DAY)
    assert (directory / "next.key").stat().st_mode & 0o777 == 0o600
    assert not take_over(directory), "it is not time yet"
    assert load_identity(directory) == rotated

    at(monkeypatch, now + DAY)
    assert load_identity(directory) == rotated.next, "what counts is the time, not the names of the files"
    assert take_over(directory)
    assert names(directory) == {"node.key", "node.crt"}
    assert load_identity(directory) == rotated.next
    assert not take_over(directory)


@pytest.mark.parametrize("kept", [0, 1], ids=["nothing was renamed", "the certificate was renamed"])
def test_a_takeover_that_is_broken_off_is_finished_later(
    tmp_path: Path, mercy: Identity, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    directory = tmp_path / "mercy"
    new = rotate(directory, 0)
    renames = [0]
    rename = Path.replace

    def power_cut(self: Path, target: Path) -> Path:
        if renames[0] == kept:
            raise OSError("power cut")
        renames[0] += 1
        return rename(self, target)

    with monkeypatch.context() as cut:
        cut.setattr(Path, "replace", power_cut)
        with pytest.raises(OSError, match="power cut"):
            take_over(directory)
    assert load_identity(directory) == new
    assert take_over(directory)
    assert load_identity(directory) == new
    assert names(directory) == {"node.key", "node.crt"}


@pytest.mark.parametrize("left", [{"next.key"}, {"next.key", "next.crt.new"}])
def test_a_rotation_that_is_broken_off_is_none(tmp_path: Path, mercy: Identity, left: set[str]) -> None:
    directory = tmp_path / "mercy"
    rotate(directory, DAY)
    (directory / "next.crt").rename(directory / "next.crt.new")
    for name in {"next.key", "next.crt.new"} - left:
        (directory / name).unlink()
    assert load_identity(directory) == mercy
    assert not take_over(directory)
    assert rotate(directory, DAY).next is not None


def test_one_rotation_at_a_time(tmp_path: Path, mercy: Identity) -> None:
    rotate(tmp_path / "mercy", DAY)
    before = {path.name: path.read_bytes() for path in (tmp_path / "mercy").iterdir()}
    with pytest.raises(Refused, match="a next certificate is there already, and takes over on 20"):
        rotate(tmp_path / "mercy", DAY)
    assert {path.name: path.read_bytes() for path in (tmp_path / "mercy").iterdir()} == before


def test_a_certificate_that_expires_sooner_shortens_the_overlap(tmp_path: Path, mercy: Identity) -> None:
    short = shifted(mercy, -1, 1)
    (tmp_path / "mercy" / "node.crt").write_bytes(short.certificate)
    following = rotate(tmp_path / "mercy", 14 * DAY).next
    assert following is not None
    assert following.takes_over_at == int(expires(short.certificate))


def test_an_expired_certificate_is_replaced_at_once(tmp_path: Path, mercy: Identity) -> None:
    (tmp_path / "mercy" / "node.crt").write_bytes(shifted(mercy, -20, -1).certificate)
    rotated = rotate(tmp_path / "mercy", 14 * DAY)
    assert rotated.next is None
    assert rotated.key != mercy.key
    assert rotated.node_id == mercy.node_id


def test_a_node_has_so_many_keys_and_no_more(tmp_path: Path, mercy: Identity) -> None:
    for _ in range(MOST_HANDOVERS):
        rotate(tmp_path / "mercy", 0)
    assert len(load_identity(tmp_path / "mercy").certificate) < 16 * 1024
    with pytest.raises(Refused, match="has had 32 keys before, which is the most; make a new identity"):
        rotate(tmp_path / "mercy", 0)


def test_a_directory_that_can_not_be_written(tmp_path: Path, mercy: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(path: Path, content: bytes) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr("conlora.net.rotation.write_private", read_only)
    with pytest.raises(ConfigError, match="the next certificate can't be written"):
        rotate(tmp_path / "mercy", DAY)
    assert load_identity(tmp_path / "mercy") == mercy


def test_a_next_certificate_of_another_node_is_named(tmp_path: Path, mercy: Identity) -> None:
    create_identity(tmp_path / "anna")
    rotate(tmp_path / "anna", DAY)
    for name in ("next.key", "next.crt"):
        (tmp_path / "anna" / name).rename(tmp_path / "mercy" / name)
    with pytest.raises(ConfigError, match=r"next\.crt is that of another node; remove next\.key and next\.crt"):
        load_identity(tmp_path / "mercy")


# What peers have announced


def test_what_is_announced_outlives_a_restart(tmp_path: Path, card: Peer, mercy: Identity) -> None:
    announced = Announced(tmp_path)
    assert announced.known(card) == card
    peer = card.succeeded(successor(mercy).certificate, time.time())
    announced.keep(peer)
    assert Announced(tmp_path).known(card) == peer
    assert names(tmp_path / "certificates") == {f"{mercy.node_id.replace('-', '').lower()}.pem"}


def test_what_is_acknowledged_outlives_a_power_cut(
    tmp_path: Path, card: Peer, mercy: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file's content, its name, and the name of the folder that is made for it."""
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    Announced(tmp_path).keep(card.succeeded(successor(mercy).certificate, time.time()))
    folder = tmp_path / "certificates"
    assert synced == [f"{folder / tls_name(mercy.node_id)}.pem.new", str(folder), str(tmp_path)]


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


def test_what_can_not_be_stored_is_not_believed(card: Peer, mercy: Identity) -> None:
    """Else it would be forgotten at the next start, and the peer refused."""

    def full(peer: Peer) -> None:
        raise StateError("no space left on the device; make room")

    class Other:
        peer, kept = card, b""

    other, identity = Other(), successor(mercy)
    (frame,) = Introductions(replace(mercy, next=identity), full).announcements()
    with capture_logs() as logs:
        assert Introductions(mercy, full).heard(other, frame) is None
    assert other.peer == card
    assert logs[-1]["reason"] == "no space left on the device; make room"


def test_what_is_announced_and_who_knows_it(tmp_path: Path, card: Peer, mercy: Identity) -> None:
    """A takeover without an overlap leaves no next certificate; and whoever has missed one is told it with the next."""
    second = rotate(tmp_path / "mercy", 0)
    assert second.next is None
    third = successor(second, time.time() + DAY)

    class Other:
        peer, kept = card, b""

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


# As time goes by


class Watched:
    """What `Certificates` needs of a mesh."""

    def __init__(self, identity: Identity, *peers: Peer) -> None:
        self.introductions = Introductions(identity, lambda peer: None)
        self.states = {peer.node_id: type("State", (), {"peer": peer, "kept": b""})() for peer in peers}

        self.told = 0

    def show(self, identity: Identity) -> None:
        self.introductions.identity = identity

    def tell(self) -> None:
        self.told += 1


def watch(directory: Path, mesh: Watched) -> Certificates:
    return Certificates(directory, mesh)  # type: ignore[arg-type]


def test_a_month_before_the_end_there_is_a_warning_a_day(tmp_path: Path, mercy: Identity) -> None:
    anna = create_identity(tmp_path / "anna")
    end = expires(mercy.certificate)
    old = shifted(anna, -1, 2000)  # half of what mercy's has left
    watched = watch(tmp_path / "mercy", Watched(mercy, Peer("anna", anna.node_id, None, old.certificate)))
    with capture_logs() as logs:
        watched.look(expires(old.certificate) - WARNING_SECONDS - 1)
    assert logs == []
    with capture_logs() as logs:
        watched.look(first := expires(old.certificate) - WARNING_SECONDS + 1)
        watched.look(first + REMIND_SECONDS - 1)
    assert len(logs) == 1
    assert (logs[0]["log_level"], logs[0]["peer"]) == ("warning", "anna")
    assert logs[0]["event"] == "a peer's certificate is near its end: its operator has to run `conlora cert rotate`"
    assert re.fullmatch(r"expires on 20\d\d-\d\d-\d\d \d\d:\d\d UTC", logs[0]["ends"])
    with capture_logs() as logs:
        watched.look(first + REMIND_SECONDS)
        watched.look(end + 1)
    assert [(entry.get("peer"), entry["ends"].split(" on ")[0]) for entry in logs] == [
        ("anna", "expires"),
        (None, "has expired"),
        ("anna", "has expired"),
    ]
    assert logs[1]["event"] == "this node's certificate is near its end: run `conlora cert rotate`"


def test_a_certificate_that_was_replaced_needs_no_warning(tmp_path: Path, mercy: Identity) -> None:
    short = shifted(mercy, -1, 5)
    (tmp_path / "mercy" / "node.crt").write_bytes(short.certificate)
    following = rotate(tmp_path / "mercy", 3 * DAY)
    with capture_logs() as logs:
        watch(tmp_path / "mercy", Watched(following)).look(time.time())
    assert logs == []


def test_the_daemon_takes_over_when_it_is_time(
    tmp_path: Path, mercy: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh = Watched(rotate(tmp_path / "mercy", DAY))
    watched, now = watch(tmp_path / "mercy", mesh), time.time()
    following = watched.identity.next
    watched.look(now)
    assert watched.identity.next is following
    at(monkeypatch, now + DAY)
    watched.look(now + DAY)
    assert watched.identity == following == load_identity(tmp_path / "mercy")
    assert names(tmp_path / "mercy") == {"node.key", "node.crt"}


def test_a_directory_that_the_daemon_may_only_read_is_no_obstacle(
    tmp_path: Path, mercy: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh = Watched(rotate(tmp_path / "mercy", DAY))
    watched, following = watch(tmp_path / "mercy", mesh), mesh.introductions.identity.next
    at(monkeypatch, time.time() + DAY)

    def read_only(*_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(Path, "replace", read_only)
    with capture_logs() as logs:
        watched.look(time.time())
    assert watched.identity == following == load_identity(tmp_path / "mercy")
    assert logs[0]["event"] == "the next certificate counts, but its files keep their names"
    with capture_logs() as logs:
        watched.look(time.time() + DAY)
    assert logs == []


def test_neighbours_are_told_again_once_a_day(tmp_path: Path, mercy: Identity) -> None:
    mesh = Watched(rotate(tmp_path / "mercy", 0))
    watched, now = watch(tmp_path / "mercy", mesh), time.time()
    told = []
    for moment in (now, now + REMIND_SECONDS - 1, now + REMIND_SECONDS):
        watched.look(moment)
        told.append(mesh.told)
    assert told == [1, 1, 2]


def test_a_takeover_without_an_overlap_is_shown_at_once(tmp_path: Path, mercy: Identity) -> None:
    mesh = Watched(mercy)
    second = rotate(tmp_path / "mercy", 0)
    with capture_logs() as logs:
        watch(tmp_path / "mercy", mesh).read()
    assert mesh.introductions.identity == second
    assert [entry["event"] for entry in logs] == [TAKEN_OVER]


def test_a_daemon_that_was_not_told_finds_the_next_one(tmp_path: Path, mercy: Identity) -> None:
    mesh = Watched(mercy)
    watched, rotated = watch(tmp_path / "mercy", mesh), rotate(tmp_path / "mercy", DAY)
    with capture_logs() as logs:
        watched.look(time.time())
        watched.look(time.time())
    assert mesh.introductions.identity == rotated
    assert [entry["event"] for entry in logs] == ["a next certificate is announced to peers"]


def test_a_next_certificate_that_is_none_is_said_once_a_day(tmp_path: Path, mercy: Identity) -> None:
    mesh = Watched(mercy)
    watched, now = watch(tmp_path / "mercy", mesh), time.time()
    (tmp_path / "mercy" / "next.crt").write_bytes(b"hello")
    with capture_logs() as logs:
        for moment in (now, now + REMIND_SECONDS - 1, now + REMIND_SECONDS):
            watched.look(moment)
    assert [entry["event"] for entry in logs] == ["the next certificate can't be taken up"] * 2
    assert mesh.introductions.identity is mercy


async def test_no_other_command_keeps_the_daemon_from_reading_the_next_one() -> None:
    """A reload may wait for peers, and a drain for a round."""
    node, read = object.__new__(Node), mock.Mock()
    node._changing, node._certificates = asyncio.Lock(), mock.Mock(read=read)
    async with node._changing, asyncio.timeout(1):
        await node.read_identity()
    read.assert_called_once_with()


def test_an_identity_that_was_exchanged_is_not_taken_up(tmp_path: Path, mercy: Identity) -> None:
    mesh = Watched(mercy)
    anna = create_identity(tmp_path / "anna")
    with pytest.raises(ConfigError, match="holds the identity of another node now; restart the daemon"):
        watch(tmp_path / "anna", mesh).read()
    assert mesh.introductions.identity is mercy
    assert anna.node_id != mercy.node_id


def test_words_for_an_end() -> None:
    assert warning(None, 0.0) == ""
    assert warning(WARNING_SECONDS, 0.0) == ""
    assert warning(DAY, 0.0) == "expires on 1970-01-02 00:00 UTC"
    assert warning(DAY, DAY) == "has expired on 1970-01-02 00:00 UTC"


def test_a_card_with_a_forged_lineage(tmp_path: Path, mercy: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    second = successor(mercy)
    certificate = x509.load_pem_x509_certificate(second.certificate)
    path = tmp_path / "card.yaml"
    path.write_text(second.card("mercy", None))

    def forged(_: object) -> str:
        return founder(bytes(HANDOVER_BYTES), public_bytes(certificate.public_key()))

    monkeypatch.setattr(identity_module, "node_id_of", forged)
    with pytest.raises(CardError, match=r"a key in its lineage .*ask mercy to mail the card again"):
        load_card(path)
