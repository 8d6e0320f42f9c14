"""Connections that nobody wants, one function each: strangers, wrong TLS, garbage, the slow, the greedy, and a peer that lies."""

import asyncio
import contextlib
import gzip
import random
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import grpc
from tests.reliability.frames import MOVES, Move, changed

from conlora.net.certificates import tls_name
from conlora.net.credentials import dialling_credentials
from conlora.net.identity import Identity, Peer
from conlora.net.wire import Frame

METHOD = "/conlora.v1.Peer/Link"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PATIENCE = 10.0  # that any of them has with the node, in seconds
DATA, HEADERS, RST, SETTINGS, PING, CONTINUATION = 0, 1, 3, 4, 6, 9  # kinds of HTTP/2 frames
BOMB = 64 << 20  # bytes that a message of 64 KiB unpacks to


@dataclass(frozen=True)
class Target:
    """The node: where it listens, its certificate, and the folders of an identity that it trusts and of one that it does not."""

    address: str
    node: Identity
    trusted: Identity
    trusted_folder: Path
    stranger_folder: Path

    @property
    def place(self) -> tuple[str, int]:
        """Host and port."""
        host, _, port = self.address.rpartition(":")
        return host, int(port)

    def tls(self, folder: Path | None, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
        """A dialler's TLS, with the identity in the folder if there is one."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self.node.certificate.decode())
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        if folder:
            context.load_cert_chain(folder / "node.crt", folder / "node.key")
        context.set_alpn_protocols(["h2"])
        context.minimum_version = context.maximum_version = version
        return context

    @cached_property
    def trusted_tls(self) -> ssl.SSLContext:
        """Of the peer that lies."""
        return self.tls(self.trusted_folder)


@contextlib.asynccontextmanager
async def connection(
    target: Target, tls: ssl.SSLContext | None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection, reset in the end."""
    host, port = target.place
    name = tls_name(target.node.node_id) if tls else None
    reader, writer = await asyncio.open_connection(host, port, ssl=tls, server_hostname=name)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def say(target: Target, tls: ssl.SSLContext | None, *parts: bytes, pause: float = 0.0) -> None:
    """Connects, sends, and listens until the node hangs up, or for a moment."""
    async with connection(target, tls) as (reader, writer):
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause)
        async with asyncio.timeout(1):
            while await reader.read(1 << 16):
                pass


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One of HTTP/2."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def fields(**more: str) -> bytes:
    """A header block for a call."""
    headers = {
        ":method": "POST", ":scheme": "https", ":path": METHOD, ":authority": "peer", "te": "trailers",
        "content-type": "application/grpc", **{name.replace("_", "-"): value for name, value in more.items()},
    }  # fmt: skip
    return b"".join(field(name.encode(), value.encode()) for name, value in headers.items())


