"""Which encoding a link gets where the configuration leaves it open (`auto`): the most exact one that it carries in time.

A link is fast enough if it takes a snapshot to the other side within half a round, so that neighbours mix what is fresh.
bf16 is as far as it goes up: its rounding is far below what nodes differ by (docs/performance.md), and it is half of fp32.
"""

from conlora.core.encoding import Encoding

LONGEST_SHARE = 0.5  # of a round, that a snapshot may be under way
CLEARLY = 0.5  # a slow link has to beat that share by this factor before it is called fast again
WEIGHT = 0.3  # of the newest measurement in an average


class Pace:
    """One link's speed against the sender's rounds. Pure: seconds are arguments."""

    def __init__(self) -> None:
        self.encoding = Encoding.BF16
        self._bytes_per_second: float | None = None
        self._round_seconds: float | None = None

    def published(self, seconds: float) -> None:
        """The sender has published; so many seconds after the time before."""
        self._round_seconds = _average(self._round_seconds, seconds)

    def delivered(self, nbytes: int, seconds: float, bf16_bytes: int) -> None:
        """A snapshot has arrived, so many seconds after its first byte was sent. bf16_bytes: what it is in bf16."""
        self._bytes_per_second = _average(self._bytes_per_second, nbytes / max(seconds, 1e-6))
        if self._round_seconds is None:
            return
        share = bf16_bytes / self._bytes_per_second / self._round_seconds
        if share > LONGEST_SHARE:
            self.encoding = Encoding.INT8
        elif share < LONGEST_SHARE * CLEARLY:
            self.encoding = Encoding.BF16


def _average(old: float | None, new: float) -> float:
    return new if old is None else (1 - WEIGHT) * old + WEIGHT * new
