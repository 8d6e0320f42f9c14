"""Frames of the peer protocol: building and reading them, and the limits that hold on every link."""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256

from conlora.core.codec import CHUNK_BYTES, chunks
from conlora.core.federation import FederationSettings
from conlora.v1 import adapter_pb2, peer_pb2
from conlora.v1.adapter_pb2 import SketchHeader, SketchRecord, SnapshotHeader
from conlora.v1.peer_pb2 import Frame, Goodbye

__all__ = ["Frame", "Goodbye", "SketchHeader", "SketchRecord", "SnapshotHeader"]

PROTOCOL_VERSION = 3
MAX_FRAME_BYTES = CHUNK_BYTES + 64 * 1024  # a chunk and its wrapping; gRPC refuses anything larger unread
MAX_ROUND = 2**63 - 1  # what the history can hold; no node gets there by counting
HANDSHAKE_SECONDS = 10.0  # a peer that still loads its model answers late
HEARTBEAT_SECONDS = 2.0
SILENCE_SECONDS = 15.0  # a link on which nothing came for so long is dead
GOODBYE_SECONDS = 2.0
LEAVING = "the node stops"  # what a good-bye says, and what a dialler hears


@dataclass(frozen=True, slots=True)
class Transfer:
    """A header and the bytes that it announces, encoded once and shared by all links: a snapshot or a sketch."""

    header: SnapshotHeader | SketchHeader
    payload: bytes

    def frames(self) -> Iterator[Frame]:
        """In order."""
        if isinstance(self.header, SnapshotHeader):
            yield Frame(snapshot=self.header)
        else:
            yield Frame(sketch=self.header)
        yield from (Frame(chunk=chunk) for chunk in chunks(self.payload))


def outgoing(round_: int, degree: int, payload: bytes) -> Transfer:
    """Announces a safetensors payload."""
    header = adapter_pb2.SnapshotHeader(
        round=round_,
        degree=degree,
        nbytes=len(payload),
        sha256=sha256(payload).digest(),
    )
    return Transfer(header, payload)


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
            protocol_version=PROTOCOL_VERSION, name=name, instance=instance, settings=message, probe=probe
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


def heartbeat() -> Frame:
    """A sign of life."""
    return Frame(heartbeat=peer_pb2.Heartbeat())


def goodbye(reason: "Goodbye.Reason", detail: str = "") -> Frame:
    """The last frame on a link."""
    return Frame(goodbye=Goodbye(reason=reason, detail=detail))
