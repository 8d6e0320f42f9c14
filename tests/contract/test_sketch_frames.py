"""Sketches from peers that send anything: only what its owner has signed counts, and none of it reaches training."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.scripts import Script

from conlora.core.codec import CHUNK_BYTES, encode
from conlora.core.federation import FederationSettings
from conlora.core.gossip import Mode
from conlora.core.schema import Role, Schema, TensorSpec, Vector
from conlora.core.sketch import SketchLayout
from conlora.core.sketchbook import DEPARTED_SECONDS, MOST_NODES, Part, Record
from conlora.daemon.exchange import Exchange
from conlora.daemon.observatory import Observatory
from conlora.errors import PeerError, ProtocolError, SketchRejected
from conlora.net import wire
from conlora.net.identity import Identity, Peer, create_identity
from conlora.net.link import Link
from conlora.net.sketches import LARGEST_NUMBER, LONGEST_NAME, PURPOSE, Scribe, outgoing
from conlora.net.wire import Frame, Goodbye, SketchHeader, SketchRecord, SnapshotHeader, Transfer

SCHEMA = Schema(
    (TensorSpec("q.lora_A.weight", "q", Role.A, (2, 3)), TensorSpec("q.lora_B.weight", "q", Role.B, (4, 2)))
)
LAYOUT = SketchLayout.of(SCHEMA, SCHEMA)
SETTINGS = FederationSettings("f", "print", "{}", 1, "lora", "async", 8, ("a", "b"), "digest")
FEDERATION = SETTINGS.digest
BEFORE, AFTER = (np.arange(LAYOUT.size, dtype=np.float32) + i for i in (0, 1))
DER = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Identity, Identity]:
    directory = tmp_path_factory.mktemp("identities")
    return create_identity(directory / "anna"), create_identity(directory / "mercy")


@pytest.fixture(scope="module")
def anna(identities: tuple[Identity, Identity]) -> Scribe:
    return Scribe(identities[0], FEDERATION, LAYOUT.size)


@pytest.fixture(scope="module")
def mercy(identities: tuple[Identity, Identity]) -> Scribe:
    return Scribe(identities[1], FEDERATION, LAYOUT.size)


def neighbours(n: int) -> list[str]:
    return ["-".join(["AAAAAAA"] * 7 + [f"AA{'ABCDEFGHIJKLMNOPQRSTUVWXYZ234567'[i % 32]}"]) for i in range(n)]


def signed(anna: Scribe, **changes: Any) -> Record:
    return anna.sign(
        **{"name": "anna", "epoch": 5, "sequence": 6, "round_": 7, "neighbours": neighbours(2), "before": BEFORE,
           "after": AFTER, **changes}
    )  # fmt: skip


def sent(record: Record, age: float = 0.0) -> tuple[SketchHeader, bytearray]:
    transfer = outgoing(Part(record, age))
    assert isinstance(transfer.header, SketchHeader)
    return transfer.header, bytearray(transfer.payload)


def reason(scribe: Scribe, header: SketchHeader, payload: bytes) -> str:
    with pytest.raises(SketchRejected) as caught:
        scribe.read(header, bytearray(payload))
    assert str(caught.value).startswith(f"{caught.value.reason}: ")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200
    return caught.value.reason


class Forger:
    """Signs whatever it is given, with a valid key of its own."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())

    def sign(self, content: bytes, purpose: bytes = PURPOSE) -> tuple[SketchHeader, bytes]:
        signature = self.key.sign(purpose + content, ec.ECDSA(hashes.SHA256()))
        public = self.key.public_key().public_bytes(*DER)
        return SketchHeader(nbytes=len(content), public_key=public, signature=signature), content

    def record(self, **changes: Any) -> tuple[SketchHeader, bytes]:
        honest = {
            "federation": FEDERATION, "name": "x", "epoch": 1, "sequence": 1, "round": 1, "neighbours": [],
            "before": BEFORE.tobytes(), "after": AFTER.tobytes(), "lifetime_seconds": 300,
        }  # fmt: skip
        return self.sign(SketchRecord(**{**honest, **changes}).SerializeToString())


