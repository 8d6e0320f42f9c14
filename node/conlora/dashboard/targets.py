"""Which nodes the dashboard shows: finds admin sockets from what was named on the command line."""

import functools
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from conlora.config import load_basics
from conlora.errors import ConfigError

NODE_FILES = ("conlora.yaml", "node.yaml")  # as `conlora init` and as testbeds call a node's configuration
TESTBED_FILE = "spec.yaml"
# Nodes in a testbed's directory: of one run, of a rule's run, of a rule's baselines.
NODES_BELOW = ("*/node.yaml", "*/*/node.yaml", "*/*/*/node.yaml")


@dataclass(frozen=True, slots=True)
class Target:
    """One node to ask: what it is called until it answers, and its admin socket."""

    name: str
    socket: Path

    @property
    def key(self) -> str:
        """Names the target on the page, without telling where its files are."""
        return hashlib.sha256(str(self.socket.absolute()).encode()).hexdigest()[:12]


Discover = Callable[[], list[Target]]


def discoverer(places: list[Path]) -> Discover:
    """What finds the nodes of these places now: configurations, directories, admin sockets, testbeds' directories.

    Call it again and again: a testbed's nodes come and go. Raises ConfigError where a place is none of these.
    """
    found = [_place(place) for place in places]

    def discover() -> list[Target]:
        targets = [target for finder in found for target in finder()]
        return list({target.key: target for target in targets}.values())

    return discover


def _place(place: Path) -> Discover:
    if place.is_dir():
        for name in NODE_FILES:
            if (place / name).is_file():
                return _fixed(_node(place / name))
        if (place / TESTBED_FILE).is_file() or any(_configurations(place)):
            return functools.partial(_running, place)
        raise ConfigError(
            f"{place}: holds neither a node's configuration nor a testbed; name a node's file or directory, its admin "
            "socket, or the directory that `conlora testbed run` fills"
        )
    if place.is_socket() or place.suffix == ".sock":
        return _fixed(Target(place.stem, place))
    return _fixed(_node(place))


def _fixed(target: Target) -> Discover:
    return lambda: [target]


def _node(configuration: Path) -> Target:
    basics = load_basics(configuration)
    return Target(basics.name, basics.admin_path)


def _running(testbed: Path) -> list[Target]:
    """The testbed's nodes that run now: it runs one federation after the other, mostly under the same names."""
    targets = (_remembered(path, path.stat().st_mtime_ns) for path in _configurations(testbed))
    return [target for target in targets if target and target.socket.is_socket()]


def _configurations(testbed: Path) -> Iterator[Path]:
    for pattern in NODES_BELOW:
        yield from sorted(testbed.glob(pattern))


@functools.lru_cache(maxsize=1024)
def _remembered(configuration: Path, written: int) -> Target | None:
    """A testbed's node; None for a file that is being written, or is no node's."""
    try:
        return _node(configuration)
    except ConfigError:
        return None
