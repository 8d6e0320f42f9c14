"""Certificate authorities for tests: they issue, for whatever key and with whatever content, and withdraw."""

import datetime
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from conlora.net.authorities import Authorities, Chain, load_authorities
from conlora.net.certificates import tls_name
from conlora.net.identity import Identity
from tests.certificates import pem_of

Extensions = Sequence[tuple[x509.ExtensionType, bool]]
BOTH = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
NOT_CA = x509.BasicConstraints(ca=False, path_length=None)
DAYS = (-1.0, 7.0)


def for_node(identity: Identity) -> Extensions:
    """What a request asks for."""
    return [
        (x509.SubjectAlternativeName([x509.DNSName(tls_name(identity.node_id))]), False),
        (NOT_CA, True),
        (BOTH, False),
    ]


class Authority:
    """Certificates it issues are valid from yesterday for a week."""

    def __init__(
        self,
        name: str = "Hospital Trust",
        parent: "Authority | None" = None,
        days: tuple[float, float] = DAYS,
        more: Extensions = (),
        constraints: x509.BasicConstraints | None = None,
    ) -> None:
        """parent: who has issued its own; None: a root. more: extensions of its own certificate."""
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        extensions = [(constraints or x509.BasicConstraints(ca=True, path_length=None), True), *more]
        self.certificate = (parent or self).sign(self.name, self.key.public_key(), days, extensions)

    def sign(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, days: tuple[float, float], extensions: Extensions
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        start, end = (now + datetime.timedelta(days=day) for day in days)
        builder = x509.CertificateBuilder(self.name, subject, key, x509.random_serial_number(), start, end)
        for value, critical in extensions:
            builder = builder.add_extension(value, critical)
        return builder.sign(self.key, hashes.SHA256())

    def issue(
        self,
        identity: Identity,
        days: tuple[float, float] = DAYS,
        extensions: Extensions | None = None,
        between: "Sequence[Authority]" = (),
    ) -> Identity:
        """The identity with a certificate for its key. between: authorities that it shows, too."""
        certificate = x509.load_pem_x509_certificate(identity.certificate)
        key = certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        found = self.sign(certificate.subject, key, days, for_node(identity) if extensions is None else extensions)
        return replace(identity, issued=pem_of(found) + b"".join(pem_of(each.certificate) for each in between))

    def revoked(self, *chains: Chain, of: "Authority | None" = None) -> bytes:
        """A list (PEM) of these. of: who has issued them, where it says that this is somebody else."""
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateRevocationListBuilder(self.name, now, now + datetime.timedelta(days=1))
        for chain in chains:
            entry = x509.RevokedCertificateBuilder(chain[0].serial_number, now)
            if of:
                entry = entry.add_extension(x509.CertificateIssuer([x509.DirectoryName(of.name)]), critical=True)
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def file(self, path: Path, *more: bytes) -> Path:
        """A `ca_file` with its certificate."""
        path.write_bytes(pem_of(self.certificate) + b"".join(more))
        return path

    def alone(self, directory: Path, *more: bytes) -> Authorities:
        """What a node knows whose `ca_file` has its certificate."""
        return load_authorities(self.file(directory / "ca.pem", *more))
