"""Which peers are quarantined: a file that outlives the daemon, so that a restart lifts nothing."""

import json
import os
from collections import UserDict
from dataclasses import asdict
from pathlib import Path

import structlog

from conlora.core.conduct import Quarantine
from conlora.errors import StateError
from conlora.store.disk import sync_directory

log = structlog.get_logger()


class Quarantines(UserDict[str, Quarantine]):
    """By node id. Every change is on disk when it returns, or an error in the log: the daemon goes on with what it knows."""

    def __init__(self, path: Path) -> None:
        """Reads the file, if there is one. Raises StateError where it is damaged: nobody gets out that way."""
        super().__init__()
        self._path = path
        try:
            self.data = {node_id: Quarantine(**entry) for node_id, entry in json.loads(path.read_bytes()).items()}
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise StateError(
                f"{path}: the list of quarantined peers can't be read ({error}); mend the file, or remove it, which lifts every "
                "quarantine"
            ) from error

    def __setitem__(self, node_id: str, quarantine: Quarantine) -> None:
        super().__setitem__(node_id, quarantine)
        self._write()

    def __delitem__(self, node_id: str) -> None:
        super().__delitem__(node_id)
        self._write()

    def _write(self) -> None:
        text = json.dumps({node_id: asdict(entry) for node_id, entry in self.data.items()}, indent=2)
        new = self._path.with_suffix(".new")
        try:
            with new.open("w") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._path)
            sync_directory(self._path.parent)
        except OSError as error:
            log.error("a restart will not know who is quarantined now", file=str(self._path), reason=str(error))
