"""Certificates of nodes: making them, whose they are, when they are valid, and how a key hands over to the next.

A node's id is that of its first key. Each later key comes with a handover for every key before it: that key, the moment until
which it is in use, and its signature over both the next key and the moment. The handovers are an extension of the certificate,
so that a certificate alone says whose it is.
"""

import base64
import contextlib
import datetime
import functools
import hashlib
from collections.abc import Iterator
from typing import NamedTuple, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.x509.oid import NameOID

from conlora.errors import CertificateRejected
from conlora.net.expiry import day, warns_from

VALID_DAYS = 10 * 365
LAG_SECONDS = 3600.0  # by which partners' clocks may differ
MOST_HANDOVERS = 32
LINEAGE = x509.ObjectIdentifier("2.25.187284659140663041")  # of our own, from a random number
PURPOSE = b"conlora handover\0"  # what is signed here can't be passed off as anything else that the key may sign
_KEY_BYTES, _MOMENT_BYTES, _HALF_BYTES = 91, 8, 32  # a P-256 key in DER; half of its signature
HANDOVER_BYTES = _KEY_BYTES + _MOMENT_BYTES + 2 * _HALF_BYTES
_ALGORITHM = ec.ECDSA(hashes.SHA256())


class Handover(NamedTuple):
    """One key vouches for the next."""

    key: bytes  # the one that vouches, DER
    until: int  # seconds since the epoch: from then on only the next one counts
    signature: bytes  # r and s

    @classmethod
    def sign(cls, key: ec.EllipticCurvePrivateKey, successor: bytes, until: int) -> Self:
        """successor: public key, DER."""
        r, s = decode_dss_signature(key.sign(_signed(successor, until), _ALGORITHM))
        return cls(public_bytes(key.public_key()), until, r.to_bytes(_HALF_BYTES) + s.to_bytes(_HALF_BYTES))

    def to_bytes(self) -> bytes:
        """`HANDOVER_BYTES` bytes."""
        return self.key + self.until.to_bytes(_MOMENT_BYTES) + self.signature

    def check(self, successor: bytes) -> None:
        """Raises ValueError where the key did not sign this."""
        r, s = (int.from_bytes(self.signature[i : i + _HALF_BYTES]) for i in (0, _HALF_BYTES))
        try:
            _public_key(self.key).verify(encode_dss_signature(r, s), _signed(successor, self.until), _ALGORITHM)
        except InvalidSignature:
            raise ValueError("a key in its lineage is not vouched for by the one before it") from None


def _signed(successor: bytes, until: int) -> bytes:
    return PURPOSE + until.to_bytes(_MOMENT_BYTES) + successor


def _public_key(data: bytes) -> ec.EllipticCurvePublicKey:
    try:
        key = serialization.load_der_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("a key in its lineage can't be read") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("a key in its lineage is not a P-256 key")
    return key


def handovers(lineage: bytes) -> list[Handover]:
    """The first key's first. Raises ValueError where these are none. Their signatures are not looked at."""
    if len(lineage) % HANDOVER_BYTES or len(lineage) > MOST_HANDOVERS * HANDOVER_BYTES:
        raise ValueError("its lineage is malformed")
    parts = (lineage[i : i + HANDOVER_BYTES] for i in range(0, len(lineage), HANDOVER_BYTES))
    split = _KEY_BYTES + _MOMENT_BYTES
    return [Handover(part[:_KEY_BYTES], int.from_bytes(part[_KEY_BYTES:split]), part[split:]) for part in parts]


@functools.lru_cache(maxsize=1024)  # the same few come with every sketch
def founder(lineage: bytes, key: bytes) -> str:
    """The node id behind a public key (DER): that of the first key of its lineage. Raises ValueError for a forged lineage."""
    steps = handovers(lineage)
    keys = [*(step.key for step in steps), key]
    for step, successor in zip(steps, keys[1:], strict=True):
        step.check(successor)
    text = base64.b32encode(hashlib.sha256(keys[0]).digest()).decode().rstrip("=")
    return "-".join(text[i : i + 7] for i in range(0, len(text), 7))


