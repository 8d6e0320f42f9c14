"""What this node has published: vectors that the trainer writes and links read, in slots that are free once nobody reads."""

from collections import deque

from conlora.net.transfers import Outgoing
from conlora.training.arena import Arena


class Outbox:
    """The slots of the arena that the trainer publishes in."""

    def __init__(self, arena: Arena, depth: int) -> None:
        """depth: how many of the newest snapshots a new link begins with."""
        self._arena = arena
        self._depth = depth
        self._held: set[int] = set()
        self._recent: deque[Outgoing] = deque()
        self.next_slot = 0  # where the trainer publishes next, unless it is doing so now

    @property
    def recent(self) -> list[Outgoing]:
        """The newest snapshots, oldest first."""
        return list(self._recent)

    def publish(self, round_: int, degree: int) -> Outgoing:
        """What the trainer has written to `next_slot`, which moves on to the first slot that nobody holds.

        There always is one: each link holds one snapshot beside the newest, and the arena has slots for that.
        """
        slot = self.next_slot
        self._held.add(slot)
        snapshot = Outgoing(
            round_,
            degree,
            slot,
            self._arena.outbox(slot),
            shared=degree > 1,
            on_free=lambda: self._held.discard(slot),
        )
        if len(self._recent) == self._depth:
            self._recent.popleft().release()
        self._recent.append(snapshot.hold())
        self.next_slot = next(free for free in range(self._arena.outbox_slots) if free not in self._held)
        return snapshot
