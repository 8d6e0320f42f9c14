"""Files that outlive a power cut: one that is replaced is whole, the new one or the old, and stays where it was put.

Root writes into directories of the daemon's user, whom a model's code may have taken over. So no link that lies there is
followed, and a file changes hands by its descriptor, before it has its name.

And what to say where a disk does not take them.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from conlora.errors import StateError

REMEDIES = {
    errno.ENOSPC: "free space on that disk",
    errno.EDQUOT: "free space, or raise the quota",
    errno.EROFS: "mend the disk and mount it for writing",
    errno.EACCES: "make it writable for the node's user",
    errno.EPERM: "make it writable for the node's user",
}


def replace_file(path: Path, content: bytes, model: Path | None = None) -> None:
    """The whole new content is on the disk when this returns; until then the old one, if any. Raises OSError.

    Where it is broken off, `NAME.new` may lie beside it, which the next call removes. model: see `give_to_owner`.
    """
    temporary = path.with_name(f"{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        if model:
            give_to_owner(descriptor, model)
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(path.parent)


def read_file(path: Path) -> bytes:
    """What lies at the path itself. Raises OSError, also for a link: it could lead root to what its owner may not read."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        return file.read()


def sync_directory(path: Path) -> None:
    """What the directory names is on the disk when this returns. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def give_to_owner(descriptor: int, model: Path) -> None:
    """Where root has made a file, the daemon's user has to be able to read it. model: what belongs to that user."""
    owner = model.stat()
    with contextlib.suppress(PermissionError):
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def unwritable(path: Path, what: str, error: OSError) -> StateError:
    """The sentence for something that can't be written there, with the remedy that fits."""
    remedy = REMEDIES.get(error.errno or 0, "mend the disk")
    return StateError(f"{path}: {what} can't be written ({error}); {remedy}")


@contextlib.contextmanager
def filling(directory: Path) -> Iterator[None]:
    """`with filling(directory): ...`: where its disk is full, or takes nothing any more, StateError says so."""
    try:
        yield
    except OSError as error:
        if not is_of_disk(error):
            raise
        raise unwritable(directory, "what is made there", error) from error


def is_of_disk(error: BaseException | None) -> bool:
    """Whether a disk has no room, or takes nothing any more."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
