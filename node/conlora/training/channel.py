"""The trainer's end of its conversation with the daemon."""

import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from pydantic import BaseModel

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

ORPHANED = 70  # exit status of a trainer whose daemon is gone


class Channel:
    """Blocking sends, and a thread that receives, so that control messages are seen between any two steps.

    When the daemon dies the process ends at once: whatever it still computed could neither be exchanged nor sealed.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.paused = False
        self.stopping = False
        self.checkpoint_wanted = False
        self._connection = connection
        self._inbox: queue.Queue[ToTrainer] = queue.Queue()
        threading.Thread(target=self._receive, daemon=True, name="channel").start()

    def send(self, message: BaseModel) -> None:
        """Tells the daemon."""
        self._connection.sendall(line(message))

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

    def _note(self, message: ToTrainer) -> None:
        match message:
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
        with self._connection.makefile("rb") as stream:
            for data in stream:
                self._inbox.put(TO_TRAINER.validate_json(data))
        os._exit(ORPHANED)
