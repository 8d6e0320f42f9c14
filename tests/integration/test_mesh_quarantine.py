"""A peer that offends again and again, over real TLS: it is kept out for as long as the operator wants, and no longer."""

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tests.meshes import SETTINGS, FakeNode, Member, linked, snapshot, until, vector

from conlora.core.conduct import OFFENCES, Quarantine
from conlora.core.encoding import Encoding
from conlora.errors import Refused
from conlora.net import mesh, streams, warden, wire
from conlora.net.authorities import Chain
from conlora.net.credentials import dialling_credentials
from conlora.net.identity import Identity, Peer
from conlora.net.transfers import Outgoing, Sender
from conlora.net.wire import Frame, Goodbye, SnapshotTaken, hello
from conlora.store.quarantines import Quarantines

Members = Callable[[str], Member]
METHOD = "/conlora.v1.Peer/Link"
TOLD = "b has quarantined this node; ask its operator why, and to lift that"


@dataclass
class Call:
    """A call that says anything, with a configured peer's key."""

    stream: Any
    heard: list[Frame] = field(default_factory=list)

    async def say(self, *frames: Frame | bytes) -> None:
        for frame in frames:
            await self.stream.write(frame if isinstance(frame, bytes) else frame.SerializeToString())

    async def hear(self, kind: str) -> Frame:
        """The next frame of that kind; chunks are not kept."""
        while True:
            frame = Frame.FromString(await asyncio.wait_for(self.stream.read(), 10))
            if frame.HasField(kind):  # type: ignore[arg-type]
                return frame

    async def snapshot(self, bad: bool = True) -> Frame:
        """Publishes one; returns the answer, or the good-bye."""
        values = vector(1, FakeNode.size) * np.float32(1e6 if bad else 1)
        sender = Sender(FakeNode().formats, Encoding.FP32)
        for part in sender.parts(Outgoing(1, 1, values, shared=False, on_free=lambda: None)):
            await self.say(part if isinstance(part, Frame) else part.message)
        while True:
            frame = Frame.FromString(await asyncio.wait_for(self.stream.read(), 10))
            if frame.HasField("taken") or frame.HasField("goodbye"):
                return frame


@contextlib.asynccontextmanager
async def call(a: Member, b: Member, **options: Any) -> AsyncIterator[Call]:
    """a's key dials b, without a mesh."""
    credentials, channel_options = dialling_credentials(a.identity, b.card())
    limitless = [option for option in channel_options if option[0] != "grpc.max_send_message_length"]
    async with grpc.aio.secure_channel(b.address, credentials, options=limitless, **options) as channel:
        yield Call(channel.stream_stream(METHOD)())


async def offend(a: Member, b: Member) -> None:
    """Until b has enough."""
    async with call(a, b) as hostile:
        await hostile.say(hello("a", b"1", SETTINGS))
        for _ in range(OFFENCES - 1):
            assert (await hostile.snapshot()).taken.outcome == SnapshotTaken.OUTCOME_REJECTED
        farewell = (await hostile.snapshot()).goodbye
        assert farewell.reason == Goodbye.REASON_QUARANTINED
        assert farewell.detail == f"quarantined: a has sent too much that can't be used (norm {OFFENCES})"
    await until(lambda: b.state(a).word == "quarantined" and b.link(a) is None, "quarantined")


async def test_whoever_offends_too_often_is_kept_out_until_that_is_lifted(member: Members) -> None:
    a, b, c = member("a"), member("b"), member("c")
    await b.start(a.card(dialled=False), c.card(dialled=False))
    await c.start(b.card())
    await until(lambda: linked(b, c), "an honest link")
    await offend(a, b)
    assert b.state(a).conduct.refused == {"norm": OFFENCES}
    assert b.node.events == [("up", "c"), ("up", "a"), ("down", "a")]  # dead here, and there with the link
    assert b.node.snapshots == []

    await a.start(b.card(), listens=False)
    await until(lambda: a.state(b).last_error == TOLD, "a is told")
    assert a.node.events == []
    assert a.state(b).word == "down"
    assert linked(b, c)
    await until(lambda: a.state(b).retry_at, "a will try again")

    assert b.mesh is not None
    await b.mesh.lift("a")
    await until(lambda: linked(a, b), "a link again")
    assert a.mesh is not None
    a.mesh.publish(snapshot(3))
    await until(lambda: b.node.snapshots == [("a", 3, 1, True)], "its snapshots count again")
    with pytest.raises(Refused, match=r"^nothing was lifted: a is not quarantined; `conlora peers` says who is$"):
        await b.mesh.lift("a")
    with pytest.raises(Refused, match=r"^nothing was lifted: no peer is called x; `conlora peers` lists them$"):
        await b.mesh.lift("x")


