"""Rounds of Flower as it is meant to be deployed: a SuperLink, a SuperNode for each node, and an app that they run.

Default settings, over HTTP without TLS.
"""

import argparse
import json
import shutil
import sys
from itertools import pairwise
from pathlib import Path

from common import WARM_UP, Place, Processes, free_address, listens, main, wait_for

APP = """
[project]
name = "bench"
version = "1.0.0"
description = "Rounds of FedAvg"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "bench"
[tool.flwr.app.components]
serverapp = "superlink_app:server"
clientapp = "superlink_app:client"
[tool.flwr.app.config]
nodes = {nodes}
rounds = {rounds}
"""
LINK = """
[superlink]
default = "here"
[superlink.here]
address = "{address}"
insecure = true
"""
HERE = Path(__file__).parent
BIN = Path(sys.executable).parent


def launch(args: argparse.Namespace, folder: Path, processes: Processes) -> None:
    """A round is over when a node is asked to train again, so there is one more."""
    total = WARM_UP + args.rounds + 1
    address = free_address()
    host, _, port = address.rpartition(":")
    app = folder / "app"
    app.mkdir()
    (app / "pyproject.toml").write_text(APP.format(nodes=args.nodes, rounds=total))
    shutil.copy(HERE / "superlink_app.py", app)
    (folder / ".flwr").mkdir()
    (folder / ".flwr" / "config.toml").write_text(LINK.format(address=address))
    env = {
        "PLACE": str(folder), "PYTHONPATH": str(HERE), "FLWR_HOME": str(folder / ".flwr"),
        "FLWR_TELEMETRY_ENABLED": "0", "PATH": f"{BIN}:/usr/bin:/bin",
    }  # fmt: skip
    link = [BIN / "flower-superlink", "--insecure", "--disable-runtime-dependency-installation"]
    processes.start("superlink", [*link, "--host", host, "--port", port], **env)
    wait_for(lambda: listens(address), "the SuperLink listens")
    for i in range(args.nodes):
        own = free_address().rpartition(":")[2]
        command = [BIN / "flower-supernode", "--insecure", "--superlink", address, "--port", own]
        processes.start(f"supernode-{i}", [*command, "--node-config", f"number={i}"], **env)
    processes.start("run", [BIN / "flwr", "run", app, "here"], **env)
    processes.wait("run")
    wait_for(lambda: all(len(times(folder, i)) == total for i in range(args.nodes)), "the last round")
    for i in range(args.nodes):
        seconds = [next_began - ended for (_, ended), (next_began, _) in pairwise(times(folder, i))]
        (folder / f"{i}.json").write_text(json.dumps(seconds))


def times(folder: Path, node: int) -> list[tuple[float, float]]:
    """When a node's trainings began and ended."""
    path = folder / f"{node}.times"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(float(began), float(ended)) for began, ended in (line.split() for line in lines)]


def node(place: Place) -> None:
    raise NotImplementedError("nodes are SuperNodes")


if __name__ == "__main__":
    main("flwr", launch, node)
