"""One run of a federation: start all nodes paused, link them, let them train, take their adapters, stop them."""

import contextlib
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from conlora.errors import ConfigError, NodeUnreachable, TrainingFailed
from conlora.net.admin_client import AdminClient
from conlora.net.status import NodeStatus
from conlora.testbed.layout import NodeSetup
from conlora.testbed.processes import Interrupts, NodeProcesses
from conlora.testbed.progress import Progress, links_up

READY_SECONDS = 600.0  # to import the training stack, load or download the model and link up...
READY_SECONDS_PER_NODE = 30.0  # ...where all nodes do so at once on the same cores
STALL_SECONDS = 900.0  # without an optimizer step of any node


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run took: seconds, and bytes that a node sent in a round, for snapshots and for sketches, mean over nodes."""

    seconds: float
    snapshot_bytes: float
    sketch_bytes: float

    def to_json(self) -> dict[str, Any]:
        """For a summary."""
        sent = {"snapshots": self.snapshot_bytes, "sketches": self.sketch_bytes}
        return {"seconds": self.seconds, "bytes_per_round": sent}


def run_federation(
    setups: Sequence[NodeSetup], env: dict[str, str], progress: Progress, interrupts: Interrupts, export: bool = True
) -> Trained:
    """Runs the nodes to the end and exports their adapters where wanted.

    Raises a node's own error where it exits, and TrainingFailed where nodes don't get ready or stand still.
    """
    with NodeProcesses(interrupts) as processes, Admin(setups) as admin:
        for setup in setups:
            command = [sys.executable, "-m", "conlora", "run", str(setup.config), "--paused"]
            processes.start(setup.name, command, setup.log, env)
        patience = READY_SECONDS + READY_SECONDS_PER_NODE * len(setups)
        processes.wait_until(lambda: _ready(admin, progress), "starting and linking all nodes", patience)

        started = time.monotonic()
        try:
            admin.resume()
            watch = Watch(admin, progress)
            processes.wait_until(watch.finished, "training")
            trained = trained_in(time.monotonic() - started, list(admin.statuses().values()))
            if export:
                progress.show("exporting adapters")
                admin.export()
        except NodeUnreachable:
            processes.check()  # a node that has exited can say more about it
            raise
        progress.show("stopping all nodes")
        processes.leave()
    return trained


def trained_in(seconds: float, statuses: Sequence[NodeStatus | None]) -> Trained:
    """A run of so many seconds, from what its nodes tell at the end."""
    known = [status for status in statuses if status is not None and status.round]
    sent = [sum(peer.bytes_sent for peer in status.peers) / status.round for status in known]
    sketches = [sum(peer.sketch_bytes_sent for peer in status.peers) / status.round for status in known]
    for_sketches = statistics.fmean(sketches) if sketches else 0.0
    return Trained(seconds, statistics.fmean(sent) - for_sketches if sent else 0.0, for_sketches)


class Admin:
    """The admin sockets of all nodes of a run."""

    def __init__(self, setups: Sequence[NodeSetup]) -> None:
        self._setups = setups
        self._clients: dict[str, AdminClient] = {}
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "Admin":
        return self

    def __exit__(self, *exc: object) -> None:
        self._open.close()

    def statuses(self) -> dict[str, NodeStatus | None]:
        """Each node's status; None from a node that does not answer."""
        return {setup.name: self._status(setup) for setup in self._setups}

    def _status(self, setup: NodeSetup) -> NodeStatus | None:
        try:
            if setup.name in self._clients:
                return self._clients[setup.name].status()
            with contextlib.ExitStack() as attempt:
                client = attempt.enter_context(AdminClient(setup.admin_socket))
                status = client.status()
                # Kept only once it answers: a client that tried too early waits long before it tries again.
                self._open.push(attempt.pop_all())
        except NodeUnreachable:
            return None
        self._clients[setup.name] = client
        return status

    def resume(self) -> None:
        """All nodes start to train."""
        for client in self._clients.values():
            client.resume()

    def export(self) -> None:
        """Each node writes its adapter into its directory."""
        for setup in self._setups:
            self._clients[setup.name].export(setup.adapter)


def _ready(admin: Admin, progress: Progress) -> bool:
    """Whether every node has loaded its model and all edges live. Raises ConfigError for an edge that never will."""
    statuses = admin.statuses()
    progress.show("starting", statuses)
    for name, status in statuses.items():
        for peer in status.peers if status else ():
            if peer.link == "refused":
                raise ConfigError(f"{name} and {peer.name} don't link: {peer.last_error}")
    return all(
        status is not None and status.state == "paused" and links_up(status) == len(status.peers)
        for status in statuses.values()
    )


class Watch:
    """Follows training to its end."""

    def __init__(self, admin: Admin, progress: Progress) -> None:
        self._admin = admin
        self._progress = progress
        self._seen: dict[str, tuple[int, str]] = {}
        self._moved = time.monotonic()

    def finished(self) -> bool:
        """Whether all nodes are done. Raises TrainingFailed where none has moved for long."""
        statuses = self._admin.statuses()
        self._progress.show("training", statuses)
        seen = {name: (status.step, status.state) for name, status in statuses.items() if status is not None}
        if self._seen | seen != self._seen:
            self._moved = time.monotonic()
        elif time.monotonic() > self._moved + STALL_SECONDS:
            states = ", ".join(f"{name} {state} at step {step}" for name, (step, state) in self._seen.items())
            raise TrainingFailed(f"no node took a step for {STALL_SECONDS:.0f} s ({states}); see each daemon.log")
        self._seen |= seen
        return all(status is not None and status.state == "finished" for status in statuses.values())
