"""A whole federation of nodes that only tell made-up figures, with all their digits, for tests of the dashboard."""

import math
from collections.abc import Sequence

from conlora.core.consensus import Consensus, EdgeError
from conlora.core.topology import named_graph, spectrum
from conlora.net.status import (
    ConsensusView,
    EdgeConsensus,
    Federation,
    FederationEdge,
    FederationNode,
    NodeStatus,
    PeerStatus,
    RoundRecord,
)
from tests.fakes import FakeNode

MODULES = [f"base_model.model.bert.encoder.layer.{i}.attention.self.{m}" for i in range(6) for m in ("query", "value")]


class ReadOnlyNode(FakeNode):
    """A node of which nobody may ask more than to tell."""

    def _note(self, what: object) -> None:
        raise AssertionError("the dashboard only reads")


def figures(scale: float) -> Consensus:
    """Figures that differ from each other and have all their digits."""
    names = Consensus.__dataclass_fields__
    return Consensus(**{name: scale * math.sqrt(i + 2) for i, name in enumerate(names)})


def fake_federation(names: Sequence[str], topology: str = "ring", round_: int = 5) -> list[ReadOnlyNode]:
    """One node for each name, each with its own view of the same graph."""
    graph = named_graph(topology, len(names))
    rho, s = spectrum(graph)
    return [_fake_node(i, names, sorted(graph.neighbors(i)), sorted(graph.edges), (rho, s), round_) for i in graph]


def node_id(number: int) -> str:
    """As long as a real one."""
    return f"{number:07d}-" * 8 + "AAA"


def _fake_node(
    i: int,
    names: Sequence[str],
    neighbours: list[int],
    edges: list[tuple[int, int]],
    spectral: tuple[float, float],
    round_: int,
) -> ReadOnlyNode:
    peers = [
        PeerStatus(
            names[j], node_id(j), f"{j}.example:7443", "up", "", 0.0, 1_000_000 * (j + 1), 2_000_000, 0,
            snapshot_round=round_ - 1, snapshot_age_seconds=1.5 + j, weight=1 / 3, edge_error=0.1 * math.sqrt(i + j + 1),
        )
        for j in neighbours
    ]  # fmt: skip
    errors = {
        j: EdgeError(0.1 * math.sqrt(i + j + 1), 0.2 * math.sqrt(i + j + 2), 0.3 / (i + j + 1)) for j in neighbours
    }
    status = NodeStatus(
        name=names[i], node_id=node_id(i), version="0.1", federation="reviews", rule="lora", mode="async", state="training",
        message="", round=round_, rounds=40, step=8 * round_, loss=0.7 / (i + 1), accuracy=0.6 + 0.37 * i / len(names),
        trainer_restarts=0, pid=100 + i, trainer_pid=200 + i, uptime_seconds=60.0, consensus=0.1, peers=peers,
    )  # fmt: skip
    view = ConsensusView(
        name=names[i],
        node_id=node_id(i),
        rule="lora",
        round=round_,
        sketched=True,
        modules=list(MODULES),
        edges=[
            EdgeConsensus(
                names[j],
                node_id(j),
                round_ - 1,
                1 / 3,
                errors[j],
                [EdgeError(0.01 * (k + j), 0.2, 0.3) for k in range(12)],
            )
            for j in neighbours
        ],
        amplification=1.25,
        before=_federation(1.5 + 0.01 * i),
        after=_federation(0.75 + 0.01 * i),
        nodes=[
            FederationNode(node_id(j), names[j], round_, 2.0 * j, 0.9 + j / 7, 0.4 + j / 7) for j in range(len(names))
        ],
        graph=[
            FederationEdge(node_id(a), node_id(b), 0.3 * math.sqrt(a + b), 0.2 * math.sqrt(a + b)) for a, b in edges
        ],
        rho=spectral[0],
        s=spectral[1],
    )
    return ReadOnlyNode(status, view, [record(number, i) for number in range(1, round_ + 1)])


def _federation(scale: float) -> Federation:
    layers = [figures(scale * (1.1 + math.sin(k)) / 6) for k in range(len(MODULES))]
    return Federation(figures(scale), figures(scale / 12), layers)


def record(round_: int, node: int = 0) -> RoundRecord:
    """One round of a history."""
    wave = 1.2 + math.sin(round_ / 4 + node)
    return RoundRecord(
        round=round_,
        time=1.7e9 + round_,
        seconds=2.0,
        loss=0.7 * math.exp(-round_ / 30) * wave / 2 + 0.02 * node,
        accuracy=min(0.99, 0.5 + 0.01 * round_ + 0.02 * node) if round_ % 2 == 0 else None,
        edge_error=wave * 0.2,
        amplification=wave,
        before=figures(wave),
        after=figures(wave / 2),
        nodes=4,
    )
