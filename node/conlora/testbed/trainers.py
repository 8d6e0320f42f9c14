"""One forkserver for all trainers of a testbed, which would otherwise each import the training stack for themselves."""

import contextlib
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from conlora.errors import ConLoRAError
from conlora.testbed.processes import Interrupts, NodeProcesses
from conlora.training.process import FORKSERVER

BACKLOG = 512  # nodes that ask while it still imports


@contextlib.contextmanager
def forkserver(env: dict[str, str], log: Path, interrupts: Interrupts) -> Iterator[dict[str, str]]:
    """While entered, nodes started in the environment that it yields get their trainers from one forkserver.

    env: of node processes. log: for what the forkserver says, which is nothing unless it fails. Raises TrainingFailed
    in place of any other error where the forkserver has died.
    """
    with (
        tempfile.TemporaryDirectory(prefix="conlora-") as directory,  # a socket's path may have about 100 bytes
        socket.socket(socket.AF_UNIX) as listener,
        NodeProcesses(interrupts) as processes,
    ):
        path = str(Path(directory, "forkserver.sock"))
        listener.bind(path)
        listener.listen(BACKLOG)
        command = [sys.executable, "-m", "conlora.training.forkserver", str(listener.fileno())]
        # One thread while it imports: a fork would lose the others. Each trainer sets its own number of them.
        own = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        processes.start("the forkserver", command, log, env | own, pass_fds=(listener.fileno(),))
        listener.close()  # if the forkserver dies, whoever asks is refused instead of left waiting
        try:
            yield env | {FORKSERVER: path}
        except ConLoRAError:
            processes.check()  # where it is the forkserver that failed, it can say more about it
            raise
