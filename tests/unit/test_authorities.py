"""Which certificates of an authority let a peer in, and for what reason others do not."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, x25519
from tests.authorities import BOTH, DAYS, NOT_CA, Authority, Extensions, for_node
from tests.certificates import pem_of, successor

from conlora.errors import CertificateRejected, ConfigError
from conlora.net.authorities import Authorities, Chain, load_authorities, load_chain
from conlora.net.certificates import LAG_SECONDS, self_signed, tls_name
from conlora.net.credentials import caller
from conlora.net.identity import Identity, Peer, create_identity, private_bytes

NO_ISSUER = (
    "issuer: the certificate is not one that an authority in ca_file has issued for this node (its issuer is not there)"
)


@pytest.fixture
def root() -> Authority:
    return Authority()


@pytest.fixture
def known(root: Authority, tmp_path: Path) -> Authorities:
    return root.alone(tmp_path)


def shown(identity: Identity) -> Chain:
    return load_chain(identity.shown)


def verdict(known: Authorities, identity: Identity, card: Peer, now: float | None = None) -> str:
    """Why it is refused; nothing where it is admitted."""
    try:
        known.admit(shown(identity), card, time.time() if now is None else now)
    except CertificateRejected as error:
        return str(error)
    return ""


def why(found: str) -> str:
    """The brackets at the end of a refusal for its issuer."""
    assert found.startswith(
        "issuer: the certificate is not one that an authority in ca_file has issued for this node ("
    )
    return found.partition("(")[2].removesuffix(")")


def test_what_the_authority_has_issued_for_the_key_on_the_card(
    known: Authorities, root: Authority, mercy: Identity, card: Peer
) -> None:
    assert verdict(known, root.issue(mercy), card) == ""
    assert verdict(known, root.issue(mercy, extensions=for_node(mercy)[:1]), card) == "", "as terse as can be"


def test_a_renewed_one_needs_no_new_card(known: Authorities, root: Authority, mercy: Identity, card: Peer) -> None:
    first, second = root.issue(mercy, days=(-7, 1)), root.issue(mercy, days=(-1, 7))
    later = time.time() + 2 * 86400
    assert verdict(known, first, card) == verdict(known, second, card, later) == ""
    assert verdict(known, first, card, later).startswith("expired: the certificate has expired on ")


def test_the_card_alone_does_not_do(known: Authorities, mercy: Identity, card: Peer) -> None:
    assert verdict(known, mercy, card) == NO_ISSUER


def test_one_for_another_key_of_the_same_name(known: Authorities, root: Authority, mercy: Identity, card: Peer) -> None:
    """Whoever runs the authority can't pose as a node."""
    key = ec.generate_private_key(ec.SECP256R1())
    thief = Identity(private_bytes(key), pem_of(self_signed(key)), mercy.node_id)
    subject = x509.load_pem_x509_certificate(mercy.certificate).subject
    issued = pem_of(root.sign(subject, key.public_key(), DAYS, for_node(mercy)))
    known.check(load_chain(issued), mercy.node_id, time.time())
    assert verdict(known, replace(thief, issued=issued), card) == (
        "another-node: the certificate is not for the key on the card of mercy"
    )


def test_another_organisation_of_the_same_authority(
    known: Authorities, root: Authority, card: Peer, tmp_path: Path
) -> None:
    anna = root.issue(create_identity(tmp_path / "anna"))
    assert verdict(known, anna, card).startswith("another-node: ")
    context = {"ssl_tls_version": [b"TLSv1.3"], "x509_pem_cert": [anna.issued]}
    with pytest.raises(CertificateRejected, match=f"stranger: {anna.node_id} is no configured peer"):
        caller(context, [card], known)
    peer = Peer("anna", anna.node_id, None, anna.certificate)
    assert caller(context, [card, peer], known) == (peer, shown(anna))


def test_a_caller_that_is_not_certified(known: Authorities, mercy: Identity, card: Peer) -> None:
    context = {"ssl_tls_version": [b"TLSv1.3"], "x509_pem_cert": [mercy.certificate]}
    assert caller(context, [card])[0] == card
    with pytest.raises(CertificateRejected, match="has issued for this node"):
        caller(context, [card], known)


