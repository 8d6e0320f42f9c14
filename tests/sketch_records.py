"""Signed sketches for tests: honest ones, forged ones, and keys that are none."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import strategies as st

from conlora.core.federation import FederationSettings
from conlora.core.schema import Role, Schema, TensorSpec
from conlora.core.sketch import SketchLayout
from conlora.core.sketchbook import Part, Record
from conlora.net.identity import Identity
from conlora.net.sketches import PURPOSE, Scribe, outgoing
from conlora.net.wire import SketchHeader, SketchRecord

SCHEMA = Schema(
    (TensorSpec("q.lora_A.weight", "q", Role.A, (2, 3)), TensorSpec("q.lora_B.weight", "q", Role.B, (4, 2)))
)
LAYOUT = SketchLayout.of(SCHEMA, SCHEMA)
SETTINGS = FederationSettings("f", "print", "{}", 1, "lora", "async", 8, "{}", "digest")
FEDERATION = SETTINGS.digest
BEFORE, AFTER = (np.arange(LAYOUT.size, dtype=np.float32) + i for i in (0, 1))
DER = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


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


class _Stranger:
    """An identity for tests without fixtures."""

    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


SCRIBE = Scribe(Identity(_Stranger.pem, b"", "ME"), FEDERATION, LAYOUT.size)
