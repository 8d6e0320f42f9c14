"""Starts the other ranks of a node's own trainer, and sees to it that none outlives another.

Each gets a socket pair with rank 0, on which it hears Setup and says at most why it failed; its end tells either side of
the other's. Run as `python -m conlora.training.launcher SOCKET_FD` it is such a rank.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

from conlora.config import NodeConfig, TrainingSection
from conlora.errors import ConfigError, ConLoRAError, RankLost
from conlora.training.channel import Channel
from conlora.training.imports import quick_imports
from conlora.training.messages import FROM_TRAINER, Failed, Setup, line
from conlora.training.ranks import OneRank, Ranks, launched

LEAVING_SECONDS = 30.0  # after the last step; then a rank is killed
BLAMING_SECONDS = 2.0  # until it is known which rank has died, after a collective that it broke off


@contextlib.contextmanager
def all_ranks(setup: Setup, channel: Channel) -> Iterator[Ranks]:
    """Starts as many ranks as are configured, of which this process is the first; they end with it, and it with them.

    channel: to the daemon, which is told why another rank failed. Raises ConfigError.
    """
    training = NodeConfig.model_validate(setup.config).training
    if training.processes == 1:
        yield OneRank()
        return
    _require_gpus(training)
    with _rendezvous(training.processes), _Followers(setup, channel, training.processes - 1):
        yield launched()


def _require_gpus(training: TrainingSection) -> None:
    import torch

    if training.device == "auto" and torch.cuda.is_available() and torch.cuda.device_count() < training.processes:
        raise ConfigError(
            f"training.processes: {training.processes}, but this machine shows {torch.cuda.device_count()} GPUs; lower it, "
            "or set training.device to cpu"
        )


@contextlib.contextmanager
def _rendezvous(processes: int) -> Iterator[None]:
    """Where the ranks meet, told in the environment as torchrun does it; on this machine's loopback only."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # it is there already
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
        **_numbered(0),
    }
    yield
    del store


def _numbered(rank: int) -> dict[str, str]:
    return {"RANK": str(rank), "LOCAL_RANK": str(rank)}


class _Followers:
    """The ranks but the first: started on entering, and ended, or waited for where all went well, on leaving."""

    def __init__(self, setup: Setup, channel: Channel, number: int) -> None:
        self._number = number
        self._setup = setup
        self._channel = channel
        self._over = False
        self._started: list[subprocess.Popen[bytes]] = []
        self._watches: list[threading.Thread] = []

    def __enter__(self) -> None:
        for rank in range(1, self._number + 1):
            ours, theirs = socket.socketpair()
            with theirs:
                process = subprocess.Popen(
                    [sys.executable, "-m", "conlora.training.launcher", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env={**os.environ, **_numbered(rank)},
                )  # fmt: skip
            watch = threading.Thread(target=self._watch, args=(rank, process, ours), daemon=True, name=f"rank {rank}")
            self._started.append(process)
            self._watches.append(watch)
            watch.start()
            ours.sendall(line(self._setup))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None and (isinstance(error, RankLost) or not isinstance(error, ConLoRAError)):
            self._watches[0].join(BLAMING_SECONDS)  # whichever watch finds the rank that has died ends this process
        self._over = True
        if error is None:
            for process, watch in zip(self._started, self._watches, strict=True):
                watch.join(LEAVING_SECONDS)
                process.kill()

    def _watch(self, rank: int, process: "subprocess.Popen[bytes]", link: socket.socket) -> None:
        with link, link.makefile("rb") as said, contextlib.suppress(ConnectionResetError):
            for data in said:
                failed = FROM_TRAINER.validate_json(data)
                assert isinstance(failed, Failed)
                self._channel.send(failed)
                os._exit(failed.exit_code)
        code = process.wait()
        if code != 0 and not self._over:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"
            print(f"rank {rank} of the trainer {how}", file=sys.stderr, flush=True)
            os._exit(1)


def _follow(link: Channel) -> None:
    """Runs another rank, from Setup to the end of training."""
    setup = link.expect(Setup)
    with quick_imports():
        from conlora.training.trainer import run

    try:
        run(Channel(None, ranks=launched()), setup, None)
    except RankLost as error:
        sys.exit(str(error))  # which rank 0 finds, too
    except ConLoRAError as error:
        link.send(Failed(message=str(error), exit_code=error.exit_code))
        sys.exit(error.exit_code)


if __name__ == "__main__":
    _follow(Channel(socket.socket(fileno=int(sys.argv[1]))))  # which ends this process with rank 0, whatever it imports
