"""One node: puts identity, links, trainer, store and admin service together, and carries out what operators ask."""

import asyncio
import contextlib
import os
import signal
from concurrent.futures import Executor
from dataclasses import asdict
from pathlib import Path

import structlog

from conlora.config import NodeConfig, load_config
from conlora.daemon.background import background
from conlora.daemon.certificates import Certificates
from conlora.daemon.changes import changes, changes_of_operators, check_encodings
from conlora.daemon.departure import Departure
from conlora.daemon.exchange import MAILBOX_DEPTH, Exchange
from conlora.daemon.export import card_of, export
from conlora.daemon.lock import locked
from conlora.daemon.notify import Notifier
from conlora.daemon.observatory import Observatory
from conlora.daemon.records import round_records
from conlora.daemon.supervisor import Supervisor
from conlora.daemon.tally import Tally
from conlora.daemon.view import View
from conlora.errors import ConLoRAError, Refused
from conlora.net.admin import AdminService
from conlora.net.admin_port import AdminPort
from conlora.net.authorities import load_authorities
from conlora.net.identity import Peer, load_identity
from conlora.net.issued import with_issued
from conlora.net.mesh import Mesh
from conlora.net.operators import Operator, load_operators
from conlora.net.rotation import Announced
from conlora.net.status import Changes, ConsensusView, NodeStatus, RoundRecord
from conlora.store.history import History
from conlora.store.quarantines import Quarantines

log = structlog.get_logger()


def run_node(path: Path, paused: bool = False) -> None:
    """Runs a node in the foreground until it is stopped.

    path: of its configuration. paused: load the model and link up, but wait for `resume` before the first step. Raises
    ConLoRAError.
    """
    config = load_config(path)
    with locked(config.state_dir), background() as spawner, history_of(config) as history:
        asyncio.run(_run(path, config, history, spawner, paused))


def history_of(config: NodeConfig) -> History:
    """The node's history, opened. Raises ConfigError and StateError."""
    path = config.state_dir / "history.db"
    if not config.observing.tensorboard:
        return History(path)
    from conlora.store.events import EventHistory  # TensorBoard, which few nodes need to start

    return EventHistory(path, config.state_dir / "tensorboard")


async def _run(path: Path, config: NodeConfig, history: History, spawner: Executor, paused: bool) -> None:
    await Node(path, config, history, spawner, paused).run()


