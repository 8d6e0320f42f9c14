"""What a node tells its operators of itself: what it does, its peers, and how far they are from agreement."""

import os
import time

from conlora import __version__
from conlora.config import NodeConfig
from conlora.core.consensus import amplification
from conlora.daemon.certificates import Certificates
from conlora.daemon.departure import Departure
from conlora.daemon.exchange import Exchange
from conlora.daemon.observatory import Observatory
from conlora.daemon.progress import State
from conlora.daemon.supervisor import Supervisor
from conlora.net.certificates import expires, warns
from conlora.net.edge import PeerState
from conlora.net.mesh import Mesh
from conlora.net.status import ConsensusView, EdgeConsensus, NodeStatus, PeerStatus


class View:
    """Looks at the parts of a node, and changes nothing."""

    def __init__(
        self,
        supervisor: Supervisor,
        exchange: Exchange,
        observatory: Observatory,
        mesh: Mesh,
        certificates: Certificates,
        departure: Departure,
    ) -> None:
        self._supervisor = supervisor
        self._exchange = exchange
        self._observatory = observatory
        self._mesh = mesh
        self._certificates = certificates
        self._departure = departure
        self._started = time.monotonic()

    def status(self, config: NodeConfig, stopping: bool) -> NodeStatus:
        """The node as it is now, with the configuration that it has now."""
        progress, federation = self._supervisor.progress, config.federation
        state, message = self._departure.state
        errors = [figures.error.product for figures in self._exchange.last_mix.values()]
        checkpoint = self._supervisor.last_checkpoint
        return NodeStatus(
            name=config.name,
            node_id=self._certificates.identity.node_id,
            version=__version__,
            federation=federation.name,
            rule=federation.rule,
            mode=federation.mode.value,
            state=State.STOPPING if stopping else state,
            message="; ".join(filter(None, (message, str(self._supervisor.troubles)))),
            round=progress.round,
            rounds=config.training.rounds,
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

    def consensus(self, config: NodeConfig) -> ConsensusView:
        """Edge errors of the last mix, and the federation as this node sees it."""
        states = self._mesh.states  # from which a reload takes a peer before it is out of the last mix
        mixes = [mix for mix in self._exchange.last_mix.values() if mix.contribution.peer in states]
        view = ConsensusView(
            name=config.name,
            node_id=self._certificates.identity.node_id,
            rule=config.federation.rule,
            round=self._supervisor.progress.round,
            sketched=config.observing.sketched,
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
