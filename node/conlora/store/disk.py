"""Digests of files that are on the disk, and what to say where a disk does not take them."""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conlora.errors import StateError

REMEDIES = {
    errno.ENOSPC: "free space on that disk",
    errno.EDQUOT: "free space, or raise the quota",
    errno.EROFS: "mend the disk and mount it for writing",
    errno.EACCES: "make it writable for the node's user",
    errno.EPERM: "make it writable for the node's user",
}


def unwritable(path: Path, what: str, error: OSError) -> StateError:
    """The sentence for something that can't be written there, with the remedy that fits."""
    remedy = REMEDIES.get(error.errno or 0, "mend the disk")
    return StateError(f"{path}: {what} can't be written ({error}); {remedy}")


@contextmanager
def filling(directory: Path) -> Iterator[None]:
    """`with filling(directory): ...`: where the disk does not take what is written in it, StateError says so."""
    try:
        yield
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        raise unwritable(directory, "what is made there", error) from error


def digest_and_sync(path: Path) -> str:
    """SHA-256 of a file that is on the disk when this returns."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return digest
