"""A node's identity: its key and self-signed certificate, its node id, and the card that partners add it with."""

import os
import time
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import Field

from conlora.config import Address, Section, load_section
from conlora.errors import CardError, CertificateRejected, ConfigError
from conlora.files import give_to_owner
from conlora.net.certificates import (
    LAG_SECONDS,
    check_soundness,
    check_validity,
    follows,
    in_use_until,
    lineage_of,
    load_certificate,
    node_id_of,
    of_a_stranger,
    public_bytes,
    self_signed,
    takes_over_at,
)

KEY_FILE, CERTIFICATE_FILE = "node.key", "node.crt"
CREDENTIAL = "identity_"  # what systemd puts before the names of the files in `LoadCredential=identity:DIRECTORY`
NEXT_KEY_FILE, NEXT_CERTIFICATE_FILE = "next.key", "next.crt"  # while a rotation is under way; see net/rotation.py


@dataclass(frozen=True)
class Identity:
    """This node's own key and certificate, PEM; while a rotation is under way also the next ones."""

    key: bytes
    certificate: bytes
    node_id: str
    lineage: bytes = b""  # the handovers that lead to this key
    next: "Identity | None" = None
    issued: bytes = b""  # by an authority for this key, PEM, with authorities in between; see net/issued.py

    @property
    def shown(self) -> bytes:
        """What this node shows to peers, PEM: its own certificate first."""
        return self.issued or self.certificate

    @property
    def self_signed(self) -> "Identity":
        """Without what was issued: as cards have it, which operators go by."""
        return replace(self, issued=b"", next=self.next and self.next.self_signed)

    @property
    def takes_over_at(self) -> float:
        """From when on this key and certificate count, seconds since the epoch; 0 for a first key."""
        return takes_over_at(x509.load_pem_x509_certificate(self.certificate))

    def at(self, now: float) -> "Identity":
        """What this node shows at that moment, seconds since the epoch."""
        return self.next if self.next and now >= self.next.takes_over_at else self

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
    certificate: bytes  # the card's
    successors: tuple[bytes, ...] = ()  # the oldest first: what the peer has announced since; it may lack some of them

    @property
    def newest(self) -> bytes:
        """The certificate that the peer shows, or will show."""
        return self.successors[-1] if self.successors else self.certificate

    def on_card(self, card: "Peer") -> "Peer":
        """The peer of a card that was read again, of the same node, with all that it has announced to us."""
        newest, known = (x509.load_pem_x509_certificate(each.newest) for each in (card, self))
        if newest != known and not follows(known, newest):
            return card
        first = x509.load_pem_x509_certificate(card.certificate)
        return replace(card, successors=tuple(compress(self._pems, [follows(each, first) for each in self._chain])))

    def accepted(self, now: float) -> list[bytes]:
        """The certificates that the peer may show now: the newest, and older ones for as long as their keys are in use.

        An hour is allowed for clocks that differ.
        """
        if not self.successors:
            return [self.certificate]  # of most peers, and asked for each caller
        *older, newest = self._chain
        valid = [now < in_use_until(each, newest) + LAG_SECONDS for each in older]
        return list(compress(self._pems, [*valid, True]))

    def holds(self, key: bytes, now: float | None = None) -> bool:
        """Whether a public key (DER) is one that the peer may use now; without a moment, one that it has ever had."""
        pems = self._pems if now is None else self.accepted(now)
        return any(key == public_bytes(x509.load_pem_x509_certificate(pem).public_key()) for pem in pems)

    @property
    def _pems(self) -> tuple[bytes, ...]:
        return (self.certificate, *self.successors)

    @property
    def _chain(self) -> list[x509.Certificate]:
        return [x509.load_pem_x509_certificate(pem) for pem in self._pems]

    def succeeded(self, certificate: bytes, now: float) -> "Peer":
        """The same peer, which shows, or will show, this PEM certificate; itself where that is known.

        It may be older than one that is known: the peer shows it still, and we have missed it. Raises CertificateRejected with
        reason `format`, `another-node`, `expired`, `not-yet-valid`, `replaced` or `not-vouched`.
        """
        with of_a_stranger():
            new, chain = load_certificate(certificate), self._chain
            check_soundness(new, self.node_id)
            check_validity(new, now)
            older = [each for each in chain if follows(new, each)]
            newer = [each for each in chain if follows(each, new)]
            if newer and now >= in_use_until(new, newer[-1]) + LAG_SECONDS:
                raise CertificateRejected("replaced", "the certificate was replaced by a newer one")
            if new in chain:
                return self
            if newer and not older:
                raise CertificateRejected("replaced", "the certificate was replaced by the one on the card")
            if len(older) + len(newer) < len(chain):
                raise CertificateRejected(
                    "not-vouched", "the key that is known does not vouch for that of the certificate"
                )
            following = (each.public_bytes(serialization.Encoding.PEM) for each in (*older[1:], new, *newer))
            return replace(self, successors=tuple(following))


