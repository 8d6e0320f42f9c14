"""Hostile sequences of frames: real ones of every kind, taken apart and put together wrongly, as a few numbers say."""

import struct
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import xxhash
from google.protobuf.message import DecodeError, Message
from tests.scripts import as_frames
from tests.sketch_records import FORGER

from conlora.core.encoding import Encoding, Format
from conlora.core.federation import FederationSettings
from conlora.core.schema import Role, Schema, TensorSpec
from conlora.core.sketch import SketchLayout
from conlora.net import wire
from conlora.net.transfers import Outgoing, Sender
from conlora.net.wire import Frame, Goodbye, SnapshotTaken, Transfer

SETTINGS = FederationSettings("f", "print", "{}", 1, "lora", "async", 8, "{}", "digest")
SCHEMA = Schema(
    (TensorSpec("q.lora_A.weight", "q", Role.A, (4, 300)), TensorSpec("q.lora_B.weight", "q", Role.B, (200, 4)))
)
LAYOUT = SketchLayout.of(SCHEMA, SCHEMA)
UNDER_WAY = 7777  # as the id of an answer: whatever the snapshot has that the other side is sending
NUMBERS = (0, 1, 2, 2**20, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
ELEMENTS = (0.0, -1.0, 1e3, 1e38, 1e-45, np.inf, -np.inf, np.nan)
LONGEST = 200  # messages of a sequence
HELLO = 0  # place of the Hello among what `groups` returns


class Move(NamedTuple):
    """One change of a sequence: which, at which message from the end, and two things that it may need."""

    kind: int
    where: int
    number: int
    data: bytes


def groups() -> list[list[bytes]]:
    """What an honest neighbour may say, each piece as its messages. Chunks have the size of the moment."""
    formats = {encoding.value: Format(SCHEMA, encoding) for encoding in Encoding}
    said = [[wire.hello("mallory", b"1", SETTINGS)]]
    for encoding in Encoding:
        sender = Sender(formats, encoding)
        said.append(_snapshot(sender, 1, 0))
        if encoding is Encoding.INT8:
            differences = _snapshot(sender, 2, 1)
            said += [[*said[-1], *differences], differences]  # the last has no place after itself
    said.append(as_frames(Transfer(*sketch()).parts()))
    said += [[wire.taken(UNDER_WAY, outcome, "why")] for outcome in SnapshotTaken.Outcome.values()]
    said += [[wire.heartbeat()], [wire.goodbye(Goodbye.REASON_LEAVING, "bye")]]
    return [[frame.SerializeToString() for frame in frames] for frames in said]


def _snapshot(sender: Sender, id_: int, base: int) -> list[Frame]:
    """With ids that are the same in every run."""
    vector = np.random.default_rng(id_).standard_normal(SCHEMA.size, np.float32)
    frames = as_frames(sender.parts(Outgoing(id_, 1, vector, shared=False, on_free=lambda: None)))
    header = frames[0].snapshot
    assert bool(header.base) == bool(base)
    sender.taken(SnapshotTaken(id=header.id, outcome=SnapshotTaken.OUTCOME_KEPT))
    header.id, header.base = id_, base
    return frames


def sketch() -> tuple[wire.SketchHeader, bytes]:
    """A good record of somebody else."""
    vector = np.arange(LAYOUT.size, dtype=np.float32).tobytes()
    return FORGER.record(federation=SETTINGS.digest, before=vector, after=vector)


def changed(messages: Iterable[bytes], moves: Iterable[Move], mend: bool) -> list[bytes]:
    """The sequence after all moves. mend: with digests and signatures that fit, so that what they cover is read."""
    changed = list(messages)
    for move in moves:
        if changed:
            MOVES[move.kind % len(MOVES)](changed, len(changed) - 1 - move.where % len(changed), move)
    del changed[LONGEST:]
    return mended(changed) if mend else changed


def _flip(messages: list[bytes], i: int, move: Move) -> None:
    message = bytearray(messages[i])
    for offset, byte in enumerate(move.data or b"\x01"):
        if message:
            message[(move.number + offset) % len(message)] ^= byte
    messages[i] = bytes(message)


def _cut(messages: list[bytes], i: int, move: Move) -> None:
    messages[i] = messages[i][: move.number % (len(messages[i]) + 1)]


def _lengthen(messages: list[bytes], i: int, move: Move) -> None:
    messages[i] += move.data * (1 + move.number % 40)


def _drop(messages: list[bytes], i: int, move: Move) -> None:
    del messages[i : i + 1 + move.number % 3]


def _repeat(messages: list[bytes], i: int, move: Move) -> None:
    messages[i:i] = messages[i : i + 1 + move.number % 8] * (1 + len(move.data) % 4)


def _move(messages: list[bytes], i: int, move: Move) -> None:
    messages.insert(move.number % len(messages), messages.pop(i))


def _insert(messages: list[bytes], i: int, move: Move) -> None:
    messages.insert(i, move.data)


def _kind(messages: list[bytes], i: int, move: Move) -> None:
    """A frame of any kind, with garbage in it."""
    messages.insert(i, _field(move.number % 10, move.data))


def _value(messages: list[bytes], i: int, move: Move) -> None:
    """Another value of a field in the next frame that has any: the last one of a field counts."""
    for place in (*range(i, len(messages)), *range(i)):
        frame = _parsed(messages[place])
        kind = frame.WhichOneof("kind") if frame else None
        inner = getattr(frame, kind) if kind else None
        if isinstance(inner, Message) and inner.DESCRIPTOR.fields:
            break
    else:
        return
    field = inner.DESCRIPTOR.fields[move.number % len(inner.DESCRIPTOR.fields)]
    value = NUMBERS[move.number // 8 % len(NUMBERS)]
    match field.type:
        case field.TYPE_FIXED64:
            encoded = _key(field.number, 1) + struct.pack("<Q", value)
        case field.TYPE_DOUBLE:
            encoded = _key(field.number, 1) + struct.pack("<d", ELEMENTS[move.number // 8 % len(ELEMENTS)])
        case field.TYPE_BYTES | field.TYPE_STRING | field.TYPE_MESSAGE:
            encoded = _field(field.number, move.data)
        case _:
            encoded = _key(field.number, 0) + wire._varint(value)
    messages[place] = _field(Frame.DESCRIPTOR.fields_by_name[str(kind)].number, inner.SerializeToString() + encoded)


def _element(messages: list[bytes], i: int, move: Move) -> None:
    """Another number in a chunk, where its bytes are seen as numbers of fp32."""
    frame = _parsed(messages[i])
    if frame is not None and len(frame.chunk) >= 4:
        data = np.frombuffer(frame.chunk[: len(frame.chunk) // 4 * 4], "<f4").copy()
        data[move.number % len(data)] = ELEMENTS[len(move.data) % len(ELEMENTS)]
        messages[i] = _field(3, data.tobytes() + frame.chunk[4 * len(data) :])


def _split(messages: list[bytes], i: int, move: Move) -> None:
    frame = _parsed(messages[i])
    if frame is not None and frame.chunk:
        at = move.number % len(frame.chunk)
        messages[i : i + 1] = [_field(3, frame.chunk[:at]), _field(3, frame.chunk[at:])]


MOVES: list[Callable[[list[bytes], int, Move], None]] = [
    _value, _element, _flip, _cut, _value, _lengthen, _drop, _repeat, _element, _move, _insert, _kind, _value, _split,
]  # fmt: skip


VALUE, ELEMENT = MOVES.index(_value), MOVES.index(_element)


def one_changed(messages: list[bytes], i: int, kind: int, number: int) -> list[bytes]:
    """The sequence after one move at message i."""
    changed = list(messages)
    MOVES[kind](changed, i, Move(kind, 0, number, b"x" * number))
    return changed


def mended(messages: list[bytes]) -> list[bytes]:
    """The sequence with digests and signatures made anew, from what the chunks before and after them hold."""
    frames = [_parsed(message) for message in messages]
    payload: bytes | None = None
    for i, frame in enumerate(frames):
        if frame is None:
            continue
        match frame.WhichOneof("kind"):
            case "snapshot":
                payload = b""
            case "chunk" if payload is not None:
                payload += frame.chunk
            case "snapshot_end" if payload is not None:
                messages[i] = wire.snapshot_end(xxhash.xxh3_128(payload).digest()).SerializeToString()
                payload = None
            case "sketch":
                content = b""
                for later in frames[i + 1 :]:
                    if later is None or not later.chunk:
                        break
                    content += later.chunk
                messages[i] = Frame(sketch=FORGER.sign(content)[0]).SerializeToString()
    return messages


def _parsed(message: bytes) -> Frame | None:
    try:
        return Frame.FromString(message)
    except DecodeError:
        return None


def _key(number: int, form: int) -> bytes:
    return wire._varint(number << 3 | form)


def _field(number: int, data: bytes) -> bytes:
    return _key(number, 2) + wire._varint(len(data)) + data


def read(data: bytes, said: list[list[bytes]]) -> list[bytes]:
    """The sequence that a fuzzer's bytes stand for. said: what `groups` returns."""
    numbers = iter(data)

    def number() -> int:
        return next(numbers, 0)

    head = number()
    messages = [] if head % 16 == 0 else list(said[HELLO])
    for _ in range(1 + head // 16 % 4):
        messages += said[number() % len(said)]
    moves = []
    for kind in numbers:
        where, low, high, length = (number() for _ in range(4))
        moves.append(Move(kind, where, low + 256 * high, bytes(number() for _ in range(length % 16))))
    return changed(messages, moves, mend=head // 64 % 2 == 1)
