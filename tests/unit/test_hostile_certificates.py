"""Certificates that no node makes: whoever is a stranger, or means ill, gets a refusal, and nobody else is the worse for it."""

import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from tests.certificates import named_like, odd, pem_of, resigned, successor

from conlora.core.conduct import Conduct
from conlora.errors import CertificateRejected
from conlora.net.certificates import node_id_of, self_signed
from conlora.net.identity import Identity, Peer, create_identity, private_bytes
from conlora.net.introductions import Introductions
from conlora.net.wire import Frame


def refused(peer: Peer, certificate: bytes) -> str:
    with pytest.raises(CertificateRejected) as caught:
        peer.succeeded(certificate, time.time())
    return str(caught.value)


KINDS = (
    "a version that there is not",
    "an extension twice",
    "a name of a kind that nobody uses",
    "names that are none",
    "a key of no kind",
    "no time",
)


@pytest.mark.parametrize("kind", KINDS)
def test_an_odd_certificate_is_refused_like_any_other(card: Peer, mercy: Identity, kind: str) -> None:
    """Not all of what cryptography raises for them is a ValueError. Whoever answers at a peer's address can show one."""
    assert refused(card, odd(mercy)[kind]).startswith("format: ")

    class Other:
        peer, kept, conduct = card, b"", Conduct()

    with capture_logs() as logs:
        assert Introductions(mercy, lambda peer: None).heard(Other(), Frame(next_certificate=odd(mercy)[kind])) is None
    assert logs[-1]["event"] == "refused a certificate that a peer has announced"
    assert Other.conduct.refused == {"certificate": 1}


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


ANNA, BERTA = (Identity(private_bytes(key), pem_of(self_signed(key)), "") for key in (_new_key(), _new_key()))


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=40), st.lists(st.tuples(st.integers(0, 299), st.integers(1, 255)), max_size=3), st.booleans())
def test_nothing_that_a_stranger_shows_raises_anything_else(
    junk: bytes, flips: list[tuple[int, int]], whole: bool
) -> None:
    tbs = bytearray(x509.load_pem_x509_certificate(ANNA.certificate).tbs_certificate_bytes)
    for position, change in flips:
        tbs[position] ^= change
    peer = Peer("berta", node_id_of(x509.load_pem_x509_certificate(BERTA.certificate)), None, BERTA.certificate)
    for shown in (resigned(ANNA, bytes(tbs) if whole else bytes(tbs)[:260] + junk), junk):
        with pytest.raises(CertificateRejected):
            peer.succeeded(shown, time.time())


def test_a_certificate_with_anothers_subject_is_refused(card: Peer, mercy: Identity, tmp_path: Path) -> None:
    """TLS would take it for the other's, and refuse the other."""
    anna, second = create_identity(tmp_path / "anna"), successor(mercy)
    for other in (anna, successor(anna), mercy):
        assert refused(card, named_like(second, other).certificate) == "format: the certificate is for another name"


def test_a_certificate_holds_nothing_that_is_not_needed(card: Peer, mercy: Identity) -> None:
    second = successor(mercy)
    old, key = x509.load_pem_x509_certificate(second.certificate), serialization.load_pem_private_key(second.key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    start, end = old.not_valid_before_utc, old.not_valid_after_utc
    builder = x509.CertificateBuilder(old.issuer, old.subject, key.public_key(), 1, start, end)
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    assert card.succeeded(pem_of(builder.sign(key, hashes.SHA256())), time.time()) != card
    more = builder.add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier("2.25.1"), b"x"), critical=True)
    assert refused(card, pem_of(more.sign(key, hashes.SHA256()))) == (
        "format: the certificate holds other extensions than those of a node's"
    )
