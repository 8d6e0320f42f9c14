"""Writes what each node of a run needs: its configuration, identity, neighbours' cards and data."""

import os
import random
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import networkx as nx
import yaml

from conlora.config import load_config
from conlora.errors import TrainingFailed
from conlora.net.identity import create_identity
from conlora.testbed.data import Part
from conlora.testbed.spec import TestbedSpec

# Below the ports that systems hand out to outgoing connections, of which starting nodes make many.
PORTS = range(20_000, 32_000)

DATA_FILE = "data.parquet"


@dataclass(frozen=True, slots=True)
class NodeSetup:
    """A node that is ready to start, and where its things are."""

    name: str
    directory: Path
    admin_socket: Path
    peers: list[str]
    rows: int
    class_counts: dict[str, int]

    @property
    def config(self) -> Path:
        """Its configuration."""
        return self.directory / "node.yaml"

    @property
    def log(self) -> Path:
        """What its daemon writes to standard error."""
        return self.directory / "daemon.log"

    @property
    def state(self) -> Path:
        """Its daemon's state directory."""
        return self.directory / "state"

    @property
    def adapter(self) -> Path:
        """Where its adapter is exported to."""
        return self.directory / "adapter"


@dataclass(frozen=True, slots=True)
class RunPlan:
    """One run: its nodes by name with their rows, and who is joined to whom (node numbers from 0).

    test: rows that every node evaluates itself on while it trains; None: each on a held-out part of its own.
    """

    kind: Literal["federated", "alone", "pooled"]
    title: str
    rule: str
    directory: Path
    shares: dict[str, Part]
    graph: "nx.Graph[int]"
    test: Path | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node will run, as its configuration tells it; paths may be relative to the configuration.

    listen and address: of the peer port, here and as the other nodes dial it. threads: for torch. metrics: where
    Prometheus may ask, if anywhere.
    """

    listen: str
    address: str
    admin_socket: Path
    threads: int
    state: str = "state"
    metrics: str | None = None


def lay_out(spec: TestbedSpec, plan: RunPlan, sockets: Path) -> list[NodeSetup]:
    """Makes the directories of nodes that run on this machine. sockets: a directory with a short path, for the admin sockets."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(len(plan.shares))]
    threads = max(1, cores() // len(plan.shares))
    return write_nodes(
        spec,
        plan,
        {
            name: Place(address, address, sockets / f"{name}.sock", threads)
            for name, address in zip(plan.shares, addresses, strict=True)
        },
    )


def write_nodes(spec: TestbedSpec, plan: RunPlan, places: Mapping[str, Place]) -> list[NodeSetup]:
    """Makes the directories of a run's nodes, each for its place."""
    names = list(plan.shares)
    cards, setups = [], []
    for number, (name, share) in enumerate(plan.shares.items()):
        directory, place = plan.directory / name, places[name]
        directory.mkdir(parents=True)
        cards.append(create_identity(directory / "identity").card(name, place.address))
        peers = [names[other] for other in sorted(plan.graph.neighbors(number))]
        setup = NodeSetup(name, directory, place.admin_socket, peers, len(share), share.class_counts)
        share.write(directory / DATA_FILE)
        settings = _settings(spec, plan, name, place)
        setup.config.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")
        load_config(setup.config)  # a mistake in it is better found before anything starts
        setups.append(setup)
    for setup in setups:
        (setup.directory / "peers").mkdir()
        for name, card in zip(names, cards, strict=True):
            if name in setup.peers:
                (setup.directory / "peers" / f"{name}.yaml").write_text(card)
    return setups


def _settings(spec: TestbedSpec, plan: RunPlan, name: str, place: Place) -> dict[str, Any]:
    training = {
        "threads": place.threads,
        **spec.training.model_dump(exclude_unset=True),
        "record_vectors": plan.kind == "federated",  # to measure consensus
    }
    if plan.rule in spec.learning_rates:
        training["learning_rate"] = spec.learning_rates[plan.rule]
    if name in spec.overrides:
        training |= spec.overrides[name].training.model_dump(exclude_unset=True)
    if plan.kind == "pooled":  # in as many steps it sees as many rows as the whole federation
        training["batch_size"] = spec.training.batch_size * spec.nodes
    return {
        "name": name,
        "state_dir": place.state,  # these three are relative to the configuration
        "identity_dir": "identity",
        "peers_dir": "peers",
        "listen": place.listen,
        "advertise": place.address,
        "admin_socket": str(place.admin_socket),
        "model": spec.model.model_dump(exclude_none=True),
        "lora": spec.lora.model_dump(exclude_none=True),
        "federation": {"name": spec.name, "seed": spec.seed, "rule": plan.rule, "mode": spec.mode.value},
        "task": spec.task.model_dump(exclude_none=True),
        "data": {"path": DATA_FILE} | ({"evaluation_path": str(plan.test)} if plan.test else {}),
        "training": training,
        "exchange": spec.exchange.model_dump(),
        "mixing": spec.mixing.model_dump(exclude_none=True),
        **({"observing": {"metrics": place.metrics}} if place.metrics else {}),
    }


def environment(spec: TestbedSpec) -> dict[str, str]:
    """The environment of node processes."""
    env = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}  # threads that spin would take the cores from the other nodes
    if Path(spec.model.base).is_dir():
        env["HF_HUB_OFFLINE"] = "1"
    return env


def cores() -> int:
    """This machine's processor cores."""
    return os.cpu_count() or 1


def free_ports(count: int) -> Sequence[int]:
    """Loopback ports that nothing listens on now; searched from a random one, so that testbeds seldom meet."""
    start = random.SystemRandom().randrange(len(PORTS))
    found: list[int] = []
    for port in (PORTS[(start + i) % len(PORTS)] for i in range(len(PORTS))):
        if len(found) == count:
            break
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
    if len(found) < count:
        raise TrainingFailed(f"no {count} free loopback ports in {PORTS[0]}-{PORTS[-1]}; stop what holds them")
    return found