async def test_breaking_the_protocol_again_and_again_is_the_same(member: Members) -> None:
    a, b = member("a"), member("b")
    await b.start(a.card(dialled=False))
    for i in range(1, OFFENCES + 1):
        async with call(a, b) as hostile:
            await hostile.say(hello("a", b"1", SETTINGS), b"\xff\xff\xff")
            farewell = (await hostile.hear("goodbye")).goodbye
            assert farewell.reason == (Goodbye.REASON_PROTOCOL if i < OFFENCES else Goodbye.REASON_QUARANTINED)
        await until(lambda i=i: b.state(a).conduct.refused == {"no-frame": i} and b.link(a) is None, "counted")
    assert b.state(a).word == "quarantined"
    async with call(a, b) as hostile:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await hostile.stream.read()
        assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.PERMISSION_DENIED, "quarantined")


@pytest.mark.parametrize("offences", [1, OFFENCES])
async def test_whoever_offends_is_out_of_the_mix_before_it_is_told(
    member: Members, monkeypatch: pytest.MonkeyPatch, offences: int
) -> None:
    """Its own end of the edge dies with what it has sent, and it may take its time over a good-bye."""
    monkeypatch.setattr(wire, "GOODBYE_SECONDS", 60.0)
    a, b = member("a"), member("b")
    await b.start(a.card(dialled=False))
    for _ in range(1, offences):
        b.state(a).conduct.offend("norm", time.monotonic())
    async with call(a, b) as hostile:
        await hostile.say(hello("a", b"1", SETTINGS), b"\xff\xff\xff")
        await until(lambda: b.node.events == [("up", "a"), ("down", "a")], "out of the mix", seconds=5)
        assert (await hostile.hear("goodbye")).goodbye.reason == (
            Goodbye.REASON_PROTOCOL if offences == 1 else Goodbye.REASON_QUARANTINED
        )
    await until(lambda: not b.state(a).turnstile.open, "the call has ended")


async def test_whoever_hangs_up_at_once_has_offended_all_the_same(member: Members) -> None:
    """gRPC then cancels what b was about to answer."""
    a, b = member("a"), member("b")
    await b.start(a.card(dialled=False))
    for i in range(1, OFFENCES + 1):
        async with call(a, b) as hostile:
            await hostile.say(hello("a", b"1", SETTINGS))
            await hostile.hear("hello")
            await hostile.say(b"\xff\xff\xff")
            await until(lambda i=i: b.state(a).conduct.refused["no-frame"] == i, "counted")
        await until(lambda: b.link(a) is None, "no link")
    assert b.state(a).word == "quarantined"


async def test_offences_beside_a_link_that_behaves_end_that_too(member: Members) -> None:
    """Of one key, on other calls: they count, and nothing more is taken on any."""
    a, b = member("a"), member("b")
    await b.start(a.card(dialled=False))
    async with call(a, b) as honest:
        await honest.say(hello("a", b"1", SETTINGS))
        await until(lambda: b.link(a), "a link")
        for _ in range(OFFENCES):
            async with call(a, b) as hostile:
                await hostile.say(wire.heartbeat())
                await hostile.hear("hello")
                with contextlib.suppress(grpc.aio.AioRpcError):
                    while isinstance(await asyncio.wait_for(hostile.stream.read(), 10), bytes):
                        pass
        await until(lambda: b.state(a).word == "quarantined" and b.link(a) is None, "no link")
        assert (await honest.hear("goodbye")).goodbye.reason == Goodbye.REASON_QUARANTINED
    assert b.node.events == [("up", "a"), ("down", "a")]


