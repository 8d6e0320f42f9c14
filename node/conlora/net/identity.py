"""A node's identity: its key and self-signed certificate, its node id, and the card that partners add it with."""

import base64
import datetime
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import NameOID
from pydantic import Field

from conlora.config import Address, Section, load_section
from conlora.errors import CardError, ConfigError

VALID_DAYS = 10 * 365
KEY_FILE, CERTIFICATE_FILE = "node.key", "node.crt"


def node_id_of(certificate: x509.Certificate) -> str:
    """SHA-256 of the certificate's public key, in base32 groups of seven: long enough to pin, short enough to read out."""
    return key_id(certificate.public_key())


def key_id(key: CertificatePublicKeyTypes) -> str:
    """The node id of a public key."""
    public = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    text = base64.b32encode(hashlib.sha256(public).digest()).decode().rstrip("=")
    return "-".join(text[i : i + 7] for i in range(0, len(text), 7))


def tls_name(node_id: str) -> str:
    """The name in a node's certificate, derived from its id; TLS compares it when the node is dialled."""
    return node_id.replace("-", "").lower()


@dataclass(frozen=True)
class Identity:
    """This node's own key and certificate, PEM."""

    key: bytes
    certificate: bytes
    node_id: str

    def card(self, name: str, address: str | None) -> str:
        """What a partner needs to add this node: a block of YAML text to be mailed."""
        body = {"name": name, "id": self.node_id}
        if address:
            body["address"] = address
        return (
            f"# ConLoRA identity card of {name}. Compare the id by telephone before you add it.\n"
            + yaml.safe_dump(body, sort_keys=False)
            + "certificate: |\n"
            + "".join(f"  {line}\n" for line in self.certificate.decode().splitlines())
        )


class PeerCard(Section):
    """A partner's card, as mailed."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    id: str
    address: Address | None = Field(None, description="where to dial it; none: it dials us")
    certificate: str


@dataclass(frozen=True)
class Peer:
    """A configured peer whose card was checked."""

    name: str
    node_id: str
    address: str | None
    certificate: bytes


def create_identity(directory: Path) -> Identity:
    """Makes a P-256 key (mode 0600) and its self-signed certificate. Raises ConfigError where one exists already."""
    key_path, certificate_path = directory / KEY_FILE, directory / CERTIFICATE_FILE
    if key_path.exists() or certificate_path.exists():
        raise ConfigError(f"{directory}: holds an identity already; peers know this node by it, so it is not replaced")
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    certificate = _self_signed(key)
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(key_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
        certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    except OSError as error:
        raise ConfigError(
            f"{directory}: the identity can't be written ({error}); choose a writable directory"
        ) from error
    return load_identity(directory)


def _self_signed(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    label = tls_name(key_id(key.public_key()))
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, label)])
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # partners' clocks may lag
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(label)]), critical=False)
        # Not a CA. TLS alone would still admit what this key signs; `caller_id` looks at the very key.
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )


def load_identity(directory: Path) -> Identity:
    """Reads this node's identity. Raises ConfigError where it is missing, unreadable by us, readable by others, or torn."""
    key_path, certificate_path = directory / KEY_FILE, directory / CERTIFICATE_FILE
    try:
        key_pem, certificate_pem = key_path.read_bytes(), certificate_path.read_bytes()
        mode = key_path.stat().st_mode & 0o077
        key = serialization.load_pem_private_key(key_pem, None)
        certificate = x509.load_pem_x509_certificate(certificate_pem)
    except OSError as error:
        raise ConfigError(f"{directory}: no readable identity ({error}); `conlora init DIR` makes one") from error
    except ValueError as error:
        raise ConfigError(f"{directory}: the identity is damaged ({error}); restore it from a backup") from error
    if mode:
        raise ConfigError(f"{key_path}: other users may read this private key; run chmod 600 {key_path}")
    if key.public_key() != certificate.public_key():
        raise ConfigError(
            f"{directory}: {KEY_FILE} and {CERTIFICATE_FILE} don't belong together; restore them from a backup"
        )
    return Identity(key_pem, certificate_pem, node_id_of(certificate))


def load_card(path: Path) -> Peer:
    """Reads and checks one identity card. Raises CardError where certificate and id don't belong together."""
    card = load_section(path, PeerCard, remedy="give the file that the partner has mailed")
    try:
        certificate = x509.load_pem_x509_certificate(card.certificate.encode())
    except ValueError as error:
        raise CardError(
            f"{path}: certificate: not a PEM certificate ({error}); ask {card.name} to mail the card again"
        ) from error
    actual = node_id_of(certificate)
    if actual != card.id:
        raise CardError(
            f"{path}: id: {card.id} is not the id of this certificate ({actual}); the card was changed on its way, "
            f"ask {card.name} by telephone"
        )
    return Peer(card.name, card.id, card.address, certificate.public_bytes(serialization.Encoding.PEM))


def load_peers(directory: Path, own_id: str) -> list[Peer]:
    """All peers whose cards (`*.yaml`) lie in the directory; an absent directory means none.

    Raises ConfigError for a damaged card, this node's own card, or two cards of one node or one name.
    """
    peers: dict[str, Peer] = {}
    for path in sorted(directory.glob("*.yaml")):
        peer = load_card(path)
        if peer.node_id == own_id:
            raise ConfigError(f"{path}: is this node's own card; a node is no peer of itself, remove the file")
        for other in peers.values():
            if other.node_id == peer.node_id or other.name == peer.name:
                raise ConfigError(f"{path}: {peer.name} has a second card with the same name or id; remove one of them")
        peers[peer.node_id] = peer
    return list(peers.values())
