"""Starts trainers by forking: many nodes on one machine then import the training stack once instead of once each.

Testbeds run it as `python -m conlora.training.forkserver LISTENER_FD` and name its socket to their nodes in the
environment variable CONLORA_FORKSERVER (see `conlora.training.process`). A daemon that wants a trainer connects and
sends one byte with three descriptors: the channel, the memory and the log. It is told the trainer's pid, and its exit
status when it has ended, each as a line. Nothing here may start a thread: a fork would lose it.
"""

import contextlib
import os
import selectors
import socket
import sys
import traceback
from functools import partial
from typing import NoReturn

from conlora.training.imports import quick_imports

with quick_imports():  # which forked trainers go on sharing
    from conlora.training.trainer import main

DESCRIPTORS = 3


def serve(listener: socket.socket) -> NoReturn:
    """Forks a trainer for whoever asks, until this process is ended."""
    with selectors.DefaultSelector() as events:
        events.register(listener, selectors.EVENT_READ, partial(_fork, listener, events))
        while True:
            for key, _ in events.select():
                key.data()


def _fork(listener: socket.socket, events: selectors.BaseSelector) -> None:
    daemon, _ = listener.accept()
    _, descriptors, _, _ = socket.recv_fds(daemon, 1, DESCRIPTORS)
    pid = os.fork() if len(descriptors) == DESCRIPTORS else None  # fewer: the daemon died in mid-sentence
    if pid == 0:
        listener.close()
        daemon.close()
        _train(*descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    if pid is None:
        daemon.close()
        return
    _tell(daemon, pid)
    ended = os.pidfd_open(pid)
    events.register(ended, selectors.EVENT_READ, partial(_reap, pid, ended, daemon, events))


def _reap(pid: int, ended: int, daemon: socket.socket, events: selectors.BaseSelector) -> None:
    _, status = os.waitpid(pid, 0)
    events.unregister(ended)
    os.close(ended)
    _tell(daemon, os.waitstatus_to_exitcode(status))
    daemon.close()


def _tell(daemon: socket.socket, number: int) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # gone; its trainer ends by itself
        daemon.sendall(f"{number}\n".encode())


def _train(channel: int, memory: int, log: int) -> NoReturn:
    """The forked process, to its end."""
    status = 1
    try:
        os.dup2(log, sys.stdout.fileno())
        os.dup2(log, sys.stderr.fileno())
        main(channel, memory)
        status = 0
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # what the parent registered to be done at its own end is not for this process


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
