"""A link against a peer that sends anything: what breaks the protocol ends the link, what is malformed is only counted."""

import asyncio
import contextlib
import hashlib
import json
import struct
from collections.abc import Sequence

import grpc
import numpy as np
import pytest
import safetensors.numpy
from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.scripts import Script

from conlora.core.codec import CHUNK_BYTES, chunks, decode, encode, max_encoded_bytes
from conlora.core.federation import FederationSettings
from conlora.core.schema import Role, Schema, TensorSpec, Vector
from conlora.errors import PeerError, ProtocolError, SettingsMismatch
from conlora.net import wire
from conlora.net.identity import Peer
from conlora.net.link import Link, LinkClosed
from conlora.net.streams import explain
from conlora.net.wire import Frame, Goodbye, SnapshotHeader

PEER = Peer("mallory", "ID", None, b"")
SETTINGS = FederationSettings("f", "print", "{}", 1, "lora", "async", 8, "{}", "digest")
SCHEMA = Schema(
    (TensorSpec("q.lora_A.weight", "q", Role.A, (2, 3)), TensorSpec("q.lora_B.weight", "q", Role.B, (4, 2)))
)
VECTOR = np.arange(SCHEMA.size, dtype=np.float32)


class Inbox:
    """Checks snapshots as a node does, and keeps them; takes no sketches."""

    max_snapshot_bytes = max_encoded_bytes(SCHEMA)
    max_sketch_bytes = 0

    def __init__(self) -> None:
        self.vectors: list[Vector] = []

    def snapshot_received(self, peer: Peer, header: SnapshotHeader, payload: bytearray) -> None:
        assert len(payload) == header.nbytes <= self.max_snapshot_bytes
        self.vectors.append(decode(SCHEMA, payload, header.sha256))


class HugeInbox(Inbox):
    """Has room for several chunks."""

    max_snapshot_bytes = 4 * CHUNK_BYTES


def header(nbytes: int = 10, digest: bytes = bytes(32), round_: int = 1) -> Frame:
    return Frame(snapshot=SnapshotHeader(round=round_, degree=1, nbytes=nbytes, sha256=digest))


def snapshot(payload: bytes, piece: int = CHUNK_BYTES) -> list[Frame]:
    """A whole snapshot, in chunks of `piece` bytes."""
    parts = [payload[i : i + piece] for i in range(0, len(payload), piece)]
    return [header(len(payload), hashlib.sha256(payload).digest()), *(Frame(chunk=part) for part in parts)]


GOOD = encode(SCHEMA, VECTOR)


async def run(frames: Sequence[Frame], inbox: Inbox | None = None) -> tuple[PeerError, Link, Script]:
    """Runs a link to its end; returns what ended it. Anything but a PeerError fails the test."""
    stream = Script(frames)
    link = Link(PEER, stream, dialled=True, depth=1)
    with pytest.raises(PeerError) as caught:
        await asyncio.wait_for(link.run(inbox or Inbox()), 10)
    assert len(asyncio.all_tasks()) == 1
    return caught.value, link, stream


VIOLATIONS = {
    "a chunk before its header": ([Frame(chunk=b"x")], "chunk where it has no place"),
    "an empty frame": ([Frame()], "an empty frame where it has no place"),
    "an announcement above the schema": ([header(Inbox.max_snapshot_bytes + 1)], "announced a snapshot of"),
    "an announcement of 2^64-1 bytes": ([header(2**64 - 1)], "announced a snapshot of 18446744073709551615 bytes"),
    "an announcement of nothing": ([header(0)], "announced a snapshot of 0 bytes"),
    "a round that nobody can reach": ([header(round_=2**63)], "round 9223372036854775808"),
    "a second header midway": ([header(10), Frame(chunk=b"12345"), header(10)], "snapshot where it has no place"),
    "more bytes than announced": ([header(4), Frame(chunk=b"12345")], "a chunk of 5 bytes where 4 were missing"),
    "more bytes, later": ([header(4), Frame(chunk=b"12"), Frame(chunk=b"345")], "a chunk of 3 bytes where 2 were"),
    "a chunk after the last": ([*snapshot(GOOD), Frame(chunk=b"x")], "chunk where it has no place"),
    "an empty chunk": ([header(4), Frame(chunk=b"")], "a chunk of 0 bytes"),
    "a second Hello": ([wire.hello("x", b"", SETTINGS)], "hello where it has no place"),
    "a Hello midway": ([header(4), wire.hello("x", b"", SETTINGS)], "hello where it has no place"),
}


