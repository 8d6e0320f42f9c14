"""A node's snapshots between arena and links: which slots are used, and how long they stay as they are."""

import asyncio
import math

import numpy as np
import pytest
from tests.meshes import SETTINGS

from conlora.core.conduct import Conduct
from conlora.core.encoding import Encoding
from conlora.core.gossip import Mode
from conlora.core.schema import Role, Schema, TensorSpec, Vector
from conlora.core.sketch import SketchLayout
from conlora.daemon.exchange import Exchange, Mix
from conlora.daemon.meter import Meter
from conlora.daemon.observatory import Observatory
from conlora.errors import TrainingFailed
from conlora.net.identity import Identity, Peer, create_identity
from conlora.net.mailbox import Mailbox
from conlora.net.reception import Counts, Reception
from conlora.net.transfers import Outgoing, Sender
from conlora.net.wire import Chunk, Frame, Goodbye, SnapshotHeader, SnapshotTaken, goodbye, heartbeat
from conlora.training.arena import Arena

SCHEMA = Schema(
    (TensorSpec("q.lora_A.weight", "q", Role.A, (2, 3)), TensorSpec("q.lora_B.weight", "q", Role.B, (4, 2)))
)
PEERS = [Peer(name, name.upper(), None, b"") for name in ("anna", "berta")]


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return create_identity(tmp_path_factory.mktemp("identity"))


@pytest.fixture(params=Mode)
def exchange(request: pytest.FixtureRequest, identity: Identity) -> Exchange:
    return node(identity, request.param)


def node(identity: Identity, mode: Mode) -> Exchange:
    """A node with a link to each peer, whose trainer has begun."""
    observatory = Observatory(identity, "mercy", PEERS, True)
    exchange = Exchange(mode, PEERS, 10.0, observatory, lambda name: Encoding.FP32)
    exchange.open(SCHEMA, Meter(SCHEMA, SCHEMA, np.ones(SCHEMA.size, np.float32), 0))
    exchange.go_on(0)
    observatory.open(SETTINGS, SketchLayout.of(SCHEMA, SCHEMA))
    for peer in PEERS:
        exchange.link_up(peer)
    return exchange


def arrive(exchange: Exchange, peer: Peer, round_: int, id_: int = 1, radius: float | None = None) -> int:
    header = SnapshotHeader(round=round_, degree=2, id=id_, radius=radius)
    landing = exchange.snapshot_begins(peer, header)
    assert landing is not None
    landing.out[:] = round_
    exchange.snapshot_received(peer, header, landing)
    return landing.slot


def publish(exchange: Exchange, round_: int) -> None:
    exchange.arena.own(exchange.outbox.next_slot)[:] = -round_
    exchange.publish(round_)


async def mixed(exchange: Exchange, round_: int) -> Mix:
    """A whole round, up to where the trainer has mixed."""
    publish(exchange, round_)
    for peer in PEERS:
        arrive(exchange, peer, round_)
    mix = await exchange.plan(round_)
    assert mix is not None
    assert [c.round for c in mix.plan.contributions] == [round_, round_]
    exchange.arena.own(mix.slot)[:] = 100 + round_
    assert exchange.mixed([c.weight for c in mix.plan.contributions]) == mix
    return mix


async def test_links_that_send_for_ever_never_leave_the_trainer_without_a_slot(exchange: Exchange) -> None:
    """Each link is stuck with another old snapshot, and one mix is being measured; none of them is written to."""
    stuck, measured = [], None
    for round_ in range(1, 40):
        mix = await mixed(exchange, round_)
        assert mix.measured is (measured is None), "one mix is measured at a time"
        if measured is None:
            measured = mix
        else:
            exchange.release(mix)
        if 1 < round_ < 2 + len(PEERS):
            stuck.append(exchange.outbox.recent[-1].hold())
        assert all((held.vector == -held.round).all() for held in [*stuck, measured.published])
        assert (exchange.arena.own(measured.slot) == 101).all()
        seen = [exchange.arena.inbox(i, c.slot)[0] for i, c in enumerate(measured.plan.contributions)]
        assert seen == [1, 1]


