"""TLS for links: mutual, TLS 1.3, and who a peer is comes from its certificate alone."""

import asyncio
import ssl
import time
from collections.abc import Callable, Iterable, Mapping

import grpc
from cryptography import x509

from conlora.errors import CertificateRejected
from conlora.net.certificates import load_certificate, node_id_of, of_a_stranger, tls_name
from conlora.net.identity import Identity, Peer
from conlora.net.wire import MAX_FRAME_BYTES

LOOK_SECONDS = 5.0
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
    identity: Callable[[], Identity], peers: Callable[[], Iterable[Peer]]
) -> grpc.ServerCredentials:
    """Admits exactly the certificates of configured peers. Both are asked for each caller, in any thread."""
    shown: Identity
    known: bytes

    def configuration() -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(shown.key, shown.certificate)], known)

    def now() -> tuple[Identity, bytes]:
        moment = time.time()
        mine = identity().at(moment)
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


def dialling_credentials(identity: Identity, peer: Peer) -> tuple[grpc.ChannelCredentials, list[tuple[str, object]]]:
    """Trusts exactly the certificates of that peer, under the name derived from its id; and the channel's options."""
    now = time.time()
    mine, roots = identity.at(now), b"".join(peer.accepted(now))
    credentials = grpc.ssl_channel_credentials(roots, mine.key, mine.certificate)
    return credentials, [*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", tls_name(peer.node_id))]


def caller(auth_context: Mapping[str, Iterable[bytes]], peers: Iterable[Peer], called: str = "configured peer") -> Peer:
    """The peer that has dialled us. called: what one is to who reads the refusal.

    Raises CertificateRejected with reason `tls`, `format`, `stranger` or `replaced`.
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
    peer = next((peer for peer in peers if peer.node_id == node_id), None)
    if peer is None:
        raise CertificateRejected("stranger", f"{node_id} is no {called}")
    # TLS lets in what a trusted key has signed, too.
    if certificate not in map(x509.load_pem_x509_certificate, peer.accepted(time.time())):
        raise CertificateRejected(
            "replaced", f"the certificate is {peer.name}'s, but none that {peer.name} may show now"
        )
    return peer


async def presented(peer: Peer) -> bytes | None:
    """The certificate (PEM) that is shown at the peer's address, whosever it is; None where nobody answers.

    The handshake proves that who answers has its key. Nothing is sent but our hello.
    """
    assert peer.address is not None
    host, _, port = peer.address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            _, writer = await asyncio.open_connection(
                host.strip("[]"), int(port), ssl=context, server_hostname=tls_name(peer.node_id)
            )
    except (OSError, TimeoutError):  # ssl.SSLError is an OSError
        return None
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    return ssl.DER_cert_to_PEM_cert(shown).encode() if shown else None
