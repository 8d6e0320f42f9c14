"""Writes a federation of containers: a compose file, and what each node of it mounts.

Each node's folder is mounted read-only beside the base model, so that a configuration's relative paths mean the same inside
and outside; what a node writes goes to a volume of its own.
"""

import json
import os
import re
import secrets
import stat
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import yaml

from conlora.errors import ConfigError, StateError
from conlora.testbed.compose_watch import METRICS_PORT, write_watch
from conlora.testbed.data import Deal, deal
from conlora.testbed.layout import NodeSetup, Place, RunPlan, write_nodes
from conlora.testbed.spec import TestbedSpec, load_spec

COMPOSE_FILE, ENVIRONMENT_FILE = "compose.yaml", ".env"
SPEC_FILE, TESTBED_FILE, TEST_FILE = "spec.yaml", "testbed.json", "test.parquet"
LABEL = "org.conlora.testbed"  # of containers, with the testbed's id
INSIDE = Path("/testbed")  # where containers have a node's folder, and the model beside it
VOLUME = Path("/var/lib/conlora")  # the image's, with the state in it
MODEL = "model"
PEER_PORT = 7443
IMAGE_USER = 7443  # the Dockerfile's
SIZE = re.compile(r"\d+[kmg]")


@dataclass(frozen=True, slots=True)
class Limits:
    """What each container may take: cores, and memory as compose files write it (`2g`)."""

    cpus: float
    memory: str


@dataclass(frozen=True, slots=True)
class ComposeTestbed:
    """What was written into a directory. id: unlike all others; Compose's name for it, and the label of its containers."""

    id: str
    spec: TestbedSpec
    rule: str
    directory: Path
    setups: list[NodeSetup]


def write_testbed(spec: TestbedSpec, rule: str | None, directory: Path, limits: Limits) -> ComposeTestbed:
    """Fills a directory that is empty or not there. rule: one of the specification's; None: its only one.

    Raises ConfigError, and StateError where the directory can't be written.
    """
    chosen = _chosen(spec, rule)
    if not SIZE.fullmatch(limits.memory):
        raise ConfigError(f"--memory: {limits.memory!r} is no size; write a number with k, m or g, such as 2g")
    with tempfile.TemporaryDirectory(prefix="conlora-") as cache:
        dealt = deal(spec, Path(cache))
        try:
            _make_empty(directory)
            return _write(spec, chosen, dealt, directory, limits)
        except OSError as error:
            raise StateError(f"{directory}: can't be written ({error}); choose a writable directory with -o") from error


def read_testbed(directory: Path) -> ComposeTestbed:
    """What `write_testbed` wrote. Raises ConfigError."""
    try:
        told = json.loads((directory / TESTBED_FILE).read_text(encoding="utf-8"))
        setups = [
            NodeSetup(directory=directory / node["name"], admin_socket=_admin_socket(), **node)
            for node in told["nodes"]
        ]
        return ComposeTestbed(told["id"], load_spec(directory / SPEC_FILE), told["rule"], directory, setups)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{directory}: no compose testbed ({error}); give a directory that `conlora testbed compose` has filled"
        ) from error


def _chosen(spec: TestbedSpec, rule: str | None) -> str:
    if rule is None and len(spec.rules) > 1:
        raise ConfigError(
            f"rules: a compose testbed runs one rule, and {spec.name} names {', '.join(spec.rules)}; choose one with --rule"
        )
    if rule is not None and rule not in spec.rules:
        raise ConfigError(
            f"--rule: {rule!r} is not among the rules of {spec.name} ({', '.join(spec.rules)}); choose one of them"
        )
    return rule or spec.rules[0]


