"""Digests of files that are on the disk."""

import hashlib
import os
from pathlib import Path


def digest_and_sync(path: Path) -> str:
    """SHA-256 of a file that is on the disk when this returns."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return digest
