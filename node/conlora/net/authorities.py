"""Certificate authorities: whether a peer's key may be used now, where `ca_file` leaves that to them.

Who a peer is stays a matter of the key on its card. So a certificate counts here if its key is that of the peer, and an authority
of the file has issued it, for the node's name, and not withdrawn it (docs/decisions/0023).
"""

import datetime
import itertools
import re
from collections.abc import Iterable
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import Criticality, ExtensionPolicy, Policy, PolicyBuilder, Store, VerificationError

from conlora.errors import CertificateRejected, ConfigError
from conlora.net.certificates import check_validity, of_a_stranger, public_bytes, tls_name
from conlora.net.identity import Peer

LONGEST_CHAIN = 5  # certificates that a node shows: its own, and authorities in between
_LIST = re.compile(rb"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----", re.DOTALL)
_ANY = Criticality.AGNOSTIC
_BOTH_ENDS = {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}

Chain = tuple[x509.Certificate, ...]  # what a node shows: its own certificate first


def _may_sign(policy: Policy, certificate: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage and not usage.key_cert_sign:
        raise ValueError("the key of its issuer is not for signing certificates")


def _is_a_nodes(policy: Policy, certificate: x509.Certificate, constraints: x509.BasicConstraints | None) -> None:
    if constraints and constraints.ca:
        raise ValueError("it is the certificate of an authority")


def _may_shake_hands(policy: Policy, certificate: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage and not usage.digital_signature:
        raise ValueError("its keyUsage has to hold digitalSignature, or be left out")


def _for_both_ends(policy: Policy, certificate: x509.Certificate, usage: x509.ExtendedKeyUsage | None) -> None:
    """Either node of an edge may dial."""
    if usage and not _BOTH_ENDS.issubset(usage):
        raise ValueError("its extendedKeyUsage has to hold both serverAuth and clientAuth, or be left out")


def _signs_for_both_ends(policy: Policy, certificate: x509.Certificate, usage: x509.ExtendedKeyUsage | None) -> None:
    """TLS takes an issuer's for a limit on what it issues."""
    if usage and not _BOTH_ENDS.issubset(usage):
        raise ValueError(
            "the extendedKeyUsage of its issuer has to hold both serverAuth and clientAuth, or be left out"
        )


_OF_AUTHORITIES = (
    ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, _ANY, None)
    .may_be_present(x509.KeyUsage, _ANY, _may_sign)
    .may_be_present(x509.ExtendedKeyUsage, _ANY, _signs_for_both_ends)
)
_OF_NODES = (
    ExtensionPolicy.permit_all()
    .require_present(x509.SubjectAlternativeName, _ANY, None)
    .may_be_present(x509.BasicConstraints, _ANY, _is_a_nodes)
    .may_be_present(x509.KeyUsage, _ANY, _may_shake_hands)
    .may_be_present(x509.ExtendedKeyUsage, _ANY, _for_both_ends)
)


class Authorities:
    """The certificates and revocation lists of a `ca_file`."""

    def __init__(self, certificates: list[x509.Certificate], lists: list[x509.CertificateRevocationList]) -> None:
        self._store = Store(certificates)
        self._lists = lists
        self.pem = to_pem(certificates)  # what TLS is to trust

    def admit(self, chain: Chain, peer: Peer, now: float) -> None:
        """Whether a peer may show this now: `check`, and it has to be of a key that the peer may use.

        Raises CertificateRejected, also with reason `another-node` or `replaced`.
        """
        _check_key(chain, peer, now)
        self.check(chain, peer.node_id, now)

    def admit_still(self, shown: Chain, newest: Chain, peer: Peer, now: float) -> None:
        """Whether a link may go on that began with what was `shown`. newest: what was announced on it since, or the same.

        What is announced is public, and proves nothing: it counts for as long as the key does that has shaken hands. Raises as
        `admit`.
        """
        _check_key(shown, peer, now)
        with of_a_stranger():
            self._check_not_revoked(shown)
        self.admit(newest, peer, now)

    def check(self, chain: Chain, node_id: str, now: float) -> None:
        """Whether this certificate lets the node in now. now: seconds since the epoch.

        Raises CertificateRejected with reason `format`, `expired`, `not-yet-valid`, `issuer` or `revoked`. Whose key it is has to
        be compared beside: an authority may have certified another one under the node's name.
        """
        with of_a_stranger():
            check_validity(chain[0], now)
            self._check_not_revoked(self._path(chain, node_id, now))

    def _path(self, chain: Chain, node_id: str, now: float) -> list[x509.Certificate]:
        """From the node's certificate to one of the file."""
        if len(chain) > LONGEST_CHAIN:
            raise CertificateRejected("issuer", f"the certificate comes with more than {LONGEST_CHAIN - 1} others")
        verifier = (
            PolicyBuilder()
            .store(self._store)
            .time(datetime.datetime.fromtimestamp(now, datetime.UTC))
            .extension_policies(ca_policy=_OF_AUTHORITIES, ee_policy=_OF_NODES)
            .build_server_verifier(x509.DNSName(tls_name(node_id)))
        )
        try:
            return verifier.verify(chain[0], list(chain[1:]))
        except VerificationError as error:
            raise CertificateRejected(
                "issuer",
                f"the certificate is not one that an authority in ca_file has issued for this node ({_why(error)})",
            ) from None

    def _check_not_revoked(self, certificates: Iterable[x509.Certificate]) -> None:
        """An authority is its name here: its new key revokes what its old one has issued. Some certificate of the file has signed
        each of the lists.
        """
        for certificate, revoked in itertools.product(certificates, self._lists):
            if certificate.issuer == revoked.issuer and _holds(revoked, certificate.serial_number):
                raise CertificateRejected("revoked", "the certificate was revoked by an authority in ca_file")


def load_authorities(path: Path) -> Authorities:
    """Reads a `ca_file`. Raises ConfigError where it can't be read, has no certificate, or a list that none has signed."""
    try:
        content = path.read_bytes()
        with of_a_stranger():
            certificates = x509.load_pem_x509_certificates(content)
            lists = [x509.load_pem_x509_crl(found) for found in _LIST.findall(content)]
            authorities = Authorities(certificates, lists)
            orphans = [each.issuer.rfc4514_string() for each in lists if not _is_signed_by_one_of(certificates, each)]
    except (OSError, CertificateRejected) as error:
        reason = error.detail if isinstance(error, CertificateRejected) else error
        raise ConfigError(
            f"ca_file: {path} can't be read ({reason}); it has to hold certificates of authorities, and may hold their "
            "revocation lists, in PEM"
        ) from error
    found = len(certificates) + len(lists)
    if not content.count(b"-----BEGIN ") == content.count(b"-----END ") == found:
        raise ConfigError(
            f"ca_file: {path} holds {found} certificates and revocation lists, and something else, or one that is damaged or cut "
            "off; put it together again"
        )
    if orphans:
        raise ConfigError(
            f"ca_file: {path} holds a revocation list of {orphans[0]}, but not the certificate that has signed it; add that"
        )
    return authorities


def _is_signed_by_one_of(certificates: list[x509.Certificate], revoked: x509.CertificateRevocationList) -> bool:
    return any(_has_signed(certificate, revoked) for certificate in certificates)


def _has_signed(certificate: x509.Certificate, revoked: x509.CertificateRevocationList) -> bool:
    try:
        return certificate.subject == revoked.issuer and revoked.is_signature_valid(certificate.public_key())  # type: ignore[arg-type]
    except (TypeError, ValueError, UnsupportedAlgorithm):  # a key that signs no lists
        return False


def _holds(revoked: x509.CertificateRevocationList, number: int) -> bool:
    """Whether the list withdraws a certificate of its own issuer. In an indirect one are those of others, behind an entry that
    says so.
    """
    if revoked.get_revoked_certificate_by_serial_number(number) is None:
        return False  # of most lists, which may be long
    own = True
    for entry in revoked:
        try:
            names = entry.extensions.get_extension_for_class(x509.CertificateIssuer).value
            own = x509.DirectoryName(revoked.issuer) in list(names)
        except x509.ExtensionNotFound:
            pass
        if own and entry.serial_number == number:
            return True
    return False


def _check_key(chain: Chain, peer: Peer, now: float) -> None:
    with of_a_stranger():
        key = public_bytes(chain[0].public_key())
    if not peer.holds(key):
        raise CertificateRejected("another-node", f"the certificate is not for the key on the card of {peer.name}")
    if not peer.holds(key, now):
        raise CertificateRejected("replaced", "the certificate is for a key that was replaced by a newer one")


def load_chain(pem: bytes) -> Chain:
    """Certificates of a PEM file or message. Raises CertificateRejected with reason `format` where there is none."""
    with of_a_stranger():
        try:
            return tuple(x509.load_pem_x509_certificates(pem))
        except ValueError:
            raise CertificateRejected("format", "no PEM certificate") from None


def is_self_issued(chain: Chain) -> bool:
    """Raises CertificateRejected with reason `format`."""
    with of_a_stranger():
        return chain[0].issuer == chain[0].subject


def to_pem(certificates: Iterable[x509.Certificate]) -> bytes:
    """One after the other."""
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in certificates)


def _why(error: VerificationError) -> str:
    """The part of cryptography's prose that tells something; what the certificate holds is quoted behind it."""
    text = str(error).partition(" (encountered")[0].rpartition("ValueError: ")[2]
    text = text.removeprefix("validation failed: ").removeprefix("candidates exhausted: ")
    return "its issuer is not there" if text.startswith("all candidates exhausted") else text