def _make_empty(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise ConfigError(
            f"{directory}: is there already and not empty; choose another directory with -o, or remove it"
        )


def _write(spec: TestbedSpec, rule: str, dealt: Deal, directory: Path, limits: Limits) -> ComposeTestbed:
    local = Path(spec.model.base).is_dir()
    if local:
        _check_readable(Path(spec.model.base))
        (directory / MODEL).symlink_to(Path(spec.model.base).resolve())
    within = spec.model_copy(update={"model": spec.model.model_copy(update={"base": f"../{MODEL}"})}) if local else spec
    shares = dict(zip(spec.names, dealt.shares, strict=True))
    plan = RunPlan("federated", f"{rule}, {spec.topology or 'own edges'}", rule, directory, shares, spec.graph)
    setups = write_nodes(within, plan, {name: _place(name, limits) for name in spec.names})

    testbed = ComposeTestbed(_new_id(spec.name), spec, rule, directory, setups)
    dealt.test.write(directory / TEST_FILE)
    (directory / SPEC_FILE).write_text(
        yaml.safe_dump(spec.to_json(), sort_keys=False, allow_unicode=True), encoding="utf-8"
    )
    (directory / TESTBED_FILE).write_text(json.dumps(_told(testbed), indent=1), encoding="utf-8")
    (directory / ENVIRONMENT_FILE).write_text(f"COMPOSE_PROJECT_NAME={testbed.id}\n", encoding="utf-8")
    (directory / COMPOSE_FILE).write_text(_compose_file(testbed, limits, local), encoding="utf-8")
    write_watch(directory / "watch", spec.names)
    _give_to_containers(testbed)
    return testbed


def _new_id(name: str) -> str:
    """Of what Compose allows."""
    return f"{re.sub(r'[^a-z0-9-]', '-', name.lower())}-{secrets.token_hex(4)}"


def _place(name: str, limits: Limits) -> Place:
    return Place(
        listen=f"0.0.0.0:{PEER_PORT}",
        address=f"{name}:{PEER_PORT}",
        admin_socket=_admin_socket(),
        threads=max(1, int(limits.cpus)),
        state=str(VOLUME / "state"),
        metrics=f"0.0.0.0:{METRICS_PORT}",  # for Prometheus; nothing but the federation's network reaches it
    )


def _admin_socket() -> Path:
    return VOLUME / "state" / "admin.sock"


def _told(testbed: ComposeTestbed) -> dict[str, Any]:
    nodes = [
        {"name": setup.name, "peers": setup.peers, "rows": setup.rows, "class_counts": setup.class_counts}
        for setup in testbed.setups
    ]
    return {"id": testbed.id, "rule": testbed.rule, "nodes": nodes}


def _compose_file(testbed: ComposeTestbed, limits: Limits, local: bool) -> str:
    template = resources.files("conlora.testbed").joinpath("compose.yaml.j2").read_text(encoding="utf-8")
    return (
        jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
        .from_string(template)
        .render(
            testbed=testbed,
            limits=limits,
            local=local,
            label=LABEL,
            user=_user(),
            inside=INSIDE,
            volume=VOLUME,
            model=MODEL,
        )
    )


def _user() -> str:
    """Whom containers run as: a key may be read by its owner only, and who wrote it is that, but for root."""
    return f"{os.getuid()}:{os.getgid()}" if os.getuid() else f"{IMAGE_USER}:{IMAGE_USER}"


def _check_readable(folder: Path) -> None:
    """Raises ConfigError unless containers, which see nothing but this folder, can read everything in it as their user."""
    for path in (folder, *folder.rglob("*")):
        if path != folder and path.is_symlink() and _leads_out(path, folder):
            raise ConfigError(
                f"model.base: {path} is a link out of the folder, as in a hub's cache, and containers see that folder only; "
                f"copy it with `cp -rL {folder} ...` and name the copy"
            )
        status, needed = path.stat(), stat.S_IROTH | (stat.S_IXOTH if path.is_dir() else 0)
        if os.getuid() == 0 and status.st_uid != IMAGE_USER and status.st_mode & needed != needed:
            raise ConfigError(
                f"model.base: {path} can be read by its owner only, and containers run as another user; say "
                f"`chmod -R a+rX {folder}`"
            )


def _leads_out(link: Path, folder: Path) -> bool:
    """Whether its target has another place in a container, or none."""
    return link.readlink().is_absolute() or not link.exists() or not link.resolve().is_relative_to(folder.resolve())


def _give_to_containers(testbed: ComposeTestbed) -> None:
    if os.getuid() == 0:
        for setup in testbed.setups:
            for path in (setup.directory, *setup.directory.rglob("*")):
                os.chown(path, IMAGE_USER, IMAGE_USER)
