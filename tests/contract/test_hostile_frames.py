"""A link against a peer that sends anything: what breaks the protocol ends the link, what is malformed is only counted."""

import asyncio
import contextlib
import math
from collections.abc import Callable, Sequence

import grpc
import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from tests.scripts import Script

from conlora.core.encoding import Encoding, Format
from conlora.core.federation import FederationSettings
from conlora.core.schema import Role, Schema, TensorSpec, Vector
from conlora.core.validation import start_digest
from conlora.errors import Overdue, PeerError, ProtocolError, Quarantined, SettingsMismatch
from conlora.net import wire
from conlora.net.conversation import LinkClosed
from conlora.net.identity import Peer
from conlora.net.link import Link
from conlora.net.streams import explain
from conlora.net.transfers import Formats, Landing
from conlora.net.wire import Frame, Goodbye, SnapshotHeader, SnapshotTaken

PEER = Peer("mallory", "ID", None, b"")
SETTINGS = FederationSettings("f", "print", "{}", 1, "lora", "async", 8, "{}", "digest")
SCHEMA = Schema(
    (TensorSpec("q.lora_A.weight", "q", Role.A, (2, 3)), TensorSpec("q.lora_B.weight", "q", Role.B, (4, 2)))
)
VECTOR = np.arange(SCHEMA.size, dtype=np.float32)
FORMATS = {encoding.value: Format(SCHEMA, encoding) for encoding in Encoding}
FP32 = FORMATS["fp32"]
(BODY,) = FP32.pieces


class Inbox:
    """Keeps what a link has received; takes no sketches."""

    formats: Formats = FORMATS
    max_sketch_bytes = 0

    def __init__(self) -> None:
        self.vectors: list[Vector] = []

    def encoding_for(self, peer: Peer) -> Encoding | None:
        return Encoding.FP32

    def snapshot_begins(self, peer: Peer, header: SnapshotHeader) -> Landing | None:
        return Landing(0, np.zeros(SCHEMA.size, np.float32), None)

    def snapshot_received(self, peer: Peer, header: SnapshotHeader, landing: Landing) -> None:
        self.vectors.append(landing.out)


def header(
    nbytes: int = FP32.nbytes,
    round_: int = 1,
    encoding: str = "fp32",
    base: int = 0,
    radius: float | None = None,
    number: int = 1,
) -> Frame:
    return Frame(
        snapshot=SnapshotHeader(
            round=round_, degree=1, nbytes=nbytes, encoding=encoding, id=7, base=base, radius=radius, number=number
        )
    )


def chunk(data: bytes) -> Frame:
    return Frame(chunk=data)


def snapshot(
    vector: Vector = VECTOR, head: bytes = FP32.header, digest: bytes | None = None, number: int = 1
) -> list[Frame]:
    """A whole snapshot."""
    body = bytes(FP32.encode(BODY, vector))
    whole = start_digest(FP32)
    whole.update(body)
    return [
        header(number=number),
        chunk(head),
        chunk(body),
        wire.snapshot_end(whole.digest() if digest is None else digest),
    ]


GOOD = snapshot()
HEAD = GOOD[:2]  # up to the body


async def run(frames: Sequence[Frame], inbox: Inbox | None = None) -> tuple[PeerError, Link, Script]:
    """Runs a link to its end; returns what ended it. Anything but a PeerError fails the test."""
    stream = Script(frames)
    link = Link(PEER, stream, dialled=True, depth=1)
    with pytest.raises(PeerError) as caught:
        await asyncio.wait_for(link.run(inbox or Inbox()), 10)
    await link.farewell()
    assert len(asyncio.all_tasks()) == 1
    return caught.value, link, stream


class Deaf(Script):
    """Takes nothing."""

    async def write(self, message: Frame | bytes) -> None:
        await asyncio.Event().wait()


