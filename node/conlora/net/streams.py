"""gRPC streams as links see them: frames in, frames out, and every error a PeerError with a sentence."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from conlora.errors import PeerError, ProtocolError, Unavailable
from conlora.net import wire
from conlora.net.authorities import Chain
from conlora.net.conversation import LinkClosed
from conlora.net.credentials import SERVICE_OPTIONS, dialling_credentials
from conlora.net.identity import Identity, Peer
from conlora.net.wire import Frame, Goodbye
from conlora.v1 import peer_pb2

ServicerContext: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

# gRPC reads ahead, and by default the more the faster the other side sends: hundreds of MiB. Its window bounds what it holds, and
# still carries 200 Mbit/s over 300 ms.
WINDOW_BYTES = 8 * 1024 * 1024
LIMITS = [
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
    ("grpc.compression_enabled_algorithms_bitset", 1),  # none: a compressed message may come to much more than it says
]
PORT_LIMITS = [
    *LIMITS,
    ("grpc.server_handshake_timeout_ms", int(1000 * wire.HANDSHAKE_SECONDS)),  # TLS included
    ("grpc.max_connection_idle_ms", int(1000 * wire.HANDSHAKE_SECONDS)),  # without a call
    ("grpc.max_concurrent_streams", 1),  # of a connection
]
# gRPC gives up on a lookup and on a connection before we give up on a Hello, so that a peer is not blamed for either.
DIALLING_LIMITS = [
    *LIMITS,
    ("grpc.dns_ares_query_timeout", int(500 * wire.HANDSHAKE_SECONDS)),
    ("grpc.min_reconnect_backoff_ms", int(800 * wire.HANDSHAKE_SECONDS)),  # an attempt lasts so long, TLS included
]

SERVICE = peer_pb2.DESCRIPTOR.services_by_name["Peer"].full_name


class WrongCertificate(PeerError):
    """Whoever answers at the peer's address has another certificate than the peer's card."""


class FrameStream:
    """Either end of a call. Bytes go both ways: chunks are not copied through protobuf, and it is ours to refuse what is
    no frame.
    """

    def __init__(
        self, peer_name: str, read: Callable[[], Awaitable[Any]], write: Callable[[bytes], Awaitable[Any]]
    ) -> None:
        self._peer_name = peer_name
        self._read = read
        self._write = write

    async def read(self) -> Frame | memoryview | None:
        """See `conversation.Stream`."""
        try:
            message = await self._read()
        except (grpc.RpcError, asyncio.InvalidStateError) as error:
            raise explain(self._peer_name, error) from error
        if not isinstance(message, bytes):
            return None  # gRPC's mark for the end
        try:
            return wire.parse(message)
        except wire.TooLarge as error:
            raise ProtocolError(
                "too-large", f"{self._peer_name} sent a frame of {error.nbytes} bytes that is no chunk"
            ) from None
        except DecodeError:
            raise ProtocolError("no-frame", f"{self._peer_name} sent bytes that are no frame") from None

    async def write(self, message: Frame | bytes) -> None:
        """See `conversation.Stream`."""
        try:
            await self._write(message if isinstance(message, bytes) else message.SerializeToString())
        # The last is for a write after one that was cancelled under way.
        except (grpc.RpcError, asyncio.InvalidStateError, grpc.aio.InternalError) as error:
            raise explain(self._peer_name, error) from error


class AcceptedStream(FrameStream):
    """The accepting end."""

    def __init__(self, peer_name: str, context: ServicerContext) -> None:
        super().__init__(peer_name, context.read, context.write)


async def open_port(
    address: str, credentials: grpc.ServerCredentials, accept: Callable[[ServicerContext], Awaitable[None]]
) -> grpc.aio.Server:
    """Opens the peer port, which offers the peer service and nothing else. Raises Unavailable where it can't be opened."""

    async def link(_requests: Any, context: ServicerContext) -> None:
        await accept(context)

    service = grpc.aio.server(options=[*SERVICE_OPTIONS, *PORT_LIMITS])
    # Frames come as bytes: it is ours to refuse what is no frame.
    handler = grpc.stream_stream_rpc_method_handler(link)
    service.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Link": handler}),))
    try:
        service.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise Unavailable(
            f"listen: {address} can't be used; it may be taken by another program, or not be an address of this machine"
        ) from error
    await service.start()
    return service


@contextlib.asynccontextmanager
async def dialled_stream(identity: Identity, peer: Peer, chain: Chain | None = None) -> AsyncIterator[FrameStream]:
    """`async with dialled_stream(identity, peer) as stream`: a channel to one peer with one Link call on it.

    chain: see `dialling_credentials`.
    """
    credentials, options = dialling_credentials(identity, peer, chain)
    assert peer.address is not None
    channel: Any = grpc.aio.secure_channel(peer.address, credentials, options=[*options, *DIALLING_LIMITS])
    try:
        call = channel.stream_stream(f"/{SERVICE}/Link")()
        yield FrameStream(peer.name, call.read, call.write)
    finally:
        await channel.close(None)


def explain(peer_name: str, error: BaseException) -> PeerError:
    """A sentence for what gRPC reports."""
    details = (error.details() or "") if isinstance(error, grpc.aio.AioRpcError) else str(error)
    if is_of_another_certificate(details):
        return WrongCertificate(
            f"whoever answers at {peer_name}'s address has another certificate than its card; ask {peer_name} for a new card"
        )
    if "failed to connect" in details and ("Socket closed" in details or "Connection reset" in details):
        return PeerError(f"{peer_name} hangs up on this node; perhaps its operator still has to add this node's card")
    if isinstance(error, grpc.aio.AioRpcError):
        match error.code():
            case grpc.StatusCode.PERMISSION_DENIED if wire.QUARANTINED in details:
                return PeerError(f"{peer_name} has quarantined this node; ask its operator why, and to lift that")
            case grpc.StatusCode.PERMISSION_DENIED if details == wire.NOT_CERTIFIED:
                return PeerError(
                    f"{peer_name} knows this node's key, and does not take the certificate for it; run `conlora cert install`, "
                    "or ask its operator why"
                )
            case grpc.StatusCode.PERMISSION_DENIED:
                return PeerError(f"{peer_name} does not admit this node; its operator has to add this node's card")
            case grpc.StatusCode.RESOURCE_EXHAUSTED:
                return ProtocolError("too-large", f"{peer_name} sent a frame above {wire.MAX_FRAME_BYTES} bytes")
            case grpc.StatusCode.UNAVAILABLE if details == wire.LEFT:
                return LinkClosed(Goodbye.REASON_LEFT, f"{peer_name} {wire.HAS_LEFT}")
    return PeerError(f"{peer_name} can't be reached or went away ({brief(details)})")


def is_of_another_certificate(details: str) -> bool:
    """Whether gRPC's prose means that who answers is not who was dialled, or shows another certificate."""
    return "CERTIFICATE_VERIFY_FAILED" in details or "peer name" in details.lower()


def brief(details: str) -> str:
    """The part of gRPC's prose that tells something."""
    for phrase, meaning in (
        ("DNS query cancelled", "no DNS server answers"),
        ("Endpoint closing", "it takes the connection, and says nothing"),
    ):
        if phrase in details:
            return meaning
    for phrase in (
        "Connection refused",
        "Connection reset",
        "Name or service not known",
        "No route to host",
        "Socket closed",
        "still loading the model",
        wire.LEAVING,
        "Domain name not found",
        "Connection timed out",
    ):
        if phrase.lower() in details.lower():
            return phrase.lower()
    return "".join(c if c.isprintable() else "?" for c in details[-160:]) or "no reason given"
