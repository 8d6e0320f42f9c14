"""What one node knows of the federation's consensus error: every node's newest sketches, and the figures they give."""

import time
from dataclasses import astuple, fields

import numpy as np
import structlog

from conlora.core.consensus import Consensus
from conlora.core.federation import FederationSettings
from conlora.core.schema import Vector
from conlora.core.sketch import Estimate, SketchLayout, distance, estimate, motion, widened
from conlora.core.sketchbook import DEPARTED_SECONDS, LEAST_BYTES, RENEW_SECONDS, Part, Sketchbook, allowance, lifetime
from conlora.errors import SketchRejected
from conlora.net.identity import Identity, Peer
from conlora.net.sketches import Scribe, outgoing
from conlora.net.status import ConsensusView, Federation, FederationEdge, FederationNode
from conlora.net.wire import SketchHeader, Transfer

log = structlog.get_logger()

SHORTEST_ROUND_SECONDS = 1e-3


class Observatory:
    """The federation's sketches at one node, in and out."""

    def __init__(self, identity: Identity, name: str, peers: list[Peer], sketched: bool, epoch: int = 0) -> None:
        """sketched: whether others get to know this node's own sketches; it passes theirs on either way. epoch: larger than
        that of any earlier start of this node.
        """
        self._still = True  # nothing is being trained, so no snapshot will take sketches along
        self._identity = identity
        self._name = name
        self._peers = peers
        self._sketched = sketched
        self._epoch = epoch
        self._sequence = 0
        self._own: tuple[int, Vector, Vector] | None = None  # round, sketches of before and after its mix
        self._live: set[str] = set()
        self._signed_at = self._mixed_at = 0.0
        self._lifetime = DEPARTED_SECONDS
        self._speed = [0.0] * len(fields(Consensus))  # of this node's own update, per second (see `motion`)
        self._layout: SketchLayout | None = None
        self._scribe: Scribe | None = None
        self._book: Sketchbook | None = None

    def open(self, settings: FederationSettings, layout: SketchLayout) -> None:
        """Begins, now that the federation and the size of its sketches are known."""
        if self._book is not None:
            return
        self._layout = layout
        self._scribe = Scribe(self._identity, settings.digest, layout.size)
        peers = [peer.node_id for peer in self._peers]
        self._book = Sketchbook(self._identity.node_id, peers, self._scribe.record_bytes, self._sketched)

    def change(self, peers: list[Peer]) -> None:
        """The node has these peers from now on."""
        self._peers = peers
        if self._book:
            self._book.welcome([peer.node_id for peer in peers])

    @property
    def max_sketch_bytes(self) -> int:
        """See `net.reception.Receiver`."""
        return self._scribe.max_record_bytes if self._scribe else 0

    def link_up(self, peer: Peer) -> None:
        """The edge lives."""
        self._live.add(peer.node_id)
        if self._book:
            self._book.link_up(peer.node_id)

    def link_down(self, peer: Peer) -> None:
        """The edge is dead."""
        self._live.discard(peer.node_id)
        if self._book:
            self._book.link_down(peer.node_id)

    def mixed(self, round_: int, before: Vector, after: Vector) -> None:
        """This node has finished a mix; its sketches, each of shape `(layout.size,)`, are copied."""
        now = time.monotonic()
        if self._own and self._layout:
            seconds = max(now - self._mixed_at, SHORTEST_ROUND_SECONDS)
            self._lifetime = lifetime(seconds)
            self._speed = [gone / seconds for gone in astuple(motion(self._layout, self._own[2], after))]
        self._mixed_at = now
        self._own = (round_, before.copy(), after.copy())
        self._sign()

    def stand(self, still: bool) -> None:
        """The node stands still, or trains again; others are told that its sketches stay as good as new."""
        if still and not self._still and self._own:
            self._still = still
            self._sign()
        self._still = still

    def received(self, peer: Peer, header: SketchHeader, payload: bytearray) -> None:
        """See `net.reception.Receiver.sketch_received`."""
        assert self._scribe
        assert self._book
        try:
            record = self._scribe.read(header, payload)
        except SketchRejected as rejection:
            log.warning("sketch rejected", peer=peer.name, reason=str(rejection))
            raise
        self._book.received(record, header.age_seconds, peer.node_id, time.monotonic())

    def sketches_for(self, peer: Peer, snapshot_bytes: int | None) -> list[Transfer]:
        """See `net.reception.Receiver`."""
        if not self._book:
            return []
        self._renew()
        earned = allowance(snapshot_bytes) if snapshot_bytes is not None else LEAST_BYTES if self._still else 0.0
        return [outgoing(part) for part in self._book.take(peer.node_id, earned, time.monotonic())]

    def estimates(self) -> tuple[Estimate, Estimate, int] | None:
        """The figures before and after the nodes' last mixes, and how many nodes they are of; None without sketches."""
        parts = self._parts()
        if not parts or not self._layout:
            return None
        # A lag that all parts share does no harm; this node's own speed stands for everybody's.
        apart = float(np.std([part.lag for part in parts]))
        moved = Consensus(*(apart * speed for speed in self._speed))
        before, after = (
            widened(estimate(self._layout, sketches), moved)
            for sketches in ([part.record.before for part in parts], [part.record.after for part in parts])
        )
        return before, after, len(parts)

    def show(self, view: ConsensusView) -> None:
        """Fills in what a node's view tells of the federation beyond its own edges; without sketches, the modules' names."""
        parts, layout = self._parts(), self._layout
        if not layout:
            return
        view.modules = [module.name for module in layout.modules]
        if not (estimates := self.estimates()):
            return
        from conlora.core.topology import (
            from_neighbours,
            spectrum,
        )  # networkx, which a daemon need not wait for to start

        before, after, _ = estimates
        view.before, view.after = _federation(before), _federation(after)
        records = {part.record.node_id: part.record for part in parts}
        mean_before = np.stack([record.before for record in records.values()]).mean(axis=0, dtype=np.float64)
        mean_after = np.stack([record.after for record in records.values()]).mean(axis=0, dtype=np.float64)
        view.nodes = [
            FederationNode(
                part.record.node_id,
                part.record.name,
                part.record.round,
                part.age,
                distance(layout, part.record.before, mean_before),
                distance(layout, part.record.after, mean_after),
            )
            for part in parts
        ]
        graph = from_neighbours({node: list(record.neighbours) for node, record in records.items()})
        view.graph = [
            FederationEdge(
                i,
                j,
                distance(layout, records[i].before, records[j].before),
                distance(layout, records[i].after, records[j].after),
            )
            for i, j in sorted(graph.edges)
        ]
        view.rho, s = spectrum(graph)
        view.s = s if s < float("inf") else None

    def _parts(self) -> list[Part]:
        if not self._book:
            return []
        self._renew()
        return self._book.parts(time.monotonic())

    def _renew(self) -> None:
        """This node is here, however long its rounds are and whether or not it has links."""
        if self._own and time.monotonic() - self._signed_at >= RENEW_SECONDS:
            self._sign()

    def _sign(self) -> None:
        assert self._scribe
        assert self._book
        assert self._own
        round_, before, after = self._own
        self._sequence += 1
        self._signed_at = time.monotonic()
        record = self._scribe.sign(
            self._name,
            self._epoch,
            self._sequence,
            round_,
            sorted(self._live),
            before,
            after,
            self._lifetime,
            self._still,
        )
        self._book.put(record, 0.0, self._signed_at)


def _federation(estimate: Estimate) -> Federation:
    return Federation(estimate.figures, estimate.bars, list(estimate.layers.values()))
