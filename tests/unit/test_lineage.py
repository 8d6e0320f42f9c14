"""The chain of keys that a certificate carries: the node id stays that of the first key, and no link can be forged."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.certificates import key_of, successor

from conlora.errors import (
    CardError,
    SketchRejected,
)
from conlora.net import identity as identity_module
from conlora.net.certificates import (
    HANDOVER_BYTES,
    MOST_HANDOVERS,
    Handover,
    founder,
    handovers,
    public_bytes,
    self_signed,
)
from conlora.net.identity import Identity, Peer, load_card
from conlora.net.sketches import Scribe
from conlora.net.wire import SketchHeader, Transfer


def test_the_id_stays_that_of_the_first_key(mercy: Identity) -> None:
    second = successor(mercy)
    third = successor(second)
    assert mercy.node_id == second.node_id == third.node_id
    assert len({mercy.key, second.key, third.key}) == 3
    assert [len(handovers(each.lineage)) for each in (mercy, second, third)] == [0, 1, 2]


@settings(deadline=None)
@given(st.integers(0, HANDOVER_BYTES * 2 - 1), st.integers(1, 255))
def test_whatever_is_changed_in_a_lineage_is_seen(position: int, change: int) -> None:
    lineage, key = THIRD
    forged = bytearray(lineage)
    forged[position] ^= change
    with pytest.raises(ValueError, match="lineage"):
        founder(bytes(forged), key)


def _third() -> tuple[bytes, bytes]:
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(3)]
    steps = (Handover.sign(a, public_bytes(b.public_key()), 1) for a, b in itertools.pairwise(keys))
    return b"".join(step.to_bytes() for step in steps), public_bytes(keys[2].public_key())


THIRD = _third()


@pytest.mark.parametrize("length", [1, HANDOVER_BYTES - 1, HANDOVER_BYTES * (MOST_HANDOVERS + 1)])
def test_a_malformed_lineage_is_refused_before_it_is_read(length: int) -> None:
    with pytest.raises(ValueError, match="its lineage is malformed"):
        founder(bytes(length), THIRD[1])


def test_another_keys_lineage_is_no_use(mercy: Identity, tmp_path: Path) -> None:
    """A thief can't put mercy's lineage into a certificate of his own."""
    key = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(ValueError, match="not vouched for by the one before it"):
        self_signed(key, successor(mercy).lineage)


def test_a_card_after_a_rotation_has_the_same_id(tmp_path: Path, mercy: Identity) -> None:
    path = tmp_path / "card.yaml"
    second = successor(mercy)
    path.write_text(second.card("mercy", None))
    assert load_card(path) == Peer("mercy", mercy.node_id, None, second.certificate)


def test_a_sketch_says_whose_it_is_after_a_rotation(mercy: Identity) -> None:
    second, zeros = successor(successor(mercy)), np.zeros(3, np.float32)
    scribe = Scribe(second, b"f", 3)
    transfer = scribe.sign("mercy", 1, 1, 1, [], zeros, zeros).payload
    assert isinstance(transfer, Transfer)
    header = SketchHeader.FromString(transfer.header.SerializeToString())
    assert scribe.read(header, bytearray(transfer.payload)).node_id == mercy.node_id
    header.lineage = header.lineage[HANDOVER_BYTES:]
    assert scribe.read(header, bytearray(transfer.payload)).node_id != mercy.node_id
    header.lineage = mercy.key[:HANDOVER_BYTES]
    with pytest.raises(SketchRejected, match="key: the owner's public key is not what it claims: a key in its lineage"):
        scribe.read(header, bytearray(transfer.payload))


def test_a_key_that_is_no_p256(mercy: Identity) -> None:
    other = ec.generate_private_key(ec.SECP384R1()).public_key()
    handover = Handover.sign(key_of(mercy), public_bytes(other), 1)
    with pytest.raises(ValueError, match="lineage"):
        founder(handover.to_bytes()[:-1], public_bytes(other))


def test_a_card_with_a_forged_lineage(tmp_path: Path, mercy: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    second = successor(mercy)
    certificate = x509.load_pem_x509_certificate(second.certificate)
    path = tmp_path / "card.yaml"
    path.write_text(second.card("mercy", None))

    def forged(_: object) -> str:
        return founder(bytes(HANDOVER_BYTES), public_bytes(certificate.public_key()))

    monkeypatch.setattr(identity_module, "node_id_of", forged)
    with pytest.raises(CardError, match=r"a key in its lineage .*ask mercy to mail the card again"):
        load_card(path)