def public_bytes(key: object) -> bytes:
    """A public key as it is hashed, compared and sent: DER, SubjectPublicKeyInfo."""
    data: bytes = key.public_bytes(  # type: ignore[attr-defined]  # of whatever kind
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return data


def lineage_of(certificate: x509.Certificate) -> bytes:
    """Its handovers, or nothing for a first key. Raises ValueError for extensions that can't be read."""
    try:
        extension = certificate.extensions.get_extension_for_oid(LINEAGE).value
    except x509.ExtensionNotFound:
        return b""
    assert isinstance(extension, x509.UnrecognizedExtension)
    return extension.value


def node_id_of(certificate: x509.Certificate) -> str:
    """SHA-256 of the first key, in base32 groups of seven: long enough to pin, short enough to read out.

    Raises ValueError where the certificate claims a lineage that is none.
    """
    return founder(lineage_of(certificate), public_bytes(certificate.public_key()))


def takes_over_at(certificate: x509.Certificate) -> float:
    """When the key before it goes out of use, seconds since the epoch; 0 for a first key."""
    steps = handovers(lineage_of(certificate))
    return float(steps[-1].until) if steps else 0.0


def in_use_until(certificate: x509.Certificate, later: x509.Certificate) -> float:
    """When its key goes out of use, seconds since the epoch, as the certificate says that follows it, perhaps not at once."""
    return float(handovers(lineage_of(later))[len(handovers(lineage_of(certificate)))].until)


def follows(certificate: x509.Certificate, older: x509.Certificate) -> bool:
    """Whether the older one's key, or one that this has handed over to, vouches for the certificate's key."""
    known, steps = handovers(lineage_of(older)), handovers(lineage_of(certificate))
    return (
        steps[: len(known)] == known
        and len(steps) > len(known)
        and steps[len(known)].key == public_bytes(older.public_key())
    )


def tls_name(node_id: str) -> str:
    """The name in a node's certificates, derived from its id; TLS compares it when the node is dialled."""
    return node_id.replace("-", "").lower()


def self_signed(key: ec.EllipticCurvePrivateKey, lineage: bytes = b"") -> x509.Certificate:
    """A certificate for ten years. lineage: the handovers that lead to this key."""
    node_id = founder(lineage, public_bytes(key.public_key()))
    name = subject_of(node_id, lineage)
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(seconds=LAG_SECONDS))
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
    )
    for extension in _extensions(node_id, lineage):
        builder = builder.add_extension(extension.value, extension.critical)
    return builder.sign(key, hashes.SHA256())


def subject_of(node_id: str, lineage: bytes) -> x509.Name:
    """TLS looks trusted certificates up by their subject: no two keys, of one node or of two, have the same."""
    names = [x509.NameAttribute(NameOID.COMMON_NAME, tls_name(node_id))]
    if lineage:
        names.append(x509.NameAttribute(NameOID.SERIAL_NUMBER, str(1 + len(handovers(lineage)))))
    return x509.Name(names)


def _extensions(node_id: str, lineage: bytes) -> list[x509.Extension[x509.ExtensionType]]:
    # Not a CA. TLS alone would still admit what this key signs; who has called is decided by the very certificate.
    values: dict[x509.ExtensionType, bool] = {
        x509.SubjectAlternativeName([x509.DNSName(tls_name(node_id))]): False,
        x509.BasicConstraints(ca=False, path_length=None): True,
    }
    if lineage:
        values[x509.UnrecognizedExtension(LINEAGE, lineage)] = False
    return [x509.Extension(value.oid, critical, value) for value, critical in values.items()]


def expires(certificate: bytes) -> float:
    """The end of a PEM certificate's validity, seconds since the epoch."""
    return x509.load_pem_x509_certificate(certificate).not_valid_after_utc.timestamp()


def warns(certificate: bytes) -> float:
    """From when on operators are warned of the end of a PEM certificate, seconds since the epoch."""
    return warns_from(
        x509.load_pem_x509_certificate(certificate).not_valid_before_utc.timestamp(), expires(certificate)
    )


def check_validity(certificate: x509.Certificate, now: float) -> None:
    """Raises CertificateRejected with reason `expired` or `not-yet-valid`. now: seconds since the epoch."""
    moment = datetime.datetime.fromtimestamp(now, datetime.UTC)
    if moment > (end := certificate.not_valid_after_utc):
        raise CertificateRejected("expired", f"the certificate has expired on {day(end.timestamp())}")
    if moment < (start := certificate.not_valid_before_utc):
        raise CertificateRejected("not-yet-valid", f"the certificate is not valid before {day(start.timestamp())}")


@contextlib.contextmanager
def of_a_stranger() -> Iterator[None]:
    """`with of_a_stranger(): ...`: whatever a certificate can make cryptography raise is CertificateRejected, reason `format`.

    What it raises has no base but Exception: ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, and x509's own
    InvalidVersion, DuplicateExtension, ExtensionNotFound and UnsupportedGeneralNameType.
    """
    try:
        yield
    except (CertificateRejected, OSError):
        raise
    except InvalidSignature:
        raise CertificateRejected("format", "the certificate is malformed (it is not signed by its own key)") from None
    except Exception as error:
        why = str(error) or type(error).__name__
        raise CertificateRejected("format", f"the certificate is malformed ({why})") from None


def load_certificate(pem: bytes) -> x509.Certificate:
    """Raises CertificateRejected with reason `format`. What it holds is looked at later: go on in `of_a_stranger`."""
    with of_a_stranger():
        try:
            return x509.load_pem_x509_certificate(pem)
        except ValueError:
            raise CertificateRejected("format", "no PEM certificate") from None


def check_soundness(certificate: x509.Certificate, node_id: str) -> None:
    """Raises CertificateRejected where it is not what `self_signed` makes for this node, at whatever time.

    TLS keeps the certificates of all peers in one place. Nothing in one of them may get in the way of another peer's.
    """
    with of_a_stranger():
        certificate.verify_directly_issued_by(certificate)
        if (found := node_id_of(certificate)) != node_id:
            raise CertificateRejected("another-node", f"the certificate is that of node {found}")
        lineage = lineage_of(certificate)
        if not certificate.subject == certificate.issuer == subject_of(node_id, lineage):
            raise CertificateRejected("format", "the certificate is for another name")
        if list(certificate.extensions) != _extensions(node_id, lineage):
            raise CertificateRejected("format", "the certificate holds other extensions than those of a node's")
