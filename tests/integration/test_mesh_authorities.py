"""Links between nodes that leave it to an authority whether a key may be used now, over real TLS on loopback."""

import asyncio
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from structlog.testing import capture_logs
from tests.authorities import DAYS, Authority, for_node
from tests.certificates import at, pem_of, successor
from tests.meshes import SETTINGS, Member, linked, noted, snapshot, until

from conlora.daemon.certificates import Certificates
from conlora.net import credentials
from conlora.net.authorities import load_chain
from conlora.net.certificates import LAG_SECONDS, self_signed
from conlora.net.conversation import LinkClosed
from conlora.net.credentials import presented
from conlora.net.edge import PeerState
from conlora.net.identity import Identity, private_bytes
from conlora.net.link import Link
from conlora.net.mesh import Mesh
from conlora.net.streams import WrongCertificate, dialled_stream
from conlora.net.wire import OUTDATED

Members = Callable[[str], Member]
DAY = 86400.0


@pytest.fixture
def root() -> Authority:
    return Authority()


@pytest.fixture
def certified(member: Members, root: Authority, tmp_path: Path) -> Members:
    """Makes members for which the authority has issued a certificate, and who leave it to that one."""

    def make(name: str) -> Member:
        made = member(name)
        made.identity = root.issue(made.identity)
        made.authorities = root.alone(tmp_path)
        return made

    return make


def running(member: Member) -> Mesh:
    assert member.mesh is not None
    return member.mesh


def watch(member: Member, ca_file: Path) -> Certificates:
    """Its daemon's."""
    return Certificates(ca_file.parent / member.name, ca_file.parent / "state", ca_file, running(member))


async def pair(make: Members, a_dials: bool = True) -> tuple[Member, Member]:
    a, b = make("a"), make("b")
    await a.start(b.card(dialled=a_dials))
    await b.start(a.card(dialled=not a_dials))
    await until(lambda: linked(a, b), "a link")
    return a, b


# Who is let in


@pytest.mark.parametrize("a_dials", [True, False])
async def test_a_link_of_certified_nodes(certified: Members, a_dials: bool) -> None:
    a, b = await pair(certified, a_dials)
    running(a).publish(snapshot(3))
    await until(lambda: b.node.snapshots, "a snapshot")
    assert a.state(b).chain == load_chain(b.identity.issued)
    assert b.state(a).chain == load_chain(a.identity.issued)


async def test_an_authority_in_between_comes_along(certified: Members, root: Authority) -> None:
    """From who dials, and from who is dialled."""
    clinic = Authority("Clinic", root)

    def of_a_clinic(name: str) -> Member:
        made = certified(name)
        made.identity = clinic.issue(made.identity, between=[clinic])
        return made

    a, b = await pair(of_a_clinic)
    assert [len(state.chain) for state in (a.state(b), b.state(a))] == [2, 2]


async def test_each_may_have_an_authority_of_its_own(member: Members, tmp_path: Path) -> None:
    """Each node's file has that of its partner."""
    a, b = member("a"), member("b")
    of_a, of_b = Authority("Trust of a"), Authority("Trust of b")
    a.identity, b.identity = of_a.issue(a.identity), of_b.issue(b.identity)
    a.authorities, b.authorities = of_b.alone(tmp_path), of_a.alone(tmp_path)
    await a.start(b.card())
    await b.start(a.card(dialled=False))
    await until(lambda: linked(a, b), "a link")


@pytest.mark.parametrize("a_dials", [True, False])
async def test_a_partner_without_an_authority_is_in_the_file_itself(
    certified: Members, member: Members, root: Authority, tmp_path: Path, a_dials: bool
) -> None:
    a, b = certified("a"), member("b")
    a.authorities, b.authorities = root.alone(tmp_path, b.identity.certificate), root.alone(tmp_path)
    await a.start(b.card(dialled=a_dials))
    await b.start(a.card(dialled=not a_dials))
    await until(lambda: linked(a, b), "a link")


@pytest.mark.parametrize("a_dials", [True, False])
async def test_nodes_change_over_one_after_the_other(
    member: Members, root: Authority, tmp_path: Path, a_dials: bool
) -> None:
    """With the authority and the partners' own certificates in the file, it does not matter who has installed one already."""
    a, b = member("a"), member("b")
    for each in (a, b):
        each.authorities = root.alone(tmp_path, a.identity.certificate, b.identity.certificate)
    await a.start(b.card(dialled=a_dials))
    await b.start(a.card(dialled=not a_dials))
    await until(lambda: linked(a, b), "a link")
    for each in (a, b):
        each.identity = root.issue(each.identity)
        running(each).show(each.identity)
        await b.close()
        await b.start(a.card(dialled=not a_dials))
        running(a).show(a.identity)  # dials at once
        await until(lambda: linked(a, b), "a link")
    assert b.state(a).chain == load_chain(a.identity.issued)
    assert a.state(b).chain == load_chain(b.identity.issued)


