"""A node that a hostile neighbour talks to: a daemon's own code from bytes to slots, and an oracle that looks on."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import grpc
import numpy as np
import safetensors
import structlog
import xxhash
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.message import DecodeError
from tests.reliability.frames import LAYOUT, SCHEMA, SETTINGS, UNDER_WAY

from conlora.core import encoding
from conlora.core.encoding import Encoding
from conlora.core.gossip import Mode
from conlora.core.schema import Vector
from conlora.daemon.exchange import Exchange
from conlora.daemon.meter import Meter
from conlora.daemon.observatory import Observatory
from conlora.errors import PeerError
from conlora.net import reception, transfers, wire
from conlora.net.identity import Peer, create_identity
from conlora.net.link import Link
from conlora.net.sketches import PURPOSE
from conlora.net.streams import FrameStream
from conlora.net.transfers import Landing
from conlora.net.wire import Frame, SketchHeader, SketchRecord, SnapshotHeader

CHUNK_BYTES = 2048  # so that small snapshots have several chunks
MAX_RMS = 1e3  # documented; see core/validation.py
LARGEST_NUMBER = 1e18  # likewise, of a sketch; see net/sketches.py


@contextlib.contextmanager
def small_chunks() -> Iterator[None]:
    """The protocol with chunks of 2 KiB."""
    with contextlib.ExitStack() as patches:
        for module in (encoding, wire, transfers, reception):
            patches.enter_context(mock.patch.object(module, "CHUNK_BYTES", CHUNK_BYTES))
        yield


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing is logged: a warning for each of a million frames would take longer than what it warns of."""

    def drop(logger: object, name: str, event: Any) -> Any:
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[drop])
    yield
    structlog.configure(**before)


class Victim(Exchange):
    """A node with one peer, mallory. It lives through one link after another."""

    def __init__(self, directory: Path) -> None:
        own, other = (create_identity(directory / name) for name in ("victim", "mallory"))
        self.peer = Peer("mallory", other.node_id, None, other.certificate)
        observatory = Observatory(own, "victim", [self.peer], True)
        super().__init__(Mode.ASYNC, [self.peer], 10.0, observatory, lambda name: Encoding.FP32)
        self.open(SCHEMA, Meter(SCHEMA, SCHEMA, np.zeros(SCHEMA.size, np.float32), 0))
        self.go_on(0)
        observatory.open(SETTINGS, LAYOUT)
        self.publish(1)
        self.frames: Counter[str] = Counter()  # read so far, by kind
        self.ends: Counter[str] = Counter()  # of links, by error
        self.kept = self.sketches = self.refused = 0  # what came of snapshots and sketches
        self._runner = asyncio.Runner()
        self._read: list[bytes] = []  # on this link
        self._newest: tuple[int, Vector] | None = None  # id and values of what was kept last, on this link

    def close(self) -> None:
        """Ends its event loop."""
        self._runner.close()

    def seen(self) -> dict[str, object]:
        """What came so far, and what came of it."""
        return {
            "frames": dict(self.frames),
            "ends of links": dict(self.ends),
            "snapshots kept": self.kept,
            "sketches kept": self.sketches,
            "refused": self.refused,
        }

    def hear(self, messages: Sequence[bytes]) -> PeerError:
        """One link on which these messages come, and then the end. Returns what ended it.

        Raises AssertionError where anything was kept that should not have been; no other error may come out.
        """
        self._read, self._newest = [], None
        end = self._runner.run(self._converse(messages))
        assert str(end).isprintable(), "a peer may write to the log what is not printable"
        assert len(str(end)) < 5000, "a peer may write to the log what is long"
        self.ends[type(end).__name__] += 1
        newest = self.newest(self.peer.node_id)
        assert newest is None, "a dead edge holds a snapshot"
        return end

    async def _converse(self, messages: Sequence[bytes]) -> PeerError:
        coming, under_way = iter(messages), 0

        async def read() -> object:
            await asyncio.sleep(0)
            if self._newest:
                held = self.newest(self.peer.node_id)
                assert held is not None
                assert np.array_equal(self.arena.inbox(0, held[0].slot), self._newest[1]), "a good snapshot was touched"
            if (message := next(coming, None)) is None:
                return grpc.aio.EOF
            message = _answering(message, under_way)
            self._read.append(message)
            self.frames[_kind(message)] += 1
            return message

        async def write(message: bytes) -> None:
            nonlocal under_way
            frame = Frame.FromString(message)
            under_way = frame.snapshot.id or under_way

        link = Link(self.peer, FrameStream(self.peer.name, read, write), dialled=False, depth=1)
        try:
            await link.shake_hands("victim", b"2", SETTINGS)
            for snapshot in self.link_up(self.peer):
                link.offer(snapshot)
            try:
                await link.run(self)
            finally:
                link.discard()
                self.link_down(self.peer)
                self._newest = None  # nothing is held through the farewell
                self.refused += link.counts.rejected + link.counts.sketches_rejected
        except PeerError as error:
            await link.farewell()
            return error
        raise AssertionError("a link ended without a word")

    def snapshot_received(self, peer: Peer, header: SnapshotHeader, landing: Landing) -> None:
        """Kept; the oracle has a look first."""
        vector = vouched(self._read, self._newest)
        assert np.array_equal(vector, landing.out), "decoded to something else"
        self._newest = header.id, vector
        self.kept += 1
        super().snapshot_received(peer, header, landing)

    def sketch_received(self, peer: Peer, header: SketchHeader, payload: bytearray) -> None:
        """Kept, or refused."""
        super().sketch_received(peer, header, payload)
        key: Any = serialization.load_der_public_key(header.public_key)
        key.verify(header.signature, PURPOSE + bytes(payload), ec.ECDSA(hashes.SHA256()))
        record = SketchRecord.FromString(bytes(payload))
        assert record.federation == SETTINGS.digest
        for data in (record.before, record.after):
            vector = np.frombuffer(data, "<f4")
            assert len(vector) == LAYOUT.size
            assert np.abs(vector).max() < LARGEST_NUMBER
        self.sketches += 1


