"""What the runners of all systems share: the payload, how a round is timed, and how nodes are started and ended.

A runner is called with --nodes and --rounds. It starts itself once for each node, with a number, and prints one line of JSON:
the seconds of every round at every node. A round lasts from the end of a node's local training, here almost nothing, until
its next local training can begin, with what the others have sent mixed in.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import numpy as np

SHAPES = [(16, 4096), (4096, 16)] * 64  # A and B of the adapter of 64 matrices: 8.4 M parameters, 33.6 MB in fp32
WARM_UP = 3  # rounds that are not counted
PATIENCE = 600.0  # seconds for whatever is waited for
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


class Failed(Exception):
    """The system could not be measured; the sentence says why."""


def payload(node: int) -> list[np.ndarray]:
    """A node's weights, as float32."""
    rng = np.random.default_rng(node)
    return [rng.standard_normal(shape, dtype=np.float32) for shape in SHAPES]


class Rounds:
    """The seconds of a node's rounds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._began: float | None = None
        self.seconds: list[float] = []

    def trained(self) -> None:
        """Local training has ended: the exchange begins."""
        self._began = time.perf_counter()

    def mixed(self) -> None:
        """The next local training can begin. Counts nothing before the first."""
        if self._began is not None:
            self.seconds.append(time.perf_counter() - self._began)
            self._began = None

    def save(self) -> None:
        """To be called after the last round."""
        temporary = self.path.with_suffix(".new")
        temporary.write_text(json.dumps(self.seconds))
        temporary.rename(self.path)


class Place:
    """A node's number and the folder in which the nodes of a run find each other."""

    def __init__(self, folder: Path, node: int, nodes: int, rounds: int, tuned: bool) -> None:
        self.folder, self.node, self.nodes, self.tuned = folder, node, nodes, tuned
        self.total = WARM_UP + rounds
        self.rounds = Rounds(folder / f"{node}.json")

    def tell(self, word: str, text: str = "") -> None:
        """Says something to all nodes."""
        temporary = self.folder / f"{self.node}.{word}.new"
        temporary.write_text(text)
        temporary.rename(self.folder / f"{self.node}.{word}")

    def hear(self, word: str, node: int) -> str:
        """What a node has said; waits for it."""
        path = self.folder / f"{node}.{word}"
        wait_for(path.exists, f"{word} of node {node}")
        return path.read_text()

    def meet(self, word: str) -> None:
        """Waits until all nodes have got here."""
        self.tell(word)
        for node in range(self.nodes):
            self.hear(word, node)


def free_address() -> str:
    """One on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return "{}:{}".format(*probe.getsockname())


def listens(address: str) -> bool:
    """Whether somebody accepts connections there."""
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Polls until the condition is true. Raises Failed."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(f"not within {PATIENCE:.0f} s: {what}")
        time.sleep(0.02)


class Processes:
    """Processes of a run, each with its own log and group. What they have started ends with them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *exc: object) -> None:
        for process in reversed(self._running.values()):
            end(process)
        while left := at_home_in(self._folder):  # some of which have left their group
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for process in self._running.values():
            process.wait()

    def start(self, name: str, command: Sequence[object], **env: str) -> "subprocess.Popen[bytes]":
        """Starts a process with one thread for its numerics, and the folder as its home, for some leave files there."""
        env = {**os.environ, **ONE_THREAD, "HOME": str(self._folder), **env}
        with self.log(name).open("ab") as log:
            self._running[name] = subprocess.Popen(
                [str(word) for word in command],
                cwd=self._folder, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        return self._running[name]

    def log(self, name: str) -> Path:
        """Where a process writes."""
        return self._folder / f"{name}.log"

    def wait(self, *names: str) -> None:
        """Until these have ended. Raises Failed where any of the run fails, or all of it takes too long."""

        def ended() -> bool:
            for name, process in self._running.items():
                if process.poll():
                    log = self.log(name).read_text(errors="replace").strip().splitlines()
                    raise Failed(f"{name} ended with {process.returncode}: {' / '.join(log[-3:])}")
            return all(self._running[name].poll() is not None for name in names)

        wait_for(ended, f"the end of {', '.join(names)}")


def end(process: "subprocess.Popen[bytes]") -> None:
    """Ends a process and its group, gently at first."""
    try:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(10)
    except (ProcessLookupError, subprocess.TimeoutExpired):
        pass


def at_home_in(folder: Path) -> list[int]:
    """All processes of a run: those that have its folder as their home."""
    home = f"HOME={folder}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if home in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue  # it has ended, or is somebody else's
    return found


Launch = Callable[[argparse.Namespace, Path, Processes], None]


def main(package: str, launch: Launch, node: Callable[[Place], None]) -> None:
    """A runner: starts a run, or is one node of it.

    launch: brings the run to its end, after which each node's seconds lie in the folder. node: what a node does.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True, help="to be counted")
    parser.add_argument("--tuned", action="store_true")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--node", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.node is not None:
        return node(Place(args.folder, args.node, args.nodes, args.rounds, args.tuned))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))  # after what it has started
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        try:
            with Processes(Path(folder)) as processes:
                launch(args, Path(folder), processes)
            seconds = [json.loads((Path(folder) / f"{i}.json").read_text())[WARM_UP:] for i in range(args.nodes)]
        except (Failed, OSError) as error:
            sys.exit(f"{package}: {error}")
    print(json.dumps({"system": package, "version": version(package), "nodes": args.nodes, "seconds": seconds}))


def one_process_a_node(args: argparse.Namespace, folder: Path, processes: Processes) -> None:
    """The launch of systems whose nodes are programs that find each other."""
    for i in range(args.nodes):
        processes.start(f"node-{i}", as_node(args, folder, i))
    processes.wait(*(f"node-{i}" for i in range(args.nodes)))


def as_node(args: argparse.Namespace, folder: Path, i: int) -> list[object]:
    """The command that runs this script as a node."""
    options = ["--nodes", args.nodes, "--rounds", args.rounds, "--folder", folder, "--node", i]
    return [sys.executable, os.path.abspath(sys.argv[0]), *options, *(["--tuned"] if args.tuned else [])]
