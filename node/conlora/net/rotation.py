"""`conlora cert rotate`: the next key and certificate beside the old ones, the takeover, and what peers have announced, on disk.

Each file is written whole and renamed, and each step can be broken off: the next certificate counts once it is there, and a
takeover that was broken off between its two files is finished at the next occasion.
"""

import time
from dataclasses import replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from conlora.errors import CertificateRejected, ConfigError, Refused, StateError
from conlora.files import replace_file, sync_directory
from conlora.net.certificates import (
    HANDOVER_BYTES,
    MOST_HANDOVERS,
    Handover,
    check_soundness,
    expires,
    follows,
    of_a_stranger,
    public_bytes,
    self_signed,
    tls_name,
)
from conlora.net.expiry import day
from conlora.net.identity import (
    CERTIFICATE_FILE,
    KEY_FILE,
    NEXT_CERTIFICATE_FILE,
    NEXT_KEY_FILE,
    Identity,
    Peer,
    load_identity,
    load_peers,
    loaded_credentials,
    private_bytes,
    write_private,
)


def rotate(directory: Path, overlap_seconds: float) -> Identity:
    """Makes the next key and its certificate, which take over after the overlap, or when the present one expires.

    Raises ConfigError where they can't be written, Refused where a rotation is under way.
    """
    identity, now = load_identity(directory), time.time()
    if identity.next:
        raise Refused(
            f"nothing was rotated: a next certificate is there already, and takes over on {day(identity.next.takes_over_at)}"
        )
    if len(identity.lineage) == MOST_HANDOVERS * HANDOVER_BYTES:
        raise Refused(
            f"nothing was rotated: this node has had {MOST_HANDOVERS} keys before, which is the most; make a new identity with "
            "`conlora init`, and mail its card to your partners"
        )
    key = serialization.load_pem_private_key(identity.key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    following = ec.generate_private_key(ec.SECP256R1())
    until = max(now, min(now + overlap_seconds, expires(identity.certificate)))
    handover = Handover.sign(key, public_bytes(following.public_key()), int(until))
    certificate = self_signed(following, identity.lineage + handover.to_bytes())
    try:
        take_over(directory)  # what an earlier rotation may have left
        (directory / NEXT_KEY_FILE).unlink(missing_ok=True)  # of one that was broken off before there was a certificate
        write_private(directory / NEXT_KEY_FILE, private_bytes(following), directory / KEY_FILE)
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        replace_file(directory / NEXT_CERTIFICATE_FILE, pem, directory / CERTIFICATE_FILE)
    except OSError as error:
        raise ConfigError(
            f"{directory}: the next certificate can't be written ({error}); run this as the user whom the directory belongs to"
        ) from error
    return load_identity(directory)


def take_over(directory: Path) -> bool:
    """Puts the next key and certificate in place of the old ones if their time has come; returns whether it had.

    Raises OSError where the directory can't be written; `load_identity` goes by the time all the same. Does nothing where a
    service has a copy only: the next rotation does it, whose operator may write there.
    """
    if loaded_credentials():
        return False
    key, certificate = directory / NEXT_KEY_FILE, directory / NEXT_CERTIFICATE_FILE
    if not key.exists():
        return False
    identity = load_identity(directory)
    if identity.next or identity.key != key.read_bytes():
        return False  # not yet; or the key has no certificate yet
    if certificate.exists():
        certificate.replace(directory / CERTIFICATE_FILE)
    key.replace(directory / KEY_FILE)
    sync_directory(directory)
    return True


class Announced:
    """Certificates that peers have announced, kept in the state directory: `certificates/NAME.pem`, by the peer's id."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "certificates"

    def keep(self, peer: Peer) -> None:
        """Stores what the peer has announced. Raises StateError where that can't be written."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            replace_file(self._path(peer), b"".join(peer.successors))
            sync_directory(self._directory.parent)  # where the folder may be new
        except OSError as error:
            raise StateError(
                f"{self._path(peer)}: the new certificate of {peer.name} can't be written ({error}); make room"
            ) from error

    def peers(self, cards: Path, own_id: str) -> list[Peer]:
        """See `load_peers` and `known`."""
        return [self.known(peer) for peer in load_peers(cards, own_id)]

    def known(self, peer: Peer) -> Peer:
        """The peer of a card, with what it has announced since.

        Raises StateError where that can't be read. To go on with the card would be to trust keys again that were replaced.
        """
        path = self._path(peer)
        try:
            with of_a_stranger():
                certificates = x509.load_pem_x509_certificates(path.read_bytes())
                successors: list[bytes] = []
                newest = x509.load_pem_x509_certificate(peer.certificate)
                for certificate in certificates:
                    check_soundness(certificate, peer.node_id)
                    if follows(certificate, newest):  # those that the card is as new as are passed over
                        successors.append(certificate.public_bytes(serialization.Encoding.PEM))
                        newest = certificate
        except FileNotFoundError:
            return peer
        except (OSError, CertificateRejected) as error:
            reason = error.detail if isinstance(error, CertificateRejected) else error
            raise StateError(
                f"{path}: what {peer.name} has announced can't be read ({reason}); restore the file, or remove it, after which "
                f"the card counts"
            ) from error
        return replace(peer, successors=tuple(successors))

    def _path(self, peer: Peer) -> Path:
        return self._directory / f"{tls_name(peer.node_id)}.pem"
