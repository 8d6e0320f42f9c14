"""Certificates that an authority issues for this node: what is asked for, what is installed, and what a daemon takes up."""

import asyncio
import os
import subprocess
import time
from pathlib import Path
from unittest import mock

import pytest
from cryptography import x509
from structlog.testing import capture_logs
from tests.authorities import Authority, for_node
from tests.certificates import at, names, pem_of, successor
from tests.unit.test_expiry import Watched

from conlora.core.conduct import Conduct
from conlora.daemon import certificates
from conlora.daemon.certificates import REMIND_SECONDS, Certificates
from conlora.errors import CertificateRejected, ConfigError, PeerError, StateError
from conlora.net.authorities import Authorities, load_authorities, load_chain
from conlora.net.certificates import node_id_of
from conlora.net.expiry import WARNING_SECONDS, warning, warns_from
from conlora.net.identity import Identity, Peer, create_identity, load_identity
from conlora.net.introductions import Introductions
from conlora.net.issued import install, lacks_one_for_next, request, with_issued
from conlora.net.rotation import rotate
from conlora.net.wire import NOT_ADMITTED, NOT_CERTIFIED, OUTDATED, Frame, Goodbye

DAY = 86400.0


@pytest.fixture
def root() -> Authority:
    return Authority()


@pytest.fixture
def known(root: Authority, tmp_path: Path) -> Authorities:
    return root.alone(tmp_path)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def put(identity: Identity, state: Path, content: bytes, known: Authorities | None) -> float:
    source = state.with_name("issued.pem")
    source.write_bytes(content)
    return install(identity, state, source, known, time.time())


def test_a_request_asks_for_what_tls_and_peers_look_for(mercy: Identity) -> None:
    asked = x509.load_pem_x509_csr(request(mercy, time.time()))
    assert asked.is_signature_valid
    assert asked.public_key() == x509.load_pem_x509_certificate(mercy.certificate).public_key()
    assert [(each.value, each.critical) for each in asked.extensions] == list(for_node(mercy))


def test_openssl_as_the_authority(tmp_path: Path, state: Path, mercy: Identity, card: Peer) -> None:
    """As in docs/how-to/operations.md. Its root says nothing of what its key is for."""

    def openssl(command: str) -> None:
        subprocess.run(["openssl", *command.split()], cwd=tmp_path, check=True, capture_output=True)

    openssl("req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -subj /CN=Trust -days 100")
    (tmp_path / "mercy.csr").write_bytes(request(mercy, time.time()))
    openssl("x509 -req -in mercy.csr -CA ca.pem -CAkey ca.key -copy_extensions copy -days 7 -out mercy.crt")
    known = load_authorities(tmp_path / "ca.pem")
    end = install(mercy, state, tmp_path / "mercy.crt", known, time.time())
    assert 6 * DAY < end - time.time() < 8 * DAY
    installed = with_issued(mercy, state)
    assert installed.shown == (tmp_path / "mercy.crt").read_bytes()
    known.admit(load_chain(installed.shown), card, time.time())


def test_what_is_installed_is_shown_and_the_card_stays(
    state: Path, root: Authority, known: Authorities, mercy: Identity
) -> None:
    assert with_issued(mercy, state) == mercy
    clinic = Authority("Clinic", root)
    issued = clinic.issue(mercy, between=[clinic])
    put(mercy, state, issued.issued, known)
    installed = with_issued(mercy, state)
    assert installed == issued
    assert installed.card("mercy", None) == mercy.card("mercy", None)
    assert names(state) == {"issued.crt"}
    renewed = root.issue(mercy)
    put(installed, state, renewed.issued, known)
    assert with_issued(mercy, state) == renewed