FORGER = Forger()


# --- records -----------------------------------------------------------------------------------------------------------


def test_what_one_signs_another_reads(anna: Scribe, mercy: Scribe, identities: tuple[Identity, Identity]) -> None:
    record = signed(anna)
    header, payload = sent(record, age=12.5)
    read = mercy.read(header, payload)
    assert header.age_seconds == 12.5
    assert (read.node_id, read.name, read.version, read.round) == (identities[0].node_id, "anna", (5, 6), 7)
    assert read.neighbours == tuple(neighbours(2))
    assert read.before.tobytes() == BEFORE.tobytes()
    assert read.after.tobytes() == AFTER.tobytes()
    assert len(payload) <= mercy.record_bytes, "what credit is counted in"


def test_it_is_carried_on_unchanged(anna: Scribe, mercy: Scribe) -> None:
    header, payload = sent(signed(anna))
    passed_on, same = sent(mercy.read(header, payload), age=3.0)
    assert same == payload
    assert (passed_on.public_key, passed_on.signature, passed_on.nbytes) == (
        header.public_key,
        header.signature,
        header.nbytes,
    )
    assert mercy.read(passed_on, same).version == (5, 6)


def test_the_largest_honest_record_fits(anna: Scribe, mercy: Scribe) -> None:
    record = signed(
        anna, name="n" * LONGEST_NAME, neighbours=neighbours(MOST_NODES), epoch=2**64 - 1, sequence=2**64 - 1
    )
    header, payload = sent(record)
    assert len(payload) <= mercy.max_record_bytes
    assert mercy.read(header, payload).version == (2**64 - 1, 2**64 - 1)


def other_keys() -> Iterator[tuple[str, bytes]]:
    own = FORGER.key.public_key().public_bytes(*DER)
    yield "none", b""
    yield "garbage", b"\xff" * 91
    yield "truncated", own[:-1]
    yield "followed by more", own + b"\0"
    yield "RSA", rsa.generate_private_key(65537, 2048).public_key().public_bytes(*DER)
    yield "P-384", ec.generate_private_key(ec.SECP384R1()).public_key().public_bytes(*DER)
    yield "of an algorithm that nobody knows", own[:10] + b"\x7f" + own[11:]
    yield "on a curve that nobody knows", own[:22] + b"\x7f" + own[23:]
    yield "in hybrid form", own[:26] + bytes([6 + own[-1] % 2]) + own[27:]
    yield "not on the curve", own[:-1] + bytes([own[-1] ^ 1])
    yield "huge", b"\x30\x83\x0f\xff\xff" + bytes(2**20 - 1)


KEYS = dict(other_keys())


@pytest.mark.parametrize("key", KEYS)
def test_a_key_that_is_none_of_ours(mercy: Scribe, key: str) -> None:
    header, content = FORGER.record()
    header.public_key = KEYS[key]
    assert reason(mercy, header, content) == "key"


def test_nobody_speaks_for_another(anna: Scribe, mercy: Scribe) -> None:
    header, payload = sent(signed(anna))
    forged, content = FORGER.record()
    header.signature = forged.signature
    assert reason(mercy, header, payload) == "signature"
    forged.public_key = header.public_key
    assert reason(mercy, forged, content) == "signature"


@pytest.mark.parametrize("signature", [b"", b"\x30\x06\x02\x01\x00\x02\x01\x00", b"\xff" * 70, bytes(2**20)])
def test_signatures_that_are_none(mercy: Scribe, signature: bytes) -> None:
    header, content = FORGER.record()
    header.signature = signature
    assert reason(mercy, header, content) == "signature"


def test_what_was_signed_for_something_else_is_no_sketch(mercy: Scribe) -> None:
    _, content = FORGER.record()
    for purpose in (b"", b"conlora snapshot\0", b"conlora sketch"):
        assert reason(mercy, *FORGER.sign(content, purpose)) == "signature"


