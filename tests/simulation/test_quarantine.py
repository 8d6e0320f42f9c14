"""What operators see around a peer that offends: a fake clock, scripted offences, and the very code that daemons decide with."""

import pytest

from conlora.core.conduct import OFFENCES, WITHIN_SECONDS, Conduct
from conlora.core.gossip import Gossip, Mode

MINUTE = 60.0


class Ring:
    """Three nodes, each with links to both others; a judges what c sends it, on a clock that the test sets."""

    def __init__(self, mode: Mode) -> None:
        self.nodes = {name: Gossip(mode, [peer for peer in "abc" if peer != name]) for name in "abc"}
        self.broken: set[frozenset[str]] = set()
        self.conduct = Conduct(on_too_many=lambda _: self.cut("a", "c"))
        for name, node in self.nodes.items():
            for peer in self.peers(name):
                node.link_up(peer)

    def peers(self, name: str) -> list[str]:
        return [peer for peer in "abc" if peer != name and frozenset((name, peer)) not in self.broken]

    def cut(self, one: str, other: str) -> None:
        """The link ends, so both ends know."""
        self.broken.add(frozenset((one, other)))
        self.nodes[one].link_down(other)
        self.nodes[other].link_down(one)

    def publish(self, round_: int) -> None:
        for node in self.nodes.values():
            node.published(round_)
        for name, node in self.nodes.items():
            for peer in self.peers(name):
                other = self.nodes[peer]
                other.received(name, round_, node.degree, other.slot_for(name))

    def weights(self, round_: int) -> dict[tuple[str, str], float] | None:
        """Of all contributions, by receiver and sender; None where a node still waits."""
        weights = {}
        for name, node in self.nodes.items():
            plan = node.plan(round_)
            if plan is None:
                return None
            weights |= {(name, c.peer): c.weight for c in plan.contributions}
            node.release(plan)
        return weights


def offend(ring: Ring, times: int, every: float) -> None:
    for i in range(times):
        ring.conduct.offend("norm", i * every)


def test_a_peer_that_diverges_leaves_the_mix_and_the_other_edges_take_its_weight() -> None:
    ring = Ring(Mode.ASYNC)
    ring.publish(1)
    assert set(ring.weights(1).values()) == {1 / 3}  # type: ignore[union-attr]
    offend(ring, OFFENCES, every=10 * MINUTE)
    ring.publish(2)
    weights = ring.weights(2)
    assert weights == {(x, y): pytest.approx(1 / 3) for x, y in ("ab", "ba", "bc", "cb")}


def test_after_lifting_the_edge_is_what_it_was() -> None:
    ring = Ring(Mode.ASYNC)
    offend(ring, OFFENCES, every=MINUTE)
    ring.conduct.forgive()
    ring.broken.clear()
    ring.nodes["a"].link_up("c")
    ring.nodes["c"].link_up("a")
    ring.publish(1)
    assert len(ring.weights(1)) == 6  # type: ignore[arg-type]


def test_a_bad_step_now_and_then_keeps_its_edge() -> None:
    ring = Ring(Mode.ASYNC)
    offend(ring, 100, every=WITHIN_SECONDS / (OFFENCES - 1) + MINUTE)
    assert not ring.broken
    assert ring.conduct.refused == {"norm": 100}


def test_lockstep_waits_for_a_quarantined_peer_and_knows_for_whom() -> None:
    """The round under way is mixed as planned; the next one can't be without all of them."""
    ring = Ring(Mode.SYNC)
    ring.publish(1)
    offend(ring, OFFENCES, every=MINUTE)
    assert set(ring.weights(1).values()) == {1 / 3}  # type: ignore[union-attr]
    ring.publish(2)
    assert ring.weights(2) is None
    assert (ring.nodes["a"].missing(2), ring.nodes["c"].missing(2)) == (["c"], ["a"])
    assert ring.nodes["b"].missing(2) == []
