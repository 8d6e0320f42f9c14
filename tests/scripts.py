"""The other side of a link, reduced to what it says."""

import asyncio
from collections.abc import Iterable

from conlora.net import wire
from conlora.net.wire import Chunk, Frame


class Script:
    """A stream on which the other side says what is written here, then ends; it only hears what it is told."""

    def __init__(self, frames: Iterable[Frame]) -> None:
        self.messages = [frame.SerializeToString() for frame in frames]
        self.written: list[Frame] = []

    async def read(self) -> Frame | memoryview | None:
        await asyncio.sleep(0)
        return wire.parse(self.messages.pop(0)) if self.messages else None

    async def write(self, message: Frame | bytes) -> None:
        self.written.append(Frame.FromString(message) if isinstance(message, bytes) else message)


def as_frames(parts: Iterable[Frame | Chunk]) -> list[Frame]:
    """What a sender makes, chunks as frames too."""
    return [Frame.FromString(part.message) if isinstance(part, Chunk) else part for part in parts]