@pytest.mark.parametrize("violation", VIOLATIONS)
async def test_a_violation_ends_the_link_with_a_word(violation: str) -> None:
    frames, sentence = VIOLATIONS[violation]
    error, link, stream = await run([wire.heartbeat(), *frames, *snapshot(GOOD)])
    assert isinstance(error, ProtocolError)
    assert str(error).startswith("mallory ")
    assert sentence in str(error)
    assert stream.written[-1].goodbye.reason == Goodbye.REASON_PROTOCOL
    assert stream.written[-1].goodbye.detail == str(error)
    assert link.rejected == 0


async def test_an_oversize_chunk() -> None:
    frames = [header(4 * CHUNK_BYTES), Frame(chunk=bytes(CHUNK_BYTES)), Frame(chunk=bytes(CHUNK_BYTES + 1))]
    error, link, stream = await run(frames, HugeInbox())
    assert isinstance(error, ProtocolError)
    assert f"a chunk of {CHUNK_BYTES + 1} bytes" in str(error)
    assert stream.written[-1].goodbye.reason == Goodbye.REASON_PROTOCOL
    assert link.bytes_received == CHUNK_BYTES


def changed(**tensors: np.ndarray) -> bytes:
    """A payload with some tensors put in another's place."""
    views: dict[str, np.ndarray] = {
        **SCHEMA.views(VECTOR),
        **{k.replace("_weight", ".weight"): v for k, v in tensors.items()},
    }
    return safetensors.numpy.save({name: view for name, view in views.items() if view.size})


