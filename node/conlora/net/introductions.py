"""What nodes let each other know of their certificates: announced on links, and looked at where TLS refuses one."""

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import structlog
from cryptography import x509

from conlora.core.conduct import Conduct
from conlora.errors import CertificateRejected, PeerError, ProtocolError, StateError
from conlora.net import wire
from conlora.net.authorities import Authorities, Chain, is_self_issued, load_chain
from conlora.net.certificates import check_validity, expires
from conlora.net.credentials import caller, expected, presented
from conlora.net.expiry import day
from conlora.net.handshakes import Refusals
from conlora.net.identity import Identity, Peer
from conlora.net.wire import Frame

log = structlog.get_logger()

REMEDIES = {
    "expired": "its operator has to run `conlora cert rotate`",
    "not-yet-valid": "compare the clocks of both machines",
    "replaced": "perhaps an old copy of that node runs there",
}
CERTIFIED_REMEDIES = REMEDIES | {
    "expired": "its operator has to have it renewed, and to run `conlora cert install`",
    "issuer": "its operator has to run `conlora cert install`, or its authority is missing in ca_file",
    "revoked": "ask its operator why",
    "another-node": "somebody else answers there, or its operator has to mail a new card",
}


class Acquaintance(Protocol):
    """A configured peer, and what it knows of us."""

    peer: Peer
    conduct: Conduct
    kept: frozenset[bytes]  # SHA-256 of those of our certificates that it says to have stored
    chain: Chain  # what it has shown last, or announced, where authorities decide; else empty
    shaken: Chain  # what it has shown when it shook hands on the present link, likewise


class Introductions:
    """This node's identity, and what peers learn of it and it of them."""

    def __init__(
        self, identity: Identity, keep: Callable[[Peer], None], authorities: Authorities | None = None
    ) -> None:
        """keep: stores what a peer has announced, before it counts; may raise StateError. authorities: of `ca_file`."""
        self.identity = identity
        self.authorities = authorities
        self._keep = keep
        self._refusals = Refusals("refused a caller that is no configured peer")

    @property
    def _announced(self) -> list[bytes]:
        """The present certificate, if it is not that of the first key, and the next one: cards may be older than both.

        Then what an authority has issued for the present key: a link lives on for as long as that is valid.
        """
        present, following = self.identity, self.identity.next
        later = [each.certificate for each in (present, following) if each and each.lineage]
        return [*later, present.issued] if present.issued else later

    @property
    def _digests(self) -> frozenset[bytes]:
        return frozenset(hashlib.sha256(certificate).digest() for certificate in self._announced)

    def announcements(self) -> list[Frame]:
        """What every neighbour is to be told, in this order."""
        return [wire.next_certificate(certificate) for certificate in self._announced]

    def known_by(self, other: Acquaintance) -> bool:
        """Whether the peer has stored all that is announced to it."""
        return bool(self._digests) and self._digests <= other.kept

    def check_own(self) -> None:
        """Raises PeerError where there is no use in dialling."""
        now = time.time()
        try:
            check_validity(x509.load_pem_x509_certificate(self.identity.at(now).shown), now)
        except CertificateRejected as error:
            remedy = f"run `conlora cert {'install' if self.identity.at(now).issued else 'rotate'}`"
            raise PeerError(
                f"no peer lets this node in, for {error.detail}; {remedy}, or set the clock if that is wrong"
            ) from None

    def caller(
        self, auth_context: Mapping[str, Iterable[bytes]], address: str, peers: Iterable[Peer]
    ) -> tuple[Peer, Chain]:
        """See `credentials.caller`, which raises CertificateRejected where who has dialled us is refused; the log has why."""
        try:
            return caller(auth_context, peers, self.authorities)
        except CertificateRejected as error:
            reason = wire.printable(str(error))
            self._refusals.add(error.reason, time.monotonic(), reason=reason, address=address)
            raise

    def refusal(self, reason: str) -> str:
        """What who has dialled us hears, whom `caller` has refused for that reason."""
        known = self.authorities and reason not in ("stranger", "tls", "format")
        return wire.NOT_CERTIFIED if known else wire.NOT_ADMITTED

    async def expected(self, peer: Peer) -> Chain | None:
        """See `credentials.expected`; None where no authorities decide. Raises PeerError where the peer is refused."""
        if self.authorities is None:
            return None
        try:
            return await expected(peer, self.authorities)
        except CertificateRejected as error:
            remedy = CERTIFIED_REMEDIES.get(error.reason, "ask its operator")
            raise PeerError(f"{peer.name} is refused, for {wire.printable(error.detail)}; {remedy}") from None

    def outdated(self, other: Acquaintance, now: float) -> str:
        """Why what the peer has shown on its link counts no more, where authorities decide; nothing where it counts."""
        try:
            if self.authorities:
                self.authorities.admit_still(other.shaken, other.chain, other.peer, now)
        except CertificateRejected as error:
            return str(error)
        return ""

    def heard(self, other: Acquaintance, frame: Frame) -> Frame | None:
        """The peer has announced a certificate, or stored ours. Returns the answer to an announcement, once it is stored.

        Raises ProtocolError for one that is too large.
        """
        name, certificate = other.peer.name, frame.next_certificate
        if frame.HasField("certificate_kept"):
            if not self.known_by(other):
                other.kept = self._digests & {*other.kept, frame.certificate_kept}
                if self.known_by(other):
                    log.info("a peer has stored this node's new certificate", peer=name)
            return None
        if len(certificate) > wire.LARGEST_CERTIFICATE:
            raise ProtocolError("size", f"{name} announced a certificate of {len(certificate)} bytes")
        try:
            self._take(other, certificate)
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
        if self.authorities:
            return f"{name} shows another certificate than a moment ago", False
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

    def _take(self, other: Acquaintance, certificate: bytes) -> None:
        """What the peer has announced, self-signed for a later key, or issued for the present one. Raises as `_learn`."""
        if self.authorities and not is_self_issued(chain := load_chain(certificate)):
            self.authorities.admit(chain, other.peer, time.time())
            other.chain = chain
        else:
            self._learn(other, certificate)

    def _learn(self, other: Acquaintance, certificate: bytes) -> None:
        """Raises CertificateRejected, or StateError where it can't be stored; nothing has changed then."""
        peer = other.peer.succeeded(certificate, time.time())
        if peer != other.peer:
            self._keep(peer)
            other.peer = peer
            log.info("a peer has a new certificate", peer=peer.name, expires=day(expires(peer.newest)))
