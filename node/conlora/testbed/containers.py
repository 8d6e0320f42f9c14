"""The containers of a compose testbed, through the `docker` command of this machine: what their nodes say, and their files."""

import json
import shutil
import subprocess
import tarfile
import tempfile
import time
from typing import IO

from conlora import __version__
from conlora.errors import ConfigError, ConLoRAError, NodeUnreachable, TrainingFailed
from conlora.net.status import NodeStatus, PeerStatus
from conlora.testbed.compose import LABEL, VOLUME, ComposeTestbed
from conlora.testbed.layout import NodeSetup

ANSWER_SECONDS = 120.0  # of the engine, or of a command in a container whose cores are busy
ALIVE = ("running", "paused", "restarting")
LISTED = '{{.Label "com.docker.compose.service"}}\t{{.ID}}\t{{.State}}\t{{.Status}}'
# What is copied beside the adapter. The history is open, so its log goes along.
COPIED = "adapter state/recording state/history.db*"


class Containers:
    """The containers that a testbed's compose file has started."""

    def __init__(self, testbed: ComposeTestbed) -> None:
        self._testbed = testbed

    def statuses(self) -> dict[str, NodeStatus | None]:
        """Each node's status; None from a node that does not answer in time, or at all.

        Raises NodeUnreachable where a container is missing or no engine answers, TrainingFailed where one has ended, and
        ConfigError where one is of another version.
        """
        asked = {name: _start(["exec", id_, "conlora", "status", "--json"]) for name, id_ in self._ids().items()}
        deadline = time.monotonic() + ANSWER_SECONDS
        answers = {name: _answer(process, deadline) for name, process in asked.items()}
        return {
            setup.name: _status(setup.name, answers[setup.name]) if asked[setup.name].returncode == 0 else None
            for setup in self._testbed.setups
        }

    def fetch(self, setup: NodeSetup) -> None:
        """Has a node export its adapter, and copies that, the recording and the history into the node's folder here.

        Raises TrainingFailed where it can't.
        """
        id_ = self._ids()[setup.name]
        for earlier in (setup.adapter, setup.state):
            shutil.rmtree(earlier, ignore_errors=True)
        with tempfile.TemporaryFile() as archive:
            _docker(["exec", id_, "conlora", "export", str(VOLUME / setup.adapter.name), "--overwrite"])
            _docker(["exec", id_, "sh", "-c", f"cd {VOLUME} && tar -c {COPIED}"], archive)
            archive.seek(0)
            with tarfile.open(fileobj=archive) as files:
                files.extractall(setup.directory, filter="data")

    def _ids(self) -> dict[str, str]:
        """Of the containers, by node."""
        listed = _docker(["ps", "--all", "--filter", f"label={LABEL}={self._testbed.id}", "--format", LISTED])
        found = {}
        for name, id_, state, status in (line.split("\t") for line in listed.splitlines()):
            if state not in ALIVE:
                raise TrainingFailed(
                    f"{name}: its container does not run ({status}); `docker-compose logs {name}` in "
                    f"{self._testbed.directory} says why, and `docker-compose up -d` starts it again"
                )
            found[name] = id_
        for setup in self._testbed.setups:
            if setup.name not in found:
                raise NodeUnreachable(
                    f"{setup.name}: has no container; run `docker-compose up -d` in {self._testbed.directory}"
                )
        return found


def _answer(process: "subprocess.Popen[bytes]", deadline: float) -> bytes:
    """What a command prints until then; after that it is ended, with a code that is not 0."""
    try:
        return process.communicate(timeout=max(0.0, deadline - time.monotonic()))[0]
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()[0]


def _status(name: str, answer: bytes) -> NodeStatus:
    """What `conlora status --json` has printed. Raises ConfigError where that is not as it is here."""
    try:
        told = json.loads(answer)
        return NodeStatus(**{**told, "peers": [PeerStatus(**peer) for peer in told["peers"]]})
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{name}: its status can't be read ({error}); build the image of the version that runs here ({__version__}), and "
            "start the containers again"
        ) from error


def _start(arguments: list[str], output: IO[bytes] | None = None) -> "subprocess.Popen[bytes]":
    """A `docker` command. Raises NodeUnreachable where there is none."""
    try:
        return subprocess.Popen(
            ["docker", *arguments], stdin=subprocess.DEVNULL, stdout=output or subprocess.PIPE, stderr=subprocess.PIPE
        )
    except OSError as error:
        raise NodeUnreachable(
            f"docker: can't be run ({error}); install Docker's command on this machine, where the testbed's containers are"
        ) from error


def _docker(arguments: list[str], output: IO[bytes] | None = None) -> str:
    """What the command prints. Raises NodeUnreachable for one of the engine's own, TrainingFailed for one in a container."""
    process = _start(arguments, output)
    try:
        said, complaint = process.communicate(timeout=ANSWER_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        complaint, process.returncode = f"it took longer than {ANSWER_SECONDS:.0f} s".encode(), -1
    if process.returncode != 0:
        kind: type[ConLoRAError] = TrainingFailed if arguments[0] == "exec" else NodeUnreachable
        raise kind(f"docker {arguments[0]} failed: {complaint.decode(errors='replace').strip()}")
    return said.decode() if said else ""
