"""One node: puts identity, links, trainer, store and admin service together, and carries out what operators ask."""

import asyncio
import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import asdict
from pathlib import Path

import structlog

from conlora import __version__
from conlora.config import NodeConfig, load_config
from conlora.core.consensus import amplification
from conlora.daemon.background import background
from conlora.daemon.certificates import Certificates
from conlora.daemon.changes import changes, check_encodings
from conlora.daemon.departure import Departure
from conlora.daemon.exchange import MAILBOX_DEPTH, Exchange
from conlora.daemon.export import card_of, export
from conlora.daemon.notify import Notifier
from conlora.daemon.observatory import Observatory
from conlora.daemon.progress import State
from conlora.daemon.records import round_records
from conlora.daemon.supervisor import Supervisor
from conlora.daemon.tally import Tally
from conlora.errors import ConLoRAError, Refused, StateError
from conlora.net.admin import AdminService
from conlora.net.authorities import load_authorities
from conlora.net.certificates import expires, warns
from conlora.net.edge import PeerState
from conlora.net.identity import Peer, load_identity
from conlora.net.issued import with_issued
from conlora.net.mesh import Mesh
from conlora.net.rotation import Announced
from conlora.net.status import Changes, ConsensusView, EdgeConsensus, NodeStatus, PeerStatus, RoundRecord
from conlora.store.disk import unwritable
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
        self._started = time.monotonic()
        self._stop = asyncio.Event()
        self._trained = asyncio.Event()
        self._changing = asyncio.Lock()  # one operator at a time
        self._reloading: asyncio.Task[None] | None = None  # by a signal
        self._departure = Departure(config, self._supervisor, self._mesh, self._exchange, self._changing)

    def _name_of(self, peer: str) -> str:
        state = self._mesh.states.get(peer)
        return state.peer.name if state else peer

    def _read_peers(self, config: NodeConfig) -> list[Peer]:
        peers = self._announced.peers(config.peers_dir, self._identity.node_id)
        check_encodings(config, peers)
        return peers

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
            await self._admin.close()
        log.info("node down", round=self._supervisor.progress.round)

    def _metrics(self) -> contextlib.AbstractContextManager[None]:
        if self._config.observing.metrics is None:
            return contextlib.nullcontext()
        from conlora.daemon.scrape import metrics_endpoint  # Prometheus, which few nodes need to start

        return metrics_endpoint(self._config.observing.metrics, self)

    async def _serve(self) -> None:
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
        progress, federation = self._supervisor.progress, self._config.federation
        state, message = self._departure.state
        errors = [figures.error.product for figures in self._exchange.last_mix.values()]
        checkpoint = self._supervisor.last_checkpoint
        return NodeStatus(
            name=self._config.name,
            node_id=self._identity.node_id,
            version=__version__,
            federation=federation.name,
            rule=federation.rule,
            mode=federation.mode.value,
            state=State.STOPPING if self._stop.is_set() else state,
            message="; ".join(filter(None, (message, str(self._supervisor.troubles)))),
            round=progress.round,
            rounds=self._config.training.rounds,
            step=progress.step,
            loss=progress.loss,
            accuracy=progress.evaluation.get("accuracy"),
            evaluation=progress.evaluation,
            trainer_restarts=progress.restarts,
            pid=os.getpid(),
            trainer_pid=progress.trainer_pid,
            uptime_seconds=time.monotonic() - self._started,
            consensus=sum(errors) / len(errors) if errors else None,
            certificate_expires=expires(self._certificates.newest.shown),
            certificate_warns=warns(self._certificates.newest.shown),
            next_certificate_at=following.takes_over_at if (following := self._certificates.identity.next) else None,
            peers=[self._peer_status(state) for state in self._mesh.states.values()],
            troubles=list(self._supervisor.troubles),
            checkpoint_round=checkpoint.round if checkpoint else None,
            checkpoint_written=checkpoint.written if checkpoint else None,
        )

    def tally(self) -> Tally:
        """What it has done since the daemon's start."""
        return self._supervisor.progress.tally

    def _peer_status(self, state: PeerState) -> PeerStatus:
        peer, link, counts = state.peer, state.link, state.counts
        status = PeerStatus(
            name=peer.name,
            node_id=peer.node_id,
            address=peer.address or "",
            link=state.word,
            last_error=state.last_error,
            retry_in_seconds=max(0.0, state.retry_at - time.monotonic()) if state.retry_at else 0.0,
            bytes_sent=counts.bytes_sent,
            bytes_received=counts.bytes_received,
            snapshots_rejected=counts.rejected,
            sketches_rejected=counts.sketches_rejected,
            sketch_bytes_sent=counts.sketch_bytes_sent,
            refused=dict(state.conduct.refused),
            certificate_expires=expires(state.shown),
            certificate_warns=warns(state.shown),
            knows_next_certificate=self._mesh.introductions.known_by(state),
        )
        if quarantine := state.conduct.quarantine:
            status.quarantine = quarantine.offences
            status.quarantined_seconds = max(0.0, time.time() - quarantine.since)
            status.last_error = (
                f"too many offences ({quarantine.offences}); `conlora peers lift {peer.name}` ends the quarantine"
            )
        if link:
            status.encoding, status.delivery_seconds = link.encoding, link.delivery_seconds
        if newest := self._exchange.newest(peer.node_id):
            snapshot, status.snapshot_age_seconds = newest
            status.snapshot_round = snapshot.round
        if link:
            status.weight = self._exchange.weights.get(peer.node_id)
            if figures := self._exchange.last_mix.get(peer.node_id):
                status.edge_error = figures.error.product
        return status

    def consensus(self) -> ConsensusView:
        """See `net.admin.Operations`."""
        states = self._mesh.states  # from which a reload takes a peer before it is out of the last mix
        mixes = [mix for mix in self._exchange.last_mix.values() if mix.contribution.peer in states]
        view = ConsensusView(
            name=self._config.name,
            node_id=self._identity.node_id,
            rule=self._config.federation.rule,
            round=self._supervisor.progress.round,
            sketched=self._config.observing.sketched,
            edges=[
                EdgeConsensus(
                    name=states[mix.contribution.peer].peer.name,
                    node_id=mix.contribution.peer,
                    snapshot_round=mix.contribution.round,
                    weight=mix.contribution.weight,
                    error=mix.error,
                    layers=mix.layers,
                )
                for mix in mixes
            ],
            amplification=amplification(mix.error for mix in mixes) if mixes else None,
        )
        self._observatory.show(view)
        return view

    def history(self, after_round: int) -> list[RoundRecord]:
        """See `net.admin.Operations`."""
        return round_records(self._history, after_round)

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
        made = changes(self._config, before, config, peers)
        self._certificates.read_authorities()
        if peers:
            await self._mesh.listen(config.listen)
        await self._mesh.part({peer.node_id for peer in before} - {peer.node_id for peer in peers})
        self._observatory.change(peers)
        self._exchange.change(peers, config.federation.sync_deadline_seconds, config.exchange.encoding_for)
        self._mesh.change(peers)
        self._config = config
        return made


@contextlib.contextmanager
def locked(state_dir: Path) -> Iterator[None]:
    """Holds the state directory for one daemon. Raises StateError where another has it, or it can't be written."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (state_dir / "lock").open("w")
    except OSError as error:
        raise unwritable(state_dir, "the state", error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateError(f"{state_dir}: another daemon of this node is running; stop it first") from None
        yield