async def test_a_peer_that_nobody_has_certified(certified: Members) -> None:
    """b is known by its card, which is not enough; at both ends."""
    a, b = certified("a"), certified("b")
    b.identity = replace(b.identity, issued=b"")
    await b.start(a.card(dialled=False))
    await a.start(b.card())
    await until(lambda: a.state(b).word == "refused", "refused")
    assert a.state(b).last_error == (
        "b is refused, for the certificate is not one that an authority in ca_file has issued for this node (its issuer is not "
        "there); its operator has to run `conlora cert install`, or its authority is missing in ca_file"
    )
    await a.close()
    await b.close()
    await a.start(b.card(dialled=False))
    await b.start(a.card(), listens=False)
    await until(lambda: b.state(a).last_error, "an error")
    assert b.state(a).last_error == "a hangs up on this node; perhaps its operator still has to add this node's card"
    assert a.node.events == b.node.events == []


async def test_another_organisation_of_the_same_authority_is_a_stranger(certified: Members) -> None:
    a, b, c = certified("a"), certified("b"), certified("c")
    await b.start(a.card(dialled=False))
    with capture_logs() as logs:
        await c.start(b.card(), listens=False)
        await until(lambda: c.state(b).last_error, "an error")
    assert c.state(b).last_error == "b does not admit this node; its operator has to add this node's card"
    refused = [entry["reason"] for entry in logs if entry["event"] == "refused a caller that is no configured peer"]
    assert refused[0] == f"stranger: {c.identity.node_id} is no configured peer"
    assert b.node.events == []
    await c.close()

    await c.start(a.card(dialled=False))
    await a.start(b.card(address=c.address))  # c at b's address
    await until(lambda: a.state(b).word == "refused", "refused")
    assert "the certificate is not for the key on the card of b; somebody else answers there" in a.state(b).last_error
    assert c.node.events == []


def posing_as(identity: Identity, root: Authority) -> Identity:
    """Another key, which the authority has certified under the node's name."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.load_pem_x509_certificate(identity.certificate).subject
    issued = pem_of(root.sign(subject, key.public_key(), DAYS, for_node(identity)))
    return Identity(private_bytes(key), pem_of(self_signed(key)), identity.node_id, issued=issued)


async def test_an_authority_can_not_pose_as_a_node(certified: Members, root: Authority) -> None:
    """Not to who dials b, nor to whom b dials."""
    a, b = certified("a"), certified("b")
    genuine, card = b.identity, b.card()
    b.identity = posing_as(genuine, root)
    await b.start(a.card(dialled=False))
    await a.start(card)
    await until(lambda: a.state(b).word == "refused", "refused")
    assert "the certificate is not for the key on the card of b" in a.state(b).last_error
    await a.close()
    await b.close()
    await a.start(replace(card, address=None))
    with capture_logs() as logs:
        await b.start(a.card(), listens=False)
        await until(lambda: b.state(a).last_error, "an error")
    assert [entry for entry in logs if entry["event"] == "refused a caller that is no configured peer"]
    assert a.node.events == b.node.events == []


async def test_who_was_looked_at_is_who_is_dialled(
    certified: Members, root: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody on the way passes on the look, and answers the call with what the authority has issued for a key of his own."""
    a, b = certified("a"), certified("b")
    genuine, card = b.identity, b.card()
    b.identity = posing_as(genuine, root)
    await b.start(a.card(dialled=False))
    async with dialled_stream(a.identity, card, load_chain(genuine.issued)) as stream:
        with pytest.raises(WrongCertificate):
            await stream.read()

    async def passed_on(peer: object) -> bytes:
        return genuine.issued

    monkeypatch.setattr(credentials, "presented", passed_on)
    await a.start(card)
    await until(lambda: a.state(b).last_error, "an error")
    assert a.state(b).last_error == "b shows another certificate than a moment ago"
    assert a.state(b).word == "down", "it may have been renewed in between, and is dialled again"
    assert a.node.events == b.node.events == []


