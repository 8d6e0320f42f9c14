"""Real daemons for tests: node directories on loopback, processes, and waiting for conditions."""

import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import yaml

from conlora.errors import NodeUnreachable
from conlora.net.admin_client import AdminClient
from conlora.net.identity import create_identity
from conlora.net.status import NodeStatus
from conlora.testbed.layout import PORTS

PATIENCE = 120.0
_ports = itertools.cycle(random.sample(PORTS, len(PORTS)))  # all runs of tests have their own order


def free_port() -> int:
    """A loopback port that was free a moment ago, another one each time.

    Not one of those that the kernel chooses from: it could give it to a connection before whoever it is for listens there.
    """
    return next(port for port in _ports if _is_free(port))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def wait_until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Polls until the condition gives something true, and returns that."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds:.0f} s: {what}")


class Daemon:
    """One node's directory and, while it runs, its process."""

    def __init__(self, directory: Path, socket_path: Path, config: dict[str, Any]) -> None:
        self.name = str(config["name"])
        self.directory = directory
        self.config_path = directory / "conlora.yaml"
        self.state_dir = directory / "state"
        self.log = directory / "daemon.log"
        self.config = {**config, "admin_socket": str(socket_path)}
        self.process: subprocess.Popen[bytes] | None = None
        self.launcher: list[str] = []  # a command that starts the daemon's in its turn
        directory.mkdir()
        (directory / "peers").mkdir()
        self.identity = create_identity(directory / "identity")
        self.write()
        self.admin = AdminClient(socket_path)

    def write(self) -> None:
        """Writes the configuration as it stands in `config`."""
        self.config_path.write_text(yaml.safe_dump(self.config))

    def knows(self, other: "Daemon", address: bool = True) -> None:
        """Gets the other's card."""
        card = other.identity.card(other.name, other.config["advertise"] if address else None)
        (self.directory / "peers" / f"{other.name}.yaml").write_text(card)

    def start(self, *options: str, stdin: int = subprocess.DEVNULL) -> None:
        """Starts the daemon process."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.launcher, sys.executable, "-m", "conlora", "run", str(self.config_path), *options],
                stdout=log, stderr=log, stdin=stdin, start_new_session=True,
            )  # fmt: skip

    def status(self) -> NodeStatus | None:
        """The node's status, or None while it does not answer. Fails where the process has ended."""
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"{self.name} ended with {self.process.returncode}:\n{self.log.read_text()}")
        try:
            return self.admin.status()
        except NodeUnreachable:
            return None

    def wait_for(self, condition: Callable[[NodeStatus], Any], what: str, seconds: float = PATIENCE) -> NodeStatus:
        """Waits for a status that fulfils the condition."""
        last: list[NodeStatus | None] = [None]

        def check() -> NodeStatus | None:
            last[0] = self.status()
            return last[0] if last[0] is not None and condition(last[0]) else None

        try:
            status: NodeStatus = wait_until(check, f"{self.name}: {what}", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\nlast status {last[0]}\n{self.log.read_text()[-3000:]}") from None
        return status

    def exit_code(self) -> int:
        """Waits for the process to end."""
        assert self.process is not None
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        """kill -9 of the daemon alone."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE)

    def close(self) -> None:
        """Ends whatever runs."""
        self.admin.__exit__()
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Daemons:
    """Makes and ends daemons."""

    def __init__(self, directory: Path, model: Path, data: Path) -> None:
        self._directory = directory
        self._sockets = Path(tempfile.mkdtemp(prefix="conlora-"))  # short: a Unix socket's path may have 108 bytes
        self._model = model
        self._data = data
        self.all: list[Daemon] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for daemon in self.all:
            daemon.close()
        shutil.rmtree(self._sockets)

    def make(self, name: str, training: dict[str, Any] | None = None, **sections: Any) -> Daemon:
        """A node with the tiny model and data; sections replace those of the configuration."""
        address = f"127.0.0.1:{free_port()}"
        config: dict[str, Any] = {
            "name": name,
            "listen": address,
            "advertise": address,
            "model": {"base": str(self._model)},
            "lora": {"rank": 2, "alpha": 4},
            "federation": {"seed": 1, "rule": "lora"},
            "task": {"labels": ["negative", "positive"], "max_length": 16},
            "data": {"path": str(self._data)},
            "training": {
                "rounds": 5, "local_steps": 2, "batch_size": 8, "threads": 1, "device": "cpu", "checkpoint_every": 2,
                "evaluate_every": 2, **(training or {}),
            },
            **sections,
        }  # fmt: skip
        daemon = Daemon(self._directory / name, self._sockets / f"{len(self.all)}.sock", config)
        self.all.append(daemon)
        return daemon

    def pair(self, training: dict[str, Any] | None = None, **sections: Any) -> tuple[Daemon, Daemon]:
        """Two nodes that know each other."""
        a, b = self.make("a", training, **sections), self.make("b", training, **sections)
        a.knows(b)
        b.knows(a)
        return a, b


def is_alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        os.kill(pid, 0)
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False