def test_what_is_not_installed(
    tmp_path: Path, state: Path, root: Authority, known: Authorities, mercy: Identity, card: Peer
) -> None:
    names, *_ = for_node(mercy)
    authority = pem_of(root.certificate)
    for content, authorities, reason in (
        (b"hello", known, "nothing was installed: no PEM certificate"),
        (mercy.certificate, known, r"nothing was installed: .*\(its issuer is not there\)"),
        (Authority().issue(mercy).issued, known, r"\(signature does not match\)"),
        (root.issue(mercy, days=(-9, -1)).issued, known, "nothing was installed: the certificate has expired on "),
        (root.issue(mercy, days=(-9, -1)).issued, None, "nothing was installed: the certificate has expired on "),
        (root.issue(mercy, extensions=for_node(mercy)[1:]).issued, None, "has no subjectAltName"),
        (authority, known, "the first certificate is not for this node's key; give the one that was issued for what "),
        (authority + root.issue(mercy).issued, known, "the first certificate is not for this node's key"),
        (
            root.issue(mercy, extensions=[names, (big(), False)]).issued,
            known,
            "is larger than 16384 bytes; leave out what",
        ),
    ):
        with pytest.raises(ConfigError, match=reason):
            put(mercy, state, content, authorities)
        assert not state.exists()
    with pytest.raises(ConfigError, match=r"can't be read .*; give the file that the authority has issued"):
        install(mercy, state, tmp_path / "nowhere", known, time.time())
    put(mercy, state, Authority().issue(mercy).issued, None)  # what partners make of it is theirs


def big() -> x509.UnrecognizedExtension:
    return x509.UnrecognizedExtension(x509.ObjectIdentifier("2.25.1"), bytes(16 * 1024))


def test_a_directory_that_can_not_be_written(
    tmp_path: Path, root: Authority, known: Authorities, mercy: Identity
) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "issued.pem").write_bytes(root.issue(mercy).issued)
    with pytest.raises(
        ConfigError, match=r"the issued certificate can't be written .*; run this as a user who may write there"
    ):
        install(mercy, tmp_path / "file" / "state", tmp_path / "issued.pem", known, time.time())


def test_where_root_installs_the_daemons_user_can_read_it(
    state: Path, root: Authority, mercy: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[str, int]] = []

    def give(descriptor: int, user: int, group: int) -> None:
        given.append((os.readlink(f"/proc/self/fd/{descriptor}"), user))

    monkeypatch.setattr(os, "fchown", give)
    put(mercy, state, root.issue(mercy).issued, None)
    assert given == [(f"{state}/issued.crt.new", state.stat().st_uid)]


def test_root_follows_no_link_that_the_daemons_user_has_put_there(
    tmp_path: Path, state: Path, root: Authority, mercy: Identity
) -> None:
    """Who has taken over the daemon would have root write, give away or read what is root's."""
    state.mkdir()
    (secret := tmp_path / "secret").write_bytes(root.issue(mercy).issued)
    (state / "issued.crt").symlink_to(secret)
    with pytest.raises(StateError, match="the issued certificate can't be read"):
        with_issued(mercy, state)
    (target := tmp_path / "target").write_bytes(b"root's")
    (state / "issued.crt.new").symlink_to(target)
    issued = root.issue(mercy)
    put(mercy, state, issued.issued, None)
    assert target.read_bytes() == b"root's"
    assert not (state / "issued.crt").is_symlink()
    assert with_issued(mercy, state) == issued


@pytest.mark.parametrize("content", [b"", b"hello"])
def test_a_damaged_file(state: Path, mercy: Identity, content: bytes) -> None:
    """A node that went on without would be refused by all, and not know why."""
    state.mkdir()
    (state / "issued.crt").write_bytes(content)
    with pytest.raises(
        StateError, match=r"the issued certificate can't be read \(no PEM certificate\); remove the file, and run"
    ):
        with_issued(mercy, state)


def test_one_of_a_former_identity_is_not_shown(state: Path, root: Authority, mercy: Identity, tmp_path: Path) -> None:
    put(mercy, state, root.issue(mercy).issued, None)
    anna = create_identity(tmp_path / "anna")
    assert with_issued(anna, state) == anna


# A rotation


