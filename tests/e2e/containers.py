"""A compose testbed that runs: its commands, what its nodes say, and what may befall their containers."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.e2e.engine import compose_command

PATIENCE = 300.0  # five nodes that start share two cores
LOOK_SECONDS = 1.0  # each look starts a process in a container, which takes its time from the nodes
Status = dict[str, Any]


class Bed:
    """A directory that `conlora testbed compose` fills, and the containers of it."""

    def __init__(self, spec: Path, directory: Path, image: str) -> None:
        self.directory = directory
        self._containers: dict[str, str] = {}
        self.environment = {**os.environ, "CONLORA_IMAGE": image}
        conlora("testbed", "compose", spec, "-o", directory)
        written = json.loads((directory / "testbed.json").read_text())
        self.id: str = written["id"]
        self.nodes: list[str] = [node["name"] for node in written["nodes"]]

    @contextmanager
    def up(self) -> Iterator[None]:
        """While entered, all nodes run; afterwards nothing of them is left."""
        try:
            self.compose("up", "-d")
            yield
        finally:
            self.compose("down", "--volumes", "--timeout", "60")

    def compose(self, *arguments: str) -> str:
        """A compose command's output."""
        return _output([*compose_command(), *arguments], cwd=self.directory, env=self.environment)

    def exec(self, node: str, *command: str) -> str:
        """A command's output in a node's container."""
        return self.compose("exec", "-T", node, *command)

    def container(self, node: str) -> str:
        """Its id, which it keeps for as long as the testbed is up."""
        if node not in self._containers:
            self._containers[node] = self.compose("ps", "-q", node).strip()
        return self._containers[node]

    def inspect(self, node: str) -> dict[str, Any]:
        """What the engine knows of its container."""
        (told,) = json.loads(docker("inspect", self.container(node)))
        assert isinstance(told, dict)
        return told

    def status(self, node: str) -> Status | None:
        """What the node says of itself; None where it does not answer."""
        try:
            told = json.loads(docker("exec", self.container(node), "conlora", "status", "--json"))
        except subprocess.CalledProcessError:
            return None
        assert isinstance(told, dict)
        return told

    def wait(self, node: str, condition: Callable[[Status], Any], what: str) -> Status:
        """Until the node says so; what it said then."""

        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            status = self.status(node)
            if status is not None and condition(status):
                return status
            time.sleep(LOOK_SECONDS)
        raise AssertionError(f"{node}, not within {PATIENCE:.0f} s: {what}; at last {status}")

    def neighbours(self, node: str) -> list[str]:
        """By the configuration."""
        return sorted(path.stem for path in (self.directory / node / "peers").iterdir())


def link(status: Status, peer: str) -> str:
    """The word for it."""
    return str(peer_of(status, peer)["link"])


def peer_of(status: Status, name: str) -> dict[str, Any]:
    """What a node says of a peer."""
    (peer,) = (peer for peer in status["peers"] if peer["name"] == name)
    assert isinstance(peer, dict)
    return peer


def conlora(*arguments: object) -> str:
    """Our command on this machine: what it prints."""
    return _output([sys.executable, "-m", "conlora", *map(str, arguments)], env={**os.environ, "COLUMNS": "100"})


def docker(*arguments: str) -> str:
    """The engine's command: what it prints."""
    return _output(["docker", *arguments])


def _output(command: list[str], **options: Any) -> str:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=1800, check=False, **options
    )
    if done.returncode != 0:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
    return done.stdout
