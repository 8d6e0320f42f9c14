"""`conlora check`: everything that can go wrong before training, tried in order, each with its reason."""

import contextlib
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from conlora.cli.common import console, human_bytes
from conlora.config import NodeConfig, load_config
from conlora.errors import CheckFailed, ConfigError, ConLoRAError, NodeUnreachable, StateError
from conlora.net.admin_client import AdminClient
from conlora.net.authorities import load_authorities
from conlora.net.identity import Peer, load_identity
from conlora.net.introductions import Introductions
from conlora.net.issued import with_issued
from conlora.net.operators import Role, load_operators
from conlora.net.probe import probe
from conlora.net.rotation import Announced

if TYPE_CHECKING:
    from conlora.core.federation import FederationSettings
    from conlora.training.model import Built

# Checkpoints hold the adapter and two optimizer moments in fp32; a little more is needed for history and logs.
CHECKPOINT_FACTOR = 3
SPARE_BYTES = 100 * 1024 * 1024


class Report:
    """Prints a line a check and counts the failures."""

    def __init__(self) -> None:
        self.failures = 0

    @contextlib.contextmanager
    def item(self, name: str) -> Iterator[Callable[[str], None]]:
        """Runs one check: what it yields is told when it passes, its error when it fails."""
        notes: list[str] = []
        try:
            yield notes.append
        except ConLoRAError as error:
            self.failures += 1
            console.print(f"[red]fails[/]  {name:<14} ", end="")
            console.print(str(error), markup=False, soft_wrap=True)
        else:
            console.print(f"[green]ok[/]     {name:<14} ", end="")
            console.print("; ".join(notes), markup=False, soft_wrap=True)


def preflight(path: Path, seconds: float) -> None:
    """Runs all checks. Raises ConfigError for a configuration that can't be read, CheckFailed where a later check fails."""
    config = load_config(path)
    report = Report()
    with report.item("configuration") as tell:
        tell(str(path))
    if config.observing.tensorboard:
        with report.item("tensorboard") as tell:
            from conlora.store.events import EventFiles

            EventFiles(config.state_dir / "tensorboard")
            tell(str(config.state_dir / "tensorboard"))
    us, peers = None, []
    with report.item("identity") as tell:
        identity = with_issued(load_identity(config.identity_dir), config.state_dir)
        authorities = load_authorities(config.ca_file) if config.ca_file else None
        us = Introductions(identity, lambda peer: None, authorities)
        peers = Announced(config.state_dir).peers(config.peers_dir, identity.node_id)
        tell(f"{identity.node_id}, {len(peers)} peer{'' if len(peers) == 1 else 's'}")
    settings = _check_training(config, report)
    with report.item("address") as tell:
        tell(_check_address(config, "listen", config.listen))
    if config.admin_listen and us is not None:
        with report.item("operators") as tell:
            operators = load_operators(config.operators_dir, us.identity.node_id)
            tell(_check_address(config, "admin_listen", config.admin_listen))
            looking = sum(operator.role is Role.READ for operator in operators)
            tell(f"{looking} may look, {len(operators) - looking} may also change")
    if us is not None and settings is not None:
        for peer in peers:
            with report.item(f"peer {peer.name}") as tell:
                tell(_check_peer(config, us, peer, settings, seconds))
    if report.failures:
        raise CheckFailed(f"{report.failures} of the checks failed; see above")


def _check_training(config: NodeConfig, report: Report) -> "FederationSettings | None":
    """Model, data and disk; returns the settings that peers compare, where a model could be built."""
    if config.guest:
        with report.item("model") as tell:
            tell("a program of yours brings it, with its data, when it joins; peers are compared then")
        return None
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from conlora.training.data import load_data
    from conlora.training.model import build_model
    from conlora.training.quiet import quiet_libraries

    quiet_libraries()
    built: Built | None = None
    with report.item("model") as tell:
        built = build_model(config)
        tell(
            f"{config.model.base}: adapter of {built.adapter.schema.size:,} values, {human_bytes(built.shared.nbytes)} a snapshot"
        )
    if built is None:
        return None
    with report.item("data") as tell:
        # Before anything is written into it: the data's intermediate files are rows, and for this user's eyes only.
        config.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        data = load_data(config.data, built.task, config.state_dir / "datasets", seed=0)
        tell(f"{len(data.train):,} rows to train on, {len(data.evaluation):,} held out")
    with report.item("disk") as tell:
        tell(_check_disk(config, built.adapter.schema.nbytes))
    return config.settings(built.fingerprint, built.peft, built.shared)


def _check_disk(config: NodeConfig, adapter_bytes: int) -> str:
    needed = (config.training.keep_checkpoints + 1) * CHECKPOINT_FACTOR * adapter_bytes + SPARE_BYTES
    try:
        config.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        free = shutil.disk_usage(config.state_dir).free
    except OSError as error:
        raise StateError(f"state_dir: {config.state_dir} can't be written ({error})") from error
    if not os.access(config.state_dir, os.W_OK):
        raise StateError(f"state_dir: {config.state_dir} is not writable for this user; change its owner")
    if free < needed:
        raise StateError(f"state_dir: {human_bytes(free)} free where checkpoints need {human_bytes(needed)}; make room")
    return f"{human_bytes(free)} free, checkpoints need {human_bytes(needed)}"


def _check_address(config: NodeConfig, key: str, address: str) -> str:
    try:
        with AdminClient(config.admin_path) as client:
            client.status()
            return f"{address}, in use by this node's own daemon"
    except NodeUnreachable:
        host, _, port = address.rpartition(":")
    try:
        family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
        with socket.socket(family) as attempt:
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            attempt.bind((host.strip("[]"), int(port)))
    except (OSError, OverflowError) as error:
        raise ConfigError(f"{key}: {address} can't be used ({error}); choose another address or port") from error
    return f"{address} is free"


def _check_peer(
    config: NodeConfig, us: Introductions, peer: Peer, settings: "FederationSettings", seconds: float
) -> str:
    if peer.address is None:
        return "has no address: it has to dial this node"
    probe(config.name, us, peer, settings, seconds)
    return f"{peer.address}: reachable, certificate accepted, same federation"
