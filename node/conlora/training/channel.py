"""The trainer's end of its conversation with the daemon, which all ranks of it follow."""

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
    Offer,
    Pause,
    Resume,
    Sealed,
    Stop,
    ToTrainer,
    line,
)
from conlora.training.ranks import OneRank, Ranks

M = TypeVar("M", bound=BaseModel)

GONE = "the node's daemon has ended; start it again, then this program: it goes on from the last checkpoint"
ORPHANED = 70  # exit status of a trainer whose daemon is gone
NOTHING, END = b"", b"\n"  # in place of a message: none has come, and none will


class Channel:
    """Blocking sends, and a thread that receives, so that control messages are seen between any two steps.

    When the daemon dies: whatever is still computed can neither be exchanged nor sealed. The node's own trainer ends at
    once; a guest, which is a program of the user's, is told by TrainingFailed the next time it says or asks anything.

    Where a program has several ranks, only rank 0 has a connection. Whoever asks on all ranks alike gets the same
    answers in the same order, and so the same flags; what the others say goes nowhere.
    """

    def __init__(self, connection: socket.socket | None, guest: bool = False, ranks: Ranks | None = None) -> None:
        """connection: None on ranks other than 0."""
        self.ranks = ranks or OneRank()
        self.paused = False
        self.after_round = False  # of a pause: it begins once the round under way is over
        self.absent = False  # the node was away, and has not rejoined yet
        self.stopping = False
        self.checkpoint_wanted = False
        self.sealing = 0  # checkpoints of which the daemon has not said yet whether they are sealed
        self.unsaved = False  # the last one is not
        self._connection = connection
        self._guest = guest
        self._inbox: queue.Queue[bytes] = queue.Queue()
        if connection is not None:
            self._receiver = threading.Thread(target=self._receive, args=[connection], daemon=True, name="channel")
            self._receiver.start()

    def send(self, message: BaseModel) -> None:
        """Tells the daemon."""
        if self._connection is None:
            return
        try:
            self._connection.sendall(line(message))
        except OSError as error:
            if self.ranks.size == 1:  # several hear of it together, the next time they ask
                raise TrainingFailed(GONE) from error

    def close(self) -> None:
        """Ends a guest's conversation."""
        if self._connection is None:
            return
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)  # which ends the thread
        self._receiver.join()
        self._connection.close()

    def expect(self, kind: type[M]) -> M:
        """Waits for a message of that kind; control messages that come before it are noted in the flags."""
        while True:
            message = self._take()
            if isinstance(message, kind):
                return message
            self._note(message)

    def poll(self) -> None:
        """Notes the control messages that have come."""
        while True:
            try:
                self._note(self._take(0))
            except queue.Empty:
                return

    def wait_while(self, condition: Callable[[], bool], seconds: float | None = None) -> None:
        """Notes control messages as they come while `condition` holds, for at most `seconds`."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while condition():
            try:
                self._note(self._take(None if deadline is None else max(0, deadline - time.monotonic())))
            except queue.Empty:
                return

    def _take(self, seconds: float | None = None) -> ToTrainer | None:
        """The next message, the same on all ranks; None: the daemon is gone. Raises queue.Empty after so many seconds."""
        heard = NOTHING
        if self.ranks.rank == 0:
            with contextlib.suppress(queue.Empty):
                heard = self._inbox.get(timeout=seconds)
        heard = self.ranks.tell(heard)
        if heard == NOTHING:
            raise queue.Empty
        return None if heard == END else TO_TRAINER.validate_json(heard)

    def _note(self, message: ToTrainer | None) -> None:
        match message:
            case None:
                self._inbox.put(END)  # for whoever asks next
                raise TrainingFailed(GONE)
            case Pause():
                self.paused, self.after_round = True, message.after_round
            case Resume():
                self.paused = False
                self.absent |= message.absent
            case Checkpoint():
                self.checkpoint_wanted = True
            case Stop():
                self.stopping = True
            case Sealed():
                self.sealing -= 1
                self.unsaved = not message.intact
            case Contributions() | Offer():
                raise AssertionError("contributions arrived that nobody asked for")

    def _receive(self, connection: socket.socket) -> None:
        # reset: by a daemon that was killed before it had read all
        with connection.makefile("rb") as stream, contextlib.suppress(ConnectionResetError):
            for data in stream:
                self._inbox.put(data)
        if not self._guest:
            os._exit(ORPHANED)
        self._inbox.put(END)