VIOLATIONS: dict[str, tuple[list[Frame], str]] = {
    "a chunk before its header": ([chunk(b"x")], "a chunk where it has no place"),
    "an empty frame": ([Frame()], "an empty frame where it has no place"),
    "an announcement above the schema": (
        [header(FP32.nbytes + 1)],
        f"announced a snapshot of {FP32.nbytes + 1} bytes, where the schema takes {FP32.nbytes}",
    ),
    "an announcement of 2^64-1 bytes": ([header(2**64 - 1)], "announced a snapshot of 18446744073709551615 bytes"),
    "an announcement of nothing": ([header(0)], "announced a snapshot of 0 bytes"),
    "a round that nobody can reach": (
        [header(round_=2**63)],
        "announced a snapshot of round 9223372036854775808, which nobody can reach",
    ),
    "an unknown encoding": ([header(encoding="zip")], "in an encoding that nobody knows"),
    "a negative radius": ([header(radius=-1.0)], "announced a radius of -1.0"),
    "a radius that is no number": ([header(radius=math.nan)], "announced a radius of nan"),
    "a second header midway": ([header(), header()], "snapshot where it has no place"),
    "a head that is too long": (
        [header(), chunk(FP32.header + b"x")],
        f"a chunk of {len(FP32.header) + 1} bytes where",
    ),
    "a head in two chunks": ([header(), chunk(FP32.header[:9])], "a chunk of 9 bytes where one of"),
    "less bytes than are due": ([*HEAD, chunk(bytes(55))], "a chunk of 55 bytes where one of 56 was due"),
    "more bytes than are due": ([*HEAD, chunk(bytes(57))], "a chunk of 57 bytes where one of 56 was due"),
    "a chunk after the last": ([*GOOD[:3], chunk(b"x")], "a chunk of 1 bytes where one of 0 was due"),
    "an empty chunk": ([header(), chunk(b"")], "a chunk of 0 bytes"),
    "an empty chunk after the last": ([*GOOD[:3], chunk(b"")], "a chunk of 0 bytes where one of 0 was due"),
    "a chunk after the end": ([*GOOD, chunk(b"x")], "a chunk where it has no place"),
    "an end of nothing": ([wire.snapshot_end(bytes(16))], "snapshot_end where it has no place"),
    "an end before the body": ([*HEAD, wire.snapshot_end(bytes(16))], "mallory ended a snapshot 56 bytes early"),
    "an answer to nothing": ([wire.taken(0, SnapshotTaken.OUTCOME_KEPT)], "answered a snapshot that it was not sent"),
    "a second Hello": ([wire.hello("x", b"", SETTINGS)], "hello where it has no place"),
    "a certificate where nobody cares": ([wire.next_certificate(b"x")], "next_certificate where it has no place"),
    "a Hello midway": ([header(), wire.hello("x", b"", SETTINGS)], "hello where it has no place"),
}


@pytest.mark.parametrize("violation", VIOLATIONS)
async def test_a_violation_ends_the_link_with_a_word(violation: str) -> None:
    frames, sentence = VIOLATIONS[violation]
    error, link, stream = await run([wire.heartbeat(), *frames, *GOOD])
    assert isinstance(error, ProtocolError)
    assert str(error).startswith("mallory ")
    assert sentence in str(error)
    assert stream.written[-1].goodbye.reason == Goodbye.REASON_PROTOCOL
    assert stream.written[-1].goodbye.detail == str(error)
    assert link.counts.rejected == 0


async def test_a_snapshot_before_the_last_one_was_answered() -> None:
    """However much is said, one answer waits at most: here the other side takes none."""
    link = Link(PEER, Deaf([*GOOD, *GOOD]), dialled=True, depth=1)
    with pytest.raises(ProtocolError, match="mallory sent a snapshot before the last one was answered"):
        await link._receive(Inbox())


async def test_a_snapshot_while_something_else_waits_to_be_told() -> None:
    link = Link(PEER, Deaf(GOOD), dialled=True, depth=1)
    link.tell(wire.next_certificate(b"x"))
    with pytest.raises(PeerError, match="mallory ended the link without a word"):
        await link._receive(Inbox())


def head(old: str, new: str) -> bytes:
    """The safetensors header with something else in a place of the same length."""
    assert len(old) == len(new)
    assert old.encode() in FP32.header
    return FP32.header.replace(old.encode(), new.encode())


def with_element(index: int, value: float) -> Vector:
    vector = VECTOR.copy()
    vector[index] = value
    return vector


