"""The newest sketch of every node of the federation, as one node knows them, and what it still owes each neighbour.

Sketches spread like rumours: a node passes on whatever is newer than what it last sent to, or had from, that neighbour.
Pure: time is an argument, in seconds of any clock that does not jump.
"""

from dataclasses import dataclass, field

from conlora.core.schema import Vector

MOST_NODES = 256  # others than this node and its configured peers; more are not taken in, so that state is bounded
DEPARTED_SECONDS = 300.0  # a record that was not renewed for so long no longer counts ...
LIFETIME_ROUNDS = 20  # ... or for so many of its owner's rounds, where these are long: it may have many links to pass
LONGEST_LIFETIME_SECONDS = 86_400.0
RENEW_SECONDS = 60.0  # a node that stands still publishes its sketch again after so long
SNAPSHOT_SHARE = 0.02  # what sketches may add to a snapshot's bytes on a link
LEAST_BYTES = 128 * 1024  # ... or this much, where snapshots are small


@dataclass(frozen=True, slots=True)
class Record:
    """One node's sketches of one round: of what it published (`before` the mix) and of what it then had (`after`).

    epoch: the start of the node's daemon, nanoseconds of its own clock; sequence counts up within it. neighbours: node
    ids over live edges. payload: the record as its owner has signed it, passed on unchanged. lifetime: seconds after which
    it no longer counts, if it was not renewed. still: the owner is not training, so its sketches are as good as new.
    """

    node_id: str
    name: str
    epoch: int
    sequence: int
    round: int
    neighbours: tuple[str, ...]
    before: Vector
    after: Vector
    payload: object
    lifetime: float = DEPARTED_SECONDS
    still: bool = False

    @property
    def version(self) -> tuple[int, int]:
        """Newer records of a node have larger versions."""
        return self.epoch, self.sequence


@dataclass(frozen=True, slots=True)
class Part:
    """A record, and the seconds since its owner made it: those it was held by nodes on its way, transfers left out."""

    record: Record
    age: float

    @property
    def lag(self) -> float:
        """Seconds that its owner has gone on since: none while it stands still."""
        return 0.0 if self.record.still else self.age


@dataclass(slots=True)
class _Held:
    record: Record
    made_at: float  # on this node's clock


@dataclass(slots=True)
class _Debt:
    """What one neighbour is known to have, and the bytes that may be sent to it now."""

    credit: float = 0.0
    known: dict[str, tuple[int, int]] = field(default_factory=dict)
    sent_at: dict[str, float] = field(default_factory=dict)


def lifetime(round_seconds: float) -> float:
    """Of a record whose owner finishes a round every so many seconds."""
    return min(max(DEPARTED_SECONDS, LIFETIME_ROUNDS * round_seconds), LONGEST_LIFETIME_SECONDS)


def allowance(snapshot_bytes: int) -> float:
    """Bytes of sketches that may go along with a snapshot of that size."""
    return max(SNAPSHOT_SHARE * snapshot_bytes, LEAST_BYTES)


def most_credit(sketch_bytes: int, snapshot_bytes: int) -> float:
    """Bytes of sketches that a neighbour may save up, where neither is larger: more than `Sketchbook.take` ever does."""
    return allowance(snapshot_bytes) + LEAST_BYTES + sketch_bytes


class Sketchbook:
    """The records of a federation at one node."""

    def __init__(self, own_id: str, peers: list[str], record_bytes: int, tell_own: bool = True) -> None:
        """record_bytes: size of a record on the wire, about the same for all nodes of a federation.

        tell_own: whether neighbours get this node's own record, or only those of others.
        """
        self._tell_own = tell_own
        self._own_id = own_id
        self.welcome(peers)
        self._record_bytes = record_bytes
        self._held: dict[str, _Held] = {}
        self._debts: dict[str, _Debt] = {}

    def welcome(self, peers: list[str]) -> None:
        """These are the configured peers from now on, whose records are taken in whatever others there are."""
        self._welcome = {self._own_id, *peers}

    def put(self, record: Record, age: float, now: float) -> bool:
        """Takes a record in, and says whether it was news: newer than what is held, and not too old to count."""
        held = self._held.get(record.node_id)
        if held is not None and held.record.version >= record.version:
            return False
        if not 0 <= age < record.lifetime:
            return False
        if held is None and record.node_id not in self._welcome:
            self.expire(now)
            if sum(node not in self._welcome for node in self._held) >= MOST_NODES:
                return False
        self._held[record.node_id] = _Held(record, now - age)
        return True

    def received(self, record: Record, age: float, peer: str, now: float) -> bool:
        """Like `put`, for a record that came from a neighbour, who need not be told of it again."""
        if record.node_id == self._own_id:
            return False  # an echo of what this node itself has said, at best
        news = self.put(record, age, now)
        if (debt := self._debts.get(peer)) and record.node_id in self._held:
            debt.known[record.node_id] = max(debt.known.get(record.node_id, record.version), record.version)
        return news

    def link_up(self, peer: str) -> None:
        """A new link: the neighbour may have forgotten everything."""
        self._debts[peer] = _Debt()

    def link_down(self, peer: str) -> None:
        """The neighbour is gone."""
        self._debts.pop(peer, None)

    def take(self, peer: str, earned: float, now: float) -> list[Part]:
        """What to send to a neighbour now: what it does not have, as far as its credit goes.

        The node that was sent longest ago comes first, this node itself like any other: where the credit is for one
        record a round, its own, which is new every round, would never let another pass.

        earned: bytes that the occasion adds to the credit (see `allowance`). Unused credit is kept, but never more than
        one earning, or one record.
        """
        debt = self._debts.get(peer)
        if debt is None:
            return []
        debt.credit = min(debt.credit + earned, max(debt.credit, earned, self._record_bytes))
        self.expire(now)
        owed = [h for h in self._held.values() if self._is_news(debt, peer, h.record)]
        owed.sort(key=lambda h: (debt.sent_at.get(h.record.node_id, -1.0), h.record.node_id != self._own_id))
        taken = []
        for held in owed:
            if debt.credit < self._record_bytes:
                break
            debt.credit -= self._record_bytes
            debt.known[held.record.node_id] = held.record.version
            debt.sent_at[held.record.node_id] = now
            taken.append(Part(held.record, now - held.made_at))
        return taken

    def parts(self, now: float) -> list[Part]:
        """Every record that counts, this node's own included, by node id."""
        self.expire(now)
        return [Part(held.record, now - held.made_at) for _, held in sorted(self._held.items())]

    def expire(self, now: float) -> None:
        """Forgets the parts of nodes that have departed."""
        for node in [node for node, held in self._held.items() if now - held.made_at >= held.record.lifetime]:
            del self._held[node]
            for debt in self._debts.values():
                debt.known.pop(node, None)
                debt.sent_at.pop(node, None)

    def _is_news(self, debt: _Debt, peer: str, record: Record) -> bool:
        if record.node_id == peer or (record.node_id == self._own_id and not self._tell_own):
            return False
        if record.node_id != self._own_id and peer in record.neighbours:
            return False  # it has a link to the owner, and hears of it first-hand
        return debt.known.get(record.node_id, (-1, -1)) < record.version
