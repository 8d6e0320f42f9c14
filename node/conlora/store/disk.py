"""What it takes for files to outlive a power cut, and what to say where a disk does not take them."""

import errno
import hashlib
import os
from pathlib import Path

from conlora.errors import StateError

REMEDIES = {
    errno.ENOSPC: "free space on that disk",
    errno.EDQUOT: "free space, or raise the quota",
    errno.EROFS: "mend the disk and mount it for writing",
    errno.EACCES: "make it writable for the node's user",
    errno.EPERM: "make it writable for the node's user",
}


def unwritable(path: Path, error: OSError, what: str = "") -> StateError:
    """The sentence for a path that can't be written, with the remedy that fits. what: is to be there, if not a plain file."""
    subject = f"{what} can't be written" if what else "can't be written"
    return StateError(f"{path}: {subject} ({error}); {REMEDIES.get(error.errno or 0, 'mend the disk')}")


def digest_and_sync(path: Path) -> str:
    """SHA-256 of a file that is on the disk when this returns."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return digest


def sync_directory(path: Path) -> None:
    """What the directory names is on the disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
