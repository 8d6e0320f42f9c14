"""A node's history in SQLite: what happened in each round, on each edge, at each evaluation."""

import contextlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

from conlora.core.consensus import EdgeError
from conlora.core.sketch import Estimate
from conlora.errors import StateError
from conlora.store.rows import Reader, Rows

# PRAGMA user_version; 1 (told as 0) knew no errors of factors and no federation, 2 only accuracy and loss, 3 no bars, and up
# to 4 every edge of every round was measured, 5 kept every round
_VERSION = 6
FULL_ROUNDS = 10_000  # the newest that are kept whole; of older ones, fewer the older they are
THINNING_ROUNDS = 500  # from one thinning to the next
THINNING_OVERLAP = 10  # what a full disk has kept from being thinned is thinned later
MOST_WAL_BYTES = 1 << 22
_EDGES = """
CREATE TABLE IF NOT EXISTS edges (
    round INTEGER NOT NULL, peer TEXT NOT NULL, peer_round INTEGER NOT NULL, weight REAL NOT NULL, error REAL,
    error_a REAL, error_b REAL,
    PRIMARY KEY (round, peer)
);
"""
_TABLES = (
    _EDGES
    + """
CREATE TABLE IF NOT EXISTS rounds (
    round INTEGER PRIMARY KEY, step INTEGER NOT NULL, time REAL NOT NULL, seconds REAL NOT NULL,
    loss REAL, degree INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS federation (
    round INTEGER NOT NULL, moment TEXT NOT NULL, nodes INTEGER NOT NULL,
    D REAL, V REAL, C REAL, E_A REAL, E_B REAL, amplification REAL, relative REAL, bars TEXT NOT NULL DEFAULT '{}',
    PRIMARY KEY (round, moment)
);
CREATE TABLE IF NOT EXISTS evaluations (round INTEGER PRIMARY KEY, time REAL NOT NULL, accuracy REAL, loss REAL,
    figures TEXT NOT NULL DEFAULT '{}'
);
CREATE TABLE IF NOT EXISTS mixed (peer TEXT PRIMARY KEY, since INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS starts (epoch INTEGER NOT NULL);
"""
)
_THINNED = ("rounds", "edges", "federation", "evaluations")
_ADDED = {  # since the first version
    "edges": {"error_a": "REAL NOT NULL DEFAULT 0", "error_b": "REAL NOT NULL DEFAULT 0"},
    "evaluations": {"figures": "TEXT NOT NULL DEFAULT '{}'"},
    "federation": {"bars": "TEXT NOT NULL DEFAULT '{}'"},
}


@dataclass(frozen=True, slots=True)
class EdgeRecord:
    """One neighbour's part in a mix: the round of its snapshot, and its weight."""

    peer: str
    peer_round: int
    weight: float


