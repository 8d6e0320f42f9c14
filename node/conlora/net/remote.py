"""The way to the admin port of a node on another machine: its certificate is the one on its card, or one that follows it."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import grpc
from cryptography import x509

from conlora.config import RemoteNode
from conlora.errors import CertificateRejected, ConfigError, ConLoRAError, NodeSlow, NodeUnreachable, Refused
from conlora.net.certificates import check_validity, tls_name
from conlora.net.credentials import dialling_credentials, presented
from conlora.net.identity import load_card, load_identity
from conlora.net.streams import brief, is_of_another_certificate
from conlora.net.ways import KEEPALIVE_MS, NOT_ADMITTED, OPTIONS
from conlora.net.wire import printable

KEEPALIVE = [
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),  # a drain may take long, and the network may be gone meanwhile
    ("grpc.http2.ping_timeout_ms", KEEPALIVE_MS),  # keepalive_timeout_ms alone leaves it at a minute
    ("grpc.keepalive_timeout_ms", KEEPALIVE_MS),
    ("grpc.http2.max_pings_without_data", 0),
]


class RemoteWay:
    """Mutual TLS with one node. See `ways.Way`."""

    def __init__(self, place: RemoteNode) -> None:
        """Raises ConfigError for a card or an identity that can't be used."""
        self._node = replace(load_card(place.card), address=place.address)
        self._identity = load_identity(place.identity_dir)
        self._address, self._card = place.address, place.card
        self._where = f"{self._node.name} at {place.address}"

    def open(self) -> grpc.Channel:
        """See `Way`."""
        credentials, _ = dialling_credentials(self._identity, self._node)
        name = ("grpc.ssl_target_name_override", tls_name(self._node.node_id))
        return grpc.secure_channel(self._address, credentials, options=[*OPTIONS, *KEEPALIVE, name])

    def check(self) -> None:
        """See `Way`."""
        try:
            check_validity(x509.load_pem_x509_certificate(self._identity.certificate), time.time())
        except CertificateRejected as error:
            raise NodeUnreachable(
                f"no node lets this operator in, for {error.detail}; make a new identity with `conlora init --operator` and mail "
                "its card, or set the clock if that is wrong"
            ) from None

    def path_there(self, path: Path) -> Path:
        """See `Way`."""
        if not path.is_absolute():
            raise ConfigError(
                f"{path}: the node writes on its own machine, where a relative path has no place; give an absolute one"
            )
        return path

    def finds_out(self, error: grpc.RpcError) -> bool:
        """See `Way`. The node may show a certificate that the key on its card vouches for."""
        if not is_of_another_certificate(error.details() or ""):
            return False
        certificate = asyncio.run(presented(self._node))
        if certificate is None:
            return False
        try:
            known, self._node = self._node, self._node.succeeded(certificate, time.time())
        except CertificateRejected as rejection:
            raise self._another(f" ({printable(rejection.detail)})") from None
        return self._node != known

    def explain(self, error: grpc.RpcError, seconds: float | None) -> ConLoRAError:
        """See `Way`."""
        code, details = error.code(), error.details() or ""
        match code:
            case grpc.StatusCode.PERMISSION_DENIED if details != NOT_ADMITTED:
                return Refused(printable(details))
            case grpc.StatusCode.PERMISSION_DENIED:
                return Refused(f"{self._where} does not have this operator any more; ask whoever keeps it")
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                return NodeSlow(
                    f"{self._where} did not answer within {seconds:.0f} s; is it running, and does a firewall let you through?"
                )
            case grpc.StatusCode.UNIMPLEMENTED:
                return NodeUnreachable(
                    f"{self._where} offers no administration, or not this; give the address of its admin_listen"
                )
        if is_of_another_certificate(details):
            return self._another()
        if "Socket closed" in details or "Connection reset" in details:
            return NodeUnreachable(
                f"{self._where} hangs up; whoever keeps it has to put this operator's card into its operators_dir, and say "
                "`conlora reload`"
            )
        return NodeUnreachable(f"{self._where} can't be reached or went away ({brief(details)}); is it running?")

    def _another(self, why: str = "") -> NodeUnreachable:
        return NodeUnreachable(
            f"whoever answers as {self._where} has another certificate than {self._card}{why}; ask for the node's card again"
        )
