"""The trainer's end of its conversation with the daemon."""

import contextlib
import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from pydantic import BaseModel

from conlora.errors import TrainingFailed
from conlora.training.messages import (
    TO_TRAINER,
    Checkpoint,
    Contributions,
    Pause,
    Resume,
    Stop,
    ToTrainer,
    line,
)

M = TypeVar("M", bound=BaseModel)

GONE = "the node's daemon has ended; start it again, then this program: it goes on from the last checkpoint"
ORPHANED = 70  # exit status of a trainer whose daemon is gone


class Channel:
    """Blocking sends, and a thread that receives, so that control messages are seen between any two steps.

    When the daemon dies: whatever is still computed can neither be exchanged nor sealed. The node's own trainer ends at
    once; a guest, which is a program of the user's, is told by TrainingFailed the next time it says or asks anything.
    """

    def __init__(self, connection: socket.socket, guest: bool = False) -> None:
        self.paused = False
        self.stopping = False
        self.checkpoint_wanted = False
        self._connection = connection
        self._guest = guest
        self._inbox: queue.Queue[ToTrainer | None] = queue.Queue()  # None: the daemon is gone
        self._receiver = threading.Thread(target=self._receive, daemon=True, name="channel")
        self._receiver.start()

    def send(self, message: BaseModel) -> None:
        """Tells the daemon."""
        try:
            self._connection.sendall(line(message))
        except OSError as error:
            raise TrainingFailed(GONE) from error

    def close(self) -> None:
        """Ends a guest's conversation."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)  # which ends the thread
        self._receiver.join()
        self._connection.close()

    def expect(self, kind: type[M]) -> M:
        """Waits for a message of that kind; control messages that come before it are noted in the flags."""
        while True:
            message = self._inbox.get()
            if isinstance(message, kind):
                return message
            self._note(message)

    def poll(self) -> None:
        """Notes the control messages that have come."""
        while True:
            try:
                self._note(self._inbox.get_nowait())
            except queue.Empty:
                return

    def wait_while(self, condition: Callable[[], bool], seconds: float | None = None) -> None:
        """Notes control messages as they come while `condition` holds, for at most `seconds`."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while condition():
            try:
                self._note(self._inbox.get(timeout=None if deadline is None else max(0, deadline - time.monotonic())))
            except queue.Empty:
                return

    def _note(self, message: ToTrainer | None) -> None:
        match message:
            case None:
                self._inbox.put(None)  # for whoever asks next
                raise TrainingFailed(GONE)
            case Pause():
                self.paused = True
            case Resume():
                self.paused = False
            case Checkpoint():
                self.checkpoint_wanted = True
            case Stop():
                self.stopping = True
            case Contributions():
                raise AssertionError("contributions arrived that nobody asked for")

    def _receive(self) -> None:
        # reset: by a daemon that was killed before it had read all
        with self._connection.makefile("rb") as stream, contextlib.suppress(ConnectionResetError):
            for data in stream:
                self._inbox.put(TO_TRAINER.validate_json(data))
        if not self._guest:
            os._exit(ORPHANED)
        self._inbox.put(None)
