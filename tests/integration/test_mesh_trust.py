"""Who gets a link and who does not, over real TLS: certificates, versions, plaintext, and peers that send no frames at all."""

import asyncio
import datetime
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs
from tests.certificates import shifted
from tests.meshes import SETTINGS, Member, linked, until

from conlora.errors import CertificateRejected
from conlora.net.certificates import node_id_of, tls_name
from conlora.net.credentials import CHANNEL_OPTIONS, accepting_credentials, caller, dialling_credentials
from conlora.net.identity import Identity
from conlora.net.wire import MAX_FRAME_BYTES, Frame, Goodbye, hello
from conlora.v1 import peer_pb2_grpc

Members = Callable[[str], Member]
METHOD = "/conlora.v1.Peer/Link"


async def still_serves(b: Member, a: Member) -> None:
    """b's port works as if nothing had happened: its real peer gets a link."""
    await a.start(b.card(), listens=False)
    await until(lambda: linked(a, b), "a link to the real peer")
    assert b.node.events == [("up", "a")]


async def still_serves_again(b: Member, a: Member) -> None:
    """Also where a itself was the one that misbehaved: a new start of it is welcome."""
    await a.start(b.card(), listens=False)
    await until(lambda: linked(a, b), "a new link")
    assert b.node.events == [("up", "a"), ("down", "a"), ("up", "a")]


async def test_somebody_else_at_the_address(member: Members) -> None:
    a, b, c = member("a"), member("b"), member("c")
    await c.start(a.card(dialled=False))
    await a.start(b.card(address=c.address))
    await until(lambda: a.state(b).word == "refused", "refused")
    assert a.state(b).last_error == (
        "whoever answers at b's address has another certificate than its card; ask b for a new card "
        f"(the certificate is that of node {c.identity.node_id})"
    )
    assert a.node.events == c.node.events == []


async def test_a_configured_peer_at_another_peers_address(member: Members) -> None:
    """c is trusted as c, not as b."""
    a, b, c = member("a"), member("b"), member("c")
    await c.start(a.card(dialled=False))
    await a.start(b.card(address=c.address), c.card())
    await until(lambda: linked(a, c) and a.state(b).word == "refused", "c linked, b refused")
    assert a.node.events == [("up", "c")]


async def test_a_certificate_that_nobody_knows(member: Members) -> None:
    a, b, c = member("a"), member("b"), member("c")
    await b.start(a.card(dialled=False))
    await c.start(b.card(), listens=False)
    await until(lambda: c.state(b).last_error, "an error")
    assert c.state(b).last_error == ("b hangs up on this node; perhaps its operator still has to add this node's card")
    assert b.node.events == c.node.events == []
    await c.close()
    await still_serves(b, a)


async def test_a_certificate_that_a_peer_has_signed(member: Members) -> None:
    """A peer can't make further identities, whether or not TLS minds."""
    a, b, c = member("a"), member("b"), member("c")
    await b.start(a.card(dialled=False))
    c.identity = signed_by(a.identity)
    await c.start(b.card(), listens=False)
    await until(lambda: c.state(b).last_error, "an error")
    assert b.node.events == c.node.events == []


def signed_by(issuer: Identity) -> Identity:
    """A new identity whose certificate has another node's key behind it."""
    key, parent = ec.generate_private_key(ec.SECP256R1()), x509.load_pem_x509_certificate(issuer.certificate)
    issuer_key = serialization.load_pem_private_key(issuer.key, None)
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "child")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(parent.subject).public_key(key.public_key())
    builder = builder.serial_number(2).not_valid_before(now - datetime.timedelta(hours=1))
    certificate = builder.not_valid_after(now + datetime.timedelta(days=1)).sign(issuer_key, hashes.SHA256())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    chain = certificate.public_bytes(serialization.Encoding.PEM) + issuer.certificate
    return Identity(pem, chain, node_id_of(certificate))


def dialled(a: Member, b: Member) -> grpc.aio.Channel:
    """A channel with a's identity to b's peer port, without a mesh."""
    credentials, options = dialling_credentials(a.identity, b.card())
    return grpc.aio.secure_channel(b.address, credentials, options=options)


