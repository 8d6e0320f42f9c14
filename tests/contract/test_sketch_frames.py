"""Sketches from peers that send anything: a violation ends the link, a bad sketch costs itself, and none reaches training."""

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from tests.fakes import shown
from tests.scripts import Script, as_frames
from tests.sketch_records import FORGER, KEYS, LAYOUT, SCHEMA, SCRIBE, SETTINGS, records, sent, signed

from conlora.core.encoding import CHUNK_BYTES, Encoding, Format
from conlora.core.gossip import SLOTS_PER_NEIGHBOUR, Mode
from conlora.core.schema import Vector
from conlora.core.sketchbook import DEPARTED_SECONDS
from conlora.daemon.exchange import Exchange
from conlora.daemon.meter import Meter
from conlora.daemon.observatory import Observatory
from conlora.errors import PeerError, ProtocolError
from conlora.net.identity import Identity, Peer
from conlora.net.link import Link
from conlora.net.sketches import Scribe
from conlora.net.transfers import Outgoing, Sender
from conlora.net.wire import Frame, Goodbye, SketchHeader, SnapshotHeader, Transfer


@pytest.fixture
def mercy_node(identities: tuple[Identity, Identity]) -> tuple[Exchange, Observatory, Peer]:
    return node_of(*identities)


def node_of(anna: Identity, mercy: Identity) -> tuple[Exchange, Observatory, Peer]:
    """A node whose neighbour anna has sent a snapshot, with the exchange and sketches that daemons have."""
    peer = Peer("anna", anna.node_id, None, anna.certificate)
    observatory = Observatory(mercy, "mercy", [peer], True)
    exchange = Exchange(Mode.ASYNC, [peer], 10.0, observatory, lambda name: Encoding.FP32)
    start = np.zeros(SCHEMA.size, np.float32)
    exchange.open(SCHEMA, Meter(SCHEMA, SCHEMA, start, 0))
    exchange.go_on(0)
    observatory.open(SETTINGS, LAYOUT)
    exchange.link_up(peer)
    header = SnapshotHeader(round=4, degree=1)
    landing = exchange.snapshot_begins(peer, header)
    assert landing is not None
    landing.out[:] = np.arange(SCHEMA.size)
    exchange.snapshot_received(peer, header, landing)
    return exchange, observatory, peer


async def run(exchange: Exchange, peer: Peer, frames: Sequence[Frame]) -> tuple[PeerError, Link, Script]:
    """Runs a link to its end; returns what ended it. Anything but a PeerError fails the test."""
    stream = Script(frames)
    link = Link(peer, stream, dialled=True, depth=1)
    with pytest.raises(PeerError) as caught:
        await asyncio.wait_for(link.run(exchange), 10)
    await link.farewell()
    return caught.value, link, stream


def frames_of(header: SketchHeader, payload: bytes) -> list[Frame]:
    return as_frames(Transfer(header, bytes(payload)).parts())


def snapshot_frames(value: float) -> list[Frame]:
    formats = {encoding.value: Format(SCHEMA, encoding) for encoding in Encoding}
    vector = np.full(SCHEMA.size, value, np.float32)
    snapshot = Outgoing(5, 1, vector, shared=False, on_free=lambda: None)
    return as_frames(Sender(formats, Encoding.FP32).parts(snapshot))


MOST = SCRIBE.max_record_bytes
HALF_A_SNAPSHOT = snapshot_frames(1.0)[:1]
VIOLATIONS: dict[str, tuple[list[Frame], str]] = {
    "larger than allowed": (
        [Frame(sketch=SketchHeader(nbytes=MOST + 1))],
        f"anna announced a sketch of {MOST + 1} bytes, at most {MOST} fit the schema",
    ),
    "2^64-1 bytes": ([Frame(sketch=SketchHeader(nbytes=2**64 - 1))], "a sketch of 18446744073709551615 bytes"),
    "empty": ([Frame(sketch=SketchHeader(nbytes=0))], "a sketch of 0 bytes"),
    "inside an unfinished snapshot": ([*HALF_A_SNAPSHOT, *frames_of(*FORGER.record())], "sketch where it has no place"),
    "inside a sketch": ([frames_of(*FORGER.record())[0]] * 2, "sketch where it has no place"),
    "a snapshot inside a sketch": ([frames_of(*FORGER.record())[0], *HALF_A_SNAPSHOT], "snapshot where it has no place"),
    "more than announced": (
        [Frame(sketch=SketchHeader(nbytes=4)), Frame(chunk=b"12345")], "anna sent a chunk of 5 bytes where 4 were missing",
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
    assert link.counts.sketches_rejected == 0


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
    with capture_logs() as logs:
        error, link, _ = await run(exchange, peer, frames)
    assert "ended the link without a word" in str(error)
    assert (link.counts.sketches_rejected, link.counts.rejected) == (2, 0)
    reasons = [entry["reason"].split(":")[0] for entry in logs if entry["event"] == "sketch rejected"]
    assert reasons == ["key", "name"]
    assert [node.name for node in shown(observatory).nodes] == ["anna"]
    newest = exchange.newest(peer.node_id)
    assert newest is not None
    assert newest[0].round == 5


@pytest.mark.parametrize("age", [float("nan"), float("inf"), -float("inf"), -1.0, DEPARTED_SECONDS, 1e308])
async def test_impossible_ages_are_no_news(
    mercy_node: tuple[Exchange, Observatory, Peer], anna: Scribe, age: float
) -> None:
    exchange, observatory, peer = mercy_node
    _, link, _ = await run(exchange, peer, frames_of(*sent(signed(anna), age)))
    assert shown(observatory).nodes == []
    assert link.counts.sketches_rejected == 0


def training(exchange: Exchange) -> tuple[list[bytes], object]:
    """All that a trainer would read, and the plan that it would get."""
    arena = exchange.arena
    vectors: list[Vector] = [
        *map(arena.own, range(arena.own_slots)),
        *(arena.inbox(0, slot) for slot in range(SLOTS_PER_NEIGHBOUR)),
    ]
    exchange.publish(1)
    mix = asyncio.run(exchange.plan(1))
    assert mix is not None
    exchange._end_round()
    return [vector.tobytes() for vector in vectors], mix.plan


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
    assert link.counts.rejected == 0
    view = shown(observatory)  # and whatever was taken in can be shown
    assert len(view.nodes) + link.counts.sketches_rejected <= len(sketches)


@pytest.fixture(scope="module", autouse=True)
def _identities_for_hypothesis(identities: tuple[Identity, Identity]) -> None:
    IDENTITIES[:] = identities


IDENTITIES: list[Identity] = []