async def test_few_slots_are_used_where_nothing_is_slow(exchange: Exchange) -> None:
    used = set()
    for round_ in range(1, 20):
        mix = await mixed(exchange, round_)
        await exchange.measure(mix)
        used |= {mix.slot, exchange.outbox.next_slot}
    assert len(used) <= 4


async def test_a_neighbours_radius_goes_to_the_trainer_and_its_weights_come_back(exchange: Exchange) -> None:
    exchange.arena.own(exchange.outbox.next_slot)[:] = 0
    assert exchange.publish(1, radius=0.5).radius == 0.5
    arrive(exchange, PEERS[0], 1, radius=0.0)
    arrive(exchange, PEERS[1], 1)
    mix = await exchange.plan(1)
    assert mix is not None
    assert [c.radius for c in mix.plan.contributions] == [0.0, None]
    mixed = exchange.mixed([0.0, 0.25])
    assert [c.weight for c in mixed.plan.contributions] == [0.0, 0.25]
    assert exchange.weights == {PEERS[0].node_id: 0.0, PEERS[1].node_id: 0.25}
    exchange.release(mixed)


async def test_the_last_round_is_measured_however_long_the_one_before_takes(
    exchange: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await mixed(exchange, 1)
    assert before.measured
    publish(exchange, 2)
    for peer in PEERS:
        arrive(exchange, peer, 2)
    planning = asyncio.create_task(exchange.plan(2, last=True))
    await asyncio.sleep(0)
    assert not planning.done()
    assert exchange._meter is not None
    monkeypatch.setattr(exchange._meter, "_rest_until", math.inf)
    await exchange.measure(before)
    last = await planning
    assert last is not None
    assert last.measured


@pytest.mark.parametrize("recorded", [False, True])
async def test_what_is_recorded_stays_while_the_trainer_publishes(exchange: Exchange, recorded: bool) -> None:
    exchange.recorded = recorded
    exchange._unmeasured.clear()
    mix = await mixed(exchange, 1)
    assert (mix.slot != exchange.outbox.next_slot) is recorded
    exchange.release(mix)


async def test_the_next_mix_is_measured_once_the_last_one_was(
    exchange: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*vectors: object) -> None:
        raise RuntimeError("broken")

    assert exchange._meter is not None
    first = await mixed(exchange, 1)
    with monkeypatch.context() as patch:
        patch.setattr(exchange._meter, "measure", broken)
        with pytest.raises(RuntimeError, match="broken"):
            await exchange.measure(first)
    second = await mixed(exchange, 2)
    figures = await exchange.measure(second)
    assert [f.contribution.round for f in figures] == [2, 2]
    assert exchange.last_mix.keys() == {"ANNA", "BERTA"}


async def test_a_meter_rests_after_costly_measurements(exchange: Exchange, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conlora.daemon.meter.ALWAYS_SECONDS", 0.0)
    monkeypatch.setattr("conlora.daemon.meter.MOST_SHARE", 1e-9)
    first = await mixed(exchange, 1)
    await exchange.measure(first)
    assert not (await mixed(exchange, 2)).measured


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


async def test_a_trainer_that_died_before_there_was_a_plan_gets_a_free_slot(exchange: Exchange) -> None:
    publish(exchange, 1)
    exchange.go_on(0)
    assert not exchange.outbox._held[exchange.outbox.next_slot]


def test_lockstep_forgets_what_was_sent_in_a_trainers_earlier_life(identity: Identity) -> None:
    exchange = node(identity, Mode.SYNC)
    for round_ in (15, 16):
        exchange._gossip.published(15)
        arrive(exchange, PEERS[0], round_)
    exchange.go_on(10)
    for round_ in (11, 12):
        assert exchange._gossip.accepts(PEERS[0].node_id, round_)
    exchange._gossip.published(15)
    assert exchange._gossip.accepts(PEERS[0].node_id, 15), "the one of this life"


async def test_a_trainer_that_died_in_a_round_holds_nothing(exchange: Exchange) -> None:
    publish(exchange, 1)
    for peer in PEERS:
        arrive(exchange, peer, 1)
    await exchange.plan(1)
    held = exchange.outbox.recent[-1]
    exchange.go_on(0)
    assert held._holders == 1, "that of the outbox itself"
    assert not +exchange._gossip._held


async def test_who_was_away_waits_for_its_neighbours_and_adopts_the_first_that_is_far_ahead(identity: Identity) -> None:
    exchange, (anna, berta) = node(identity, Mode.ASYNC), PEERS
    offering = asyncio.create_task(exchange.offer(10, {anna.node_id: 90, berta.node_id: 12}))
    arrive(exchange, anna, 100)
    await asyncio.sleep(0.01)
    assert not offering.done(), "anna has done little meanwhile; berta may have done more"
    slot = arrive(exchange, berta, 40)
    offered = await offering
    assert offered is not None
    assert (offered.peer, offered.slot, exchange.name(offered.peer)) == (berta.node_id, slot, "berta")
    for round_ in range(41, 50):
        assert arrive(exchange, berta, round_) != slot, "the trainer reads there"
    exchange.adopted()
    assert not +exchange._gossip._held


async def test_a_trainer_that_died_while_it_caught_up_holds_nothing(identity: Identity) -> None:
    exchange, (anna, _) = node(identity, Mode.ASYNC), PEERS
    arrive(exchange, anna, 500)
    assert await exchange.offer(10, {})
    exchange.go_on(10)
    assert not +exchange._gossip._held


async def test_nobody_is_adopted_where_all_are_near_or_none_answers(
    identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange, last = node(identity, Mode.ASYNC), {peer.node_id: 90 for peer in PEERS}
    monkeypatch.setattr("conlora.daemon.exchange.REJOIN_SECONDS", 0.01)
    assert await exchange.offer(10, last) is None, "each may be as far behind, and wait for the others"
    monkeypatch.setattr("conlora.daemon.exchange.REJOIN_SECONDS", math.inf)
    for peer in PEERS:
        arrive(exchange, peer, 100)
    assert await exchange.offer(10, last) is None
    offering = asyncio.create_task(node(identity, Mode.ASYNC).offer(10, last))
    await asyncio.sleep(0)
    assert not offering.done()
    offering.cancel()


async def test_a_stop_ends_the_wait_of_who_was_away(identity: Identity) -> None:
    exchange = node(identity, Mode.ASYNC)
    offering = asyncio.create_task(exchange.offer(10, {}))
    await asyncio.sleep(0)
    exchange.interrupt()
    assert await offering is None


async def test_what_was_published_before_an_absence_is_not_what_a_link_begins_with(identity: Identity) -> None:
    exchange = node(identity, Mode.ASYNC)
    exchange.forget()
    exchange.release(await mixed(exchange, 1))
    (published,) = exchange.outbox.recent
    exchange.link_down(PEERS[0])
    exchange.forget()
    assert exchange.link_up(PEERS[0]) == []
    assert published._holders == 0
    await mixed(exchange, 2)
    assert [snapshot.round for snapshot in exchange.outbox.recent] == [2]


async def test_peers_come_and_go_between_rounds_and_in_them(identity: Identity) -> None:
    """Anna leaves while a mix with her is being measured; carla, who comes in her place, does not get her slots."""
    exchange, (anna, berta) = node(identity, Mode.ASYNC), PEERS
    carla, dora = (Peer(name, name.upper(), None, b"") for name in ("carla", "dora"))
    trainer = Arena(exchange.memory, SCHEMA.size)  # which has mapped the memory before it grows
    mix = await mixed(exchange, 1)
    exchange.link_down(anna)
    exchange.change([berta, carla, dora], 10.0, lambda name: Encoding.FP32)
    assert exchange.degree == 1
    for peer in (carla, dora):
        exchange.link_up(peer)
    publish(exchange, 2)
    for value, peer in enumerate((berta, carla, dora), 7):
        arrive(exchange, peer, value)
    plan = await exchange.plan(2)
    assert plan is not None
    assert {c.peer: trainer.inbox(c.place, c.slot)[0] for c in plan.plan.contributions} == {
        "BERTA": 7,
        "CARLA": 8,
        "DORA": 9,
    }
    assert [exchange.arena.inbox(c.place, c.slot)[0] for c in mix.plan.contributions] == [1, 1], "as it was"
    trainer.own(exchange.arena.own_slots - 1)[:] = 3
    assert (exchange.arena.own(exchange.arena.own_slots - 1) == 3).all()
    assert (mix.published.vector == -1).all()
    figures = await exchange.measure(mix)
    assert [f.contribution.peer for f in figures] == ["ANNA", "BERTA"]
    assert exchange.last_mix.keys() == {"BERTA"}, "of those who are peers now"
    exchange.mixed([c.weight for c in plan.plan.contributions])
    exchange.release(plan)
    exchange.change([*PEERS, carla, dora], 10.0, lambda name: Encoding.FP32)
    assert exchange._gossip.place(anna.node_id) == 0, "her place is free again"
    assert exchange.weights.keys() == {"BERTA", "CARLA", "DORA"}


async def test_who_comes_back_has_no_weight_from_before(identity: Identity) -> None:
    exchange, (anna, berta) = node(identity, Mode.ASYNC), PEERS
    await exchange.measure(await mixed(exchange, 1))
    exchange.link_down(anna)
    exchange.change([berta], 10.0, lambda name: Encoding.FP32)
    exchange.change(PEERS, 10.0, lambda name: Encoding.FP32)
    assert exchange.weights.keys() == exchange.last_mix.keys() == {"BERTA"}
    assert exchange.newest(anna.node_id) is None


async def test_another_deadline_and_encoding_count_from_then_on(identity: Identity) -> None:
    exchange = node(identity, Mode.SYNC)
    exchange.change(PEERS, 0.01, lambda name: Encoding.INT8)
    assert exchange.encoding_for(PEERS[0]) is Encoding.INT8
    publish(exchange, 1)
    async with asyncio.timeout(5):
        with pytest.raises(TrainingFailed, match="from anna, berta within"):
            await exchange.plan(1)


def carry(sender: Sender, exchange: Exchange, vector: Vector, round_: int) -> SnapshotTaken:
    """A snapshot from a real sender to a real node; returns the node's answer, which the sender has not heard yet."""
    first, *chunks, last = sender.parts(Outgoing(round_, 2, vector, shared=False, on_free=lambda: None))
    reception = Reception(PEERS[0], exchange, Counts(), Conduct())
    assert isinstance(first, Frame)
    assert isinstance(last, Frame)
    reception.frame(first, answering=False)
    for chunk in chunks:
        assert isinstance(chunk, Chunk)
        reception.chunk(chunk.data)
    answer = reception.frame(last, answering=False)
    assert answer is not None
    return answer.taken


@pytest.mark.parametrize("trouble", ["none", "a new link", "down and up", "lost answer", "other encoding"])
def test_both_ends_know_the_same_of_differences(identity: Identity, trouble: str) -> None:
    """Bit for bit, whatever comes between two snapshots."""
    exchange = node(identity, Mode.ASYNC)
    sender = Sender(exchange.formats, Encoding.INT8)
    draw = np.random.default_rng(0)
    for round_ in range(1, 12):
        vector = draw.standard_normal(SCHEMA.size, np.float32) * np.float32(2.0**-round_)
        if round_ == 6 and trouble == "a new link":
            sender = Sender(exchange.formats, Encoding.INT8)
        if round_ == 6 and trouble == "down and up":
            exchange.link_down(PEERS[0])
            exchange.link_up(PEERS[0])
        if round_ == 6 and trouble == "other encoding":
            sender.taken(carry(Sender(exchange.formats, Encoding.BF16), exchange, vector, round_))
        answer = carry(sender, exchange, vector, round_)
        if answer.outcome == SnapshotTaken.OUTCOME_KEPT:
            newest = exchange.newest(PEERS[0].node_id)
            assert newest is not None
            kept = exchange.arena.inbox(0, newest[0].slot)
            assert sender._theirs is not None
            assert kept.tobytes() == sender._theirs.tobytes()
            assert np.linalg.norm(kept - vector) <= 0.02 * np.linalg.norm(vector) * 2 + 1e-6
        else:
            assert round_ == 6, "only what comes right after the trouble is of no use"
        if trouble == "lost answer" and round_ == 6:
            continue  # the link ends before it comes; then the next one is whole
        sender.taken(answer)
    assert answer.outcome == SnapshotTaken.OUTCOME_KEPT


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
