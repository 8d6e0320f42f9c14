"""What somebody may use of a thing that comes at a steady rate, and how often to tell of what happens again and again. Pure."""

OTHERS = "other reasons"


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


class Seldom:
    """What happens is told at once; of the same kind after that at most once in a while, with how often it was since."""

    def __init__(self, seconds: float, kinds: int) -> None:
        """seconds: that while. kinds: that are told apart at most; all more are OTHERS, for somebody may be able to word them."""
        self._seconds = seconds
        self._kinds = kinds
        self._told_at: dict[str, float] = {}
        self._since: dict[str, int] = {}

    def add(self, kind: str, now: float) -> tuple[str, int] | None:
        """It has happened once more. Returns the kind to tell of, and how often it was; None: not now. now: as for `Budget`."""
        if len(self._told_at) >= self._kinds and kind not in self._told_at:
            kind = OTHERS
        self._since[kind] = self._since.get(kind, 0) + 1
        if now - self._told_at.get(kind, -self._seconds) < self._seconds:
            return None
        self._told_at[kind] = now
        return kind, self._since.pop(kind)
