"""Frames of the peer protocol: building and reading them, and the limits that hold on every link."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from google.protobuf.message import DecodeError

from conlora.core.encoding import CHUNK_BYTES, Buffer, Encoding
from conlora.core.federation import FederationSettings
from conlora.v1 import adapter_pb2, peer_pb2
from conlora.v1.adapter_pb2 import SketchHeader, SketchRecord, SnapshotEnd, SnapshotHeader, SnapshotTaken
from conlora.v1.peer_pb2 import Frame, Goodbye

__all__ = ["Frame", "Goodbye", "SketchHeader", "SketchRecord", "SnapshotHeader", "SnapshotTaken"]

PROTOCOL_VERSION = 5
MAX_FRAME_BYTES = CHUNK_BYTES + 64 * 1024  # a chunk and its wrapping; gRPC refuses anything larger unread
MAX_CONTROL_BYTES = 256 * 1024  # of a frame that is no chunk; the longest is a Hello with thousands of target modules
MAX_ROUND = 2**63 - 1  # what the history can hold; no node gets there by counting
HANDSHAKE_SECONDS = 10.0  # a peer that still loads its model answers late
HEARTBEAT_SECONDS = 2.0
SILENCE_SECONDS = 15.0  # a link on which nothing came for so long is dead
STALL_SECONDS = (
    2 * SILENCE_SECONDS
)  # ... and one that took no frame for so long: its other end has heard nothing for as long
HEARTBEATS_AT_ONCE = (
    64  # after a pause of the network or of a process they come in a bunch; twice their rate is the most
)
FRAMES_AT_ONCE, FRAMES_PER_SECOND = (
    4096,
    2048,
)  # a link is read no faster: 2 GiB/s of chunks, or 500 snapshots of the smallest
GOODBYE_SECONDS = 2.0
# On one link. A node that is not understood says it again once a day; authorities may issue certificates for hours.
CERTIFICATE_FRAMES_AT_ONCE, CERTIFICATE_FRAMES_PER_SECOND = 64, 1 / 300
LARGEST_CERTIFICATE = 16 * 1024  # bytes of PEM; one with the longest lineage has 8 kB
LEAVING = "the node stops"  # what a good-bye says, and what a dialler hears
OUTDATED = "the certificate behind this link counts no more"  # what a good-bye says, at both ends
PARTING = "its operator has removed this node"  # what a good-bye says
LEFT = "the node has left"  # what a dialler hears
HAS_LEFT = "has left; the link comes up again when it comes back"  # what the operator reads after its name
NOT_ADMITTED = "not admitted"  # what a dialler hears whom the node does not know
NOT_CERTIFIED = "not certified"  # ... whose key it knows, and no authority lets it use that now
QUARANTINED = "quarantined"  # what a good-bye begins with, and what a dialler hears


class TooLarge(DecodeError):
    """A frame that is no chunk has more than MAX_CONTROL_BYTES."""

    def __init__(self, nbytes: int) -> None:
        super().__init__(f"a frame of {nbytes} bytes that is no chunk")
        self.nbytes = nbytes


_CHUNK_TAG = bytes([Frame.CHUNK_FIELD_NUMBER << 3 | 2])


@dataclass(frozen=True, slots=True)
class Transfer:
    """A sketch's header and the bytes that it announces, shared by all links."""

    header: SketchHeader
    payload: bytes

    def parts(self) -> "Iterator[Frame | Chunk]":
        """A frame, and the chunks after it."""
        yield Frame(sketch=self.header)
        yield from chunks(self.payload)


class Chunk(NamedTuple):
    """`Frame(chunk=data)` as protobuf would serialize it, with fewer copies; `data` is a part of the message."""

    message: bytes
    data: memoryview


def chunk(data: Buffer) -> Chunk:
    """A frame around a copy of the data."""
    prefix = chunk_prefix(len(data))
    message = b"".join((prefix, data))
    return Chunk(message, memoryview(message)[len(prefix) :])


def chunks(payload: bytes) -> Iterator[Chunk]:
    """The payload in order, in pieces that fit into a frame."""
    view = memoryview(payload)
    return (chunk(view[start : start + CHUNK_BYTES]) for start in range(0, len(payload), CHUNK_BYTES))


