"""Shared memory between daemon and trainer: an anonymous file that both map, and that vanishes with them."""

import mmap
import os

import numpy as np

from conlora.core.gossip import SLOTS_PER_NEIGHBOUR
from conlora.core.schema import Vector

# Of this node's own vectors: two that the trainer writes (what it has mixed, and what it publishes next), two that a new link
# begins with, two of a mix that is being measured, and one for each neighbour, who may still be getting an older one.
OWN_SLOTS, OWN_SLOTS_PER_NEIGHBOUR = 6, 1
SLOTS_PER_PLACE = OWN_SLOTS_PER_NEIGHBOUR + SLOTS_PER_NEIGHBOUR

_ALIGNMENT = 4096  # a page, so that slots share none


class Arena:
    """Flat fp32 vectors of one schema: what this node has published and mixed, and what neighbours have sent.

    Who may touch a slot when is agreed by messages (see `messages`); nothing here locks. Slots are many, and memory is
    taken for those alone that were ever written to: whoever chooses one takes the first that is free.

    The file grows with the neighbours: after the first own slots come those of one place after the other, each with its share
    of the own ones. Vectors that were handed out before are the same memory as later ones.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        """Maps the file, which has to stay open. size: elements of a vector."""
        self._descriptor = descriptor
        self._size = size
        self._stride = _aligned(size)
        self._map = mmap.mmap(descriptor, 0)

    @property
    def own_slots(self) -> int:
        """How many there are, as far as the file was mapped."""
        places = (len(self._map) // self._stride - OWN_SLOTS) // SLOTS_PER_PLACE
        return OWN_SLOTS + OWN_SLOTS_PER_NEIGHBOUR * places

    def make_room(self, places: int) -> None:
        """Gives the file room for so many neighbours; it never shrinks."""
        if (nbytes := arena_bytes(self._size, places)) > len(self._map):
            os.ftruncate(self._descriptor, nbytes)
            self._map = mmap.mmap(self._descriptor, 0)

    def own(self, slot: int) -> Vector:
        """This node's vector y of a round, or x after a mix, shape `(size,)`; the trainer writes, the daemon reads."""
        if slot < OWN_SLOTS:
            return self._vector(slot)
        place, slot = divmod(slot - OWN_SLOTS, OWN_SLOTS_PER_NEIGHBOUR)
        return self._vector(OWN_SLOTS + SLOTS_PER_PLACE * place + slot)

    def inbox(self, place: int, slot: int) -> Vector:
        """A neighbour's vector, shape `(size,)`; the daemon writes, the trainer reads."""
        return self._vector(OWN_SLOTS + SLOTS_PER_PLACE * place + OWN_SLOTS_PER_NEIGHBOUR + slot)

    def _vector(self, index: int) -> Vector:
        if (index + 1) * self._stride > len(self._map):  # the other process has made room
            self._map = mmap.mmap(self._descriptor, 0)
        return np.frombuffer(self._map, np.float32, self._size, index * self._stride)


def arena_bytes(size: int, places: int) -> int:
    """Bytes of the file, with room for so many neighbours."""
    return (OWN_SLOTS + SLOTS_PER_PLACE * places) * _aligned(size)


def _aligned(size: int) -> int:
    """Bytes that a slot of so many fp32 elements takes; at least a page, since nothing can't be mapped."""
    return max(1, -(-4 * size // _ALIGNMENT)) * _ALIGNMENT


def create_memory() -> int:
    """The descriptor of an empty anonymous file, to be inherited by the trainer."""
    return os.memfd_create("conlora-arena")