@pytest.mark.parametrize(
    ("days", "reason"),
    [
        ((-9, -1), "expired: the certificate has expired on "),
        ((1, 9), "not-yet-valid: the certificate is not valid before "),
    ],
    ids=["expired", "not yet valid"],
)
def test_when_it_is_valid(
    known: Authorities, root: Authority, mercy: Identity, card: Peer, days: tuple[float, float], reason: str
) -> None:
    assert verdict(known, root.issue(mercy, days=days), card).startswith(reason)


def odd(identity: Identity) -> dict[str, Extensions]:
    names, not_ca, _ = for_node(identity)
    return {
        "no name": [not_ca],
        "another name": [(x509.SubjectAlternativeName([x509.DNSName("example.org")]), False), not_ca],
        "a name for all": [(x509.SubjectAlternativeName([x509.DNSName("*")]), False), not_ca],
        "may sign": [names, (x509.BasicConstraints(ca=True, path_length=None), True)],
        "for one end": [names, not_ca, (x509.ExtendedKeyUsage([next(iter(BOTH))]), False)],
        "for no handshake": [names, not_ca, (x509.KeyUsage(*[False] * 2, True, *[False] * 6), True)],
        "unknown and critical": [names, (x509.UnrecognizedExtension(x509.ObjectIdentifier("2.25.1"), b"x"), True)],
    }


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("no name", "missing required extension: leaf server certificate has no subjectAltName"),
        ("another name", "leaf certificate has no matching subjectAltName"),
        ("a name for all", ""),
        ("may sign", "it is the certificate of an authority"),
        ("for one end", "its extendedKeyUsage has to hold both serverAuth and clientAuth, or be left out"),
        ("for no handshake", "its keyUsage has to hold digitalSignature, or be left out"),
        ("unknown and critical", "certificate contains unaccounted-for critical extensions"),
    ],
)
def test_what_it_has_to_hold(
    known: Authorities, root: Authority, mercy: Identity, card: Peer, kind: str, reason: str
) -> None:
    assert reason in why(verdict(known, root.issue(mercy, extensions=odd(mercy)[kind]), card))


def test_an_authority_in_between_is_shown_or_in_the_file(
    known: Authorities, root: Authority, mercy: Identity, card: Peer, tmp_path: Path
) -> None:
    clinic = Authority("Clinic", root)
    assert verdict(known, clinic.issue(mercy, between=[clinic]), card) == ""
    assert verdict(known, clinic.issue(mercy), card) == NO_ISSUER
    assert verdict(root.alone(tmp_path, pem_of(clinic.certificate)), clinic.issue(mercy), card) == ""
    assert verdict(clinic.alone(tmp_path), clinic.issue(mercy), card) == "", "the file need not have the root"
    assert verdict(known, clinic.issue(mercy, between=[clinic] * 5), card) == (
        "issuer: the certificate comes with more than 4 others"
    )


def test_what_an_authority_in_between_may_do(known: Authorities, root: Authority, mercy: Identity, card: Peer) -> None:
    usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
    narrow = x509.NameConstraints([x509.DNSName("example.org")], None)
    for clinic, reason in (
        (Authority("Clinic", root, constraints=NOT_CA), "basicConstraints.cA must be asserted in a CA certificate"),
        (Authority("Clinic", root, more=[(usage, True)]), "the key of its issuer is not for signing certificates"),
        (Authority("Clinic", root, more=[(narrow, True)]), "no permitted name constraints matched SAN"),
        (
            Authority("Clinic", root, more=[(x509.ExtendedKeyUsage([next(iter(BOTH))]), False)]),
            "the extendedKeyUsage of its issuer has to hold both serverAuth and clientAuth, or be left out",
        ),
        (Authority("Clinic", root, days=(-9, -1)), "cert is not valid at validation time"),
        (Authority("Clinic", Authority()), "signature does not match"),
    ):
        assert why(verdict(known, clinic.issue(mercy, between=[clinic]), card)) == reason
    outer = Authority("Clinic", root, constraints=x509.BasicConstraints(ca=True, path_length=0))
    inner = Authority("Ward", outer)
    assert "path length constraint violated" in why(verdict(known, inner.issue(mercy, between=[inner, outer]), card))


