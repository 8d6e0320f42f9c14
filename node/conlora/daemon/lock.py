"""One daemon for each state directory."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from conlora.errors import StateError
from conlora.files import unwritable


@contextlib.contextmanager
def locked(state_dir: Path) -> Iterator[None]:
    """Holds the state directory for one daemon. Raises StateError where another has it, or it can't be written."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (state_dir / "lock").open("w")
    except OSError as error:
        raise unwritable(state_dir, "the state", error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateError(f"{state_dir}: another daemon of this node is running; stop it first") from None
        yield
