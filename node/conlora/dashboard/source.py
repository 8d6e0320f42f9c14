"""Follows nodes through their admin sockets: a thread for each asks again and again, and what it last said is kept."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, Self

from conlora.dashboard.targets import Discover, Target
from conlora.errors import ConLoRAError
from conlora.net.admin_client import AdminClient
from conlora.net.status import ConsensusView, NodeStatus, RoundRecord

PERIOD_SECONDS = 1.0  # between two looks at a node
OVERLAP = 30  # rounds asked for again: evaluations and errors are added to rounds that were told before
PATIENCE_SECONDS = 20.0  # for a thread to end: three calls to a daemon that is stuck


class Client(Protocol):
    """The part of AdminClient that the dashboard uses. It only reads."""

    def status(self) -> NodeStatus:
        """See AdminClient."""
        ...

    def consensus(self) -> ConsensusView:
        """See AdminClient."""
        ...

    def history(self, after_round: int = 0) -> list[RoundRecord]:
        """See AdminClient."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


Connect = Callable[[Path], Client]


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of one node. Never changed, but replaced by a newer one.

    error: why it did not answer the last time; empty where it did. answered: when it last did, on the monotonic clock.
    """

    target: Target
    error: str = ""
    answered: float | None = None
    status: NodeStatus | None = None
    consensus: ConsensusView | None = None
    history: tuple[RoundRecord, ...] = ()


def look(seen: Seen, client: Client) -> Seen:
    """Asks the node once; of its history only what can be new. Raises ConLoRAError where it does not answer."""
    status = client.status()
    consensus = client.consensus()
    history = _continued(seen, status, client)
    return replace(
        seen, error="", answered=time.monotonic(), status=status, consensus=consensus, history=tuple(history)
    )


def _continued(seen: Seen, status: NodeStatus, client: Client) -> list[RoundRecord]:
    """The history as it is now. A node that has gone back does rounds again, and then tells other figures of them."""
    if not seen.history or seen.status is None or _process(seen.status) != _process(status):
        return client.history()
    known = min(seen.history[-1].round, status.round) - OVERLAP
    if known <= 0:
        return client.history()
    return [*(record for record in seen.history if record.round <= known), *client.history(known)]


def _process(status: NodeStatus) -> tuple[str, int, int, int]:
    """Differs after a restart of the daemon or of its trainer, from whichever round it went on."""
    return status.node_id, status.pid, status.trainer_pid, status.trainer_restarts


class Source:
    """Follows the nodes that `discover` finds, from `with` on until it is left."""

    def __init__(self, discover: Discover, period: float = PERIOD_SECONDS, connect: Connect = AdminClient) -> None:
        self._discover = discover
        self._period = period
        self._connect = connect
        self._lock = threading.Lock()  # over the next three
        self._seen: dict[str, Seen] = {}
        self._stops: dict[str, threading.Event] = {}
        self._listeners: list[Callable[[], None]] = []
        self._threads: list[threading.Thread] = []
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        self._find()
        self._start(self._rediscover)
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()
        deadline = time.monotonic() + PATIENCE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def end(self) -> None:
        """Tells threads and listeners that nothing new will come; returns at once."""
        self._closed.set()
        self._tell()  # the listeners before the lock: this may be called by a signal's handler

    @property
    def ended(self) -> bool:
        """Whether nothing new will come."""
        return self._closed.is_set()

    def nodes(self) -> list[Seen]:
        """All nodes, as they were last seen."""
        with self._lock:
            return list(self._seen.values())

    @contextlib.contextmanager
    def listening(self, changed: Callable[[], None]) -> Iterator[None]:
        """Meanwhile `changed` is called after every change, by any thread."""
        self._listeners = [*self._listeners, changed]
        try:
            yield
        finally:
            self._listeners = [listener for listener in self._listeners if listener is not changed]

    def _rediscover(self) -> None:
        while not self._closed.wait(self._period):
            self._find()

    def _find(self) -> None:
        targets = {target.key: target for target in self._discover()}
        if not targets:
            return  # a testbed that has ended: what it came to stays to be seen
        with self._lock:
            for key in self._seen.keys() - targets.keys():
                self._stops.pop(key).set()
                del self._seen[key]
            new = [target for key, target in targets.items() if key not in self._seen]
            stops = [threading.Event() for _ in new]
            for target, stop in zip(new, stops, strict=True):
                self._seen[target.key] = Seen(target)
                self._stops[target.key] = stop
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        for target, stop in zip(new, stops, strict=True):
            self._start(self._follow, target, stop)

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _follow(self, target: Target, stop: threading.Event) -> None:
        seen = Seen(target)
        while not (stop.is_set() or self._closed.is_set()):
            # A connection of its own after every failure: gRPC would wait longer and longer before it tries again.
            with self._connect(target.socket) as client:
                while not (stop.is_set() or self._closed.is_set()):
                    try:
                        seen = look(seen, client)
                    except ConLoRAError as error:
                        seen = replace(seen, error=str(error))
                    self._put(seen, stop)
                    self._closed.wait(self._period)
                    if seen.error:
                        break

    def _put(self, seen: Seen, stop: threading.Event) -> None:
        with self._lock:
            if stop.is_set():
                return
            self._seen[seen.target.key] = seen
        self._tell()

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()