def test_the_next_key_has_a_certificate_of_its_own(
    tmp_path: Path, state: Path, root: Authority, known: Authorities, mercy: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both lie in one file, and which counts is a matter of the key: nothing has to be renamed at the takeover."""
    directory = tmp_path / "mercy"
    put(mercy, state, root.issue(mercy).issued, known)
    rotated = with_issued(rotate(directory, DAY), state)
    following = rotated.next
    assert following is not None
    assert following.issued == b""
    assert node_id_of(x509.load_pem_x509_certificate(following.certificate)) == mercy.node_id
    key_of_next = x509.load_pem_x509_certificate(following.certificate).public_key()
    assert x509.load_pem_x509_csr(request(rotated, time.time())).public_key() == key_of_next
    put(rotated, state, root.issue(following).issued, known)
    both = with_issued(rotated, state)
    assert both.next is not None
    assert both.issued == rotated.issued
    assert both.next.issued != b""
    own = x509.load_pem_x509_certificate(mercy.certificate).public_key()
    assert x509.load_pem_x509_csr(request(both, time.time())).public_key() == own, (
        "the one in use may have to be renewed meanwhile"
    )
    renewed = root.issue(mercy)
    put(both, state, renewed.issued, known)
    assert with_issued(rotated, state).issued == renewed.issued
    assert with_issued(rotated, state).next == both.next
    at(monkeypatch, time.time() + DAY + 1)
    assert with_issued(load_identity(directory), state) == both.next


def test_a_certificate_that_ends_before_the_takeover_is_as_good_as_none(
    tmp_path: Path, state: Path, root: Authority, mercy: Identity
) -> None:
    now = time.time()
    put(mercy, state, root.issue(mercy, days=(-1, 30)).issued, None)
    rotated = with_issued(rotate(tmp_path / "mercy", 2 * DAY), state)
    following = rotated.next
    assert following is not None
    keys = [x509.load_pem_x509_certificate(each.certificate).public_key() for each in (rotated, following)]
    for days, moment, expected in (
        ((0, 1), now, keys[1]),  # it ends before the takeover
        ((-1, 30), now, keys[0]),
        ((-1, 30), now + 25 * DAY, keys[0]),  # both are near their ends: first the one in use
    ):
        put(rotated, state, root.issue(following, days=days).issued, None)
        assert x509.load_pem_x509_csr(request(with_issued(rotated, state), moment)).public_key() == expected
    put(rotated, state, root.issue(following, days=(-1, 6)).issued, None)
    assert lacks_one_for_next(with_issued(rotated, state), now + 4 * DAY), "near its end"


def test_after_a_takeover_the_old_keys_chain_is_not_shown(
    tmp_path: Path, state: Path, root: Authority, mercy: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    clinic = Authority("Clinic", root)
    put(mercy, state, clinic.issue(mercy, between=[clinic]).issued, None)
    rotated = with_issued(rotate(tmp_path / "mercy", DAY), state)
    assert rotated.next is not None
    issued = clinic.issue(rotated.next, between=[clinic])
    put(rotated, state, issued.issued, None)
    at(monkeypatch, time.time() + DAY + 1)
    assert with_issued(load_identity(tmp_path / "mercy"), state).issued == issued.issued


# A running daemon


def watch(tmp_path: Path, mesh: Watched, ca_file: Path | None = None) -> Certificates:
    return Certificates(tmp_path / "mercy", tmp_path / "state", ca_file, mesh)  # type: ignore[arg-type]


def test_a_daemon_takes_up_what_was_installed(tmp_path: Path, state: Path, root: Authority, mercy: Identity) -> None:
    mesh = Watched(mercy)
    watched = watch(tmp_path, mesh)
    for look in (watched.read, lambda: watched.look(time.time())):  # told, and by itself
        issued = root.issue(mercy)
        put(mercy, state, issued.issued, None)
        with capture_logs() as logs:
            look()
        assert mesh.introductions.identity == issued
        assert [entry["event"] for entry in logs][:1] == ["what was issued for this node is shown to peers"]


def test_a_service_takes_it_up_without_a_restart(
    tmp_path: Path, state: Path, root: Authority, mercy: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has a copy of its keys only; docs/decisions/0021."""
    copies = tmp_path / "credentials"
    copies.mkdir()
    for name in ("node.key", "node.crt"):
        (copies / f"identity_{name}").write_bytes((tmp_path / "mercy" / name).read_bytes())
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(copies))
    mesh = Watched(mercy)
    put(mercy, state, root.issue(mercy).issued, None)
    watched = watch(tmp_path / "elsewhere", mesh)
    watched._state_dir = state
    watched.read()
    assert mesh.introductions.identity == with_issued(mercy, state)
    with capture_logs() as logs:
        watched.look(time.time())
    assert logs == []


