"""One node's view of the federation over time: its own sketch stays fresh, with links and without, and reaches others."""

from pathlib import Path

import numpy as np
import pytest
from tests.fakes import shown

from conlora.core import sketchbook
from conlora.core.federation import FederationSettings
from conlora.core.schema import Role, Schema, TensorSpec
from conlora.core.sketch import SketchLayout
from conlora.core.sketchbook import DEPARTED_SECONDS, RENEW_SECONDS
from conlora.daemon import observatory as module
from conlora.daemon.observatory import Observatory
from conlora.net.identity import Identity, Peer, create_identity
from conlora.net.wire import SketchHeader

SETTINGS = FederationSettings("f", "print", "{}", 1, "lora", "async", 8, "{}", "digest")
SCHEMA = Schema(
    (TensorSpec("q.lora_A.weight", "q", Role.A, (2, 3)), TensorSpec("q.lora_B.weight", "q", Role.B, (4, 2)))
)
LAYOUT = SketchLayout.of(SCHEMA, SCHEMA)


class Clock:
    """Monotonic time that only tests move; each look takes a little, as in life."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        self.now += 1e-4
        return self.now

    @staticmethod
    def time_ns() -> int:
        return 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def card(name: str, identity: Identity) -> Peer:
    return Peer(name, identity.node_id, None, identity.certificate)


def opened(identity: Identity, name: str, *peers: Peer, sketched: bool = True) -> Observatory:
    seen = Observatory(identity, name, list(peers), sketched)
    seen.open(SETTINGS, LAYOUT)
    for peer in peers:
        seen.link_up(peer)
    return seen


def vector(value: float) -> np.ndarray:
    return np.full(LAYOUT.size, value, np.float32)


def carry(sender: Observatory, me: Peer, receiver: Observatory, to: Peer) -> int:
    """One heartbeat of an idle node; returns how many sketches it carried."""
    transfers = sender.sketches_for(to, None)
    for transfer in transfers:
        assert isinstance(transfer.header, SketchHeader)
        receiver.received(me, transfer.header, bytearray(transfer.payload))
    return len(transfers)


def test_nodes_that_stand_still_stay_in_each_others_pictures(tmp_path: Path, clock: Clock) -> None:
    a_id, b_id = create_identity(tmp_path / "a"), create_identity(tmp_path / "b")
    a, b = opened(a_id, "a", card("b", b_id)), opened(b_id, "b", card("a", a_id))
    a.mixed(3, vector(1), vector(2))
    b.mixed(4, vector(1), vector(2))
    carried = 0
    for _ in range(int(3 * DEPARTED_SECONDS / 2)):
        clock.now += 2
        carried += carry(a, card("a", a_id), b, card("b", b_id)) + carry(b, card("b", b_id), a, card("a", a_id))
        for seen in (a, b) if clock.now % 50 < 2 else ():
            ages = {node.name: node.age_seconds for node in shown(seen).nodes}
            assert all(0 <= age <= RENEW_SECONDS + 3 for age in ages.values())
    assert {node.name: node.round for node in shown(a).nodes} == {"a": 3, "b": 4}
    assert {node.name: node.round for node in shown(b).nodes} == {"a": 3, "b": 4}
    assert carried <= 2 * (3 * DEPARTED_SECONDS / RENEW_SECONDS + 1), "only what is new"


def test_a_peer_that_is_added_is_seen_though_strangers_have_filled_the_picture(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sketchbook, "MOST_NODES", 1)
    a_id, b_id, c_id, d_id = (create_identity(tmp_path / name) for name in "abcd")
    a, b = card("a", a_id), card("b", b_id)
    seen = opened(a_id, "a", b)
    others = {name: opened(identity, name, a) for name, identity in (("c", c_id), ("d", d_id))}
    for name, other in others.items():
        other.mixed(1, vector(1), vector(1))
        carry(other, b, seen, a)
        assert [node.name for node in shown(seen).nodes] == ["c"], f"after {name}"
    seen.change([b, card("d", d_id)])
    clock.now += 1
    others["d"].mixed(2, vector(1), vector(1))
    carry(others["d"], b, seen, a)
    assert {node.name for node in shown(seen).nodes} == {"c", "d"}


def test_a_node_without_links_goes_on_seeing_itself(tmp_path: Path, clock: Clock) -> None:
    seen = opened(create_identity(tmp_path / "a"), "a")
    assert shown(seen).nodes == []
    assert shown(seen).modules == ["q"], "edge errors are told by module with or without sketches"
    seen.mixed(1, vector(1), vector(1))
    clock.now += 3 * DEPARTED_SECONDS
    (node,) = shown(seen).nodes
    assert (node.name, node.round) == ("a", 1)
    assert seen.estimates() is not None


def test_distances_are_exactly_zero_where_nodes_agree(tmp_path: Path, clock: Clock) -> None:
    a_id, b_id = create_identity(tmp_path / "a"), create_identity(tmp_path / "b")
    a, b = opened(a_id, "a", card("b", b_id)), opened(b_id, "b", card("a", a_id))
    a.mixed(1, vector(0.1), vector(0.7))
    b.mixed(1, vector(0.3), vector(0.7))
    carry(b, card("b", b_id), a, card("a", a_id))
    picture = shown(a)
    assert [node.distance_after for node in picture.nodes] == [0, 0]
    assert [edge.error_after for edge in picture.graph] == [0]
    assert [node.distance_before for node in picture.nodes] == pytest.approx([0.1, 0.1])
    assert [edge.error_before for edge in picture.graph] == pytest.approx([0.2])
    assert (picture.rho, picture.s) == pytest.approx((0, 0))


def test_bars_are_wide_while_nodes_move_and_narrow_when_they_stand(tmp_path: Path, clock: Clock) -> None:
    """Both nodes hold the same at any time; what one has of the other is 8 rounds old."""
    a_id, b_id = create_identity(tmp_path / "a"), create_identity(tmp_path / "b")
    a, b = opened(a_id, "a", card("b", b_id)), opened(b_id, "b", card("a", a_id))
    for seen in (a, b):
        seen.stand(still=False)
    for round_ in range(1, 10):
        clock.now += 1
        for seen in (a, b):
            seen.mixed(round_, vector(round_ / 10), vector(round_ / 10))
        if round_ == 1:
            carry_snapshot(b, card("b", b_id), a, card("a", a_id))
    estimates = a.estimates()
    assert estimates is not None
    _, after, nodes = estimates
    assert nodes == 2
    assert pytest.approx(0.4) == after.figures.V
    assert pytest.approx(0.4, rel=0.05) == after.bars.V, "all of it may be a matter of time"
    for seen in (a, b):
        seen.stand(still=True)
    carry(b, card("b", b_id), a, card("a", a_id))
    estimates = a.estimates()
    assert estimates is not None
    assert estimates[1].figures.V == estimates[1].bars.V == 0


def test_what_nodes_said_last_holds_however_old_once_they_stand(tmp_path: Path, clock: Clock) -> None:
    """One node pauses long before the other: neither part ages, so time adds nothing to the bars."""
    a_id, b_id = create_identity(tmp_path / "a"), create_identity(tmp_path / "b")
    a, b = opened(a_id, "a", card("b", b_id)), opened(b_id, "b", card("a", a_id))
    for seen, to in ((b, 4), (a, 2)):
        seen.stand(still=False)
        for value in (to - 1, to):
            clock.now += 20
            seen.mixed(value, vector(value), vector(value))
    carry_snapshot(b, card("b", b_id), a, card("a", a_id))
    assert bar_of_v(a) > 0.1
    for seen in (b, a):
        seen.stand(still=True)
    carry(b, card("b", b_id), a, card("a", a_id))
    assert bar_of_v(a) == 0, "all pairs of signs say the same"


def bar_of_v(seen: Observatory) -> float:
    estimates = seen.estimates()
    assert estimates is not None
    return estimates[1].bars.V


def carry_snapshot(sender: Observatory, me: Peer, receiver: Observatory, to: Peer) -> None:
    """What goes along with a snapshot."""
    for transfer in sender.sketches_for(to, 10**6):
        assert isinstance(transfer.header, SketchHeader)
        receiver.received(me, transfer.header, bytearray(transfer.payload))