NAN, ENDLESS, ABSURD = BEFORE.copy(), BEFORE.copy(), BEFORE.copy()
NAN[3], ENDLESS[-1], ABSURD[0] = np.nan, -np.inf, -LARGEST_NUMBER
SIGNED_BUT_WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "another federation": ("federation", {"federation": b"x" * 32}),
    "no federation": ("federation", {"federation": b""}),
    "no name": ("name", {"name": ""}),
    "a long name": ("name", {"name": "n" * (LONGEST_NAME + 1)}),
    "a name that rings": ("name", {"name": "a\x07"}),
    "a name of two lines": ("name", {"name": "a\nb"}),
    "a name that turns the line around": ("name", {"name": "a\u202eb"}),
    "a life without end": ("lifetime", {"lifetime_seconds": 10**6}),
    "no life at all": ("lifetime", {"lifetime_seconds": 0}),
    "no node id": ("neighbours", {"neighbours": ["anna"]}),
    "a node id with something behind it": ("neighbours", {"neighbours": [neighbours(1)[0] + "\n"]}),
    "too many neighbours": ("neighbours", {"neighbours": neighbours(MOST_NODES + 1)}),
    "no sketch": ("size", {"before": b""}),
    "a short sketch": ("size", {"after": AFTER.tobytes()[:-4]}),
    "a sketch with a byte too many": ("size", {"before": BEFORE.tobytes() + b"x"}),
    "not a number": ("not-finite", {"before": NAN.tobytes()}),
    "infinity": ("not-finite", {"after": ENDLESS.tobytes()}),
    "a number no adapter comes to": ("not-finite", {"after": ABSURD.tobytes()}),
}


@pytest.mark.parametrize("wrong", SIGNED_BUT_WRONG)
def test_signed_but_wrong(mercy: Scribe, wrong: str) -> None:
    expected, changes = SIGNED_BUT_WRONG[wrong]
    assert reason(mercy, *FORGER.record(**changes)) == expected


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"\x12\x02\xff\xfe", b"\x12\x03\xed\xa0\x80", b"\x0b" * 5000])
def test_signed_but_no_record(mercy: Scribe, content: bytes) -> None:
    """Nothing, garbage, a name that is no UTF-8, a surrogate, and groups in groups."""
    assert reason(mercy, *FORGER.sign(content)) in ("format", "federation")


def test_a_flipped_bit_anywhere_is_noticed(anna: Scribe, mercy: Scribe) -> None:
    """Each bit of key and signature, and of every part of the record."""
    header, payload = sent(signed(anna))
    for part in ("public_key", "signature"):
        honest = getattr(header, part)
        for bit in range(8 * len(honest)):
            changed = SketchHeader()
            changed.CopyFrom(header)
            setattr(changed, part, flipped(honest, bit))
            assert reason(mercy, changed, payload) in ("key", "signature")
    for bit in range(0, 8 * len(payload), 13):
        assert reason(mercy, header, flipped(bytes(payload), bit)) == "signature"
    assert mercy.read(header, payload).name == "anna"


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


uint64 = st.integers(0, 2**64 - 1)
records = st.fixed_dictionaries(
    {},
    optional={
        "federation": st.binary(max_size=40),
        "name": st.text(max_size=80),
        "epoch": uint64,
        "sequence": uint64,
        "round": uint64,
        "neighbours": st.lists(st.text(max_size=70) | st.sampled_from(neighbours(3)), max_size=5),
        "before": st.binary(max_size=80) | st.binary(min_size=4 * LAYOUT.size, max_size=4 * LAYOUT.size),
        "after": st.binary(max_size=80),
    },
)


