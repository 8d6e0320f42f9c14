"""Files that outlive a power cut: one that is replaced is whole, the new one or the old, and stays where it was put."""

import contextlib
import os
from pathlib import Path


def replace_file(path: Path, content: bytes) -> None:
    """The whole new content is on the disk when this returns; until then the old one, if any. Raises OSError.

    Where it is broken off, `NAME.new` may lie beside it, which the next call writes over.
    """
    temporary = path.with_name(f"{path.name}.new")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """What the directory names is on the disk when this returns. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def give_to_owner(path: Path, model: Path) -> None:
    """Where root has made a file, the daemon's user has to be able to read it. model: what belongs to that user."""
    with contextlib.suppress(PermissionError):
        os.chown(path, model.stat().st_uid, model.stat().st_gid)
