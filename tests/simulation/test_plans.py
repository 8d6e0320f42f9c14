"""One node's `Gossip` under any order of events, against an oracle: what a plan names is never written, and the newest wins."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from conlora.core.gossip import SLOTS_PER_NEIGHBOUR, Gossip, Mode, Plan


def test_a_slow_neighbour_with_a_live_link_keeps_its_weight() -> None:
    gossip = Gossip(Mode.ASYNC, ["slow"])
    gossip.link_up("slow")
    gossip.received("slow", 1, 1, gossip.slot_for("slow"))
    for round_ in range(2, 50):
        gossip.published(round_)
        plan = gossip.plan(round_)
        assert plan is not None
        assert [(c.peer, c.round, c.weight) for c in plan.contributions] == [("slow", 1, 0.5)]
        gossip.release(plan)


def test_a_peer_that_starts_again_from_an_earlier_round_is_believed() -> None:
    gossip = Gossip(Mode.ASYNC, ["p"])
    gossip.link_up("p")
    for round_ in (100, 96):
        assert gossip.accepts("p", round_)
        gossip.received("p", round_, 1, gossip.slot_for("p"))
    newest = gossip.newest("p")
    assert newest is not None
    assert newest.round == 96


@settings(max_examples=300)
@given(
    st.lists(st.sampled_from(["begin", "complete", "plan", "release first", "release last", "down", "up"]), max_size=80)
)
def test_a_slot_that_is_needed_is_never_written_and_the_newest_always_wins(events: list[str]) -> None:
    """Any order of events: the oracle knows what each slot holds, which plans are out, and which snapshot came last."""
    gossip = Gossip(Mode.ASYNC, ["p"])
    contents: dict[int, int] = {}
    plans: list[Plan] = []
    writing: int | None = None
    live, newest, arrivals = False, None, itertools.count(1)
    for event in events:
        match event:
            case "up":
                gossip.link_up("p")
                live = True
            case "down":
                gossip.link_down("p")
                live, newest, writing = False, None, None
            case "begin" if live:
                writing = gossip.slot_for("p")
                assert 0 <= writing < SLOTS_PER_NEIGHBOUR
                assert writing not in [c.slot for plan in plans for c in plan.contributions]
                assert newest is None or contents[writing] != newest if writing in contents else True
                contents[writing] = -1  # half-written from now on
            case "complete" if writing is not None:
                newest = next(arrivals)
                contents[writing] = newest
                gossip.received("p", newest, 1, writing)
                writing = None
            case "plan" if len(plans) < 2:
                plan = gossip.plan(1)
                assert plan is not None
                seen = [contents[c.slot] for c in plan.contributions]
                assert seen == ([] if newest is None else [newest])
                plans.append(plan)
            case "release first" if plans:
                gossip.release(plans.pop(0))
            case "release last" if plans:
                gossip.release(plans.pop())
    assert gossip.degree == int(live)


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "remove", "receive", "plan", "release first", "release last"]),
            st.sampled_from("abc"),
        ),
        max_size=80,
    )
)
def test_places_of_peers_that_left_are_used_again_but_not_while_a_plan_names_them(
    events: list[tuple[str, str]],
) -> None:
    gossip = Gossip(Mode.ASYNC, ["a"])
    contents: dict[tuple[int, int], int] = {}
    plans: list[tuple[Plan, list[int]]] = []
    known, arrivals = {"a"}, itertools.count(1)
    for event, peer in events:
        match event:
            case "add" if peer not in known:
                gossip.add(peer)
                gossip.link_up(peer)
                known.add(peer)
            case "remove" if peer in known:
                gossip.link_down(peer)
                gossip.remove(peer)
                known.remove(peer)
            case "receive" if peer in known:
                slot = gossip.slot_for(peer)
                contents[gossip.place(peer), slot] = number = next(arrivals)
                gossip.received(peer, number, 1, slot)
            case "plan" if len(plans) < 2:
                plan = gossip.plan(1)
                assert plan is not None
                assert {c.peer for c in plan.contributions} <= known
                plans.append((plan, [c.round for c in plan.contributions]))
            case "release first" if plans:
                gossip.release(plans.pop(0)[0])
            case "release last" if plans:
                gossip.release(plans.pop()[0])
        for plan, rounds in plans:
            assert [contents[c.place, c.slot] for c in plan.contributions] == rounds
        places = {gossip.place(peer) for peer in known}
        assert len(places) == len(known)
        assert all(place < gossip.places for place in places)
        held = {c.place for plan, _ in plans for c in plan.contributions}
        assert gossip.places <= 3 + len(held), "what is free is taken first"


@settings(max_examples=200)
@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_lockstep_never_writes_what_is_still_needed(measured_late: list[bool]) -> None:
    """One neighbour, a round ahead as far as it may; a plan may be held while the next round is mixed."""
    gossip = Gossip(Mode.SYNC, ["p"])
    contents: dict[int, int] = {}
    measured: Plan | None = None
    sent = 0
    for round_, late in enumerate(measured_late, 1):
        gossip.published(round_)
        while sent < round_ + 1:
            sent += 1
            assert gossip.accepts("p", sent)
            slot = gossip.slot_for("p")
            assert measured is None or slot != measured.contributions[0].slot
            contents[slot] = sent
            gossip.received("p", sent, 1, slot)
        plan = gossip.plan(round_)
        assert plan is not None
        assert [contents[c.slot] for c in plan.contributions] == [round_]
        if measured is not None:
            gossip.release(measured)
            measured = None
        if late:
            measured = plan
        else:
            gossip.release(plan)


@given(st.integers(1, 8), st.permutations(range(8)))
def test_lockstep_waits_for_exactly_the_neighbours_that_are_missing(round_: int, order: list[int]) -> None:
    peers = [str(i) for i in range(8)]
    gossip = Gossip(Mode.SYNC, peers)
    gossip.published(round_)
    waiting = set(peers)
    for i in order:
        assert gossip.plan(round_) is None
        assert set(gossip.missing(round_)) == waiting
        assert gossip.accepts(str(i), round_)
        gossip.received(str(i), round_, 8, gossip.slot_for(str(i)))
        assert not gossip.accepts(str(i), round_), "once is enough: the slot may be in use"
        assert gossip.accepts(str(i), round_ + 1)
        assert not gossip.accepts(str(i), round_ + 2)
        waiting.remove(str(i))
    plan = gossip.plan(round_)
    assert plan is not None
    assert len(plan.contributions) == 8