@settings(max_examples=150, deadline=None)
@given(records)
def test_whatever_is_signed_is_read_or_refused(changes: dict[str, Any]) -> None:
    header, content = FORGER.record(**changes)
    try:
        record = Scribe.read(SCRIBE, header, bytearray(content))
    except SketchRejected:
        return
    assert record.name.isprintable()
    assert np.isfinite(record.before).all()


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=100), st.binary(max_size=300))
def test_whatever_comes_is_refused(key: bytes, signature: bytes, content: bytes) -> None:
    with pytest.raises(SketchRejected):
        SCRIBE.read(SketchHeader(nbytes=len(content), public_key=key, signature=signature), bytearray(content))
    with pytest.raises(SketchRejected):  # and signed
        SCRIBE.read(FORGER.sign(content)[0], bytearray(content))


class _Stranger:
    """An identity for tests without fixtures."""

    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


SCRIBE = Scribe(Identity(_Stranger.pem, b"", "ME"), FEDERATION, LAYOUT.size)


# --- frames ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def mercy_node(identities: tuple[Identity, Identity]) -> tuple[Exchange, Observatory, Peer]:
    return node_of(*identities)


def node_of(anna: Identity, mercy: Identity) -> tuple[Exchange, Observatory, Peer]:
    """A node whose neighbour anna has sent a snapshot, with the exchange and sketches that daemons have."""
    peer = Peer("anna", anna.node_id, None, anna.certificate)
    observatory = Observatory(mercy, "mercy", [peer], True)
    exchange = Exchange(Mode.ASYNC, [peer], 10.0, observatory)
    exchange.open(SCHEMA, LAYOUT.size, 0)
    observatory.open(SETTINGS, LAYOUT)
    exchange.link_up(peer)
    snapshot = wire.outgoing(4, 1, encode(SCHEMA, np.arange(SCHEMA.size, dtype=np.float32)))
    assert isinstance(snapshot.header, SnapshotHeader)
    exchange.snapshot_received(peer, snapshot.header, bytearray(snapshot.payload))
    return exchange, observatory, peer


async def run(exchange: Exchange, peer: Peer, frames: Sequence[Frame]) -> tuple[PeerError, Link, Script]:
    """Runs a link to its end; returns what ended it. Anything but a PeerError fails the test."""
    stream = Script(frames)
    link = Link(peer, stream, dialled=True, depth=1)
    with pytest.raises(PeerError) as caught:
        await asyncio.wait_for(link.run(exchange), 10)
    return caught.value, link, stream


def frames_of(header: SketchHeader, payload: bytes) -> list[Frame]:
    return list(Transfer(header, bytes(payload)).frames())


def snapshot_frames(value: float) -> list[Frame]:
    return list(wire.outgoing(5, 1, encode(SCHEMA, np.full(SCHEMA.size, value, np.float32))).frames())


MOST = SCRIBE.max_record_bytes
HALF_A_SNAPSHOT = snapshot_frames(1.0)[:1]
VIOLATIONS: dict[str, tuple[list[Frame], str]] = {
    "larger than allowed": ([Frame(sketch=SketchHeader(nbytes=MOST + 1))], f"a sketch of {MOST + 1} bytes, at most {MOST}"),
    "2^64-1 bytes": ([Frame(sketch=SketchHeader(nbytes=2**64 - 1))], "a sketch of 18446744073709551615 bytes"),
    "empty": ([Frame(sketch=SketchHeader(nbytes=0))], "a sketch of 0 bytes"),
    "inside an unfinished snapshot": ([*HALF_A_SNAPSHOT, *frames_of(*FORGER.record())], "sketch where it has no place"),
    "inside a sketch": ([frames_of(*FORGER.record())[0]] * 2, "sketch where it has no place"),
    "a snapshot inside a sketch": ([frames_of(*FORGER.record())[0], *HALF_A_SNAPSHOT], "snapshot where it has no place"),
    "more than announced": (
        [Frame(sketch=SketchHeader(nbytes=4)), Frame(chunk=b"12345")], "a chunk of 5 bytes where 4 were missing",
    ),
}  # fmt: skip


