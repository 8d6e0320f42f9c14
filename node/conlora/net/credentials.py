"""TLS for links: mutual, TLS 1.3, and who a peer is comes from its certificate alone."""

from collections.abc import Callable, Iterable, Mapping

import grpc
from cryptography import x509

from conlora.net.identity import Identity, Peer, node_id_of, tls_name
from conlora.net.wire import HANDSHAKE_SECONDS, MAX_FRAME_BYTES

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
    ("grpc.server_handshake_timeout_ms", int(1000 * HANDSHAKE_SECONDS)),  # of TLS, too; else it is two minutes
    ("grpc.max_concurrent_streams", 2),  # of a connection; a link is one
]


def accepting_credentials(identity: Identity, peers: Callable[[], Iterable[Peer]]) -> grpc.ServerCredentials:
    """Admits exactly the certificates of configured peers. peers: those of now; asked for each caller, in any thread."""
    pair = [(identity.key, identity.certificate)]
    known: bytes

    def now() -> bytes:
        # TLS needs somebody to trust. This node's own certificate admits nobody: a node is no peer of itself.
        return b"".join(peer.certificate for peer in peers()) or identity.certificate

    def newer() -> grpc.ServerCertificateConfiguration | None:
        nonlocal known
        if known == (known := now()):
            return None  # gRPC goes on with what it has
        return grpc.ssl_server_certificate_configuration(pair, known)

    known = now()
    first = grpc.ssl_server_certificate_configuration(pair, known)
    return grpc.dynamic_ssl_server_credentials(first, newer, True)  # type: ignore[arg-type]  # None is allowed


def dialling_credentials(identity: Identity, peer: Peer) -> tuple[grpc.ChannelCredentials, list[tuple[str, object]]]:
    """Trusts exactly the certificate of that peer, under the name derived from its id; and the channel's options."""
    credentials = grpc.ssl_channel_credentials(peer.certificate, identity.key, identity.certificate)
    return credentials, [*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", tls_name(peer.node_id))]


def caller_id(auth_context: Mapping[str, Iterable[bytes]]) -> str | None:
    """The node id of whoever dialled us, or None where the connection is not TLS 1.3 with a certificate."""
    if list(auth_context.get("ssl_tls_version", ())) != [b"TLSv1.3"]:
        return None
    certificates = list(auth_context.get("x509_pem_cert", ()))
    return node_id_of(x509.load_pem_x509_certificate(certificates[0])) if certificates else None