def vouched(messages: Sequence[bytes], newest: tuple[int, Vector] | None) -> Vector:
    """The oracle: the vector in the snapshot that the last message ends, read with protobuf, safetensors, xxhash and numpy alone.

    newest: what was kept before, if anything. Raises AssertionError where the snapshot must not be kept.
    """
    frames = [Frame.FromString(message) for message in messages]
    kinds = [frame.WhichOneof("kind") for frame in frames]
    assert kinds[-1] == "snapshot_end", "kept before it ended"
    first = len(kinds) - 1 - kinds[::-1].index("snapshot")
    header, payload = frames[first].snapshot, b"".join(frame.chunk for frame in frames[first:])
    assert len(payload) == header.nbytes, "kept at another size than announced"
    assert xxhash.xxh3_128(payload).digest() == frames[-1].snapshot_end.digest, "kept with a wrong digest"
    tensors = dict(safetensors.deserialize(payload))
    vector = _whole(tensors) if header.encoding == "int8" else _named(tensors, header.encoding)
    if header.base:
        assert newest is not None, "differences to nothing"
        assert newest[0] == header.base, "differences to something else"
        vector = newest[1] + vector
    assert np.isfinite(vector).all(), "kept though not finite"
    assert np.sqrt(np.mean(vector.astype(np.float64) ** 2)) <= 1.001 * MAX_RMS, "kept though absurdly large"
    return vector


def _named(tensors: dict[str, Any], encoding: str) -> Vector:
    """Values of fp32 or bf16, which are fp32 without its lower half."""
    flat = []
    assert set(tensors) == {spec.name for spec in SCHEMA.tensors}, "kept with other tensors"
    for spec in SCHEMA.tensors:
        tensor = tensors[spec.name]
        assert tuple(tensor["shape"]) == spec.shape, "kept with another shape"
        assert tensor["dtype"] == {"fp32": "F32", "bf16": "BF16"}[encoding], "kept with another data type"
        data = bytes(tensor["data"])
        flat.append(np.frombuffer(data, "<f4") if encoding == "fp32" else _upper_halves(data))
    return np.concatenate(flat)


def _upper_halves(data: bytes) -> Vector:
    return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)


def _whole(tensors: dict[str, Any]) -> Vector:
    """Values of int8: blocks of 256 with a scale each."""
    flat = []
    for i in range(len(tensors) // 2):
        scales = np.frombuffer(bytes(tensors[f"scales.{i}"]["data"]), "<f4")
        values = np.frombuffer(bytes(tensors[f"values.{i}"]["data"]), np.int8)
        with np.errstate(all="ignore"):
            flat.append(values.astype(np.float32) * np.repeat(scales, 256)[: len(values)])
    vector = np.concatenate(flat)
    assert len(vector) == SCHEMA.size, "kept at another length"
    return vector


def _answering(message: bytes, under_way: int) -> bytes:
    """The message; where it answers what is under way, with its id."""
    try:
        frame = Frame.FromString(message)
    except DecodeError:
        return message
    if frame.taken.id != UNDER_WAY:
        return message
    frame.taken.id = under_way
    return frame.SerializeToString()


def _kind(message: bytes) -> str:
    try:
        return Frame.FromString(message).WhichOneof("kind") or "empty"
    except DecodeError:
        return "garbage"