@pytest.mark.parametrize("violation", VIOLATIONS)
async def test_a_violation_ends_the_link_with_a_word(
    mercy_node: tuple[Exchange, Observatory, Peer], violation: str
) -> None:
    exchange, _, peer = mercy_node
    frames, sentence = VIOLATIONS[violation]
    error, link, stream = await run(exchange, peer, frames)
    assert isinstance(error, ProtocolError)
    assert sentence in str(error)
    assert stream.written[-1].goodbye.reason == Goodbye.REASON_PROTOCOL
    assert link.sketches_rejected == 0


async def test_a_rejected_sketch_is_counted_and_the_link_lives_on(
    mercy_node: tuple[Exchange, Observatory, Peer], anna: Scribe
) -> None:
    exchange, observatory, peer = mercy_node
    bad_key, content = FORGER.record()
    bad_key.public_key = KEYS["on a curve that nobody knows"]
    frames = [
        *frames_of(bad_key, content),
        *frames_of(*FORGER.record(name="\n")),
        *frames_of(*sent(signed(anna))),
        *snapshot_frames(2.0),
    ]
    error, link, _ = await run(exchange, peer, frames)
    assert "ended the link without a word" in str(error)
    assert (link.sketches_rejected, link.rejected) == (2, 0)
    assert link.last_rejection.startswith("name: ")
    assert [node.name for node in observatory.picture().nodes] == ["anna"]
    newest = exchange.newest(peer.node_id)
    assert newest is not None
    assert newest[0].round == 5


@pytest.mark.parametrize("age", [float("nan"), float("inf"), -float("inf"), -1.0, DEPARTED_SECONDS, 1e308])
async def test_impossible_ages_are_no_news(
    mercy_node: tuple[Exchange, Observatory, Peer], anna: Scribe, age: float
) -> None:
    exchange, observatory, peer = mercy_node
    _, link, _ = await run(exchange, peer, frames_of(*sent(signed(anna), age)))
    assert observatory.picture().nodes == []
    assert link.sketches_rejected == 0


def training(exchange: Exchange) -> tuple[list[bytes], object]:
    """All that a trainer would read, and the plan that it would get."""
    vectors: list[Vector] = [exchange.arena.published, exchange.arena.mixed, exchange.arena.sketch_before,
                             exchange.arena.sketch_after, exchange.arena.inbox(0, 0), exchange.arena.inbox(0, 1)]  # fmt: skip
    plan = asyncio.run(exchange.plan(1))
    exchange._gossip.release()
    return [vector.tobytes() for vector in vectors], plan


any_sketch: st.SearchStrategy[tuple[SketchHeader, bytes]] = st.one_of(
    records.map(lambda changes: FORGER.record(**changes)),
    st.binary(min_size=1, max_size=300).map(lambda content: FORGER.sign(content)),
    st.builds(
        lambda content, key, signature, age: (
            SketchHeader(nbytes=len(content), public_key=key, signature=signature, age_seconds=age),
            content,
        ),
        st.binary(min_size=1, max_size=300),
        st.binary(max_size=100),
        st.binary(max_size=100),
        st.floats(),
    ),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(any_sketch, max_size=6), st.integers(1, CHUNK_BYTES))
def test_no_sketch_reaches_training(sketches: list[tuple[SketchHeader, bytes]], piece: int) -> None:
    exchange, observatory, peer = node_of(IDENTITIES[0], IDENTITIES[1])
    before = training(exchange)
    frames: list[Frame] = []
    for header, content in sketches:
        frames.append(Frame(sketch=header))
        frames += [Frame(chunk=content[i : i + piece]) for i in range(0, len(content), piece)]
    _, link, _ = asyncio.run(run(exchange, peer, frames))
    assert training(exchange) == before
    assert link.rejected == 0
    view = observatory.picture()  # and whatever was taken in can be shown
    assert len(view.nodes) + link.sketches_rejected <= len(sketches)


@pytest.fixture(scope="module", autouse=True)
def _identities_for_hypothesis(identities: tuple[Identity, Identity]) -> None:
    IDENTITIES[:] = identities


IDENTITIES: list[Identity] = []
