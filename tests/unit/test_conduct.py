"""When a peer has offended too often, and what somebody may use of what comes at a steady rate."""

from hypothesis import given
from hypothesis import strategies as st

from conlora.core.budget import OTHERS, Budget, Seldom
from conlora.core.conduct import OFFENCES, WITHIN_SECONDS, Conduct


def test_the_last_of_too_many_offences_is_the_one() -> None:
    conduct = Conduct()
    assert [conduct.offend("norm", float(i)) for i in range(OFFENCES)] == [False] * (OFFENCES - 1) + [True]
    assert conduct.refused == {"norm": OFFENCES}


@given(st.lists(st.floats(0, WITHIN_SECONDS), max_size=40))
def test_offences_count_where_so_many_are_close_together(pauses: list[float]) -> None:
    conduct, times = Conduct(), [0.0]
    for pause in pauses:
        times.append(times[-1] + pause)
    for i, now in enumerate(times):
        recent = [t for t in times[: i + 1] if now - t <= WITHIN_SECONDS]
        assert conduct.offend("digest", now) == (len(recent) >= OFFENCES)


def test_what_is_late_is_counted_and_forgiven() -> None:
    conduct = Conduct()
    for _ in range(10 * OFFENCES):
        conduct.fail("slow")
    assert not conduct.offend("norm", 0.0)
    assert conduct.refused == {"slow": 10 * OFFENCES, "norm": 1}


def test_the_offences_are_told_the_most_frequent_first() -> None:
    conduct = Conduct()
    for reason in ("old", "digest", "norm", "norm", "digest", "norm"):
        conduct.offend(reason, 0.0)
    assert conduct.offences == "norm 3, digest 2"


def test_after_forgiveness_it_takes_as_many_again() -> None:
    conduct = Conduct()
    for _ in range(OFFENCES):
        conduct.offend("norm", 0.0)
    conduct.forgive()
    assert [conduct.offend("norm", 0.0) for _ in range(OFFENCES)][-2:] == [False, True]
    assert conduct.refused == {"norm": 2 * OFFENCES}


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), max_size=50))
def test_nobody_gets_more_than_the_rate(uses: list[tuple[float, float]]) -> None:
    budget, now, used = Budget(5, 2), 0.0, 0.0
    for pause, amount in uses:
        now += pause
        if budget.spend(amount, now):
            used += amount
        assert used <= 5 + 2 * now + 1e-6


def test_whoever_keeps_to_the_rate_is_never_stopped() -> None:
    budget = Budget(1.5, 2)
    assert all(budget.spend(1, i / 2) for i in range(100))


def test_what_is_earned_may_go_beyond_what_is_used_at_once() -> None:
    budget = Budget(5, most=20)
    budget.earn(10)
    assert budget.spend(15, 0.0)
    assert not budget.spend(1, 1e9)


def test_what_is_saved_up_has_an_end() -> None:
    budget = Budget(5, most=20)
    for _ in range(3600):
        budget.earn(10)
    assert not budget.spend(20.5, 0.0)
    assert budget.spend(20, 0.0)
    assert not budget.spend(1, 1.0)


def test_what_is_earned_does_not_lapse_with_time() -> None:
    budget = Budget(5, 1, most=20)
    budget.earn(10)
    assert budget.spend(1, 0.0)
    assert budget.spend(14, 3600.0)
    assert budget.spend(5, 3605.0)


def test_what_happens_again_and_again_is_told_seldom_and_counted() -> None:
    seldom = Seldom(60.0, kinds=2)
    assert [seldom.add("a", 0.1 * i) for i in range(100)] == [("a", 1)] + [None] * 99
    assert seldom.add("b", 10.0) == ("b", 1)
    assert seldom.add("a", 60.0) == ("a", 100)
    assert seldom.add("a", 119.0) is None
    assert seldom.add("a", 120.0) == ("a", 2)


def test_who_words_what_happens_can_not_have_it_told_more_often() -> None:
    seldom = Seldom(60.0, kinds=2)
    told = [seldom.add(f"kind {i}", 0.0) for i in range(1000)]
    assert told == [("kind 0", 1), ("kind 1", 1), (OTHERS, 1)] + [None] * 997
    assert seldom.add("kind 0", 60.0) == ("kind 0", 1)
    assert seldom.add("kind 7", 60.0) == (OTHERS, 998)
