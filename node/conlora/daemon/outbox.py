"""This node's own vectors in the arena: what it has published and mixed, in slots that are free once nobody needs them."""

from collections import Counter, deque

from conlora.net.transfers import Outgoing
from conlora.training.arena import Arena


class Outbox:
    """Hands out slots: for what the trainer publishes next, and for what it makes of a mix."""

    def __init__(self, arena: Arena, depth: int) -> None:
        """depth: how many of the newest snapshots a new link begins with."""
        self._arena = arena
        self._depth = depth
        self._held: Counter[int] = Counter()
        self._recent: deque[Outgoing] = deque()
        self.next_slot = 0  # where the trainer publishes next, unless it is doing so now

    @property
    def recent(self) -> list[Outgoing]:
        """The newest snapshots, oldest first."""
        return list(self._recent)

    def publish(self, round_: int, degree: int, radius: float | None = None) -> Outgoing:
        """What the trainer has written to `next_slot`."""
        slot = self.next_slot
        self._held[slot] += 1
        snapshot = Outgoing(
            round_,
            degree,
            self._arena.own(slot),
            shared=degree > 1,
            on_free=lambda: self.release(slot),
            radius=radius,
        )
        if len(self._recent) == self._depth:
            self._recent.popleft().release()
        self._recent.append(snapshot.hold())
        self.next_slot = self._free()  # should the trainer die before there is a plan
        return snapshot

    def forget(self) -> None:
        """New links begin with nothing until the next snapshot."""
        while self._recent:
            self._recent.popleft().release()

    def plan(self, keep: bool) -> int:
        """The slot for a mix. keep: what it comes to will be needed beside training, until `release`; then the trainer
        publishes in another slot next, else over it.
        """
        slot = self._free()
        if keep:
            self._held[slot] += 1
        self.next_slot = self._free()
        return slot

    def release(self, slot: int) -> None:
        """What lies there is no longer needed by somebody."""
        self._held[slot] -= 1

    def _free(self) -> int:
        """The first slot that nobody holds. There always is one: the arena has as many as can be held."""
        return next(slot for slot in range(self._arena.own_slots) if not self._held[slot])