class Node:
    """A running node. Implements `net.admin.Operations`."""

    def __init__(self, path: Path, config: NodeConfig, history: History, spawner: Executor, paused: bool) -> None:
        """path: where config is read from again. spawner: starts processes. Needs a running event loop. Raises ConfigError
        for a damaged identity or card.
        """
        self._path = path
        self._config = config
        self._manager = Notifier(os.environ)
        self._identity = with_issued(load_identity(config.identity_dir), config.state_dir)
        self._announced = Announced(config.state_dir)
        peers = self._read_peers(config)
        mode = config.federation.mode
        self._history = history
        self._observatory = Observatory(
            self._identity, config.name, peers, config.observing.sketched, history.new_epoch()
        )
        self._exchange = Exchange(
            mode, peers, config.federation.sync_deadline_seconds, self._observatory, config.exchange.encoding_for
        )
        quarantines = Quarantines(config.state_dir / "quarantines.json")
        self._mesh = Mesh(
            config.name,
            self._identity,
            peers,
            self._exchange,
            MAILBOX_DEPTH[mode],
            quarantines,
            self._announced.keep,
            load_authorities(config.ca_file) if config.ca_file else None,
        )
        history.name_of = self._name_of
        self._certificates = Certificates(config.identity_dir, config.state_dir, config.ca_file, self._mesh)
        self._supervisor = Supervisor(
            config,
            self._exchange,
            self._observatory,
            history,
            spawner,
            paused=paused,
            on_ready=self._mesh.begin,
            on_publish=self._mesh.publish,
        )
        self._admin = AdminService(self, config.admin_path, config.admin_group)
        self._admin_port = AdminPort(
            self._admin, lambda: self._mesh.introductions.identity.self_signed, self._read_operators(config)
        )
        self._stop = asyncio.Event()
        self._trained = asyncio.Event()
        self._changing = asyncio.Lock()  # one operator at a time
        self._reloading: asyncio.Task[None] | None = None  # by a signal
        self._departure = Departure(config, self._supervisor, self._mesh, self._exchange, self._changing)
        self._view = View(
            self._supervisor, self._exchange, self._observatory, self._mesh, self._certificates, self._departure
        )

    def _name_of(self, peer: str) -> str:
        state = self._mesh.states.get(peer)
        return state.peer.name if state else peer

    def _read_peers(self, config: NodeConfig) -> list[Peer]:
        peers = self._announced.peers(config.peers_dir, self._identity.node_id)
        check_encodings(config, peers)
        return peers

    def _read_operators(self, config: NodeConfig) -> list[Operator]:
        return load_operators(config.operators_dir, self._identity.node_id) if config.admin_listen else []

    async def run(self) -> None:
        """Serves until `stop` or SIGTERM, also after the last round. Raises ConLoRAError where the node can't go on."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._begin_stop)
        if not os.isatty(0):  # where there is a terminal, SIGHUP says that it is gone
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._begin_reload)
        await self._admin.start()
        try:
            with self._metrics():
                await self._serve()
        finally:
            self._manager.stopping()
            await self._mesh.close()
            await self._admin_port.close()
            await self._admin.close()
        log.info("node down", round=self._supervisor.progress.round)

    def _metrics(self) -> contextlib.AbstractContextManager[None]:
        if self._config.observing.metrics is None:
            return contextlib.nullcontext()
        from conlora.daemon.scrape import metrics_endpoint  # Prometheus, which few nodes need to start

        return metrics_endpoint(self._config.observing.metrics, self)

    async def _serve(self) -> None:
        if self._config.admin_listen:
            await self._admin_port.open(self._config.admin_listen)
        if self._mesh.states:
            await self._mesh.listen(self._config.listen)
        log.info("node up", name=self._config.name, id=self._identity.node_id, peers=len(self._mesh.states))
        self._manager.ready()  # it answers its operator and its peers; a model may load for minutes, or wait for a program
        watching = [
            asyncio.create_task(self._certificates.watch()),
            asyncio.create_task(self._manager.watch(self._in_a_line)),
        ]
        try:
            try:
                await self._supervisor.run()
            finally:
                self._trained.set()
            await self._stop.wait()
        finally:
            for task in watching:
                task.cancel()

    def _in_a_line(self) -> str:
        status = self.status()
        links = f"{sum(peer.link == 'up' for peer in status.peers)} of {len(status.peers)} links up"
        return "; ".join(
            filter(None, (f"{status.state}, round {status.round} of {status.rounds}, {links}", status.message))
        )

    def _begin_stop(self) -> None:
        self._manager.stopping()
        self._stop.set()
        self._supervisor.stop()

    def _begin_reload(self) -> None:
        async def reload() -> None:
            with contextlib.suppress(ConLoRAError):  # it is in the log
                await self.reload()

        self._reloading = asyncio.create_task(reload())

    def status(self) -> NodeStatus:
        """See `net.admin.Operations`."""
        return self._view.status(self._config, stopping=self._stop.is_set())

    def tally(self) -> Tally:
        """What it has done since the daemon's start."""
        return self._supervisor.progress.tally

    def consensus(self) -> ConsensusView:
        """See `net.admin.Operations`."""
        return self._view.consensus(self._config)

    def history(self, after_round: int) -> list[RoundRecord]:
        """See `net.admin.Operations`."""
        with self._history.reader() as reader:
            return round_records(reader, after_round)

    async def pause(self) -> int:
        """See `net.admin.Operations`."""
        return await self._supervisor.pause()

    async def resume(self) -> int:
        """See `net.admin.Operations`."""
        return await self._departure.resume()

    async def checkpoint(self) -> tuple[Path, int]:
        """See `net.admin.Operations`."""
        checkpoint = await self._supervisor.checkpoint()
        return checkpoint.path, checkpoint.round

    async def export(self, target: Path, overwrite: bool) -> int:
        """See `net.admin.Operations`."""
        checkpoint = await self._supervisor.checkpoint()
        card = card_of(self._config, checkpoint, self._identity.node_id, self._history)
        await asyncio.to_thread(export, self._config, checkpoint, card, target, overwrite)
        return checkpoint.round

    async def stop(self) -> tuple[Path | None, int]:
        """See `net.admin.Operations`."""
        self._begin_stop()
        await self._trained.wait()
        if error := self._supervisor.unsaved:
            raise error
        checkpoint = self._supervisor.last_checkpoint
        return (checkpoint.path if checkpoint else None), self._supervisor.progress.round

    async def drain(self) -> tuple[Path | None, int]:
        """See `net.admin.Operations`."""
        return await self._departure.drain()

    async def leave(self) -> tuple[Path | None, int]:
        """See `net.admin.Operations`."""
        return await self._departure.leave(self.stop)

    async def reload(self) -> Changes:
        """See `net.admin.Operations`."""
        async with self._changing:
            try:
                with self._manager.reloading():
                    made = await self._reload()
            except ConLoRAError as error:
                log.error("not reloaded", reason=str(error))
                raise
        log.info("reloaded", **asdict(made))
        return made

    async def lift(self, peer: str) -> None:
        """See `net.admin.Operations`."""
        await self._mesh.lift(peer)

    async def read_identity(self) -> None:
        """See `net.admin.Operations`. It waits for no other command: a reload or a drain may take long."""
        self._certificates.read()

    async def _reload(self) -> Changes:
        """Whatever may fail comes before the first change."""
        if self._stop.is_set():
            raise Refused("nothing was reloaded: the node is stopping")
        config = await asyncio.to_thread(load_config, self._path)
        before, peers = [state.peer for state in self._mesh.states.values()], self._read_peers(config)
        operators = self._read_operators(config)
        made = changes(self._config, before, config, peers)
        made.operators = changes_of_operators(self._admin_port.operators, operators)
        if config.ca_file:
            load_authorities(config.ca_file)  # what is wrong with it has to be known before anything has changed
        if peers:
            await self._mesh.listen(config.listen)
        self._certificates.read_authorities()
        await self._mesh.part({peer.node_id for peer in before} - {peer.node_id for peer in peers})
        self._observatory.change(peers)
        self._exchange.change(peers, config.federation.sync_deadline_seconds, config.exchange.encoding_for)
        self._mesh.change(peers)
        self._admin_port.operators = operators
        self._config = config
        return made
