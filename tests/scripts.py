"""The other side of a link, reduced to what it says."""

import asyncio
from collections.abc import Sequence

from conlora.net.wire import Frame


class Script:
    """A stream on which the other side says what is written here, then ends."""

    def __init__(self, frames: Sequence[Frame]) -> None:
        self.frames = list(frames)
        self.written: list[Frame] = []

    async def read(self) -> Frame | None:
        await asyncio.sleep(0)
        return self.frames.pop(0) if self.frames else None

    async def write(self, frame: Frame) -> None:
        self.written.append(frame)