async def test_a_peer_that_does_not_answer(certified: Members) -> None:
    a, b = certified("a"), certified("b")
    await a.start(b.card())
    await until(lambda: a.state(b).last_error, "an error")
    assert a.state(b).last_error == (
        f"b does not answer at {b.address}; is it running, and does a firewall let this node through?"
    )
    assert a.state(b).word == "down"
    await b.start(a.card(dialled=False))
    await until(lambda: linked(a, b), "a link once it does")


async def test_a_look_finds_whom_a_call_would(certified: Members, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = certified("a"), certified("b")
    await b.start(a.card(dialled=False))
    assert await presented(b.card(address="a..b:7443")) is None, "no name, and no defect"
    _, options = credentials.dialling_credentials(a.identity, b.card(), load_chain(b.identity.issued))
    assert ("grpc.enable_http_proxy", 0) in options
    _, options = credentials.dialling_credentials(a.identity, b.card())
    assert "grpc.enable_http_proxy" not in dict(options)

    with socket.create_server(("127.0.0.1", 0), backlog=0) as dead:
        full = [socket.socket() for _ in range(4)]
        for each in full:
            each.setblocking(False)
            each.connect_ex(dead.getsockname())

        async def addresses(*args: object, **more: object) -> list[object]:
            ports = dead.getsockname()[1], int(b.address.rpartition(":")[2])
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in ports]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", addresses)
        async with asyncio.timeout(5):
            assert await presented(b.card(address="twice.example:7443")) == b.identity.issued
        for each in full:
            each.close()


