"""TLS for links: mutual, TLS 1.3, and who a peer is comes from its certificate alone."""

import asyncio
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import grpc
from cryptography import x509

from conlora.errors import CertificateRejected, Unanswered
from conlora.net.authorities import Authorities, Chain, load_chain, to_pem
from conlora.net.certificates import load_certificate, node_id_of, of_a_stranger, public_bytes, tls_name
from conlora.net.identity import Identity, Peer
from conlora.net.wire import HANDSHAKE_SECONDS, MAX_FRAME_BYTES

LOOK_SECONDS = HANDSHAKE_SECONDS
NEXT_ADDRESS_SECONDS = 0.25  # as gRPC does: a name's first address may be dead
LOOK_BYTES = 65536
CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_FRAME_BYTES),
    ("grpc.max_send_message_length", MAX_FRAME_BYTES),
    ("grpc.enable_retries", 0),  # redialling is ours: with backoff, jitter and a reason for the operator
    ("grpc.use_local_subchannel_pool", 1),
]
SERVICE_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_FRAME_BYTES),
    ("grpc.max_send_message_length", MAX_FRAME_BYTES),
    ("grpc.so_reuseport", 0),  # a second daemon on this address is a mistake that has to be seen
]


def accepting_credentials(
    identity: Callable[[], Identity],
    peers: Callable[[], Iterable[Peer]],
    authorities: Callable[[], Authorities | None] = lambda: None,
) -> grpc.ServerCredentials:
    """Admits exactly the certificates of configured peers, or all that authorities have issued, of which `caller` has to choose.

    All are asked for each caller, in any thread.
    """
    shown: Identity
    known: bytes

    def configuration() -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(shown.key, shown.shown)], known)

    def now() -> tuple[Identity, bytes]:
        moment = time.time()
        mine = identity().at(moment)
        if trusted := authorities():
            return mine, trusted.pem
        roots = b"".join(certificate for peer in peers() for certificate in peer.accepted(moment))
        # TLS needs somebody to trust. This node's own certificate admits nobody: a node is no peer of itself.
        return mine, roots or mine.certificate

    def newer() -> grpc.ServerCertificateConfiguration | None:
        nonlocal shown, known
        if (shown, known) == (latest := now()):
            return None  # gRPC goes on with what it has
        shown, known = latest
        return configuration()

    shown, known = now()
    return grpc.dynamic_ssl_server_credentials(configuration(), newer, True)  # type: ignore[arg-type]  # None is allowed


