"""Snapshots between a sender and a receiver, in every encoding, without a network between them."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conlora.core.encoding import CHUNK_BYTES, Encoding, Format, Piece
from conlora.core.schema import Role, Schema, TensorSpec, Vector
from conlora.errors import ProtocolError, SnapshotRejected
from conlora.net.transfers import Incoming, Landing, Outgoing, Sender
from conlora.net.wire import Chunk, Frame, SnapshotHeader, SnapshotTaken

SIZE = 700_000  # several pieces in every encoding
SCHEMA = Schema((TensorSpec("a", "m", Role.A, (100_000,)), TensorSpec("b", "m", Role.B, (SIZE - 100_000,))))
FORMATS = {encoding.value: Format(SCHEMA, encoding) for encoding in Encoding}
ERRORS = {Encoding.FP32: 0.0, Encoding.BF16: 2e-3, Encoding.INT8: 8e-3}


def drawn(seed: int = 0) -> Vector:
    return np.random.default_rng(seed).standard_normal(SIZE, np.float32)


def outgoing(vector: Vector, round_: int = 1, shared: bool = False) -> Outgoing:
    return Outgoing(round_, 1, vector, shared=shared, on_free=lambda: None)


class Far:
    """The other end of a link: what it has kept, and what it answers."""

    def __init__(self) -> None:
        self.kept = np.zeros(SIZE, np.float32)
        self.id = 0
        self.bases: list[int] = []

    def take(self, parts: Iterable[object]) -> SnapshotTaken:
        first, *chunks, last = parts
        assert isinstance(first, Frame)
        assert isinstance(last, Frame)
        header = first.snapshot
        assert header.base in (0, self.id)
        self.bases.append(header.base)
        landing = Landing(0, np.empty(SIZE, np.float32), self.kept if header.base else None)
        incoming = Incoming("a", header, FORMATS[header.encoding], landing)
        for chunk in chunks:
            assert isinstance(chunk, Chunk)
            incoming.take(chunk.data)
        incoming.finish(last.snapshot_end.digest)
        self.kept, self.id = landing.out, header.id
        return SnapshotTaken(id=header.id, outcome=SnapshotTaken.OUTCOME_KEPT)


def relative(found: Vector, vector: Vector) -> float:
    return float(np.linalg.norm(found - vector) / np.linalg.norm(vector))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("encoding", Encoding)
def test_what_is_sent_arrives_up_to_rounding(encoding: Encoding, shared: bool) -> None:
    sender, far, vector = Sender(FORMATS, encoding), Far(), drawn()
    assert sender.taken(far.take(sender.parts(outgoing(vector, shared=shared))))
    assert relative(far.kept, vector) <= ERRORS[encoding]


def test_differences_make_up_for_what_rounding_has_lost() -> None:
    """Whole snapshots in int8 would stay 7e-3 away; differences come as near as the vector settles."""
    sender, far, vector = Sender(FORMATS, Encoding.INT8), Far(), drawn()
    errors = []
    for _ in range(3):
        assert sender.taken(far.take(sender.parts(outgoing(vector))))
        errors.append(relative(far.kept, vector))
    assert far.bases[0] == 0
    assert all(far.bases[1:])
    assert errors[1] < errors[0] / 50
    assert errors[2] < errors[1] / 50


@pytest.mark.parametrize("outcome", [SnapshotTaken.OUTCOME_UNUSED, SnapshotTaken.OUTCOME_REJECTED])
def test_after_a_snapshot_that_was_not_kept_values_come_whole(outcome: int) -> None:
    sender, far = Sender(FORMATS, Encoding.INT8), Far()
    sender.taken(far.take(sender.parts(outgoing(drawn(1)))))
    lost = far.take(sender.parts(outgoing(drawn(2))))
    sender.taken(SnapshotTaken(id=lost.id, outcome=outcome))  # type: ignore[arg-type]
    far.kept, far.id = drawn(9), 0
    sender.taken(far.take(sender.parts(outgoing(drawn(3)))))
    assert far.bases[-1] == 0
    assert relative(far.kept, drawn(3)) < ERRORS[Encoding.INT8]


def test_a_snapshot_that_was_broken_off_leaves_no_base() -> None:
    sender, far = Sender(FORMATS, Encoding.INT8), Far()
    sender.taken(far.take(sender.parts(outgoing(drawn(1)))))
    parts = sender.parts(outgoing(drawn(2)))
    for _ in range(3):
        next(parts)
    parts.close()
    sender.taken(far.take(sender.parts(outgoing(drawn(3)))))
    assert far.bases == [0, 0]


def test_an_answer_counts_once() -> None:
    sender, far = Sender(FORMATS, Encoding.FP32), Far()
    answer = far.take(sender.parts(outgoing(drawn())))
    assert not sender.taken(SnapshotTaken(id=answer.id + 1))
    assert sender.taken(answer)
    assert not sender.taken(answer)


def test_a_snapshot_is_free_when_its_last_holder_is_gone() -> None:
    freed = []
    snapshot = Outgoing(1, 1, drawn(), shared=True, on_free=lambda: freed.append(True))
    snapshot.hold().hold()
    snapshot.release()
    assert not freed
    snapshot.release()
    assert freed == [True]


def test_what_several_links_send_is_encoded_once() -> None:
    calls = []
    format = FORMATS["bf16"]

    class Counting(Format):
        def encode(self, piece: Piece, *others: Any, **named: Any) -> bytes:
            calls.append(piece)
            return super().encode(piece, *others, **named)

    formats = {**FORMATS, "bf16": Counting(SCHEMA, Encoding.BF16)}
    snapshot = outgoing(drawn(), shared=True).hold()
    for _ in range(3):
        far = Far()
        far.take(Sender(formats, Encoding.BF16).parts(snapshot))
        assert relative(far.kept, drawn()) < ERRORS[Encoding.BF16]
    assert calls == list(format.pieces)


def test_a_cancelled_landing_is_not_written_to() -> None:
    sender = Sender(FORMATS, Encoding.FP32)
    first, *chunks, last = sender.parts(outgoing(drawn()))
    assert isinstance(first, Frame)
    landing = Landing(0, np.zeros(SIZE, np.float32), None)
    incoming = Incoming("a", first.snapshot, FORMATS["fp32"], landing)
    for i, chunk in enumerate(chunks):
        landing.cancelled = i >= 2  # the header, and one piece
        assert isinstance(chunk, Chunk)
        incoming.take(chunk.data)
    assert isinstance(last, Frame)
    incoming.finish(last.snapshot_end.digest)
    assert np.count_nonzero(landing.out) <= CHUNK_BYTES // 4


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 60).map(bytes), max_size=4), st.sampled_from(list(Encoding)), st.booleans())
def test_chunks_of_any_length_are_due_or_a_breach(chunks: list[bytes], encoding: Encoding, begun: bool) -> None:
    """begun: after a whole header."""
    format = Format(Schema((TensorSpec("b", "m", Role.B, (5,)),)), encoding)
    incoming = Incoming("a", SnapshotHeader(), format, Landing(0, np.zeros(5, np.float32), None))
    if begun:
        incoming.take(memoryview(format.header))

    def arrive() -> None:
        for chunk in chunks:
            incoming.take(memoryview(chunk))
        incoming.finish(b"")

    (body,) = format.pieces
    right = begun and [len(chunk) for chunk in chunks] == [body.nbytes]
    with pytest.raises(SnapshotRejected if right else (ProtocolError, SnapshotRejected)):
        arrive()
