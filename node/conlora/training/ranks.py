"""The ranks of one program: what rank 0 hears and mixes becomes known to all, so that they act alike at each step.

They meet in a gloo group of their own, whatever the program's own group is and whenever that begins: messages and the
adapter lie in the machine's memory anyway, and a node may be paused for longer than any collective of a training step
may take. Importing this does not import torch; a program of one process never does more than that here.
"""

import atexit
import contextlib
import functools
import json
import math
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, Protocol, TypeVar, cast

import numpy as np

from conlora import errors
from conlora.core.schema import Vector
from conlora.errors import ConfigError, ConLoRAError, RankLost

T = TypeVar("T")

PAUSE = timedelta(days=3650)  # the longest
COMPARED = 1024  # elements of a vector


class Ranks(Protocol):
    """The processes of one program. All of them make the same calls in the same order."""

    rank: int
    size: int

    def tell(self, data: bytes) -> bytes:
        """What rank 0 passes, on all ranks."""

    def broadcast(self, vector: Vector) -> Vector:
        """Rank 0's vector, on all ranks; the others pass one of the same shape."""

    def mean(self, value: float | None) -> float | None:
        """Over the ranks that have a value."""

    def alike(self, vector: Vector) -> bool:
        """Whether all ranks hold the same vector, up to rounding, judged by some of its elements."""

    def together(self, do: Callable[[], T]) -> T:
        """What every rank does; where one fails with a sentence, all raise it."""

    def after_first(self, do: Callable[[], T]) -> T:
        """What rank 0 does before the others do it, who find what it has written."""

    def barrier(self) -> None:
        """Returns when all ranks have come here."""


class OneRank:
    """A program of one process."""

    rank, size = 0, 1

    def tell(self, data: bytes) -> bytes:
        """See `Ranks`."""
        return data

    def broadcast(self, vector: Vector) -> Vector:
        """See `Ranks`."""
        return vector

    def mean(self, value: float | None) -> float | None:
        """See `Ranks`."""
        return value

    def alike(self, vector: Vector) -> bool:
        """See `Ranks`."""
        return True

    def together(self, do: Callable[[], T]) -> T:
        """See `Ranks`."""
        return do()

    def after_first(self, do: Callable[[], T]) -> T:
        """See `Ranks`."""
        return do()

    def barrier(self) -> None:
        """See `Ranks`."""


class SeveralRanks:
    """A program of several processes. Every method raises RankLost where one of the others has ended."""

    def __init__(self, group: Any) -> None:
        """group: of torch.distributed, with gloo."""
        self.rank: int = group.rank()
        self.size: int = group.size()
        self._group = group

    def tell(self, data: bytes) -> bytes:
        """See `Ranks`."""
        length = int(self._from_first(np.array([len(data)]))[0])
        own = data if self.rank == 0 else bytes(length)
        return self._from_first(np.frombuffer(own, np.uint8)).tobytes() if length else b""

    def broadcast(self, vector: Vector) -> Vector:
        """See `Ranks`."""
        return self._from_first(vector)

    def mean(self, value: float | None) -> float | None:
        """See `Ranks`."""
        told = self._from_all(np.array([math.nan if value is None else value]))
        known = told[~np.isnan(told)]
        return float(known.mean()) if known.size else None

    def alike(self, vector: Vector) -> bool:
        """See `Ranks`."""
        told = self._from_all(vector[:: max(1, vector.size // COMPARED)])
        return bool(np.allclose(told, told[0], rtol=1e-3, atol=1e-6))

    def together(self, do: Callable[[], T]) -> T:
        """See `Ranks`."""
        result, failure = None, b""
        try:
            result = do()
        except ConLoRAError as error:
            failure = json.dumps([type(error).__name__, str(error)]).encode()
        lengths = self._from_all(np.array([len(failure)]))[:, 0]
        if not lengths.any():
            return cast(T, result)  # nothing has failed, so do() has returned it
        told = self._from_all(np.frombuffer(failure.ljust(lengths.max()), np.uint8))
        kind, message = json.loads(told[np.flatnonzero(lengths)[0]].tobytes())
        raise getattr(errors, kind)(message)

    def after_first(self, do: Callable[[], T]) -> T:
        """See `Ranks`."""
        first = self.together(lambda: do() if self.rank == 0 else None)
        return cast(T, first) if self.rank == 0 else do()  # rank 0's do() has returned it

    def barrier(self) -> None:
        """See `Ranks`."""
        self._from_all(np.zeros(1))

    def leave(self) -> None:
        """Ends the group. A gloo group that is still there when the interpreter goes down may abort the process."""
        self._group = None

    def _from_first(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        import torch
        from torch import distributed

        tensor, options = torch.from_numpy(array.copy()), distributed.BroadcastOptions()
        with _all_there():
            self._group.broadcast([tensor], options).wait()
        return tensor.numpy()

    def _from_all(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Everybody's, along a new first axis."""
        import torch

        told = torch.from_numpy(np.empty((self.size, *array.shape), array.dtype))
        with _all_there():
            self._group.allgather([list(told)], [torch.from_numpy(array.copy())]).wait()
        return told.numpy()


@contextlib.contextmanager
def _all_there() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RankLost("another rank of this program has ended; what it printed says why") from error


@functools.cache
def launched() -> Ranks:
    """The ranks of this program, as torch.distributed or its launcher's environment (torchrun, accelerate) has them.

    Raises ConfigError where the others can't be found.
    """
    from torch import distributed

    begun = distributed.is_available() and distributed.is_initialized()
    if (distributed.get_world_size() if begun else int(os.environ.get("WORLD_SIZE", "1"))) == 1:
        return OneRank()
    ranks = SeveralRanks(distributed.new_group(backend="gloo", timeout=PAUSE) if begun else _group_of_the_launcher())
    atexit.register(_leave, ranks)
    return ranks


def _group_of_the_launcher() -> Any:
    """A group beside the default one, which the program, or its Trainer, will begin later with the backend that it likes."""
    from torch.distributed.distributed_c10d import PrefixStore, ProcessGroupGloo
    from torch.distributed.rendezvous import rendezvous

    try:
        store, rank, size = next(rendezvous("env://"))
        return ProcessGroupGloo(PrefixStore("conlora", store), rank, size, PAUSE)
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but the other ranks can't be found ({reason}); start the program "
            "with torchrun or accelerate launch, or call torch.distributed.init_process_group before conlora.join"
        ) from error


def _leave(ranks: SeveralRanks) -> None:
    """See `SeveralRanks.leave`; the same holds for the default group, which a Trainer begins and does not end."""
    from torch import distributed

    ranks.leave()
    if distributed.is_initialized() and distributed.get_backend() == "gloo":
        distributed.destroy_process_group()
