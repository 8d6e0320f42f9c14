"""Certificates for tests: with other dates than now, and of the key that follows; the clock, and what lies in a directory."""

import datetime
import time
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from conlora.net.certificates import LINEAGE, Handover, lineage_of, node_id_of, public_bytes, self_signed
from conlora.net.identity import Identity, private_bytes


def shifted(
    identity: Identity, start: float, end: float, name: str | None = None, lineage: bytes | None = None
) -> Identity:
    """The same key, with a certificate that is valid between two days from now.

    name: another DNS name than its own. lineage: what a first key's certificate claims of its past.
    """
    old = x509.load_pem_x509_certificate(identity.certificate)
    now = datetime.datetime.now(datetime.UTC)
    days = (now + datetime.timedelta(days=day) for day in (start, end))
    key = old.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    builder = x509.CertificateBuilder(old.issuer, old.subject, key, x509.random_serial_number(), *days)
    for extension in old.extensions:
        named = name is not None and isinstance(extension.value, x509.SubjectAlternativeName)
        value = x509.SubjectAlternativeName([x509.DNSName(name)]) if named else extension.value
        builder = builder.add_extension(value, extension.critical)
    if lineage is not None:
        builder = builder.add_extension(x509.UnrecognizedExtension(LINEAGE, lineage), critical=False)
    return replace(identity, certificate=pem_of(builder.sign(key_of(identity), hashes.SHA256())))


def successor(identity: Identity, until: float | None = None) -> Identity:
    """The next key, which the identity's vouches for. until: when it takes over; long ago."""
    following = ec.generate_private_key(ec.SECP256R1())
    moment = int(time.time() - 1e6 if until is None else until)
    handover = Handover.sign(key_of(identity), public_bytes(following.public_key()), moment)
    certificate = self_signed(following, identity.lineage + handover.to_bytes())
    return Identity(private_bytes(following), pem_of(certificate), node_id_of(certificate), lineage_of(certificate))


def at(monkeypatch: pytest.MonkeyPatch, moment: float) -> None:
    """The clock stands there."""
    monkeypatch.setattr(time, "time", lambda: moment)


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def pem_of(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_of(identity: Identity) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(identity.key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key