A, B = "q.lora_A.weight", "q.lora_B.weight"
MALFORMED: dict[str, tuple[list[Frame], str]] = {
    "garbage": (snapshot(head=b"\xff" * len(FP32.header)), "format: "),
    "no JSON": (snapshot(head=FP32.header[:8] + b"{" * (len(FP32.header) - 8)), "format: "),
    "another data type": (snapshot(head=head("F32", "I32")), f"dtype: dtype of tensor '{A}'"),
    "another tensor": (snapshot(head=head("lora_B", "lora_C")), f"keys: tensor '{B}' is missing"),
    "a transposed tensor": (snapshot(head=head("[2,3]", "[3,2]")), f"shape: shape of tensor '{A}'"),
    "not a number": (snapshot(with_element(-1, np.nan)), f"not-finite: tensor '{B}'"),
    "infinity": (snapshot(with_element(0, -np.inf)), f"not-finite: tensor '{A}'"),
    "absurdly large": (snapshot(VECTOR * np.float32(1e6)), "norm: "),
    "another digest": (snapshot(digest=bytes(16)), "digest: the payload does not have the announced digest"),
    "a short digest": (snapshot(digest=b"short"), "digest: the payload does not have the announced digest"),
}


@pytest.mark.parametrize("malformed", MALFORMED)
async def test_a_malformed_snapshot_is_counted_and_the_link_goes_on(malformed: str) -> None:
    frames, reason = MALFORMED[malformed]
    inbox = Inbox()
    with capture_logs() as logs:
        error, link, stream = await run([*frames, *[wire.heartbeat()] * 5, *GOOD, *[wire.heartbeat()] * 5], inbox)
    assert "ended the link without a word" in str(error)
    assert link.counts.rejected == 1
    assert [vector.tobytes() for vector in inbox.vectors] == [VECTOR.tobytes()]
    answers = [frame.taken for frame in stream.written if frame.HasField("taken")]
    assert [answer.outcome for answer in answers] == [SnapshotTaken.OUTCOME_REJECTED, SnapshotTaken.OUTCOME_KEPT]
    assert answers[0].detail.startswith(reason)
    assert [(entry["event"], entry["reason"]) for entry in logs] == [("snapshot rejected", answers[0].detail)]
    assert len(answers[0].detail) < 400  # it goes to the log, too: a peer does not choose its length


async def test_a_farewell_is_no_violation_and_prints_safely() -> None:
    farewell = wire.goodbye(Goodbye.REASON_LEAVING, "bye\x1b[31m\n" + "x" * 10_000)
    error, _, stream = await run([header(), farewell])
    assert isinstance(error, LinkClosed)
    assert error.reason == Goodbye.REASON_LEAVING
    assert str(error).startswith("mallory said good-bye: bye?[31m?xxx")
    assert str(error).isprintable()
    assert len(str(error)) < 600
    assert not any(frame.HasField("goodbye") for frame in stream.written)


@pytest.mark.parametrize(
    ("first", "kind"),
    [(wire.heartbeat(), "heartbeat"), (header(), "snapshot"), (chunk(b"x"), "chunk"), (Frame(), "an empty frame")],
)
async def test_whoever_speaks_before_hello(first: Frame, kind: str) -> None:
    link = Link(PEER, Script([first]), dialled=False, depth=1)
    with pytest.raises(ProtocolError, match=f"^mallory sent {kind} before Hello$"):
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


def test_a_name_that_nobody_looks_up_is_not_the_peers_fault() -> None:
    nothing = grpc.aio.Metadata()
    told = "[field:hostname lookup error:address lookup failed for mallory.example.org:7443: DNS query cancelled]"
    error = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing, details=told)
    assert str(explain("mallory", error)) == "mallory can't be reached or went away (no DNS server answers)"


def test_a_frame_that_grpc_finds_too_large_is_a_breach() -> None:
    nothing = grpc.aio.Metadata()
    error = explain("mallory", grpc.aio.AioRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, nothing, nothing))
    assert isinstance(error, ProtocolError)
    assert (error.reason, str(error)) == ("too-large", f"mallory sent a frame above {wire.MAX_FRAME_BYTES} bytes")


async def test_another_protocol_version_is_named() -> None:
    hello = wire.hello("x", b"", SETTINGS)
    hello.hello.protocol_version = 99
    link = Link(PEER, Script([hello]), dialled=False, depth=1)
    with pytest.raises(SettingsMismatch, match="mallory does not fit: protocol_version: ours is 5, theirs 99"):
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
        async def read(self) -> Frame | memoryview | None:
            return await asyncio.Event().wait() and None

    monkeypatch.setattr(wire, "HANDSHAKE_SECONDS", 0.05)
    with pytest.raises(Overdue, match="mallory did not say Hello within"):
        await Link(PEER, Silence([]), dialled=False, depth=1).shake_hands("me", b"1", SETTINGS)
    monkeypatch.setattr(wire, "SILENCE_SECONDS", 0.05)
    with pytest.raises(PeerError, match="nothing heard from mallory for"):
        await Link(PEER, Silence([]), dialled=False, depth=1).run(Inbox())


