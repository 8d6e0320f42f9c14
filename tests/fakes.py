"""A node that only answers: what it might tell (status, view, rounds), and what it was asked, for tests of who asks."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conlora.core.consensus import Consensus, EdgeError
from conlora.daemon.observatory import Observatory
from conlora.daemon.tally import Durations, Tally
from conlora.errors import Refused
from conlora.net.status import (
    Changes,
    ConsensusView,
    EdgeConsensus,
    Federation,
    FederationEdge,
    FederationNode,
    NodeStatus,
    PeerStatus,
    RoundRecord,
)

UP = PeerStatus(
    "st-anna", "ABC", "anna:7443", "up", "", 0.0, 2**40, 3, 1, sketches_rejected=4, sketch_bytes_sent=77,
    snapshot_round=0, snapshot_age_seconds=0.0, weight=0.25, edge_error=0.0,
    encoding="bf16", delivery_seconds=0.125, refused={"norm": 1, "sketch-key": 4},
    certificate_expires=4e9, certificate_warns=3.5e9, knows_next_certificate=True,
)  # fmt: skip
DOWN = PeerStatus("charité", "DEF", "", "down", "connection refused", 1.5, 0, 0, 0)
REFUSED = PeerStatus("lakeside", "GHI", "", "refused", "does not fit: rule", 0.0, 5, 6, 7)


def figures(start: float) -> Consensus:
    """D, V, C, E_A, E_B, amplification and relative: `start`, `start + 1` and so on."""
    return Consensus(*(start + i for i in range(7)))


def status(**changes: Any) -> NodeStatus:
    """A node in its third round."""
    return NodeStatus(
        **{
            **{"name": "mercy", "node_id": "XYZ", "version": "0.1", "federation": "notes", "rule": "lora"},
            **{"mode": "sync", "state": "training", "message": "", "round": 3, "rounds": 10, "step": 24},
            **{"loss": 0.5, "accuracy": 0.0, "trainer_restarts": 1, "pid": 12, "trainer_pid": 0},
            **{"uptime_seconds": 1.25, "consensus": None, "evaluation": {"accuracy": 0.5, "loss": 0.25}},
            **{"certificate_expires": 5e9, "certificate_warns": 4.5e9, "next_certificate_at": None},
            **{"troubles": ["history"], "checkpoint_round": 2, "checkpoint_written": 1e9},
            **changes,
        }
    )


def view(**changes: Any) -> ConsensusView:
    """Two edges, three nodes, two modules."""
    layers = [EdgeError(0.5, 0.25, 0.125), EdgeError(1.5, 0.0, 2.0)]
    return ConsensusView(
        **{
            **{"name": "mercy", "node_id": "XYZ", "rule": "lora", "round": 3, "sketched": True},
            "modules": ["base_model.model.bert.encoder.layer.0.attention.self.query", "m.value"],
            "edges": [
                EdgeConsensus("st-anna", "ABC", 3, 0.25, EdgeError(1.0, 0.5, 2.0), layers),
                EdgeConsensus("charité", "DEF", 2, 0.5, EdgeError(4.0, 0.0, 3.0), layers),
            ],
            "amplification": 1.5,
            "before": Federation(figures(10.0), figures(0.5), [figures(1.0), figures(2.0)]),
            "after": Federation(figures(20.0), figures(0.0), [figures(3.0), figures(4.0)]),
            "nodes": [
                FederationNode("XYZ", "mercy", 3, 0.5, 1.0, 0.5),
                FederationNode("ABC", "st-anna", 3, 7.0, 1.0, 0.5),
                FederationNode("QQQ", "far [red]away", 0, 250.0, 2.0, 0.0),
            ],
            "graph": [FederationEdge("ABC", "XYZ", 1.0, 0.5), FederationEdge("ABC", "QQQ", 0.0, 0.25)],
            **{"rho": 0.5, "s": 0.75},
            **changes,
        }
    )


def shown(observatory: Observatory) -> ConsensusView:
    """What a node with these sketches would tell of the federation."""
    view = ConsensusView("mercy", "XYZ", "lora", 0, True)
    observatory.show(view)
    return view


ALONE = ConsensusView("mercy", "XYZ", "freeze-a", 0, False)


def rounds(n: int) -> list[RoundRecord]:
    """Rounds 1 to n: evaluated every third, the federation unknown in the first."""
    return [
        RoundRecord(
            round=i,
            time=1e9 + i,
            seconds=0.5,
            loss=1 / i,
            accuracy=0.5 + i / 1000 if i % 3 == 0 else None,
            edge_error=2.0 * i,
            amplification=0.0,
            before=figures(float(i)) if i > 1 else None,
            after=figures(i / 2) if i > 1 else None,
            nodes=3 if i > 1 else 0,
        )
        for i in range(1, n + 1)
    ]


@dataclass
class FakeNode:
    """Answers with what the test sets; `refusal` makes it decline everything."""

    reply: NodeStatus = field(default_factory=status)
    seen: ConsensusView = field(default_factory=view)
    records: list[RoundRecord] = field(default_factory=lambda: rounds(4))
    done: Tally = field(default_factory=lambda: Tally(Durations(3, 1.5), Durations(2, 0.25)))
    refusal: str = ""
    asked: list[object] = field(default_factory=list)
    last_checkpoint: Path | None = Path("/state/step-8")

    def status(self) -> NodeStatus:
        return self.reply

    def consensus(self) -> ConsensusView:
        return self.seen

    def tally(self) -> Tally:
        return self.done

    def history(self, after_round: int) -> list[RoundRecord]:
        return [record for record in self.records if record.round > after_round]

    def _note(self, what: object) -> None:
        if self.refusal:
            raise Refused(self.refusal)
        self.asked.append(what)

    async def pause(self) -> int:
        self._note("pause")
        return 4

    async def resume(self) -> int:
        self._note("resume")
        return 5

    async def checkpoint(self) -> tuple[Path, int]:
        self._note("checkpoint")
        return Path("/state/step-8"), 6

    async def export(self, target: Path, overwrite: bool) -> int:
        self._note((target, overwrite))
        return 7

    async def stop(self) -> tuple[Path | None, int]:
        self._note("stop")
        return self.last_checkpoint, 8

    async def read_identity(self) -> None:
        self._note("read_identity")

    async def drain(self) -> tuple[Path | None, int]:
        self._note("drain")
        return self.last_checkpoint, 9

    async def leave(self) -> tuple[Path | None, int]:
        self._note("leave")
        return self.last_checkpoint, 10

    async def reload(self) -> Changes:
        self._note("reload")
        return Changes(["anna"], ["berta"], [], ["exchange.encoding"])

    async def lift(self, peer: str) -> None:
        self._note(f"lift {peer}")
