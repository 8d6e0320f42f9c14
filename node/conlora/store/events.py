"""A history that is written as TensorBoard event files too: the same figures, a scalar each, by round.

The package tensorboard writes them without torch or TensorFlow. One file is begun at each start of the daemon, and says from
which round on it replaces what earlier ones tell, since a node goes on from its last checkpoint.
"""

import errno
import io
import os
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from conlora.core.consensus import EdgeError
from conlora.core.sketch import Estimate
from conlora.errors import ConfigError
from conlora.files import unwritable
from conlora.store.history import EdgeRecord, History


class EventFiles:
    """Scalars by name and round, in a directory that TensorBoard may be pointed at."""

    def __init__(self, directory: Path) -> None:
        """Raises ConfigError where the package is not installed."""
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError as error:
            raise ConfigError(
                "observing.tensorboard: needs the package tensorboard, which is not installed; "
                "`pip install 'conlora[tensorboard]'`, or leave the key out"
            ) from error
        self._directory = directory
        self._event, self._session = event_pb2.Event, event_pb2.SessionLog
        self._summary, self._writer = summary_pb2.Summary, RecordWriter
        self._file: io.FileIO | None = None

    def add(self, round_: int, scalars: Mapping[str, float | None]) -> None:
        """What is None is left out. Raises StateError; after that a new file is begun, for this one may end in half a record."""
        values = [self._summary.Value(tag=tag, simple_value=v) for tag, v in scalars.items() if v is not None]
        try:
            if self._file is None:
                self._begin(round_)
            self._write(step=round_, summary=self._summary(value=values))
        except OSError as error:
            self.close()
            raise unwritable(self._directory, "TensorBoard's event files", error) from error

    def close(self) -> None:
        """Nothing more is written into this file."""
        if self._file:
            self._file.close()
            self._file = None

    def _begin(self, round_: int) -> None:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._file = (self._directory / name).open("xb", buffering=0)
        self._write(file_version="brain.Event:2")
        self._write(step=round_, session_log=self._session(status=self._session.START))

    def _write(self, **content: Any) -> None:
        assert self._file is not None
        record = io.BytesIO()
        self._writer(record).write(self._event(wall_time=time.time(), **content).SerializeToString())
        if self._file.write(record.getvalue()) != record.tell():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class EventHistory(History):
    """See the module. What can't be written is missed as the history itself is, with a sentence that names the directory."""

    def __init__(self, path: Path, directory: Path) -> None:
        """directory: of the event files. Raises ConfigError and StateError."""
        self._events = EventFiles(directory)
        super().__init__(path)

    def close(self) -> None:
        """See `History`."""
        self._events.close()
        super().close()

    def add_round(self, round_: int, step: int, seconds: float, loss: float | None, degree: int) -> None:
        """See `History`."""
        super().add_round(round_, step, seconds, loss, degree)
        figures = {"training/loss": loss, "training/step": step, "round/seconds": seconds, "round/neighbours": degree}
        self._events.add(round_, figures)

    def add_edges(self, round_: int, edges: Iterable[EdgeRecord]) -> None:
        """See `History`."""
        edges = list(edges)
        super().add_edges(round_, edges)
        if edges:
            self._events.add(round_, {f"weight/{self.name_of(edge.peer)}": edge.weight for edge in edges})

    def add_errors(self, round_: int, errors: Mapping[str, EdgeError]) -> None:
        """See `History`."""
        super().add_errors(round_, errors)
        if errors:
            self._events.add(round_, {f"edge_error/{self.name_of(peer)}": e.product for peer, e in errors.items()})

    def add_federation(self, round_: int, nodes: int, before: Estimate, after: Estimate) -> None:
        """See `History`."""
        super().add_federation(round_, nodes, before, after)
        figures = {
            f"consensus_{moment}/{name}": value
            for moment, estimate in (("before", before), ("after", after))
            for name, value in asdict(estimate.figures).items()
        }
        self._events.add(round_, {"consensus_after/nodes": nodes, **figures})

    def add_evaluation(self, round_: int, figures: Mapping[str, float]) -> None:
        """See `History`."""
        super().add_evaluation(round_, figures)
        self._events.add(round_, {f"evaluation/{name}": value for name, value in figures.items()})