small, uint64 = st.binary(max_size=300), st.integers(0, 2**64 - 1)
any_frame = st.one_of(
    st.builds(
        lambda n, r, encoding, base, radius: [header(n, r, encoding, base, radius)],
        st.just(FP32.nbytes) | st.integers(0, 400) | uint64,
        uint64,
        st.sampled_from([*FORMATS, "", "zip"]),
        uint64,
        st.none() | st.floats(),
    ),
    small.map(lambda data: [chunk(data)]),
    st.binary(min_size=BODY.nbytes, max_size=BODY.nbytes).map(lambda data: [*HEAD, chunk(data), GOOD[-1]]),
    st.just(GOOD),
    small.map(lambda data: [wire.snapshot_end(data)]),
    st.builds(
        lambda id_, outcome, text: [wire.taken(id_, outcome, text)], uint64, st.integers(-(2**31), 2**31 - 1), st.text()
    ),
    st.builds(lambda reason, text: [wire.goodbye(reason, text)], st.integers(-(2**31), 2**31 - 1), st.text()),
    st.sampled_from([[wire.heartbeat()] * 5, [Frame()], [wire.hello("x", b"", SETTINGS)]]),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(any_frame, max_size=8))
def test_whatever_comes_only_peer_errors_leave(groups: list[list[Frame]]) -> None:
    inbox = Inbox()
    frames = [frame for group in groups for frame in group]
    error, link, stream = asyncio.run(run(frames, inbox))
    assert all(vector.tobytes() == VECTOR.tobytes() for vector in inbox.vectors)
    farewells = [frame for frame in stream.written if not frame.HasField("taken")]
    assert all(frame.HasField("goodbye") for frame in farewells)
    assert len(farewells) == isinstance(error, ProtocolError | Quarantined)
    assert link.counts.rejected + len(inbox.vectors) <= len(groups)


HONEST = [frame.SerializeToString() for frame in (*GOOD, wire.heartbeat(), wire.goodbye(1, "bye"))]


@settings(max_examples=300, deadline=None)
@example(0, 0, 50)  # the snapshot's header becomes a sketch's
@given(st.integers(0, len(HONEST) - 1), st.integers(0, 400), st.integers(0, 255))
def test_a_flipped_byte_does_no_harm(which: int, where: int, byte: int) -> None:
    """In whatever is still taken for a frame; what is not, is no PeerError here but one above (test_mesh_trust)."""
    messages = [bytearray(message) for message in HONEST]
    if messages[which]:
        messages[which][where % len(messages[which])] = byte
    script = Script([])
    script.messages = [bytes(message) for message in messages]
    inbox = Inbox()
    link = Link(PEER, script, dialled=True, depth=1)
    with contextlib.suppress(DecodeError, PeerError):
        asyncio.run(link.run(inbox))
    assert all(vector.tobytes() == VECTOR.tobytes() for vector in inbox.vectors)


@given(st.binary(max_size=3000))
def test_chunks_are_written_and_read_as_protobuf_does(data: bytes) -> None:
    assert wire.chunk(data).message == (chunk(data).SerializeToString() if data else b"\x1a\x00")
    assert wire.chunk(data).data == data
    parsed = wire.parse(chunk(data).SerializeToString())
    assert isinstance(parsed, memoryview)
    assert parsed == data


@given(st.binary(max_size=60) | st.binary(max_size=60).map(lambda tail: b"\x1a" + tail))
def test_whatever_protobuf_takes_for_a_chunk_is_one(message: bytes) -> None:
    """And nothing else is."""

    def parsed(parse: Callable[[bytes], Frame | memoryview]) -> Frame | bytes | None:
        try:
            frame = parse(message)
        except DecodeError:
            return None
        return bytes(frame) if isinstance(frame, memoryview) else frame

    expected = parsed(Frame.FromString)
    if isinstance(expected, Frame) and expected.HasField("chunk"):
        assert parsed(wire.parse) == expected.chunk
    else:
        assert parsed(wire.parse) == expected
