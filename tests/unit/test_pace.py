"""The encoding that a link gets where it is left open."""

import pytest

from conlora.core.encoding import Encoding
from conlora.core.pace import Pace

BF16_BYTES = 1000


def carried(pace: Pace, share: float) -> Encoding:
    """After rounds of 1 s in which a snapshot in bf16 would be under way for that share of it."""
    for _ in range(20):
        pace.published(1.0)
        pace.delivered(500, 500 / BF16_BYTES * share, BF16_BYTES)
    return pace.encoding


def test_a_link_begins_with_bf16() -> None:
    assert Pace().encoding is Encoding.BF16


@pytest.mark.parametrize(
    ("share", "encoding"), [(0.01, Encoding.BF16), (0.45, Encoding.BF16), (0.6, Encoding.INT8), (5, Encoding.INT8)]
)
def test_what_a_link_carries_in_half_a_round_is_bf16(share: float, encoding: str) -> None:
    assert carried(Pace(), share) == encoding


def test_it_does_not_swing() -> None:
    pace = Pace()
    assert carried(pace, 0.6) is Encoding.INT8
    assert carried(pace, 0.4) is Encoding.INT8
    assert carried(pace, 0.2) is Encoding.BF16
    assert carried(pace, 0.4) is Encoding.BF16


def test_nothing_is_decided_before_a_round_was_seen() -> None:
    pace = Pace()
    pace.delivered(500, 100.0, BF16_BYTES)
    assert pace.encoding is Encoding.BF16
