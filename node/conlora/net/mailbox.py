"""What waits to be sent on a link, and in what order."""

import asyncio
from collections import deque

from conlora.net.transfers import Outgoing
from conlora.net.wire import Frame


class Mailbox:
    """What waits for a link: answers, which go first; then snapshots, one under way at a time; or a good-bye, which is the last.

    Of snapshots at most `depth` wait, the oldest is dropped, so that a slow link never builds a queue. Depth is 1 (newest
    wins). In lockstep it is 2: the other side still needs round r when r + 1 is published.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._waiting: deque[Outgoing] = deque()
        self._answers: deque[Frame] = deque()
        self._under_way = False
        self._goodbye: Frame | None = None
        self._changed = asyncio.Event()

    @property
    def answering(self) -> bool:
        """Whether there is an answer to be sent."""
        return bool(self._answers)

    @property
    def owing(self) -> bool:
        """Whether the other side still waits for the answer to its snapshot."""
        return any(frame.HasField("taken") for frame in self._answers)

    def put(self, snapshot: Outgoing) -> None:
        """Offers a snapshot."""
        if len(self._waiting) == self._depth:
            self._waiting.popleft().release()
        self._waiting.append(snapshot.hold())
        self._update()

    def answer(self, frame: Frame) -> None:
        """To be sent soon, between two chunks if need be."""
        self._answers.append(frame)
        self._update()

    def delivered(self) -> None:
        """The other side has the snapshot that was under way."""
        self._under_way = False
        self._update()

    def close(self, goodbye: Frame) -> None:
        """Makes `goodbye` the next thing to be sent, and the last."""
        self._goodbye = goodbye
        self._update()

    def clear(self) -> None:
        """The link has ended."""
        while self._waiting:
            self._waiting.popleft().release()

    async def next(self, patience: float) -> Outgoing | Frame | None:
        """A frame, a snapshot that the caller has to release, or None when nothing came within `patience` seconds."""
        try:
            async with asyncio.timeout(patience):
                await self._changed.wait()
        except TimeoutError:
            return None
        if self._goodbye is not None:
            return self._goodbye
        if self._answers:
            return self.next_answer()
        self._under_way = True
        snapshot = self._waiting.popleft()
        self._update()
        return snapshot

    def next_answer(self) -> Frame:
        """The answer that has waited longest."""
        answer = self._answers.popleft()
        self._update()
        return answer

    def _update(self) -> None:
        if self._goodbye or self._answers or (self._waiting and not self._under_way):
            self._changed.set()
        else:
            self._changed.clear()