async def test_plaintext(member: Members) -> None:
    a, b = member("a"), member("b")
    await b.start(a.card(dialled=False))
    async with grpc.aio.insecure_channel(b.address, options=CHANNEL_OPTIONS) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await peer_pb2_grpc.PeerStub(channel).Link().read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    await still_serves(b, a)


async def test_the_peer_port_offers_the_peer_service_only(member: Members) -> None:
    a, b = member("a"), member("b")
    await b.start(a.card(dialled=False))
    async with dialled(a, b) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        for method in ("/conlora.v1.Admin/Stop", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(method)(b"")
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def http2_frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def opening_of_a_call() -> bytes:
    """HTTP/2 preface, settings, and the headers and first message of a Link call, as any gRPC library sends them."""
    headers = {
        ":method": "POST", ":scheme": "https", ":path": METHOD, ":authority": "peer", "te": "trailers",
        "content-type": "application/grpc",
    }  # fmt: skip
    block = b"".join(
        b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in headers.items()
    )
    body = hello("a", b"1", SETTINGS).SerializeToString()
    data = b"\x00" + struct.pack(">I", len(body)) + body
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    return preface + http2_frame(4, 0, 0, b"") + http2_frame(1, 4, 1, block) + http2_frame(0, 0, 1, data)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2])
async def test_a_configured_peer_needs_tls_1_3(member: Members, tmp_path: Path, version: ssl.TLSVersion) -> None:
    """With a's own key in Python's ssl; with TLS 1.3 b answers its Hello, so the call as such is good."""
    a, b = member("a"), member("b")
    await b.start(a.card(dialled=False))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=b.identity.certificate.decode())
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_cert_chain(tmp_path / "a" / "node.crt", tmp_path / "a" / "node.key")
    context.set_alpn_protocols(["h2"])
    context.minimum_version = context.maximum_version = version
    host, port = b.address.split(":")
    answer = b""
    with capture_logs() as logs:
        reader, writer = await asyncio.open_connection(
            host, int(port), ssl=context, server_hostname=tls_name(b.identity.node_id)
        )
        writer.write(opening_of_a_call())
        if version is ssl.TLSVersion.TLSv1_3:
            while b"print" not in answer:  # the fingerprint in b's Hello
                answer += await asyncio.wait_for(reader.read(4096), 10)
            await until(lambda: b.node.events == [("up", "a")], "a link")
        else:
            while b"not admitted" not in answer:
                answer += await asyncio.wait_for(reader.read(4096), 10)
            assert "refused a caller that is no configured peer" in [entry["event"] for entry in logs]
            assert b"print" not in answer
            assert b.node.events == []
        writer.transport.abort()
    await until(lambda: b.link(a) is None, "no link")


async def test_a_caller_is_known_by_its_certificate_only(member: Members) -> None:
    a, b = member("a"), member("b")
    good = {"ssl_tls_version": [b"TLSv1.3"], "x509_pem_cert": [a.identity.certificate]}
    assert caller(good, [b.card(), a.card()]) == (a.card(), ())
    needed = "where TLSv1.3 with a certificate is needed"
    no_tls = f"tls: the connection is without TLS {needed}"
    for changes, peers, sentence in (
        ({}, [b.card()], f"stranger: {a.identity.node_id} is no configured peer"),
        (
            {"x509_pem_cert": [shifted(a.identity, -1, 5, lineage=b"x").certificate]},
            [a.card()],
            "format: the certificate is malformed (its lineage is malformed)",
        ),
        ({"ssl_tls_version": [b"TLSv1.2"]}, [a.card()], f"tls: the connection is TLSv1.2 {needed}"),
        ({"ssl_tls_version": []}, [a.card()], no_tls),
        ({"x509_pem_cert": []}, [a.card()], f"tls: the connection is TLSv1.3 {needed}"),
        ({"x509_pem_cert": [], "ssl_tls_version": []}, [a.card()], no_tls),
    ):
        with pytest.raises(CertificateRejected) as caught:
            caller({**good, **changes}, peers)
        assert str(caught.value) == sentence