def field(name: bytes, value: bytes) -> bytes:
    """A literal header of at most 126 bytes each."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def opening(stream: int = 1, block: bytes | None = None) -> bytes:
    """Headers of a call."""
    return frame(HEADERS, 4, stream, fields() if block is None else block)


def message(data: bytes, packed: bool = False) -> bytes:
    """As gRPC puts it into data frames of 16 KiB, on the first stream."""
    whole = bytes([packed]) + struct.pack(">I", len(data)) + data
    return b"".join(frame(DATA, 0, 1, whole[i : i + 16384]) for i in range(0, len(whole), 16384))


START = PREFACE + frame(SETTINGS, 0, 0, b"")


async def plaintext(target: Target, draw: random.Random) -> None:
    """No TLS: another protocol, HTTP/2 as such, or noise."""
    await say(
        target, None, draw.choice([b"GET / HTTP/1.1\r\n\r\n", START + opening(), draw.randbytes(2000), b"\x16\x03\x01"])
    )


async def wrong_version(target: Target, draw: random.Random) -> None:
    """A trusted certificate over TLS 1.2."""
    tls = target.tls(target.trusted_folder, ssl.TLSVersion.TLSv1_2)
    await say(target, tls, START + opening())


async def no_certificate(target: Target, draw: random.Random) -> None:
    """TLS 1.3 of somebody who does not say who it is."""
    await say(target, target.tls(None), START + opening())


async def unknown_certificate(target: Target, draw: random.Random) -> None:
    """A good certificate that nobody has told the node of."""
    await say(target, target.tls(target.stranger_folder), START + opening())


async def garbage(target: Target, draw: random.Random) -> None:
    """A trusted peer that speaks no HTTP/2 after TLS, or in the middle of it."""
    noise = b"".join(
        frame(draw.randrange(12), draw.randrange(256), draw.randrange(5), draw.randbytes(draw.randrange(60))) for _ in range(20)
    )  # fmt: skip
    await say(target, target.trusted_tls, draw.choice([draw.randbytes(3000), START + noise, START + opening() + noise]))


async def half_open(target: Target, draw: random.Random) -> None:
    """Connects and says nothing; gone before the node loses patience (see `stays`)."""
    async with connection(target, None):
        await asyncio.sleep(draw.uniform(0, 5))


async def reset(target: Target, draw: random.Random) -> None:
    """Connects and breaks off at once, before or after TLS."""
    async with connection(target, draw.choice([None, target.trusted_tls])):
        pass


async def slow(target: Target, draw: random.Random) -> None:
    """Byte after byte: of TLS, or of HTTP/2 from a trusted peer."""
    start, tls = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(30), None
    if draw.random() < 0.5:
        start, tls = (START + opening())[:40], target.trusted_tls
    await say(target, tls, *(bytes([byte]) for byte in start), pause=0.1)


async def huge_headers(target: Target, draw: random.Random) -> None:
    """A megabyte of headers."""
    block = b"".join(field(b"x-%05d" % i, bytes(100)) for i in range(10_000))
    parts = [block[i : i + 16384] for i in range(0, len(block), 16384)]
    rest = b"".join(frame(CONTINUATION, 0, 1, part) for part in parts)
    await say(target, target.trusted_tls, START + frame(HEADERS, 0, 1, fields()) + rest)


async def flood(target: Target, draw: random.Random) -> None:
    """Pings, settings, calls that are taken back at once, or calls that stay."""
    kind = draw.randrange(4)
    many = [
        frame(PING, 0, 0, bytes(8)) * 2000,
        frame(SETTINGS, 0, 0, b"") * 2000,
        b"".join(opening(i) + frame(RST, 0, i, bytes(4)) for i in range(1, 1000, 2)),
        b"".join(opening(i) for i in range(1, 1000, 2)),
    ][kind]
    await say(target, target.trusted_tls, START + many)


async def huge_message(target: Target, draw: random.Random) -> None:
    """A message that is announced with 4 GiB, and one that unpacks to much more than it is."""
    if draw.random() < 0.5:
        await say(
            target, target.trusted_tls, START + opening() + frame(DATA, 0, 1, b"\x00\xff\xff\xff\xff" + bytes(1000))
        )
    else:
        await say(
            target, target.trusted_tls, START + opening(1, fields(grpc_encoding="gzip")) + message(bomb(), packed=True)
        )


def bomb() -> bytes:
    """64 KiB of gzip."""
    if not BOMBS:
        BOMBS.append(gzip.compress(bytes(BOMB)))
    return BOMBS[0]


BOMBS: list[bytes] = []


async def hostile_frames(target: Target, draw: random.Random) -> None:
    """A trusted peer that greets as it should, and sends what it hears back, in all ways but the right one."""
    credentials, options = dialling_credentials(
        target.trusted, Peer("node", target.node.node_id, target.address, target.node.certificate)
    )
    async with grpc.aio.secure_channel(target.address, credentials, options=options) as channel:
        call = channel.stream_stream(METHOD)()
        heard: list[bytes] = []

        async def listen() -> None:
            async for each in call:
                heard.append(each)

        listening = asyncio.create_task(listen())
        try:
            await _until(lambda: bool(heard))
            if not heard:
                return  # in quarantine, or one call too many
            hello = Frame.FromString(heard[0])
            hello.hello.instance = draw.randbytes(8)
            await call.write(hello.SerializeToString())
            await _until(lambda: len(heard) >= 8)
            moves = [
                Move(draw.randrange(len(MOVES)), draw.randrange(60), draw.randrange(1 << 16), draw.randbytes(draw.randrange(16)))
                for _ in range(draw.randrange(6))
            ]  # fmt: skip
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # the node has hung up
                for each in changed(heard[1:], moves, draw.random() < 0.5):
                    await call.write(each)
            await asyncio.wait({listening}, timeout=1)
        finally:
            call.cancel()
            await asyncio.gather(listening, return_exceptions=True)


async def _until(condition: Callable[[], bool]) -> None:
    """Until then, or for a moment."""
    for _ in range(50):
        if condition():
            return
        await asyncio.sleep(0.02)


async def stays(target: Target) -> float:
    """Connects and says nothing until the node hangs up; returns the seconds that took."""
    clock = asyncio.get_running_loop().time
    began = clock()
    async with connection(target, None) as (reader, _), asyncio.timeout(60):
        with contextlib.suppress(ConnectionResetError):
            await reader.read()
    return clock() - began


KINDS: dict[str, Callable[[Target, random.Random], Awaitable[None]]] = {
    each.__name__.replace("_", " "): each
    for each in (
        plaintext, wrong_version, no_certificate, unknown_certificate, hostile_frames, garbage, half_open, reset, slow,
        huge_headers, flood, huge_message,
    )
}  # fmt: skip


async def intrude(target: Target, count: int, parallel: int, seed: int = 0) -> dict[str, int]:
    """So many connections, of all kinds in turn, some at a time. Returns how many of each there were."""
    made = dict.fromkeys(KINDS, 0)
    order = iter([list(KINDS)[i % len(KINDS)] for i in range(count)])
    draw = random.Random(seed)

    async def some() -> None:
        for kind in order:
            with contextlib.suppress(OSError, grpc.RpcError, asyncio.InvalidStateError, TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    await KINDS[kind](target, draw)
            made[kind] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(parallel):
            group.create_task(some())
    return made
