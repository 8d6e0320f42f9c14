"""What somebody may use of a thing that comes at a steady rate: some at once, and then no more than the rate. Pure."""


class Budget:
    """Time is an argument, in seconds of any clock that does not jump."""

    def __init__(self, at_once: float, per_second: float = 0.0, most: float = 0.0) -> None:
        """most: what is there at most with all that was earned, if that is more than at_once."""
        self._at_once = self._left = at_once
        self._per_second = per_second
        self._most = max(most, at_once)
        self._updated: float | None = None

    def earn(self, amount: float) -> None:
        """There is more to use, also beyond what may be used at once; it does not lapse, and is not saved up without end."""
        self._left = min(self._most, self._left + amount)

    def spend(self, amount: float, now: float) -> bool:
        """Uses it if there is so much; returns whether there was."""
        if self._updated is not None and self._left < self._at_once:
            self._left = min(self._at_once, self._left + (now - self._updated) * self._per_second)
        self._updated = now
        if amount > self._left:
            return False
        self._left -= amount
        return True