def dialling_credentials(
    identity: Identity, peer: Peer, chain: Chain | None = None
) -> tuple[grpc.ChannelCredentials, list[tuple[str, object]]]:
    """Trusts exactly the certificates of that peer, under the name derived from its id; and the channel's options.

    chain: from `expected`; then nothing but that very certificate is trusted, and nobody's where it is empty.
    """
    now = time.time()
    mine = identity.at(now)
    roots = b"".join(peer.accepted(now)) if chain is None else to_pem(chain[:1]) or mine.certificate
    credentials = grpc.ssl_channel_credentials(roots, mine.key, mine.shown)
    options = [*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", tls_name(peer.node_id))]
    if chain is not None:
        options.append(
            ("grpc.enable_http_proxy", 0)
        )  # `presented` knows of none, and both have to come to the same place
    return credentials, options


async def expected(peer: Peer, authorities: Authorities) -> Chain:
    """What the peer's address shows now, once it was found good.

    TLS alone would take what an authority has issued for another key under the peer's name. So it is looked at first, in a
    connection of its own, and then the very same certificate is the only one that is trusted. Raises CertificateRejected, and
    Unanswered where nobody is there.
    """
    shown = await presented(peer)
    if shown is None:
        raise Unanswered(
            f"{peer.name} does not answer at {peer.address}; is it running, and does a firewall let this node through?"
        )
    authorities.admit(chain := load_chain(shown), peer, time.time())
    return chain


def caller(
    auth_context: Mapping[str, Iterable[bytes]],
    peers: Iterable[Peer],
    authorities: Authorities | None = None,
    called: str = "configured peer",
) -> tuple[Peer, Chain]:
    """The peer that has dialled us, and what it shows, where authorities decide. called: what one is to who reads the refusal.

    Raises CertificateRejected with reason `tls`, `format`, `stranger` or `replaced`, and as `Authorities.admit` does.
    """
    versions = b", ".join(auth_context.get("ssl_tls_version", ())).decode()
    certificates = list(auth_context.get("x509_pem_cert", ()))
    if versions != "TLSv1.3" or not certificates:
        raise CertificateRejected(
            "tls", f"the connection is {versions or 'without TLS'} where TLSv1.3 with a certificate is needed"
        )
    with of_a_stranger():
        certificate = load_certificate(certificates[0])
        node_id = node_id_of(certificate)
    if authorities:
        return _certified(certificate, auth_context, list(peers), authorities, called)
    peer = next((peer for peer in peers if peer.node_id == node_id), None)
    if peer is None:
        raise _stranger(node_id, called)
    # TLS lets in what a trusted key has signed, too.
    if certificate not in map(x509.load_pem_x509_certificate, peer.accepted(time.time())):
        raise CertificateRejected(
            "replaced", f"the certificate is {peer.name}'s, but none that {peer.name} may show now"
        )
    return peer, ()


def _certified(
    certificate: x509.Certificate,
    auth_context: Mapping[str, Iterable[bytes]],
    peers: list[Peer],
    authorities: Authorities,
    called: str,
) -> tuple[Peer, Chain]:
    """By its key alone: what else a certificate says of a node is the authority's word."""
    key = public_bytes(certificate.public_key())
    peer = next((peer for peer in peers if peer.holds(key)), None)
    if peer is None:
        raise _stranger(node_id_of(certificate), called)
    shown = (*auth_context["x509_pem_cert"], *auth_context.get("x509_pem_cert_chain", ()))
    chain = tuple(dict.fromkeys(load_chain(b"".join(shown))))
    authorities.admit(chain, peer, time.time())
    return peer, chain


def _stranger(node_id: str, called: str) -> CertificateRejected:
    return CertificateRejected("stranger", f"{node_id} is no {called}")


async def presented(peer: Peer) -> bytes | None:
    """What is shown at the peer's address (PEM, its own certificate first), whosever it is; None where nobody answers.

    The handshake proves that who answers has its key. It is broken off before this side would have to show a certificate, so that
    there is nothing in the other's log.
    """
    assert peer.address is not None
    host, _, port = peer.address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    heard, said = ssl.MemoryBIO(), ssl.MemoryBIO()
    connection = context.wrap_bio(heard, said, server_hostname=tls_name(peer.node_id))
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            reader, writer = await asyncio.open_connection(
                host.strip("[]"), int(port), happy_eyeballs_delay=NEXT_ADDRESS_SECONDS
            )
            try:
                while not _shaken(connection):
                    writer.write(said.read())
                    if not heard.write(await reader.read(LOOK_BYTES)):
                        return None  # it has hung up
            finally:
                writer.transport.abort()
    except (
        OSError,
        ValueError,
    ):  # TimeoutError and ssl.SSLError are the former, UnicodeError of a host's name the latter
        return None
    return "".join(_chain_of(connection)).encode() or None


def _shaken(connection: ssl.SSLObject) -> bool:
    """Whether the other side has said all that it has to."""
    try:
        connection.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def _chain_of(connection: Any) -> list[str]:
    """In PEM. Python has this in public from 3.13 on."""
    if hasattr(connection, "get_unverified_chain"):
        return [ssl.DER_cert_to_PEM_cert(each) for each in connection.get_unverified_chain() or ()]
    return [each.public_bytes() for each in connection._sslobj.get_unverified_chain() or ()]