class History(Rows):
    """Append-mostly; a round that is done again after a restart replaces its first record.

    The newest FULL_ROUNDS rounds are kept whole, half of those that are up to twice as old, a quarter up to four times, and
    so on; so the file grows with the logarithm of a node's age. Pages that this frees are given back to the disk.
    """

    def __init__(self, path: Path) -> None:
        """Opens or makes the database. Raises StateError where it can't."""
        super().__init__(path)
        self.name_of: Callable[[str], str] = str  # of a peer, by its id, for who writes the same for people
        try:
            self._db = sqlite3.connect(path)
            self._db.execute("PRAGMA auto_vacuum=INCREMENTAL")  # of a new file; an older one just reuses its pages
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute(f"PRAGMA journal_size_limit={MOST_WAL_BYTES}")
            self._bring_up_to_date()
        except sqlite3.Error as error:
            raise self._problem(error, "opened") from error

    def _bring_up_to_date(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > _VERSION:
            raise StateError(
                f"{self._path}: was written by a newer ConLoRA; install that one, or move the file away to start anew"
            )
        self._db.executescript(_TABLES)
        for table, added in _ADDED.items():
            columns = {row[1] for row in self._db.execute(f"PRAGMA table_info({table})")}
            for column in added.keys() - columns:
                self._db.execute(f"ALTER TABLE {table} ADD COLUMN {column} {added[column]}")
        if version < 5:  # SQLite can't take a NOT NULL back
            self._db.executescript(
                "BEGIN; ALTER TABLE edges RENAME TO measured;" + _EDGES + "INSERT INTO edges "
                "SELECT round, peer, peer_round, weight, error, error_a, error_b FROM measured; DROP TABLE measured; COMMIT;"
            )
        if version < 6:
            (newest,) = self._db.execute("SELECT MAX(round) FROM rounds").fetchone()
            self._thin(newest or 0, since=newest or 0)
        self._db.execute(f"PRAGMA user_version = {_VERSION}")

    def reader(self) -> Reader:
        """What it holds, for another thread. Raises StateError where it can't be opened."""
        return Reader(self._path)

    def add_round(self, round_: int, step: int, seconds: float, loss: float | None, degree: int) -> None:
        """One finished round: optimizer steps so far, its duration, its mean training loss, and its live edges."""
        with self._writing():
            self._db.execute(
                "INSERT OR REPLACE INTO rounds VALUES (?, ?, ?, ?, ?, ?)",
                (round_, step, time.time(), seconds, loss, degree),
            )
        if round_ % THINNING_ROUNDS == 0:
            self._thin(round_, since=THINNING_OVERLAP * THINNING_ROUNDS)

    def add_edges(self, round_: int, edges: Iterable[EdgeRecord]) -> None:
        """What a round has mixed; its errors may follow."""
        with self._writing():
            for table in ("edges", "federation"):  # of its first time, if it is done again
                self._db.execute(f"DELETE FROM {table} WHERE round = ?", (round_,))
            self._db.executemany(
                "INSERT INTO edges (round, peer, peer_round, weight) VALUES (?, ?, ?, ?)",
                [(round_, e.peer, e.peer_round, e.weight) for e in edges],
            )

    def add_errors(self, round_: int, errors: Mapping[str, EdgeError]) -> None:
        """How far neighbours were in a round, before mixing, by peer."""
        with self._writing():
            self._db.executemany(
                "UPDATE edges SET error = ?, error_a = ?, error_b = ? WHERE round = ? AND peer = ?",
                [(error.product, error.a, error.b, round_, peer) for peer, error in errors.items()],
            )

    def add_federation(self, round_: int, nodes: int, before: Estimate, after: Estimate) -> None:
        """The federation's consensus error as this node saw it at the end of a round, from the sketches of `nodes` nodes."""
        with self._writing():
            self._db.executemany(
                "INSERT OR REPLACE INTO federation (round, moment, nodes, D, V, C, E_A, E_B, amplification, relative, bars) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (round_, moment, nodes, *astuple(e.figures), json.dumps(asdict(e.bars)))
                    for moment, e in (("before", before), ("after", after))
                ],
            )

    def add_evaluation(self, round_: int, figures: Mapping[str, float]) -> None:
        """One evaluation on the node's held-out rows: loss, accuracy and others by name."""
        with self._writing():
            self._db.execute(
                "INSERT OR REPLACE INTO evaluations VALUES (?, ?, ?, ?, ?)",
                (round_, time.time(), figures.get("accuracy"), figures.get("loss"), json.dumps(figures)),
            )

    def figures_at(self, round_: int) -> tuple[float | None, dict[str, float]]:
        """The mean training loss of that round (None: not known), and the figures of the newest evaluation up to it."""
        losses = self._rows("SELECT loss FROM rounds WHERE round = ?", round_)
        evaluated = self._rows("SELECT figures FROM evaluations WHERE round <= ? ORDER BY round DESC LIMIT 1", round_)
        return (losses[0]["loss"] if losses else None), (json.loads(evaluated[0]["figures"]) if evaluated else {})

    def peers_until(self, round_: int) -> list[str]:
        """Ids of the nodes whose snapshots were mixed up to that round."""
        known = "SELECT peer FROM edges WHERE round <= ?1 UNION SELECT peer FROM mixed WHERE since <= ?1 ORDER BY peer"
        return [row["peer"] for row in self._rows(known, round_)]

    def new_epoch(self) -> int:
        """A number for this start of the daemon, larger than those before: nanoseconds, where the clock has not gone back."""
        with self._writing():
            (last,) = self._db.execute("SELECT MAX(epoch) FROM starts").fetchone()
            epoch = max(time.time_ns(), (last or 0) + 1)
            self._db.execute("DELETE FROM starts")
            self._db.execute("INSERT INTO starts VALUES (?)", (epoch,))
        return epoch

    def last_mixed(self, round_: int) -> dict[str, int]:
        """The round of each peer's snapshot that was mixed last, up to that round. Raises StateError where it can't be read."""
        rows = self._rows("SELECT peer, peer_round, MAX(round) FROM edges WHERE round <= ? GROUP BY peer", round_)
        return {row["peer"]: row["peer_round"] for row in rows}

    def federation_at(self, round_: int) -> dict[str, dict[str, Any]]:
        """The newest rows of `federation` up to that round by moment, `bars` as a mapping; nothing without sketches."""
        newest = "(SELECT MAX(round) FROM federation WHERE round <= ?)"
        rows = self._rows(f"SELECT * FROM federation WHERE round = {newest}", round_)
        return {row["moment"]: row | {"bars": json.loads(row["bars"])} for row in rows}

    def touch(self) -> None:
        """Writes what is there already. Raises StateError where that is not possible."""
        with self._writing():
            self._db.execute("UPDATE starts SET epoch = epoch")

    def _thin(self, newest: int, since: int) -> None:
        """Leaves one round of every two, four, eight ... where they are older than one, two, four ... times FULL_ROUNDS.

        since: rounds for which that was done before, seen from each of these ages.
        """
        age, bucket = FULL_ROUNDS, 2
        while (until := newest - age) > 0:
            band = (until - since, until, bucket)
            with self._writing():
                self._db.execute(
                    "INSERT OR IGNORE INTO mixed SELECT peer, MIN(round) FROM edges WHERE round > ? AND round <= ? GROUP BY peer",
                    band[:2],
                )
                for table in _THINNED:
                    self._db.execute(
                        f"DELETE FROM {table} WHERE round > ?1 AND round <= ?2 AND round NOT IN "
                        f"(SELECT MAX(round) FROM {table} WHERE round > ?1 AND round <= ?2 GROUP BY round / ?3)",
                        band,
                    )
            age, bucket = 2 * age, 2 * bucket
        with self._reading():
            self._db.execute("PRAGMA incremental_vacuum").fetchall()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction. Raises StateError where it can't be written."""
        try:
            with self._db:
                yield
        except sqlite3.Error as error:
            raise self._problem(error, "written") from error