def odd_dtype(dtype: str) -> bytes:
    """A payload with a data type that NumPy does not know."""
    text = json.dumps({"q.lora_A.weight": {"dtype": dtype, "shape": [2], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(4)


A, B = "q.lora_A.weight", "q.lora_B.weight"
NAN = VECTOR.copy()
NAN[-1] = np.nan
ENDLESS = VECTOR.copy()
ENDLESS[0] = -np.inf
MALFORMED = {
    "garbage": (b"\xff" * 40, "format: "),
    "half a header": (GOOD[:20], "format: "),
    "truncated": (GOOD[:-1], "format: "),
    "another data type": (odd_dtype("BF16"), "format: "),
    "a data type that is none": (odd_dtype("Z" * 1000), "format: "),
    "a missing tensor": (safetensors.numpy.save({A: SCHEMA.views(VECTOR)[A]}), f"keys: tensor '{B}' is missing"),
    "an extra tensor": (safetensors.numpy.save({**SCHEMA.views(VECTOR), "z": VECTOR}), "keys: tensor 'z' is not expected"),
    "doubles": (safetensors.numpy.save({**SCHEMA.views(VECTOR), A: np.zeros((2, 3))}), f"dtype: tensor '{A}'"),
    "a transposed tensor": (
        safetensors.numpy.save({**SCHEMA.views(VECTOR), A: np.zeros((3, 2), np.float32)}), f"shape: tensor '{A}'",
    ),
    "not a number": (encode(SCHEMA, NAN), f"not-finite: tensor '{B}'"),
    "infinity": (encode(SCHEMA, ENDLESS), f"not-finite: tensor '{A}'"),
}  # fmt: skip


@pytest.mark.parametrize("malformed", MALFORMED)
async def test_a_malformed_snapshot_is_counted_and_the_link_goes_on(malformed: str) -> None:
    payload, reason = MALFORMED[malformed]
    inbox = Inbox()
    error, link, _ = await run([*snapshot(payload), *snapshot(GOOD, piece=7)], inbox)
    assert "ended the link without a word" in str(error)
    assert link.rejected == 1
    assert link.last_rejection.startswith(reason)
    assert len(link.last_rejection) < 400  # it goes to the log: a peer does not choose its length
    assert [vector.tobytes() for vector in inbox.vectors] == [VECTOR.tobytes()]


async def test_a_payload_with_another_digest() -> None:
    inbox = Inbox()
    frames = [header(len(GOOD), hashlib.sha256(b"other").digest()), *map(lambda c: Frame(chunk=c), chunks(GOOD))]
    _, link, _ = await run([*frames, header(len(GOOD), b"short"), Frame(chunk=GOOD)], inbox)
    assert (link.rejected, inbox.vectors) == (2, [])
    assert link.last_rejection.startswith("digest: ")


async def test_a_farewell_is_no_violation_and_prints_safely() -> None:
    farewell = wire.goodbye(Goodbye.REASON_LEAVING, "bye\x1b[31m\n" + "x" * 10_000)
    error, _, stream = await run([header(4), farewell])
    assert isinstance(error, LinkClosed)
    assert error.reason == Goodbye.REASON_LEAVING
    assert str(error).startswith("mallory said good-bye: bye?[31m?xxx")
    assert str(error).isprintable()
    assert len(str(error)) < 600
    assert not any(frame.HasField("goodbye") for frame in stream.written)


@pytest.mark.parametrize("first", [wire.heartbeat(), header(), Frame(chunk=b"x"), Frame()])
async def test_whoever_speaks_before_hello(first: Frame) -> None:
    link = Link(PEER, Script([first]), dialled=False, depth=1)
    with pytest.raises(ProtocolError, match="before Hello"):
        await link.shake_hands("me", b"1", SETTINGS)


def test_what_a_peer_says_over_grpc_prints_safely() -> None:
    nothing = grpc.aio.Metadata()
    error = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing, details="\x1b[2Jbusy\n" + "x" * 1000)
    sentence = str(explain("mallory", error))
    assert sentence.startswith("mallory can't be reached or went away (")
    assert sentence.isprintable()
    assert len(sentence) < 250
    error = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing, details="\x1b[2Jbusy")
    assert "(?[2Jbusy)" in str(explain("mallory", error))


async def test_another_protocol_version_is_named() -> None:
    hello = wire.hello("x", b"", SETTINGS)
    hello.hello.protocol_version = 99
    link = Link(PEER, Script([hello]), dialled=False, depth=1)
    with pytest.raises(SettingsMismatch, match="mallory does not fit: protocol_version: ours is 3, theirs 99"):
        await link.shake_hands("me", b"1", SETTINGS)


async def test_a_mismatch_prints_safely() -> None:
    theirs = FederationSettings("f\n\x1b[2J" + "x" * 100_000, "print", "{}", 1, "", "async", 8, "", "digest")
    link = Link(PEER, Script([wire.hello("x", b"", theirs)]), dialled=False, depth=1)
    with pytest.raises(SettingsMismatch) as caught:
        await link.shake_hands("me", b"1", SETTINGS)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2000
    assert "rule: ours is lora, theirs empty" in str(caught.value)


async def test_whoever_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silence(Script):
        async def read(self) -> Frame | None:
            return await asyncio.Event().wait() and None

    monkeypatch.setattr(wire, "HANDSHAKE_SECONDS", 0.05)
    with pytest.raises(ProtocolError, match="mallory did not say Hello within"):
        await Link(PEER, Silence([]), dialled=False, depth=1).shake_hands("me", b"1", SETTINGS)
    monkeypatch.setattr(wire, "SILENCE_SECONDS", 0.05)
    with pytest.raises(PeerError, match="nothing heard from mallory for"):
        await Link(PEER, Silence([]), dialled=False, depth=1).run(Inbox())


small, uint64 = st.binary(max_size=300), st.integers(0, 2**64 - 1)
any_frame = st.one_of(
    st.builds(lambda n, digest, r: [header(n, digest, r)], st.integers(0, 400) | uint64, small, uint64),
    small.map(lambda data: [Frame(chunk=data)]),
    small.map(lambda data: snapshot(data) if data else [Frame()]),
    st.integers(1, 99).map(lambda piece: snapshot(GOOD, piece)),
    st.builds(lambda reason, text: [wire.goodbye(reason, text)], st.integers(-(2**31), 2**31 - 1), st.text()),
    st.sampled_from([[wire.heartbeat()], [Frame()], [wire.hello("x", b"", SETTINGS)]]),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(any_frame, max_size=8))
def test_whatever_comes_only_peer_errors_leave(groups: list[list[Frame]]) -> None:
    inbox = Inbox()
    frames = [frame for group in groups for frame in group]
    error, link, stream = asyncio.run(run(frames, inbox))
    assert all(vector.tobytes() == VECTOR.tobytes() for vector in inbox.vectors)
    assert all(frame.HasField("goodbye") for frame in stream.written)
    assert len(stream.written) == isinstance(error, ProtocolError)
    assert link.rejected + len(inbox.vectors) <= len(groups)


HONEST = [frame.SerializeToString() for frame in (*snapshot(GOOD, 100), wire.heartbeat(), wire.goodbye(1, "bye"))]


@settings(max_examples=150, deadline=None)
@example(0, 0, 50)  # the snapshot's header becomes a sketch's
@given(st.integers(0, len(HONEST) - 1), st.integers(0, 400), st.integers(0, 255))
def test_a_flipped_byte_does_no_harm(which: int, where: int, byte: int) -> None:
    """In whatever protobuf still takes for a frame; what it does not take is gRPC's concern (test_mesh_trust)."""
    messages = [bytearray(message) for message in HONEST]
    if messages[which]:
        messages[which][where % len(messages[which])] = byte
    with contextlib.suppress(DecodeError):
        frames = [Frame.FromString(bytes(message)) for message in messages]
        inbox = Inbox()
        asyncio.run(run(frames, inbox))
        assert all(vector.tobytes() == VECTOR.tobytes() for vector in inbox.vectors)
