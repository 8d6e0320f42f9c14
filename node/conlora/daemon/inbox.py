"""Neighbours' snapshots as they land in the arena: where each is written, and which was the newest, when and by which id."""

import time

from conlora.core.gossip import Gossip, Snapshot
from conlora.net.transfers import Landing
from conlora.net.wire import SnapshotHeader
from conlora.training.arena import Arena


class Inbox:
    """One landing for each neighbour at a time; which slots it may use, `Gossip` says. Peers go by their ids."""

    def __init__(self, gossip: Gossip) -> None:
        self._gossip = gossip
        self._landings: dict[str, Landing] = {}
        self._kept: dict[str, int] = {}  # id of each neighbour's newest snapshot
        self._received_at: dict[str, float] = {}  # monotonic

    def begins(self, peer: str, header: SnapshotHeader, arena: Arena) -> Landing | None:
        """Where a snapshot is to be written; it takes the place of one that is still coming. None: it is of no use here."""
        if not self._gossip.accepts(peer, header.round):
            return None  # lockstep: sent once more after a new link
        place, newest = self._gossip.place(peer), self._gossip.newest(peer)
        if header.base and (newest is None or self._kept.get(peer) != header.base):
            return None  # a difference to what another link has overtaken, or this node has forgotten
        base = arena.inbox(place, newest.slot) if header.base and newest else None
        self.cancel(peer)
        slot = self._gossip.slot_for(peer)
        landing = self._landings[peer] = Landing(slot, arena.inbox(place, slot), base)
        return landing

    def received(self, peer: str, header: SnapshotHeader, landing: Landing) -> None:
        """It is whole, and the neighbour's newest from now on."""
        radius = header.radius if header.HasField("radius") else None
        self._gossip.received(peer, header.round, header.degree, landing.slot, radius)
        self._kept[peer] = header.id
        self._received_at[peer] = time.monotonic()

    def cancel(self, peer: str) -> None:
        """What is still coming is not wanted any more."""
        if landing := self._landings.pop(peer, None):
            landing.cancelled = True

    def forget(self, peer: str) -> None:
        """It is no peer any more."""
        self._kept.pop(peer, None)
        self._received_at.pop(peer, None)

    def newest(self, peer: str) -> tuple[Snapshot, float] | None:
        """A neighbour's newest snapshot and its age in seconds."""
        snapshot = self._gossip.newest(peer)
        return (snapshot, time.monotonic() - self._received_at[peer]) if snapshot else None