def test_a_peer_can_not_issue(known: Authorities, root: Authority, mercy: Identity, card: Peer, tmp_path: Path) -> None:
    anna = root.issue(create_identity(tmp_path / "anna"))
    fake = Authority()
    fake.name, fake.certificate = shown(anna)[0].subject, shown(anna)[0]
    assert verdict(known, fake.issue(mercy, between=[fake]), card).startswith("issuer: ")


def test_an_authority_that_has_expired(mercy: Identity, card: Peer, tmp_path: Path) -> None:
    old = Authority(days=(-9, -1))
    assert why(verdict(old.alone(tmp_path), old.issue(mercy), card)) == "cert is not valid at validation time"


def test_an_authority_of_the_same_name(known: Authorities, mercy: Identity, card: Peer) -> None:
    assert why(verdict(known, Authority().issue(mercy), card)) == "signature does not match"


def test_a_node_without_an_authority_is_in_the_file_itself(
    root: Authority, mercy: Identity, card: Peer, tmp_path: Path
) -> None:
    """A partner that has none; it vouches for nobody else."""
    both = root.alone(tmp_path, mercy.certificate)
    assert verdict(both, mercy, card) == ""
    anna = create_identity(tmp_path / "anna")
    fake = Authority()
    fake.name = x509.load_pem_x509_certificate(mercy.certificate).subject
    assert verdict(both, fake.issue(anna), Peer("anna", anna.node_id, None, anna.certificate)).startswith("issuer: ")


def test_a_revoked_one(root: Authority, mercy: Identity, card: Peer, tmp_path: Path) -> None:
    first, second, clinic = root.issue(mercy), root.issue(mercy), Authority("Clinic", root)
    known = root.alone(tmp_path, root.revoked(shown(first)), root.revoked())
    assert verdict(known, first, card) == "revoked: the certificate was revoked by an authority in ca_file"
    assert verdict(known, second, card) == ""
    known = root.alone(tmp_path, root.revoked((clinic.certificate,)))
    assert verdict(known, clinic.issue(mercy, between=[clinic]), card).startswith("revoked: ")


def test_a_revoked_authority_that_is_in_the_file_itself(
    root: Authority, mercy: Identity, card: Peer, tmp_path: Path
) -> None:
    """The path ends there, and the root's list counts all the same."""
    clinic = Authority("Clinic", root)
    listed = root.alone(tmp_path, pem_of(clinic.certificate), root.revoked((clinic.certificate,)))
    assert verdict(listed, clinic.issue(mercy), card).startswith("revoked: ")


def test_an_authority_with_a_new_key_revokes_what_its_old_one_has_issued(
    root: Authority, mercy: Identity, card: Peer, tmp_path: Path
) -> None:
    issued, new = root.issue(mercy), Authority()
    known = root.alone(tmp_path, pem_of(new.certificate), new.revoked(shown(issued)))
    assert verdict(known, issued, card).startswith("revoked: ")
    assert verdict(known, root.issue(mercy), card) == ""


def test_an_indirect_list_revokes_for_those_whom_it_names(
    root: Authority, mercy: Identity, card: Peer, tmp_path: Path
) -> None:
    """Another authority may have issued the same number."""
    issued = root.issue(mercy)
    assert verdict(root.alone(tmp_path, root.revoked(shown(issued), of=Authority("Other"))), issued, card) == ""
    assert verdict(root.alone(tmp_path, root.revoked(shown(issued), of=root)), issued, card).startswith("revoked: ")


def test_a_link_lives_for_as_long_as_the_key_that_has_shaken_hands(
    root: Authority, mercy: Identity, card: Peer, tmp_path: Path
) -> None:
    """What is announced on it since is public: whoever has a key that was stolen can announce it, too."""
    now = time.time()
    second = successor(mercy, now + 60)
    peer = card.succeeded(second.certificate, now)
    old, new = shown(root.issue(mercy)), shown(root.issue(second))
    root.alone(tmp_path).admit_still(old, new, peer, now)
    with pytest.raises(CertificateRejected, match="replaced: "):
        root.alone(tmp_path).admit_still(old, new, peer, now + 61 + LAG_SECONDS)
    with pytest.raises(CertificateRejected, match="revoked: "):
        root.alone(tmp_path, root.revoked(old)).admit_still(old, new, peer, now)
    with pytest.raises(CertificateRejected, match="revoked: "):
        root.alone(tmp_path, root.revoked(new)).admit_still(old, new, peer, now)


