"""Shared memory between daemon and trainer: an anonymous file that both map, and that vanishes with them."""

import mmap
import os

import numpy as np

from conlora.core.gossip import SLOTS_PER_NEIGHBOUR
from conlora.core.schema import Vector

_ALIGNMENT = 64
_OWN_SLOTS = 2  # published, mixed


class Arena:
    """Flat fp32 vectors of one schema: what this node published, what it mixed, and two slots per neighbour.

    Who may touch a slot when is agreed by messages (see `messages`); nothing here locks.
    """

    def __init__(self, descriptor: int, size: int, peers: int) -> None:
        """Maps the file. size: elements of a vector; peers: number of configured peers."""
        self._size = size
        self._stride = -(-4 * size // _ALIGNMENT) * _ALIGNMENT
        self._map = mmap.mmap(descriptor, arena_bytes(size, peers))

    @property
    def published(self) -> Vector:
        """This node's vector y of the round, shape `(size,)`; the trainer writes, the daemon reads."""
        return self._vector(0)

    @property
    def mixed(self) -> Vector:
        """This node's vector x after the mix, shape `(size,)`; the trainer writes, the daemon reads."""
        return self._vector(1)

    def inbox(self, peer: int, slot: int) -> Vector:
        """A neighbour's vector, shape `(size,)`; the daemon writes, the trainer reads."""
        return self._vector(_OWN_SLOTS + SLOTS_PER_NEIGHBOUR * peer + slot)

    def _vector(self, index: int) -> Vector:
        return np.frombuffer(self._map, np.float32, self._size, index * self._stride)


def arena_bytes(size: int, peers: int) -> int:
    """Bytes of the file; at least one page, since nothing can't be mapped."""
    stride = -(-4 * size // _ALIGNMENT) * _ALIGNMENT
    return max(stride * (_OWN_SLOTS + SLOTS_PER_NEIGHBOUR * peers), mmap.PAGESIZE)


def create_memory() -> int:
    """The descriptor of an empty anonymous file, to be inherited by the trainer."""
    return os.memfd_create("conlora-arena")
