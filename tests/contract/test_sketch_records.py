"""Sketches from peers that sign anything: only what its owner has signed counts, and only where it makes sense."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.sketch_records import AFTER, BEFORE, FORGER, KEYS, SCRIBE, neighbours, records, sent, signed

from conlora.core.sketchbook import MOST_NODES
from conlora.errors import SketchRejected
from conlora.net.identity import Identity
from conlora.net.sketches import LARGEST_NUMBER, LONGEST_NAME, Scribe
from conlora.net.wire import SketchHeader

NOT_SIGNED = "signature: the record was not signed with the key beside it"


def refusal(scribe: Scribe, header: SketchHeader, payload: bytes) -> str:
    """The sentence."""
    with pytest.raises(SketchRejected) as caught:
        scribe.read(header, bytearray(payload))
    assert str(caught.value).startswith(f"{caught.value.reason}: ")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200
    return str(caught.value)


def reason(scribe: Scribe, header: SketchHeader, payload: bytes) -> str:
    """The sentence's short name."""
    return refusal(scribe, header, payload).partition(":")[0]


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


@pytest.mark.parametrize("key", KEYS)
def test_a_key_that_is_none_of_ours(mercy: Scribe, key: str) -> None:
    header, content = FORGER.record()
    header.public_key = KEYS[key]
    assert refusal(mercy, header, content) == OTHER_KEYS.get(key, "key: the owner's public key can't be read")


FOREIGN = "key: the owner's public key is not a P-256 key"
OTHER_KEYS = {
    "RSA": FOREIGN,
    "P-384": FOREIGN,
    "huge": FOREIGN,
    "in hybrid form": "key: the owner's public key is written in another form than ours",
}


def test_nobody_speaks_for_another(anna: Scribe, mercy: Scribe) -> None:
    header, payload = sent(signed(anna))
    forged, content = FORGER.record()
    header.signature = forged.signature
    assert refusal(mercy, header, payload) == NOT_SIGNED
    forged.public_key = header.public_key
    assert refusal(mercy, forged, content) == NOT_SIGNED


@pytest.mark.parametrize("signature", [b"", b"\x30\x06\x02\x01\x00\x02\x01\x00", b"\xff" * 70, bytes(2**20)])
def test_signatures_that_are_none(mercy: Scribe, signature: bytes) -> None:
    header, content = FORGER.record()
    header.signature = signature
    assert refusal(mercy, header, content) == NOT_SIGNED


def test_what_was_signed_for_something_else_is_no_sketch(mercy: Scribe) -> None:
    _, content = FORGER.record()
    for purpose in (b"", b"conlora snapshot\0", b"conlora sketch"):
        assert refusal(mercy, *FORGER.sign(content, purpose)) == NOT_SIGNED


NAN, ENDLESS, ABSURD = BEFORE.copy(), BEFORE.copy(), BEFORE.copy()
NAN[3], ENDLESS[-1], ABSURD[0] = np.nan, -np.inf, -LARGEST_NUMBER
OTHER_FEDERATION = "federation: the record was made for another federation"
NAME = "name: the owner's name is empty, too long or not printable"
NEIGHBOURS = "neighbours: the neighbours are too many, or no node ids"
LIFETIME = "lifetime: the record is to count for ever, or not at all"
NUMBERS = "not-finite: a sketch holds NaN, infinity, or more than an adapter can come to"
SIGNED_BUT_WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "another federation": (OTHER_FEDERATION, {"federation": b"x" * 32}),
    "no federation": (OTHER_FEDERATION, {"federation": b""}),
    "no name": (NAME, {"name": ""}),
    "a long name": (NAME, {"name": "n" * (LONGEST_NAME + 1)}),
    "a name that rings": (NAME, {"name": "a\x07"}),
    "a name of two lines": (NAME, {"name": "a\nb"}),
    "a name that turns the line around": (NAME, {"name": "a\u202eb"}),
    "a life without end": (LIFETIME, {"lifetime_seconds": 10**6}),
    "no life at all": (LIFETIME, {"lifetime_seconds": 0}),
    "no node id": (NEIGHBOURS, {"neighbours": ["anna"]}),
    "a node id with something behind it": (NEIGHBOURS, {"neighbours": [neighbours(1)[0] + "\n"]}),
    "too many neighbours": (NEIGHBOURS, {"neighbours": neighbours(MOST_NODES + 1)}),
    "no sketch": (f"size: a sketch has 0 bytes instead of {AFTER.nbytes}", {"before": b""}),
    "a short sketch": (
        f"size: a sketch has {AFTER.nbytes - 4} bytes instead of {AFTER.nbytes}",
        {"after": AFTER.tobytes()[:-4]},
    ),
    "a sketch with a byte too many": (
        f"size: a sketch has {AFTER.nbytes + 1} bytes instead of {AFTER.nbytes}",
        {"before": BEFORE.tobytes() + b"x"},
    ),
    "not a number": (NUMBERS, {"before": NAN.tobytes()}),
    "infinity": (NUMBERS, {"after": ENDLESS.tobytes()}),
    "a number no adapter comes to": (NUMBERS, {"after": ABSURD.tobytes()}),
}


@pytest.mark.parametrize("wrong", SIGNED_BUT_WRONG)
def test_signed_but_wrong(mercy: Scribe, wrong: str) -> None:
    expected, changes = SIGNED_BUT_WRONG[wrong]
    assert refusal(mercy, *FORGER.record(**changes)) == expected


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"\x12\x02\xff\xfe", b"\x12\x03\xed\xa0\x80", b"\x0b" * 5000])
def test_signed_but_no_record(mercy: Scribe, content: bytes) -> None:
    """Nothing, garbage, a name that is no UTF-8, a surrogate, and groups in groups."""
    no_record = "format: the payload is no sketch record"
    assert refusal(mercy, *FORGER.sign(content)) == (no_record if content else OTHER_FEDERATION)


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
