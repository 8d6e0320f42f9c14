"""Shared memory between daemon and trainer: an anonymous file that both map, and that vanishes with them."""

import mmap
import os

import numpy as np

from conlora.core.gossip import SLOTS_PER_NEIGHBOUR
from conlora.core.schema import Vector

# Of this node's own vectors: two that the trainer writes (what it has mixed, and what it publishes next), two that a new link
# begins with, two of a mix that is being measured, and one for each neighbour, who may still be getting an older one.
OWN_SLOTS, OWN_SLOTS_PER_NEIGHBOUR = 6, 1

_ALIGNMENT = 4096  # a page, so that slots share none


class Arena:
    """Flat fp32 vectors of one schema: what this node has published and mixed, and what neighbours have sent.

    Who may touch a slot when is agreed by messages (see `messages`); nothing here locks. Slots are many, and memory is
    taken for those alone that were ever written to: whoever chooses one takes the first that is free.
    """

    def __init__(self, descriptor: int, size: int, peers: int) -> None:
        """Maps the file. size: elements of a vector; peers: number of configured peers."""
        self._size = size
        self._stride = _aligned(size)
        self.own_slots = OWN_SLOTS + OWN_SLOTS_PER_NEIGHBOUR * peers
        self._map = mmap.mmap(descriptor, arena_bytes(size, peers))

    def own(self, slot: int) -> Vector:
        """This node's vector y of a round, or x after a mix, shape `(size,)`; the trainer writes, the daemon reads."""
        return self._vector(slot)

    def inbox(self, peer: int, slot: int) -> Vector:
        """A neighbour's vector, shape `(size,)`; the daemon writes, the trainer reads."""
        return self._vector(self.own_slots + SLOTS_PER_NEIGHBOUR * peer + slot)

    def _vector(self, index: int) -> Vector:
        return np.frombuffer(self._map, np.float32, self._size, index * self._stride)


def arena_bytes(size: int, peers: int) -> int:
    """Bytes of the file; at least one page, since nothing can't be mapped."""
    slots = OWN_SLOTS + (OWN_SLOTS_PER_NEIGHBOUR + SLOTS_PER_NEIGHBOUR) * peers
    return max(slots * _aligned(size), mmap.PAGESIZE)


def _aligned(size: int) -> int:
    """Bytes that a slot of so many fp32 elements takes."""
    return -(-4 * size // _ALIGNMENT) * _ALIGNMENT


def create_memory() -> int:
    """The descriptor of an empty anonymous file, to be inherited by the trainer."""
    return os.memfd_create("conlora-arena")
