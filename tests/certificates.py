"""Certificates for tests: with other dates than now, and of the key that follows; the clock, and what lies in a directory."""

import datetime
import ssl
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


def named_like(identity: Identity, other: Identity) -> Identity:
    """The same key, with a certificate that has another's subject. TLS finds trusted certificates by it."""
    old, name = (x509.load_pem_x509_certificate(each.certificate) for each in (identity, other))
    start, end, key = old.not_valid_before_utc, old.not_valid_after_utc, key_of(identity)
    builder = x509.CertificateBuilder(
        name.subject, name.subject, key.public_key(), x509.random_serial_number(), start, end
    )
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    return replace(identity, certificate=pem_of(builder.sign(key, hashes.SHA256())))


def odd(identity: Identity) -> dict[str, bytes]:
    """Certificates (PEM) with what cryptography stumbles over, each signed by the identity's key, by what is odd about them."""
    old = x509.load_pem_x509_certificate(identity.certificate)

    def with_names(names: bytes) -> bytes:
        """names: of the subjectAltName, DER."""
        key, start, end = key_of(identity), old.not_valid_before_utc, old.not_valid_after_utc
        builder = x509.CertificateBuilder(
            old.issuer, old.subject, key.public_key(), x509.random_serial_number(), start, end
        )
        extension = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.17"), names)
        return builder.add_extension(extension, critical=False).sign(key, hashes.SHA256()).tbs_certificate_bytes

    plain = old.tbs_certificate_bytes
    alternative_name, constraints = bytes.fromhex("0603551d11"), bytes.fromhex("0603551d13")
    crafted = {
        "a version that there is not": plain.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020105")),
        "an extension twice": plain.replace(constraints, alternative_name),
        "a name of a kind that nobody uses": with_names(bytes.fromhex("3004a3023000")),
        "names that are none": with_names(b"hello"),
        "a key of no kind": plain.replace(bytes.fromhex("2a8648ce3d0201"), bytes.fromhex("2a8648ce3d0209")),
        "no time": plain.replace(b"0000Z", b"9999Z").replace(b"Z", b"X"),
    }
    return {what: resigned(identity, tbs) for what, tbs in crafted.items()}


def resigned(identity: Identity, tbs: bytes) -> bytes:
    """A certificate (PEM) of any content that the identity's key has signed. tbs: what is signed, DER, at least 256 bytes."""
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")
    signature = key_of(identity).sign(tbs, ec.ECDSA(hashes.SHA256()))
    body = tbs + algorithm + bytes([0x03, len(signature) + 1, 0]) + signature
    return ssl.DER_cert_to_PEM_cert(b"\x30\x82" + len(body).to_bytes(2) + body).encode()


def pem_of(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_of(identity: Identity) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(identity.key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key