async def test_a_dialler_that_sends_no_frames(member: Members) -> None:
    a, b = member("a"), member("b")
    await b.start(a.card(dialled=False))
    async with dialled(a, b) as channel:
        call = channel.stream_stream(METHOD)()
        await call.write(hello("a", b"1", SETTINGS).SerializeToString())
        await until(lambda: b.link(a), "a link")
        await call.write(b"\xff\xff\xff")
        await until(lambda: b.link(a) is None, "no link")
        assert b.state(a).last_error == "a sent bytes that are no frame"
    await still_serves_again(b, a)


async def test_a_dialler_that_sends_too_much_at_once(member: Members) -> None:
    a, b = member("a"), member("b")
    await b.start(a.card(dialled=False))
    credentials, options = dialling_credentials(a.identity, b.card())
    limitless = [option for option in options if option[0] != "grpc.max_send_message_length"]
    async with grpc.aio.secure_channel(b.address, credentials, options=limitless) as channel:
        call = channel.stream_stream(METHOD)()
        await call.write(hello("a", b"1", SETTINGS).SerializeToString())
        await until(lambda: b.link(a), "a link")
        await call.write(Frame(chunk=bytes(MAX_FRAME_BYTES + 1)).SerializeToString())
        await until(lambda: b.link(a) is None, "no link")
    await still_serves_again(b, a)


async def test_a_dialler_that_makes_many_calls_at_once(member: Members) -> None:
    """A link is one; each would cost this node a task and memory."""
    a, b = member("a"), member("b")
    await b.start(a.card(dialled=False))
    async with dialled(a, b) as channel:
        calls = [channel.stream_stream(METHOD)() for _ in range(20)]
        answers = [asyncio.ensure_future(call.read()) for call in calls]
        await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
        answered, waiting = await asyncio.wait(answers, timeout=0.3)
        assert len(answered) <= 2
        for call in calls:
            call.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    await still_serves(b, a)


class Impostor(grpc.GenericRpcHandler):
    """Accepts with a configured peer's key, and says what the test wants instead of frames."""

    def __init__(self, member: Member, caller: Member, *messages: bytes) -> None:
        self.calls = 0
        self.heard: list[Frame] = []
        self._messages = messages
        self._port = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self._port.add_generic_rpc_handlers([self])
        self._port.add_secure_port(
            member.address, accepting_credentials(lambda: member.identity, lambda: [caller.card()])
        )

    def service(self, details: object) -> grpc.RpcMethodHandler:
        return grpc.stream_stream_rpc_method_handler(self._converse)

    async def _converse(self, requests: AsyncIterator[bytes], context: object) -> AsyncIterator[bytes]:
        self.calls += 1
        for message in self._messages:
            yield message
        async for request in requests:
            self.heard.append(Frame.FromString(request))
            if self.heard[-1].HasField("goodbye"):
                return

    async def __aenter__(self) -> "Impostor":
        await self._port.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._port.stop(None)


HELLO = hello("b", b"1", SETTINGS).SerializeToString()


@pytest.mark.parametrize("messages", [(b"\xff\xff\xff",), (HELLO, b"\xff\xff\xff")])
async def test_an_accepting_peer_that_sends_no_frames_is_dialled_again(
    member: Members, messages: tuple[bytes, ...]
) -> None:
    a, b = member("a"), member("b")
    async with Impostor(b, a, *messages) as impostor:
        await a.start(b.card(), listens=False)
        await until(lambda: a.state(b).last_error == "b sent bytes that are no frame", "the reason")
        await until(lambda: impostor.calls >= 2, "a second attempt")
    await b.start(a.card(dialled=False))
    await until(lambda: linked(a, b), "a link once b behaves")


async def test_an_accepting_peer_hears_what_it_did_wrong(member: Members) -> None:
    a, b = member("a"), member("b")
    async with Impostor(b, a, HELLO, Frame(chunk=b"x").SerializeToString()) as impostor:
        await a.start(b.card(), listens=False)
        farewell = await until(lambda: [f.goodbye for f in impostor.heard if f.HasField("goodbye")], "a good-bye")
        assert farewell[0].reason == Goodbye.REASON_PROTOCOL
        assert farewell[0].detail == "b sent a chunk where it has no place"