def chunk_prefix(nbytes: int) -> bytes:
    """What a frame begins with that holds nothing but a chunk of so many bytes: protobuf's tag of the field, and the length."""
    return _CHUNK_TAG + _varint(nbytes)


def parse(message: bytes) -> "Frame | memoryview":
    """A frame, or of a frame that holds a chunk the chunk itself, which is not copied. Raises DecodeError for anything else, also
    for what is too large.
    """
    if message[:1] == _CHUNK_TAG:
        length, start = 0, 1
        for shift in range(0, 28, 7):
            byte = message[start] if start < len(message) else 0
            length |= (byte & 0x7F) << shift
            start += 1
            if byte < 0x80:
                break
        if start + length == len(message):
            return memoryview(message)[start:]
    if len(message) > MAX_CONTROL_BYTES:  # of which protobuf could make many times as much
        raise TooLarge(len(message))
    frame = Frame.FromString(message)
    return memoryview(frame.chunk) if frame.HasField("chunk") else frame


def transfer_seconds(nbytes: int) -> float:
    """How long a snapshot or sketch may take from its header on: at the pace that a link has to have (see SILENCE_SECONDS)."""
    return SILENCE_SECONDS * (2 + nbytes / CHUNK_BYTES)


def _varint(number: int) -> bytes:
    """Protobuf's base 128, low digits first."""
    digits = bytearray()
    while number >= 0x80:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)


def snapshot_end(digest: bytes) -> Frame:
    """What a snapshot ends with."""
    return Frame(snapshot_end=SnapshotEnd(digest=digest))


def taken(id_: int, outcome: "SnapshotTaken.Outcome", detail: str = "") -> Frame:
    """The answer to a snapshot."""
    return Frame(taken=SnapshotTaken(id=id_, outcome=outcome, detail=detail))


def hello(name: str, instance: bytes, settings: FederationSettings, probe: bool = False) -> Frame:
    """The first frame of either side."""
    message = adapter_pb2.FederationSettings(
        federation=settings.federation,
        base_model_fingerprint=settings.base_model_fingerprint,
        peft=settings.peft,
        seed=settings.seed,
        rule=settings.rule,
        mode=settings.mode,
        local_steps=settings.local_steps,
        task=settings.task,
        schema=settings.schema,
    )
    return Frame(
        hello=peer_pb2.Hello(
            protocol_version=PROTOCOL_VERSION,
            name=name,
            instance=instance,
            settings=message,
            probe=probe,
            encodings=[encoding.value for encoding in Encoding],
        )
    )


def settings_of(message: peer_pb2.Hello) -> FederationSettings:
    """The settings in a peer's Hello."""
    s = message.settings
    return FederationSettings(
        federation=s.federation,
        base_model_fingerprint=s.base_model_fingerprint,
        peft=s.peft,
        seed=s.seed,
        rule=s.rule,
        mode=s.mode,
        local_steps=s.local_steps,
        task=s.task,
        schema=s.schema,
    )


def differences(ours: FederationSettings, message: peer_pb2.Hello) -> list[str]:
    """What keeps a peer with that Hello from being mixed with; empty when nothing does."""
    if message.protocol_version != PROTOCOL_VERSION:
        return [f"protocol_version: ours is {PROTOCOL_VERSION}, theirs {message.protocol_version}"]
    return ours.differences(settings_of(message))


def printable(text: str) -> str:
    """What a peer says, as it may reach a log."""
    return "".join(c if c.isprintable() else "?" for c in text[:500])


def next_certificate(certificate: bytes) -> Frame:
    """Announces what this side will show. certificate: PEM."""
    return Frame(next_certificate=certificate)


def certificate_kept(certificate: bytes) -> Frame:
    """The answer to an announcement."""
    return Frame(certificate_kept=hashlib.sha256(certificate).digest())


def heartbeat() -> Frame:
    """A sign of life."""
    return Frame(heartbeat=peer_pb2.Heartbeat())


def goodbye(reason: "Goodbye.Reason", detail: str = "") -> Frame:
    """The last frame on a link."""
    return Frame(goodbye=Goodbye(reason=reason, detail=detail))
