"""What a daemon has done since its start, in sums, for who watches rates; nothing of it is kept over a restart."""

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Durations:
    """How often something was done, and the seconds that this took in all."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Once more."""
        self.count += 1
        self.seconds += seconds


@dataclass(slots=True)
class Tally:
    """One node's."""

    rounds: Durations = field(default_factory=Durations)  # whole ones, those that were done again too
    mixes: Durations = field(default_factory=Durations)  # from publishing until the trainer has mixed
    _published_at: float = 0.0

    def published(self) -> None:
        """A mix begins."""
        self._published_at = time.monotonic()

    def mixed(self) -> None:
        """It is done."""
        self.mixes.add(time.monotonic() - self._published_at)
