"""A node's history as it is read: by whoever writes it, and beside that in other threads."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from conlora.errors import StateError

_REMEDIES = {
    "SQLITE_FULL": "free space on that disk",
    "SQLITE_READONLY": "make it writable for the node's user",
    "SQLITE_CANTOPEN": "make it writable for the node's user",
    "SQLITE_NOTADB": "move the file away to start anew",
    "SQLITE_CORRUPT": "move the file away to start anew",
}


class Rows:
    """The tables of a history's database, for one thread."""

    _db: sqlite3.Connection  # opened by those who inherit this

    def __init__(self, path: Path) -> None:
        """path: of the database."""
        self._path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the database; the object is of no use afterwards."""
        self._db.close()

    def rows(self, table: str, after_round: int = -1) -> list[dict[str, Any]]:
        """The rows of `rounds`, `edges`, `evaluations` or `federation` after a round, oldest first."""
        if table not in ("rounds", "edges", "evaluations", "federation"):
            raise ValueError(f"no table {table!r}")
        return self._rows(f"SELECT * FROM {table} WHERE round > ? ORDER BY round", after_round)

    def _rows(self, query: str, round_: int) -> list[dict[str, Any]]:
        with self._reading():
            cursor = self._db.execute(query, (round_,))
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor]

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._problem(error, "read") from error

    def _problem(self, error: sqlite3.Error, verb: str) -> StateError:
        name = getattr(error, "sqlite_errorname", "")
        remedy = next((advice for kind, advice in _REMEDIES.items() if name.startswith(kind)), "mend the disk")
        return StateError(f"{self._path}: the history can't be {verb} ({error}); {remedy}")


class Reader(Rows):
    """A connection of its own, which writes nothing, and sees the history as it is at the first look.

    Whoever writes does not wait for it. It belongs to the thread that makes it.
    """

    def __init__(self, path: Path) -> None:
        """Raises StateError where the database can't be opened."""
        super().__init__(path)
        try:
            self._db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
            self._db.execute("BEGIN")  # all tables as of the same moment
        except sqlite3.Error as error:
            raise self._problem(error, "opened") from error