def test_who_may_revoke(root: Authority, mercy: Identity, card: Peer, tmp_path: Path) -> None:
    """Another authority of the file may have issued the same number."""
    issued, other = root.issue(mercy), Authority("Other Trust")
    known = root.alone(tmp_path, pem_of(other.certificate), other.revoked(shown(issued)))
    assert verdict(known, issued, card) == ""
    with pytest.raises(
        ConfigError, match="holds a revocation list of CN=Other Trust, but not the certificate that has signed it"
    ):
        root.alone(tmp_path, other.revoked(shown(issued)))
    with pytest.raises(ConfigError, match="but not the certificate that has signed it; add that"):
        root.alone(tmp_path, Authority().revoked(shown(issued)))


def test_a_later_key(known: Authorities, root: Authority, mercy: Identity, card: Peer) -> None:
    """An authority knows nothing of handovers; the card, and what was announced, do."""
    now = time.time()
    second = successor(mercy, now + 60)
    assert verdict(known, root.issue(second), card).startswith("another-node: ")
    peer = card.succeeded(second.certificate, now)
    assert verdict(known, root.issue(second), peer) == verdict(known, root.issue(mercy), peer) == ""
    late = now + 61 + LAG_SECONDS
    assert verdict(known, root.issue(second), peer, late) == ""
    assert verdict(known, root.issue(mercy), peer, late) == (
        "replaced: the certificate is for a key that was replaced by a newer one"
    )


@pytest.mark.parametrize("content", [b"", b"hello", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_file_that_holds_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ca.pem").write_bytes(content)
    with pytest.raises(ConfigError, match=r"ca_file: .*can't be read .*it has to hold certificates of authorities"):
        load_authorities(tmp_path / "ca.pem")
    with pytest.raises(ConfigError, match="No such file"):
        load_authorities(tmp_path / "nowhere.pem")


def test_a_file_that_is_damaged_or_cut_off(root: Authority, mercy: Identity, tmp_path: Path) -> None:
    """What is left of it would let in whom the rest keeps out."""
    whole = pem_of(root.certificate) + root.revoked(shown(root.issue(mercy)))
    file = tmp_path / "ca.pem"
    for content in (
        whole[:-30],
        whole.replace(b"END X509", b"END X508"),
        whole + pem_of(root.certificate)[:-30],
        whole + pem_of(root.certificate)[30:],
        whole + private_bytes(root.key),
    ):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=r"and something else, or one that is damaged or cut off|can't be read"):
            load_authorities(file)
    file.write_bytes(b"Trust\n" + whole.replace(b"\n", b"\r\n"))
    load_authorities(file)


@pytest.mark.parametrize("error", [x509.InvalidVersion("4 is not a valid X509 version", 4), TypeError("odd")])
def test_a_certificate_of_which_cryptography_makes_something_else(
    root: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def odd(content: bytes) -> None:
        raise error

    monkeypatch.setattr(x509, "load_pem_x509_certificates", odd)
    with pytest.raises(ConfigError, match=r"ca_file: .*can't be read .*it has to hold certificates of authorities"):
        root.alone(tmp_path)


def test_a_key_that_signs_nothing_is_no_obstacle(root: Authority, mercy: Identity, card: Peer, tmp_path: Path) -> None:
    """In the file of a careless operator."""
    odd = root.sign(root.name, x25519.X25519PrivateKey.generate().public_key(), DAYS, [])  # type: ignore[arg-type]
    known = root.alone(tmp_path, pem_of(odd), root.revoked())
    assert verdict(known, root.issue(mercy), card) == ""


def test_names_of_nodes_are_those_that_tls_compares(mercy: Identity) -> None:
    (names, _), *_ = for_node(mercy)
    assert isinstance(names, x509.SubjectAlternativeName)
    assert names.get_values_for_type(x509.DNSName) == [tls_name(mercy.node_id)]