def test_a_daemon_reminds_of_the_next_key(tmp_path: Path, state: Path, root: Authority, mercy: Identity) -> None:
    put(mercy, state, root.issue(mercy).issued, None)
    rotated = with_issued(rotate(tmp_path / "mercy", 2 * DAY), state)
    watched = watch(tmp_path, Watched(rotated))
    said = (
        "no authority has issued a certificate for the next key that is good at the takeover: `conlora cert request` "
        "asks for it"
    )
    with capture_logs() as logs:
        watched.look(now := time.time())
        watched.look(now + 1)
    assert [entry["event"] for entry in logs] == [said]
    assert rotated.next is not None
    put(rotated, state, root.issue(rotated.next).issued, None)
    with capture_logs() as logs:
        watched.look(now + REMIND_SECONDS)
    assert said not in [entry["event"] for entry in logs]


def test_a_daemon_reads_the_authorities_again(tmp_path: Path, root: Authority, mercy: Identity) -> None:
    file = root.file(tmp_path / "ca.pem")
    mesh = Watched(mercy)
    watched = watch(tmp_path, mesh, file)
    watched.look(now := time.time())
    first = mesh.introductions.authorities
    assert first is not None
    file.write_bytes(b"")
    with capture_logs() as logs:
        watched.look(now)
        watched.look(now + 1)
    assert [entry["event"] for entry in logs] == ["what ca_file held before goes on to count"]
    assert mesh.introductions.authorities is not None
    assert mesh.introductions.authorities.pem == first.pem
    with pytest.raises(ConfigError, match="it has to hold certificates of authorities"):
        watched.read_authorities()


