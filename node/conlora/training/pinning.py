"""Page-locked memory: what a GPU reads and writes at the full speed of its bus, without a copy in between."""

import torch

from conlora.core.schema import Vector


class Pinned:
    """Vectors of shared memory that have been page-locked, each once, for as long as the process lives."""

    def __init__(self) -> None:
        self._known: set[int] = set()

    def pin(self, vector: Vector) -> None:
        """Page-locks a vector. Where CUDA declines (a limit on locked memory), copies are slower and nothing else."""
        address = vector.ctypes.data
        if vector.nbytes and address not in self._known:
            torch.cuda.cudart().cudaHostRegister(address, vector.nbytes, 0)
            self._known.add(address)