def create_identity(directory: Path) -> Identity:
    """Makes a P-256 key (mode 0600) and its self-signed certificate. Raises ConfigError where one exists already."""
    key_path, certificate_path = directory / KEY_FILE, directory / CERTIFICATE_FILE
    if key_path.exists() or certificate_path.exists():
        raise ConfigError(f"{directory}: holds an identity already; peers know this node by it, so it is not replaced")
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = self_signed(key)
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(key_path, private_bytes(key))
        certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    except OSError as error:
        raise ConfigError(
            f"{directory}: the identity can't be written ({error}); choose a writable directory"
        ) from error
    return load_identity(directory)


def private_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as it lies on the disk, PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def write_private(path: Path, content: bytes, model: Path | None = None) -> None:
    """Makes a file that only its owner may read; it must not be there yet. model: see `files.give_to_owner`."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        if model:
            give_to_owner(descriptor, model)
        os.fsync(file.fileno())


def loaded_credentials() -> Path | None:
    """Where a service's manager has put its copy of the identity, if it has: what lies there counts (docs/decisions/0021)."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    return Path(directory) if directory and (Path(directory) / (CREDENTIAL + KEY_FILE)).exists() else None


def load_identity(directory: Path) -> Identity:
    """Reads this node's identity as of now, with what a rotation has put beside it.

    Raises ConfigError where it is missing, unreadable by us, readable by others, or torn.
    """
    copies = loaded_credentials()

    def place(name: str) -> Path:
        return copies / (CREDENTIAL + name) if copies else directory / name

    key, certificate, next_key, next_certificate = map(
        place, (KEY_FILE, CERTIFICATE_FILE, NEXT_KEY_FILE, NEXT_CERTIFICATE_FILE)
    )
    try:
        rotating = next_certificate.exists()
    except PermissionError as error:
        raise ConfigError(
            f"{directory}: the identity can't be read ({error.strerror}); run this as the user whom the directory belongs to"
        ) from None
    if not rotating:
        if next_key.exists() and _belong_together(next_key, certificate):
            key = next_key  # a takeover was broken off between its two files
        return _load_pair(key, certificate)
    identity = _load_pair(key, certificate)
    following = _load_pair(next_key, next_certificate)
    if following.node_id != identity.node_id:
        raise ConfigError(
            f"{directory}: {NEXT_CERTIFICATE_FILE} is that of another node; remove {NEXT_KEY_FILE} and {NEXT_CERTIFICATE_FILE}"
        )
    return replace(identity, next=following).at(time.time())


def _load_pair(key_path: Path, certificate_path: Path) -> Identity:
    directory = key_path.parent
    try:
        key_pem, certificate_pem = key_path.read_bytes(), certificate_path.read_bytes()
        mode = key_path.stat().st_mode & 0o077
        key = serialization.load_pem_private_key(key_pem, None)
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        node_id = node_id_of(certificate)
    except OSError as error:
        raise ConfigError(f"{directory}: no readable identity ({error}); `conlora init DIR` makes one") from error
    except ValueError as error:
        raise ConfigError(f"{directory}: the identity is damaged ({error}); restore it from a backup") from error
    if (
        mode and directory != loaded_credentials()
    ):  # there the manager sees to it, in an access list that looks like a group's
        raise ConfigError(f"{key_path}: other users may read this private key; run chmod 600 {key_path}")
    if key.public_key() != certificate.public_key():
        raise ConfigError(
            f"{directory}: {key_path.name} and {certificate_path.name} don't belong together; restore them from a backup"
        )
    return Identity(key_pem, certificate_pem, node_id, lineage_of(certificate))


def _belong_together(key_path: Path, certificate_path: Path) -> bool:
    try:
        _load_pair(key_path, certificate_path)
    except ConfigError:
        return False
    return True


def load_card(path: Path) -> Peer:
    """Reads and checks one identity card. Raises CardError where the certificate is no node's, or another node's than the id."""
    card = load_section(path, PeerCard, remedy="give the file that the partner has mailed")
    try:
        with of_a_stranger():
            certificate = load_certificate(card.certificate.encode())
            actual = node_id_of(certificate)
        check_soundness(certificate, actual)
    except CertificateRejected as error:
        raise CardError(f"{path}: certificate: {error.detail}; ask {card.name} to mail the card again") from error
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
