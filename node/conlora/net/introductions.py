"""What nodes let each other know of their certificates: announced on links, and looked at where TLS refuses one."""

import hashlib
import time
from collections.abc import Callable
from typing import Protocol

import structlog
from cryptography import x509

from conlora.core.conduct import Conduct
from conlora.errors import CertificateRejected, PeerError, ProtocolError, StateError
from conlora.net import wire
from conlora.net.certificates import check_validity, expires
from conlora.net.credentials import presented
from conlora.net.expiry import day
from conlora.net.identity import Identity, Peer
from conlora.net.wire import Frame

log = structlog.get_logger()

REMEDIES = {
    "expired": "its operator has to run `conlora cert rotate`",
    "not-yet-valid": "compare the clocks of both machines",
    "replaced": "perhaps an old copy of that node runs there",
}


class Acquaintance(Protocol):
    """A configured peer, and what it knows of us."""

    peer: Peer
    conduct: Conduct
    kept: bytes  # SHA-256 of the last of our certificates that it says to have stored


class Introductions:
    """This node's identity, and what peers learn of it and it of them."""

    def __init__(self, identity: Identity, keep: Callable[[Peer], None]) -> None:
        """keep: stores what a peer has announced, before it counts; may raise StateError."""
        self.identity = identity
        self._keep = keep

    @property
    def _announced(self) -> list[bytes]:
        """The present certificate, if it is not that of the first key, and the next one: cards may be older than both."""
        present, following = self.identity, self.identity.next
        return [each.certificate for each in (present, following) if each and each.lineage]

    def announcements(self) -> list[Frame]:
        """What every neighbour is to be told, in this order."""
        return [wire.next_certificate(certificate) for certificate in self._announced]

    def known_by(self, other: Acquaintance) -> bool:
        """Whether the peer has stored the certificate of a later key that this node shows, or will show."""
        announced = self._announced
        return bool(announced) and other.kept == hashlib.sha256(announced[-1]).digest()

    def check_own(self) -> None:
        """Raises PeerError where there is no use in dialling."""
        now = time.time()
        try:
            check_validity(x509.load_pem_x509_certificate(self.identity.at(now).certificate), now)
        except CertificateRejected as error:
            raise PeerError(
                f"no peer lets this node in, for {error.detail}; run `conlora cert rotate`, or set the clock if that is wrong"
            ) from None

    def heard(self, other: Acquaintance, frame: Frame) -> Frame | None:
        """The peer has announced a certificate, or stored ours. Returns the answer to an announcement, once it is stored.

        Raises ProtocolError for one that is too large.
        """
        name, certificate = other.peer.name, frame.next_certificate
        if frame.HasField("certificate_kept"):
            if not self.known_by(other):
                other.kept = frame.certificate_kept[: hashlib.sha256().digest_size]
                if self.known_by(other):
                    log.info("a peer has stored this node's new certificate", peer=name)
            return None
        if len(certificate) > wire.LARGEST_CERTIFICATE:
            raise ProtocolError("size", f"{name} announced a certificate of {len(certificate)} bytes")
        try:
            self._learn(other, certificate)
        except CertificateRejected as error:
            other.conduct.fail("certificate")  # no offence: clocks may differ
            log.warning("refused a certificate that a peer has announced", peer=name, reason=wire.printable(str(error)))
            return None
        except StateError as error:
            log.error("the new certificate of a peer is not stored", peer=name, reason=str(error))
            return None
        return wire.certificate_kept(certificate)

    async def look(self, other: Acquaintance, error: PeerError) -> tuple[str, bool]:
        """TLS has refused who answers at the peer's address. It may be the peer itself, with a key that the old one vouches for.

        Returns why, and whether somebody has to change something before the next attempt.
        """
        name, before = other.peer.name, other.peer
        certificate = await presented(other.peer)
        try:
            if certificate:
                self._learn(other, certificate)
        except CertificateRejected as rejection:
            if remedy := REMEDIES.get(rejection.reason):
                return f"{name} is refused, for {rejection.detail}; {remedy}", True
            return f"{error} ({wire.printable(rejection.detail)})", True
        except StateError as problem:
            return str(problem), True
        if other.peer == before:
            return str(error), True
        return f"{name} shows a new certificate, which its old key vouches for", False

    def _learn(self, other: Acquaintance, certificate: bytes) -> None:
        """Raises CertificateRejected, or StateError where it can't be stored; nothing has changed then."""
        peer = other.peer.succeeded(certificate, time.time())
        if peer != other.peer:
            self._keep(peer)
            other.peer = peer
            log.info("a peer has a new certificate", peer=peer.name, expires=day(expires(peer.newest)))