async def test_of_two_links_the_one_that_gives_way_leaves_no_certificate(
    certified: Members, root: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await pair(certified)
    monkeypatch.setattr(PeerState, "keeps_its_link", lambda *_: True)
    renewed, shown = root.issue(a.identity, days=(-1, 30)), load_chain(b.identity.issued)
    async with dialled_stream(renewed, b.card(), shown) as stream:
        second = Link(b.card(), stream, dialled=True, depth=1)
        await second.shake_hands("a", b"instance", SETTINGS)
        with pytest.raises(LinkClosed):
            await second.run(a.node)
    assert linked(a, b)
    assert b.state(a).chain == load_chain(a.identity.issued)


async def test_a_stolen_key_gains_nothing_by_announcing_what_is_public(
    certified: Members, root: Authority, tmp_path: Path
) -> None:
    """The certificate that was shown is revoked; the newer one of its owner is not."""
    a, b = await pair(certified, a_dials=False)
    link, shown, newer = b.link(a), b.state(a).chain, root.issue(a.identity, days=(-1, 30))
    running(a).show(newer)
    await until(lambda: b.state(a).chain == load_chain(newer.issued), "b knows it")
    watched = watch(b, root.file(tmp_path / "ca.pem"))
    watched.read_authorities()
    assert b.link(a) is link
    root.file(tmp_path / "ca.pem", root.revoked(shown))
    watched.read_authorities()
    await until(lambda: b.link(a) is not link, "the link's end")
    running(b).show(b.identity)  # dials at once
    await until(lambda: linked(a, b), "a link by the newer one")


async def test_who_did_not_answer_the_look_is_trusted_for_nothing(certified: Members) -> None:
    """Not for what is on its card, either."""
    a, b = certified("a"), certified("b")
    b.identity = replace(b.identity, issued=b"")
    await b.start(a.card(dialled=False))
    async with dialled_stream(a.identity, b.card(), ()) as stream:
        with pytest.raises(WrongCertificate):
            await stream.read()


@pytest.mark.parametrize("certified_dials", [True, False])
async def test_without_a_ca_file_the_card_counts_as_ever(
    certified: Members, member: Members, certified_dials: bool
) -> None:
    """b knows no authority, and takes nothing but what is on the card."""
    a, b = certified("a"), member("b")
    await b.start(a.card(dialled=not certified_dials))
    await a.start(b.card(dialled=certified_dials))
    await until(lambda: a.state(b).last_error or b.state(a).last_error, "an error")
    assert not linked(a, b)
    await a.close()
    await b.close()
    a.identity, a.authorities = replace(a.identity, issued=b""), None
    await b.start(a.card(dialled=not certified_dials))
    await a.start(b.card(dialled=certified_dials))
    await until(lambda: linked(a, b), "a link as ever")


# As time goes by


@pytest.mark.parametrize("a_dials", [True, False])
async def test_a_renewed_certificate_costs_no_link(
    certified: Members, root: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, a_dials: bool
) -> None:
    a, b = await pair(certified, a_dials)
    link, card = b.link(a), a.card(dialled=not a_dials)
    a.identity = root.issue(a.identity, days=(-1, 6.9))
    running(a).show(a.identity)
    await until(lambda: running(a).introductions.known_by(a.state(b)), "b knows it")
    renewed = root.issue(a.identity, days=(-1, 14))
    running(a).show(renewed)
    await until(lambda: running(a).introductions.known_by(a.state(b)), "b knows the next one")
    assert b.state(a).chain == load_chain(renewed.issued)
    root.file(tmp_path / "ca.pem")
    at(monkeypatch, time.time() + 6.95 * DAY)  # the first has expired; the authority has not
    watch(b, tmp_path / "ca.pem").look(time.time())
    running(a).publish(snapshot(3))
    await until(lambda: b.node.snapshots, "a snapshot on the same link")
    assert b.link(a) is link
    assert (a.node.events, b.node.events) == ([("up", "b")], [("up", "a")])
    monkeypatch.undo()

    await b.close()
    await b.start(card)
    await until(lambda: linked(a, b), "a link with the card of old")


@pytest.mark.parametrize("a_dials", [True, False])
async def test_who_does_not_renew_is_let_in_no_more(
    certified: Members, root: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, a_dials: bool
) -> None:
    a, b = await pair(certified, a_dials)
    running(a).show(root.issue(a.identity, days=(-1, 6)))
    await until(lambda: running(a).introductions.known_by(a.state(b)), "b knows it")
    file = root.file(tmp_path / "ca.pem")
    watch(b, file).look(time.time())
    assert linked(a, b)
    at(monkeypatch, time.time() + 6.1 * DAY)
    reasons = noted(monkeypatch, a)
    with capture_logs() as logs:
        watch(b, file).look(time.time())
        await until(lambda: not b.link(a) and not a.link(b), "the link's end")
    (ended,) = [entry for entry in logs if entry["event"] == "a link is ended, for its peer is let in no more"]
    assert ended["reason"].startswith("expired: the certificate has expired on ")
    assert reasons[0] == f"b said good-bye: {OUTDATED}"


@pytest.mark.parametrize("a_dials", [True, False])
async def test_a_revoked_one(certified: Members, root: Authority, tmp_path: Path, a_dials: bool) -> None:
    """Its link ends, and it gets no other until it has another certificate."""
    a, b = await pair(certified, a_dials)
    file = root.file(tmp_path / "ca.pem", root.revoked(b.state(a).chain))
    with capture_logs() as logs:
        watch(b, file).read_authorities()
        if a_dials:
            await until(
                lambda: [e for e in logs if e["event"] == "refused a caller that is no configured peer"], "a call"
            )
            await until(
                lambda: (
                    a.state(b).last_error == "b knows this node's key, and does not take the certificate for it; "
                    "run `conlora cert install`, or ask its operator why"
                ),
                "what a hears",
            )
        else:
            await until(lambda: b.state(a).word == "refused", "refused")
            assert b.state(a).last_error == (
                "a is refused, for the certificate was revoked by an authority in ca_file; ask its operator why"
            )
    reason = "revoked: the certificate was revoked by an authority in ca_file"
    assert reason in [entry.get("reason") for entry in logs]
    assert not linked(a, b)
    running(a).show(root.issue(a.identity))
    running(b).show(b.identity)  # dials at once
    await until(lambda: linked(a, b), "a link with another one")


async def test_a_key_that_follows_is_certified_too(
    certified: Members, root: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`conlora cert rotate`: announced as ever, and shown with what was issued for the next key."""
    a, b = await pair(certified)
    first, card = a.identity, a.card(dialled=False)
    following = root.issue(successor(first, time.time() + DAY))
    running(a).show(replace(first, next=following))
    await until(lambda: running(a).introductions.known_by(a.state(b)), "b knows it")
    known = b.state(a).peer
    assert known.successors == (following.certificate,)
    for identity in (following, first):  # both are accepted in the overlap
        await a.close()
        a.identity = identity
        await a.start(b.card())
        await until(lambda: linked(a, b), "a link")
    await a.close()
    late = replace(known, successors=(successor(first, time.time() - LAG_SECONDS - 1).certificate,))
    b.state(a).peer = late
    with capture_logs() as logs:
        await a.start(b.card())
        await until(lambda: a.state(b).last_error, "an error")
    assert "replaced: the certificate is for a key that was replaced by a newer one" in [e.get("reason") for e in logs]
    assert card.certificate == known.certificate