async def test_a_defect_does_not_end_the_watch(
    tmp_path: Path, mercy: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched, looks = watch(tmp_path, Watched(mercy)), asyncio.Event()

    def look(now: float) -> None:
        if said:
            looks.set()
        raise RuntimeError("a defect")

    monkeypatch.setattr(certificates, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(watched, "look", look)
    with capture_logs() as said:
        task = asyncio.create_task(watched.watch())
        async with asyncio.timeout(5):
            await looks.wait()
        task.cancel()
    assert said[0]["event"] == "a look at certificates has failed by a defect; the next is in a minute"


def test_nothing_more_is_taken_from_a_peer_that_is_let_in_no_more(
    tmp_path: Path, root: Authority, mercy: Identity, card: Peer
) -> None:
    """Its link could go on for minutes, where the peer does not take the good-bye."""
    mesh, link = Watched(mercy, card), mock.Mock()
    state = mesh.states[card.node_id]
    state.link, state.chain, state.shaken = link, *[load_chain(root.issue(mercy).issued)] * 2
    watched = watch(tmp_path, mesh, root.file(tmp_path / "ca.pem"))
    watched.read_authorities()
    assert link.mock_calls == []
    root.file(tmp_path / "ca.pem", root.revoked(state.chain))
    watched.read_authorities()
    assert link.mock_calls == [mock.call.close(Goodbye.REASON_LEAVING, OUTDATED), mock.call.discard()]


def test_near_its_end_is_the_last_third(tmp_path: Path, state: Path, root: Authority, mercy: Identity) -> None:
    assert warns_from(0, 7 * DAY) == pytest.approx(7 * DAY * 2 / 3)
    assert warns_from(0, 3650 * DAY) == 3650 * DAY - WARNING_SECONDS
    assert warning(7 * DAY, 4 * DAY, warns_from(0, 7 * DAY)) == ""
    assert warning(7 * DAY, 5 * DAY, warns_from(0, 7 * DAY)).startswith("expires on ")
    issued = root.issue(mercy, days=(-1, 6))
    put(mercy, state, issued.issued, None)
    watched, now = watch(tmp_path, Watched(issued)), time.time()
    with capture_logs() as logs:
        watched.look(now)
    assert logs == []
    with capture_logs() as logs:
        watched.look(now + 4 * DAY)
    assert [entry["event"] for entry in logs] == [
        "this node's certificate is near its end: renew it with `conlora cert install`"
    ]


# What is announced


class Other:
    """A peer, as `Introductions` sees it."""

    def __init__(self, peer: Peer) -> None:
        self.peer, self.kept, self.conduct = peer, frozenset[bytes](), Conduct()
        self.chain = self.shaken = load_chain(peer.certificate)


def test_a_renewed_certificate_is_announced_and_known(
    root: Authority, known: Authorities, mercy: Identity, card: Peer
) -> None:
    issued = root.issue(mercy)
    us, them, other = Introductions(issued, print), Introductions(mercy, print, known), Other(card)
    (frame,) = us.announcements()
    answer = them.heard(other, frame)
    assert answer is not None
    assert other.chain == load_chain(issued.issued)
    us.heard(other, answer)
    assert us.known_by(other)
    us.identity = root.issue(mercy)
    assert not us.known_by(other)


def test_of_a_peer_that_has_stored_one_of_two_not_both_are_known(root: Authority, mercy: Identity, card: Peer) -> None:
    us, other = Introductions(root.issue(successor(mercy)), print), Other(card)
    first, second = us.announcements()
    them = Introductions(mercy, lambda peer: None, None)
    assert them.heard(other, second) is None, "without a ca_file it is of no use"
    answer = them.heard(other, first)
    assert answer is not None
    us.heard(other, answer)
    assert not us.known_by(other)


def test_an_announcement_that_no_authority_stands_behind(known: Authorities, mercy: Identity, card: Peer) -> None:
    other = Other(card)
    with capture_logs() as logs:
        assert (
            Introductions(mercy, print, known).heard(other, Frame(next_certificate=Authority().issue(mercy).issued))
            is None
        )
    assert logs[-1]["reason"].startswith("issuer: ")
    assert other.chain == load_chain(card.certificate)
    assert other.conduct.refused == {"certificate": 1}


def test_who_shows_an_issued_certificate_that_has_expired_does_not_dial(root: Authority, mercy: Identity) -> None:
    us = Introductions(root.issue(mercy, days=(-9, -1)), print)
    with pytest.raises(
        PeerError, match=r"no peer lets this node in, for .*; run `conlora cert install`, or set the clock"
    ):
        us.check_own()


def test_strangers_do_not_fill_the_log(known: Authorities, mercy: Identity, card: Peer) -> None:
    """Whoever has a certificate of the authority gets as far as this."""
    us = Introductions(mercy, print, known)
    revoked = {"ssl_tls_version": [b"TLSv1.3"], "x509_pem_cert": [mercy.certificate]}
    with capture_logs() as logs:
        for context in (*[{}] * 200, revoked):
            with pytest.raises(CertificateRejected):
                us.caller(context, "ipv4:127.0.0.1:1", [card])
    assert [entry["event"] for entry in logs] == ["refused a caller that is no configured peer"] * 2
    assert [entry["reason"].partition(":")[0] for entry in logs] == ["tls", "issuer"], "one does not hide the other"


def test_what_a_caller_hears(known: Authorities, mercy: Identity) -> None:
    us = Introductions(mercy, print, known)
    assert us.refusal("stranger") == NOT_ADMITTED
    assert us.refusal("revoked") == NOT_CERTIFIED
    assert Introductions(mercy, print).refusal("replaced") == NOT_ADMITTED
