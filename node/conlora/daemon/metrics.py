"""Every figure that a node exports to Prometheus: name, kind, labels, words, and where its values come from.

What is exported (`scrape`) and what docs/reference/metrics.md says are both read from METRICS. Labels hold what this node's
operator has configured, or words of ours; nothing that a peer sends becomes one.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from conlora.core.figures import FIGURES, EdgeError
from conlora.daemon.progress import State
from conlora.daemon.tally import Durations, Tally
from conlora.daemon.troubles import KINDS
from conlora.net.status import LINK_STATES, ConsensusView, NodeStatus, PeerStatus

MOMENTS = ("before", "after")

Value = float | Durations
Samples = Iterable[tuple[tuple[str, ...], Value]]  # labels' values, and the sample's


@dataclass(frozen=True, slots=True)
class Moment:
    """What a node tells when it is asked for its metrics."""

    status: NodeStatus
    view: ConsensusView
    tally: Tally


@dataclass(frozen=True, slots=True)
class Declared:
    """One metric. kind: a `summary` has no quantiles, its samples are NAME_count and NAME_sum. read: what has no value yet is
    left out.
    """

    name: str
    kind: Literal["gauge", "counter", "summary"]
    text: str
    read: Callable[[Moment], Samples]
    labels: tuple[str, ...] = ()

    @property
    def samples(self) -> tuple[str, ...]:
        """The names under which Prometheus stores it."""
        return (f"{self.name}_count", f"{self.name}_sum") if self.kind == "summary" else (self.name,)


def _one(value: Callable[[Moment], float | Durations | None]) -> Callable[[Moment], Samples]:
    """Of a figure without labels."""

    def read(moment: Moment) -> Samples:
        if (number := value(moment)) is not None:
            yield (), number

    return read


def _by_peer(value: Callable[[PeerStatus], float | None]) -> Callable[[Moment], Samples]:
    """Of a figure by peer."""

    def read(moment: Moment) -> Samples:
        for peer in moment.status.peers:
            if (number := value(peer)) is not None:
                yield (peer.name,), number

    return read


def _info(moment: Moment) -> Samples:
    s = moment.status
    yield (s.name, s.node_id, s.version, s.federation, s.rule, s.mode), 1


def _states(moment: Moment) -> Samples:
    return (((state.value,), float(moment.status.state == state)) for state in State)


def _evaluation(moment: Moment) -> Samples:
    return (((figure,), value) for figure, value in moment.status.evaluation.items())


def _troubles(moment: Moment) -> Samples:
    return (((kind,), float(kind in moment.status.troubles)) for kind in KINDS)


def _links(moment: Moment) -> Samples:
    return (((p.name, state), float(p.link == state)) for p in moment.status.peers for state in LINK_STATES)


def _traffic(moment: Moment) -> Samples:
    for peer in moment.status.peers:
        yield (peer.name, "sent"), peer.bytes_sent
        yield (peer.name, "received"), peer.bytes_received


def _refusals(moment: Moment) -> Samples:
    return (((peer.name, reason), n) for peer in moment.status.peers for reason, n in peer.refused.items())


def _edge_errors(moment: Moment) -> Samples:
    return (((e.name, part), value) for e in moment.view.edges for part, value in asdict(e.error).items())


def _federation(bars: bool) -> Callable[[Moment], Samples]:
    def read(moment: Moment) -> Iterator[tuple[tuple[str, ...], float]]:
        for when, federation in zip(MOMENTS, (moment.view.before, moment.view.after), strict=True):
            if federation:
                figures = federation.bars if bars else federation.figures
                yield from (((figure, when), value) for figure, value in figures.to_json().items())

    return read


def _words(words: Iterable[str]) -> str:
    return ", ".join(words)


METRICS = (
    Declared(
        "conlora_node_info",
        "gauge",
        "1; what the node is",
        _info,
        ("name", "node_id", "version", "federation", "rule", "mode"),
    ),
    Declared(
        "conlora_node_state",
        "gauge",
        f"1 for the state that the node is in, else 0: {_words(State)}",
        _states,
        ("state",),
    ),
    Declared(
        "conlora_certificate_expires_timestamp_seconds",
        "gauge",
        "End of the node's newest certificate",
        _one(lambda m: m.status.certificate_expires),
    ),
    Declared(
        "conlora_certificate_warns_timestamp_seconds",
        "gauge",
        "From when on that end is near: the last month, or the last third of a shorter life",
        _one(lambda m: m.status.certificate_warns),
    ),
    Declared("conlora_round", "gauge", "Rounds finished", _one(lambda m: m.status.round)),
    Declared("conlora_round_goal", "gauge", "Rounds to be made", _one(lambda m: m.status.rounds)),
    Declared(
        "conlora_round_seconds",
        "summary",
        "Rounds since the daemon's start, and how long they took",
        _one(lambda m: m.tally.rounds),
    ),
    Declared(
        "conlora_mix_seconds",
        "summary",
        "Mixes since the daemon's start, and how long they took: from publishing until mixed, with the wait of sync mode",
        _one(lambda m: m.tally.mixes),
    ),
    Declared("conlora_optimizer_steps", "gauge", "Optimizer steps made", _one(lambda m: m.status.step)),
    Declared("conlora_training_loss", "gauge", "Mean over the last round", _one(lambda m: m.status.loss)),
    Declared(
        "conlora_evaluation",
        "gauge",
        "Of the newest evaluation on the node's own held-out rows: loss, and accuracy or what else the task tells",
        _evaluation,
        ("figure",),
    ),
    Declared(
        "conlora_trainer_restarts_total",
        "counter",
        "Times the trainer died and was started again",
        _one(lambda m: m.status.trainer_restarts),
    ),
    Declared("conlora_checkpoint_round", "gauge", "Of the newest one", _one(lambda m: m.status.checkpoint_round)),
    Declared(
        "conlora_checkpoint_written_timestamp_seconds",
        "gauge",
        "When the newest one was written",
        _one(lambda m: m.status.checkpoint_written),
    ),
    Declared(
        "conlora_disk_trouble", "gauge", f"1 while it can't be written, else 0: {_words(KINDS)}", _troubles, ("what",)
    ),
    Declared(
        "conlora_link_state",
        "gauge",
        f"1 for the state that the edge is in, else 0: {_words(LINK_STATES)}",
        _links,
        ("peer", "state"),
    ),
    Declared(
        "conlora_peer_certificate_expires_timestamp_seconds",
        "gauge",
        "End of the newest certificate that is known",
        _by_peer(lambda p: p.certificate_expires),
        ("peer",),
    ),
    Declared(
        "conlora_peer_certificate_warns_timestamp_seconds",
        "gauge",
        "From when on that end is near, likewise",
        _by_peer(lambda p: p.certificate_warns),
        ("peer",),
    ),
    Declared(
        "conlora_snapshot_age_seconds",
        "gauge",
        "Since the newest snapshot arrived",
        _by_peer(lambda p: p.snapshot_age_seconds),
        ("peer",),
    ),
    Declared(
        "conlora_snapshot_delivery_seconds",
        "gauge",
        "From publishing until the peer had the last one, checked",
        _by_peer(lambda p: p.delivery_seconds),
        ("peer",),
    ),
    Declared(
        "conlora_link_bytes_total",
        "counter",
        "Snapshots and sketches, without what frames and TLS add: sent, received",
        _traffic,
        ("peer", "direction"),
    ),
    Declared(
        "conlora_sketch_sent_bytes_total",
        "counter",
        "Sent for sketches, a part of conlora_link_bytes_total",
        _by_peer(lambda p: p.sketch_bytes_sent),
        ("peer",),
    ),
    Declared(
        "conlora_refusals_total",
        "counter",
        "What a peer sent and was refused, by its reason in protocol.md; those that have occurred",
        _refusals,
        ("peer", "reason"),
    ),
    Declared(
        "conlora_edge_error",
        "gauge",
        f"Frobenius distance from a neighbour before the last mix: {_words(EdgeError.__slots__)}",
        _edge_errors,
        ("peer", "part"),
    ),
    Declared(
        "conlora_edge_weight_ratio",
        "gauge",
        "Weight in the last mix",
        lambda m: (((edge.name,), edge.weight) for edge in m.view.edges),
        ("peer",),
    ),
    Declared(
        "conlora_edge_amplification_ratio",
        "gauge",
        "Edge error in the product for each unit in the factors, over all edges",
        _one(lambda m: m.view.amplification),
    ),
    Declared(
        "conlora_federation_error",
        "gauge",
        f"Consensus error over all nodes whose sketches are known, around their last mixes: {_words(FIGURES)}; "
        f"{_words(MOMENTS)}",
        _federation(bars=False),
        ("figure", "moment"),
    ),
    Declared(
        "conlora_federation_error_bar",
        "gauge",
        "Half-width of the estimate's error bar: two standard errors of the sketch",
        _federation(bars=True),
        ("figure", "moment"),
    ),
    Declared("conlora_federation_nodes", "gauge", "Nodes whose sketches are known", _one(lambda m: len(m.view.nodes))),
)
