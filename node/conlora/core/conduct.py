"""How a peer behaves: what was refused of it, by reason, and when that is too much. Pure: time is an argument.

An offence is what no honest peer can do, however slow its network: bytes that break the protocol, snapshots and sketches that
must not be used, more than its own rounds can bring forth. What is merely late is refused and counted as well, but forgiven.
"""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

# An honest peer commits none. A single one may be a flipped bit or a bad step; a node whose training has diverged, or whose
# software is broken, offends in every round, so the hour has to hold five rounds. Whoever stays below that costs five looks.
OFFENCES = 5
WITHIN_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Nothing is accepted from a peer. since: seconds of the Unix epoch. offences: as `norm 3, digest 2`."""

    since: float
    offences: str


class Conduct:
    """One peer's."""

    def __init__(
        self, quarantine: Quarantine | None = None, on_too_many: Callable[["Conduct"], None] | None = None
    ) -> None:
        """on_too_many: called at the offence that is one too many, before anything else can happen."""
        self.quarantine = quarantine
        self._on_too_many = on_too_many
        self.refused: Counter[str] = Counter()  # since the daemon's start, by reason
        self._offences: deque[tuple[float, str]] = deque(maxlen=OFFENCES)

    def offend(self, reason: str, now: float) -> bool:
        """Counts an offence; returns whether it was one too many. now: seconds of any clock that does not jump."""
        self.refused[reason] += 1
        self._offences.append((now, reason))
        too_many = len(self._offences) == OFFENCES and now - self._offences[0][0] <= WITHIN_SECONDS
        if too_many and self._on_too_many:
            self._on_too_many(self)
        return too_many

    def fail(self, reason: str) -> None:
        """Counts what an honest peer may do as well."""
        self.refused[reason] += 1

    def forgive(self) -> None:
        """Ends a quarantine, and counts offences from nothing again; what was refused stays counted."""
        self.quarantine = None
        self._offences.clear()

    @property
    def offences(self) -> str:
        """The last ones, as `norm 3, digest 2`."""
        return ", ".join(f"{reason} {n}" for reason, n in Counter(reason for _, reason in self._offences).most_common())