async def test_a_quarantine_outlives_a_restart_and_a_peer_that_is_removed_and_added(
    member: Members, tmp_path: Path
) -> None:
    a, b = member("a"), member("b")
    path = tmp_path / "quarantines.json"
    b.quarantines = Quarantines(path)
    await b.start(a.card(dialled=False))
    await offend(a, b)
    await b.close()
    b.quarantines = Quarantines(path)
    restarted = await b.start(a.card())  # would dial
    assert b.state(a).word == "quarantined"
    await restarted.part({a.identity.node_id})
    restarted.change([])
    restarted.change([a.card()])
    assert b.state(a).word == "quarantined"
    await a.start(b.card())
    await until(lambda: a.state(b).last_error == TOLD, "a is told")
    await restarted.lift("a")
    await until(lambda: linked(a, b), "a link")
    assert Quarantines(path) == {}


async def test_a_quarantined_peer_is_not_dialled_and_dialled_at_once_afterwards(
    member: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c = member("a"), member("b"), member("c")
    dialled = []

    def noting(identity: Identity, peer: Peer, chain: Chain | None) -> AbstractAsyncContextManager[streams.FrameStream]:
        dialled.append(peer.name)
        return streams.dialled_stream(identity, peer, chain)

    monkeypatch.setattr(mesh, "dialled_stream", noting)
    b.quarantines = {a.identity.node_id: Quarantine(0.0, "norm 5")}
    await a.start(b.card(dialled=False))
    await c.start(b.card(dialled=False))
    await b.start(a.card(), c.card(), listens=False)
    await until(lambda: linked(b, c), "the other peer is dialled")
    assert dialled == ["c"]
    assert b.mesh is not None
    await b.mesh.lift("a")
    await until(lambda: linked(a, b), "a link")
    assert dialled == ["c", "a"]


async def test_compressed_messages_are_refused_as_such(member: Members) -> None:
    """A small one may come to much, and links have no use for them."""
    a, b = member("a"), member("b")
    await b.start(a.card(dialled=False))
    async with call(a, b, compression=grpc.Compression.Gzip) as hostile:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await hostile.hear("hello")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert b.node.events == []


async def test_calls_that_come_too_often_or_too_many_at_once_are_put_off(
    member: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warden, "CALLS_AT_ONCE", 8)
    a, b = member("a"), member("b")
    await b.start(a.card(dialled=False))
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(warden.OPEN_CALLS):
            hostile = await stack.enter_async_context(call(a, b))
            await hostile.hear("hello")  # and says nothing
        refused = await stack.enter_async_context(call(a, b))
        with pytest.raises(grpc.aio.AioRpcError, match="too many calls"):
            await refused.stream.read()
    assert b.state(a).conduct.refused == {"calls": 1}
    await until(lambda: not b.state(a).turnstile.open, "they are gone")
    for _ in range(8):
        async with call(a, b) as hostile:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await hostile.hear("hello")
    assert b.state(a).conduct.refused["calls"] >= 3
    assert b.state(a).word == "down"


@pytest.mark.parametrize("tls", [False, True])
async def test_a_connection_that_dribbles_is_closed(
    member: Members, tls: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before TLS, and after it without a call."""
    limits = {**dict(streams.PORT_LIMITS), "grpc.server_handshake_timeout_ms": 500, "grpc.max_connection_idle_ms": 500}
    monkeypatch.setattr(streams, "PORT_LIMITS", list(limits.items()))
    a, b = member("a"), member("b")
    await b.start(a.card(dialled=False))
    context = None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.load_cert_chain(tmp_path / "a" / "node.crt", tmp_path / "a" / "node.key")
        context.set_alpn_protocols(["h2"])
    host, port = b.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
    try:
        if not tls:
            writer.write(b"\x16\x03")  # the beginning of a TLS record
        while await asyncio.wait_for(reader.read(4096), 10):
            pass
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
