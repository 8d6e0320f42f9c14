"""What an authority has issued for this node's keys: the request for it, and the file that it is kept in.

The file lies in the state directory, not beside the keys: it is no secret, and a daemon that has only a copy of its keys
(docs/decisions/0021) takes up a renewed one all the same. It may hold a chain for the present key and one for the next.
"""

from dataclasses import replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from conlora.errors import CertificateRejected, ConfigError, StateError
from conlora.files import read_file, replace_file
from conlora.net import wire
from conlora.net.authorities import Authorities, Chain, load_chain, to_pem
from conlora.net.certificates import expires, of_a_stranger, public_bytes, subject_of, tls_name, warns
from conlora.net.identity import Identity

ISSUED_FILE = "issued.crt"


def request(identity: Identity, now: float) -> bytes:
    """A certificate signing request (PEM): for the next key where that has no certificate yet, else for the one in use.

    A certificate that does not do for the takeover is as good as none, but for one in use that is near its end.
    """
    following, subject = identity.next, identity
    if following and lacks_one_for_next(identity, now):
        presses = following.issued and (not identity.issued or now > warns(identity.issued))
        subject = identity if presses else following
    name, key = subject_of(subject.node_id, subject.lineage), _private_key(subject)
    builder = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(name)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(tls_name(subject.node_id))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def lacks_one_for_next(identity: Identity, now: float) -> bool:
    """Whether one has to be issued for the next key before it takes over: there is none, or it ends too early."""
    following = identity.next
    if not following:
        return False
    issued = following.issued
    return not issued or now > warns(issued) or expires(issued) <= following.takes_over_at


def with_issued(identity: Identity, state_dir: Path) -> Identity:
    """The identity with what was installed for its keys. Raises StateError where that can't be read."""
    path = state_dir / ISSUED_FILE
    try:
        chains = _by_key(load_chain(read_file(path)), identity)
    except FileNotFoundError:
        return identity
    except (OSError, CertificateRejected) as error:
        reason = error.detail if isinstance(error, CertificateRejected) else error
        raise StateError(
            f"{path}: the issued certificate can't be read ({reason}); remove the file, and run `conlora cert install` again"
        ) from error
    following = identity.next and replace(identity.next, issued=chains.get(_key(identity.next), b""))
    return replace(identity, issued=chains.get(_key(identity), b""), next=following)


def install(identity: Identity, state_dir: Path, source: Path, authorities: Authorities | None, now: float) -> float:
    """Puts an issued certificate in place, with authorities in between; returns when it expires.

    identity: with what was installed before. source: PEM, the node's certificate first. authorities: of `ca_file`, which have to
    stand behind it; None: only the certificate itself is looked at. Raises ConfigError where it can't be used or written.
    """
    try:
        chain = load_chain(source.read_bytes())
        others = {_key(each): each.issued for each in _owners(identity)}
        if others.pop(_public(chain[0]), None) is None:
            raise ConfigError(
                f"{source}: the first certificate is not for this node's key; give the one that was issued for what "
                "`conlora cert request` prints"
            )
        (authorities or Authorities([chain[0]], [])).check(chain, identity.node_id, now)
    except OSError as error:
        raise ConfigError(f"{source}: can't be read ({error}); give the file that the authority has issued") from error
    except CertificateRejected as error:
        raise ConfigError(f"{source}: nothing was installed: {wire.printable(error.detail)}") from error
    if len(to_pem(chain)) > wire.LARGEST_CERTIFICATE:
        raise ConfigError(
            f"{source}: is larger than {wire.LARGEST_CERTIFICATE} bytes; leave out what peers have in ca_file"
        )
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_file(state_dir / ISSUED_FILE, to_pem(chain) + b"".join(others.values()), model=state_dir)
    except OSError as error:
        raise ConfigError(
            f"{state_dir}: the issued certificate can't be written ({error}); run this as a user who may write there"
        ) from error
    return chain[0].not_valid_after_utc.timestamp()


def _owners(identity: Identity) -> list[Identity]:
    return [identity, identity.next] if identity.next else [identity]


def _key(identity: Identity) -> bytes:
    return _public(x509.load_pem_x509_certificate(identity.certificate))


def _public(certificate: x509.Certificate) -> bytes:
    with of_a_stranger():
        return public_bytes(certificate.public_key())


def _by_key(certificates: Chain, identity: Identity) -> dict[bytes, bytes]:
    """Chains (PEM): each of the node's keys has its certificate, and the authorities that follow, up to any other.

    That may be one for a key that the node does not have any more.
    """
    keys, chains, key = {_key(each) for each in _owners(identity)}, dict[bytes, bytes](), b""
    for certificate in certificates:
        if (found := _public(certificate)) in keys:
            key = found
        elif not _is_an_authoritys(certificate):
            key = b""
        chains[key] = chains.get(key, b"") + to_pem([certificate])
    return chains


def _is_an_authoritys(certificate: x509.Certificate) -> bool:
    with of_a_stranger():
        try:
            return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        except x509.ExtensionNotFound:
            return False


def _private_key(identity: Identity) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(identity.key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key
