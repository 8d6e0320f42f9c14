"""The node's figures for Prometheus: read when asked for, over HTTP on an address of the operator's choice."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import asdict
from typing import Protocol

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from conlora.errors import ConfigError
from conlora.net.status import ConsensusView, NodeStatus, PeerStatus

ANSWER_SECONDS = 5.0


class Subject(Protocol):
    """What metrics are read from."""

    def status(self) -> NodeStatus:
        """The node as it is now."""
        ...

    def consensus(self) -> ConsensusView:
        """Edge errors, and the federation as the node sees it."""
        ...


@contextlib.contextmanager
def metrics_endpoint(address: str, node: Subject) -> Iterator[None]:
    """Serves the node's metrics as long as the context lasts; needs a running event loop.

    Raises ConfigError for an address that can't be used.
    """
    host, _, port = address.rpartition(":")
    registry = CollectorRegistry()
    registry.register(NodeCollector(node, asyncio.get_running_loop()))
    try:
        server, thread = start_http_server(int(port), host.strip("[]"), registry)
    except OSError as error:
        raise ConfigError(
            f"observing.metrics: {address} can't be used ({error}); choose another address or port"
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class NodeCollector(Collector):
    """Asks the node, in its own event loop, each time Prometheus asks us."""

    def __init__(self, node: Subject, loop: asyncio.AbstractEventLoop) -> None:
        self._node = node
        self._loop = loop

    def describe(self) -> Iterator[Metric]:
        """Nothing: names are known once the node is asked."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """All metrics of this moment."""

        answer: Future[tuple[NodeStatus, ConsensusView]] = Future()

        def read() -> None:
            try:
                answer.set_result((self._node.status(), self._node.consensus()))
            except Exception as error:
                answer.set_exception(error)

        try:
            self._loop.call_soon_threadsafe(read)
        except RuntimeError:
            return  # the node has just ended
        status, view = answer.result(ANSWER_SECONDS)
        yield from _training(status)
        yield from _links(status.peers)
        yield from _edges(view)
        yield from _federation(view)


def _training(status: NodeStatus) -> Iterator[Metric]:
    info = GaugeMetricFamily(
        "conlora_node_info", "1; what the node is", labels=["name", "node_id", "version", "rule", "mode"]
    )
    info.add_metric([status.name, status.node_id, status.version, status.rule, status.mode], 1)
    yield info
    state = GaugeMetricFamily("conlora_node_state", "1 for the state that the node is in", labels=["state"])
    state.add_metric([status.state], 1)
    yield state
    yield _gauge(
        "conlora_certificate_expires_timestamp_seconds", "End of the node's certificate", status.certificate_expires
    )
    yield _gauge("conlora_round", "Rounds finished", status.round)
    yield _gauge("conlora_round_goal", "Rounds to be made", status.rounds)
    yield _gauge("conlora_step", "Optimizer steps made", status.step)
    yield _gauge("conlora_loss", "Mean training loss over the last round", status.loss)
    yield _gauge("conlora_accuracy_ratio", "On the node's own held-out rows", status.accuracy)
    evaluation = GaugeMetricFamily("conlora_evaluation", "On the node's own held-out rows", labels=["figure"])
    for figure, value in status.evaluation.items():
        evaluation.add_metric([figure], value)
    yield evaluation
    yield CounterMetricFamily(
        "conlora_trainer_restarts_total", "Times the trainer died and was started again", value=status.trainer_restarts
    )


def _links(peers: list[PeerStatus]) -> Iterator[Metric]:
    yield _by_peer("conlora_link_up", "1 while the link lives", peers, lambda p: float(p.link == "up"))
    yield _by_peer(
        "conlora_peer_quarantined", "1 while nothing is accepted", peers, lambda p: float(p.quarantine is not None)
    )
    yield _by_peer(
        "conlora_peer_certificate_expires_timestamp_seconds",
        "End of the newest certificate that is known",
        peers,
        lambda p: p.certificate_expires,
    )
    yield _by_peer(
        "conlora_snapshot_age_seconds", "Since the newest snapshot arrived", peers, lambda p: p.snapshot_age_seconds
    )
    yield _by_peer(
        "conlora_snapshot_delivery_seconds",
        "From publishing until the peer had it",
        peers,
        lambda p: p.delivery_seconds,
    )
    traffic = CounterMetricFamily("conlora_link_bytes_total", "Payload sent and received", labels=["peer", "direction"])
    rejected = CounterMetricFamily(
        "conlora_rejections_total", "What a peer sent and was refused", labels=["peer", "kind"]
    )
    refused = CounterMetricFamily(
        "conlora_refusals_total", "What a peer sent and was refused, by reason", labels=["peer", "reason"]
    )
    sketches = CounterMetricFamily("conlora_sketch_bytes_total", "Sent for sketches", labels=["peer"])
    for peer in peers:
        traffic.add_metric([peer.name, "sent"], peer.bytes_sent)
        traffic.add_metric([peer.name, "received"], peer.bytes_received)
        rejected.add_metric([peer.name, "snapshot"], peer.snapshots_rejected)
        rejected.add_metric([peer.name, "sketch"], peer.sketches_rejected)
        for reason, n in peer.refused.items():
            refused.add_metric([peer.name, reason], n)
        sketches.add_metric([peer.name], peer.sketch_bytes_sent)
    yield from (traffic, rejected, refused, sketches)


def _edges(view: ConsensusView) -> Iterator[Metric]:
    errors = GaugeMetricFamily(
        "conlora_edge_error", "Frobenius distance from a neighbour before the last mix", labels=["peer", "part"]
    )
    weights = GaugeMetricFamily("conlora_edge_weight_ratio", "Metropolis weight in the last mix", labels=["peer"])
    for edge in view.edges:
        for part, value in asdict(edge.error).items():
            errors.add_metric([edge.name, part], value)
        weights.add_metric([edge.name], edge.weight)
    yield from (errors, weights)
    yield _gauge(
        "conlora_amplification_ratio", "Edge error in the product for each unit in the factors", view.amplification
    )


def _federation(view: ConsensusView) -> Iterator[Metric]:
    figures = GaugeMetricFamily(
        "conlora_federation_error",
        "Consensus error over all sketched nodes, before and after their last mixes",
        labels=["figure", "moment"],
    )
    bars = GaugeMetricFamily(
        "conlora_federation_error_bar", "Half-width of the estimate's error bar", labels=["figure", "moment"]
    )
    for moment, federation in (("before", view.before), ("after", view.after)):
        if federation:
            for family, values in ((figures, federation.figures), (bars, federation.bars)):
                for figure, value in values.to_json().items():
                    family.add_metric([figure, moment], value)
    yield from (figures, bars)
    yield _gauge("conlora_federation_nodes", "Nodes whose sketches are known", len(view.nodes))


def _gauge(name: str, text: str, value: float | None) -> Metric:
    family = GaugeMetricFamily(name, text)
    if value is not None:
        family.add_metric([], value)
    return family


def _by_peer(name: str, text: str, peers: list[PeerStatus], value: Callable[[PeerStatus], float | None]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=["peer"])
    for peer in peers:
        if (number := value(peer)) is not None:
            family.add_metric([peer.name], number)
    return family
