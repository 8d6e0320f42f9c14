"""A node's snapshots between arena and links: which slots are used, and how long they stay as they are."""

import numpy as np
import pytest

from conlora.core.encoding import Encoding
from conlora.core.gossip import Mode
from conlora.core.schema import Role, Schema, TensorSpec
from conlora.daemon.exchange import Exchange
from conlora.daemon.meter import Meter
from conlora.daemon.observatory import Observatory
from conlora.net.identity import Identity, Peer, create_identity
from conlora.net.link import Mailbox
from conlora.net.wire import Goodbye, SnapshotHeader, goodbye, heartbeat

SCHEMA = Schema(
    (TensorSpec("q.lora_A.weight", "q", Role.A, (2, 3)), TensorSpec("q.lora_B.weight", "q", Role.B, (4, 2)))
)
PEERS = [Peer(name, name.upper(), None, b"") for name in ("anna", "berta")]


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return create_identity(tmp_path_factory.mktemp("identity"))


@pytest.fixture(params=Mode)
def exchange(request: pytest.FixtureRequest, identity: Identity) -> Exchange:
    observatory = Observatory(identity, "mercy", PEERS, True)
    exchange = Exchange(request.param, PEERS, 10.0, observatory, lambda name: Encoding.FP32)
    exchange.open(SCHEMA, Meter(SCHEMA, SCHEMA, np.ones(SCHEMA.size, np.float32), 0), 0)
    for peer in PEERS:
        exchange.link_up(peer)
    return exchange


def arrive(exchange: Exchange, peer: Peer, round_: int, id_: int = 1) -> int:
    header = SnapshotHeader(round=round_, degree=2, id=id_)
    landing = exchange.snapshot_begins(peer, header)
    assert landing is not None
    landing.out[:] = round_
    exchange.snapshot_received(peer, header, landing)
    return landing.slot


def publish(exchange: Exchange, round_: int) -> None:
    exchange.arena.outbox(exchange.outbox.next_slot)[:] = -round_
    exchange.publish(round_)


def test_links_that_send_for_ever_never_leave_the_trainer_without_a_slot(exchange: Exchange) -> None:
    """Each link is stuck with another old snapshot, and one is being measured; none of them is written to."""
    stuck = []
    for round_ in range(1, 40):
        publish(exchange, round_)
        snapshot = exchange.outbox.recent[-1]
        if len(stuck) < len(PEERS) + 1:
            stuck.append(snapshot.hold())
        assert all((held.vector == -held.round).all() for held in stuck)
    assert exchange.outbox.next_slot < exchange.arena.outbox_slots


def test_few_slots_are_used_where_links_are_quick(exchange: Exchange) -> None:
    used = set()
    for round_ in range(1, 20):
        used.add(exchange.outbox.next_slot)
        publish(exchange, round_)
    assert len(used) <= 4


async def test_what_is_measured_stays_while_rounds_go_on(exchange: Exchange, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def measure(own: np.ndarray, mixed: np.ndarray, others: list[np.ndarray]) -> None:
        seen.append([float(vector[0]) for vector in (own, mixed, *others)])
        raise RuntimeError("seen")

    assert exchange._meter is not None
    monkeypatch.setattr(exchange._meter, "measure", measure)
    held = None
    for round_ in range(1, 6):
        publish(exchange, round_)
        for peer in PEERS:
            arrive(exchange, peer, round_)
        plan = await exchange.plan(round_)
        assert plan is not None
        assert [c.round for c in plan.contributions] == [round_, round_]
        exchange.arena.mixed(exchange.mixed_slot)[:] = 100 + round_
        _, mix = exchange.mixed()
        assert (mix is None) is (held is not None), "one mix is measured at a time"
        held = held or mix
    assert held is not None
    with pytest.raises(RuntimeError, match="seen"):
        await exchange.measure(held)
    assert seen == [[-1, 101, 1, 1]]
    publish(exchange, 6)
    for peer in PEERS:
        arrive(exchange, peer, 6)
    await exchange.plan(6)
    assert exchange.mixed()[1] is not None, "the next one's turn has come"


async def test_a_difference_needs_the_snapshot_that_it_is_to(exchange: Exchange) -> None:
    publish(exchange, 1)
    anna = PEERS[0]
    arrive(exchange, anna, 1, id_=11)
    assert exchange.snapshot_begins(anna, SnapshotHeader(round=2, base=10, id=12)) is None
    landing = exchange.snapshot_begins(anna, SnapshotHeader(round=2, base=11, id=12))
    assert landing is not None
    assert landing.base is not None
    assert (landing.base == 1).all()
    exchange.link_down(anna)
    assert landing.cancelled


async def test_a_new_links_snapshot_ends_the_old_links(exchange: Exchange) -> None:
    publish(exchange, 1)
    old = exchange.snapshot_begins(PEERS[0], SnapshotHeader(round=1, id=1))
    new = exchange.snapshot_begins(PEERS[0], SnapshotHeader(round=1, id=2))
    assert old is not None
    assert new is not None
    assert (old.cancelled, new.cancelled) == (True, False)


async def test_a_trainer_that_died_in_a_round_holds_nothing(exchange: Exchange) -> None:
    publish(exchange, 1)
    for peer in PEERS:
        arrive(exchange, peer, 1)
    await exchange.plan(1)
    held = exchange.outbox.recent[-1]
    exchange.open(SCHEMA, Meter(SCHEMA, SCHEMA, np.ones(SCHEMA.size, np.float32), 0), 0)
    assert held._holders == 1, "that of the outbox itself"
    assert not any(+edge.held for edge in exchange._gossip._edges.values())


class Note:
    """Something to send that tells when nobody holds it."""

    def __init__(self) -> None:
        self.holders = 0

    def hold(self) -> "Note":
        self.holders += 1
        return self

    def release(self) -> None:
        self.holders -= 1


async def test_a_mailbox_drops_the_oldest_and_sends_one_at_a_time() -> None:
    mailbox, notes = Mailbox(2), [Note() for _ in range(4)]
    for note in notes:
        mailbox.put(note)  # type: ignore[arg-type]
    assert [note.holders for note in notes] == [0, 0, 1, 1]
    assert await mailbox.next(1) is notes[2]
    assert await mailbox.next(0.01) is None, "until that one is delivered"
    mailbox.answer(heartbeat())
    assert await mailbox.next(1) == heartbeat()
    mailbox.delivered()
    assert await mailbox.next(1) is notes[3]
    mailbox.put(notes[0])  # type: ignore[arg-type]
    mailbox.close(goodbye(Goodbye.REASON_LEAVING))
    assert await mailbox.next(1) == goodbye(Goodbye.REASON_LEAVING)
    mailbox.clear()
    assert [note.holders for note in notes] == [0, 0, 1, 1], "the caller releases what it got"
