"""Shared memory between daemon and trainer: an anonymous file that both map, and that vanishes with them."""

import mmap
import os

import numpy as np

from conlora.core.gossip import SLOTS_PER_NEIGHBOUR
from conlora.core.schema import Vector

_ALIGNMENT = 64
_OWN_SLOTS = 2  # published, mixed


class Arena:
    """Flat fp32 vectors of one schema: what this node published, what it mixed, and two slots per neighbour; then sketches.

    Who may touch a slot when is agreed by messages (see `messages`); nothing here locks.
    """

    def __init__(self, descriptor: int, size: int, peers: int, sketch_size: int) -> None:
        """Maps the file. size: elements of a vector; peers: number of configured peers; sketch_size: of a sketch."""
        self._size = size
        self._stride = _aligned(size)
        self._sketch_size = sketch_size
        self._sketches = self._stride * (_OWN_SLOTS + SLOTS_PER_NEIGHBOUR * peers)
        self._map = mmap.mmap(descriptor, arena_bytes(size, peers, sketch_size))

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

    @property
    def sketch_before(self) -> Vector:
        """Sketch of `published`, shape `(sketch_size,)`; the trainer writes, the daemon reads."""
        return np.frombuffer(self._map, np.float32, self._sketch_size, self._sketches)

    @property
    def sketch_after(self) -> Vector:
        """Sketch of `mixed`, shape `(sketch_size,)`; the trainer writes, the daemon reads."""
        return np.frombuffer(self._map, np.float32, self._sketch_size, self._sketches + _aligned(self._sketch_size))

    def _vector(self, index: int) -> Vector:
        return np.frombuffer(self._map, np.float32, self._size, index * self._stride)


def arena_bytes(size: int, peers: int, sketch_size: int) -> int:
    """Bytes of the file; at least one page, since nothing can't be mapped."""
    slots = _OWN_SLOTS + SLOTS_PER_NEIGHBOUR * peers
    return max(slots * _aligned(size) + 2 * _aligned(sketch_size), mmap.PAGESIZE)


def _aligned(size: int) -> int:
    """Bytes that a slot of so many fp32 elements takes."""
    return -(-4 * size // _ALIGNMENT) * _ALIGNMENT


def create_memory() -> int:
    """The descriptor of an empty anonymous file, to be inherited by the trainer."""
    return os.memfd_create("conlora-arena")
