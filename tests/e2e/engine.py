"""A Docker engine for tests: the one that answers, or one of our own that leaves nothing behind."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from tests.daemons import wait_until

PACKAGES = ("docker.io", "docker-compose", "iptables", "debootstrap")
BASE = "debian:bookworm-slim"
STAND_IN = Path(__file__).with_name("stand_in_base_image.sh")
START_SECONDS, STOP_SECONDS = 60.0, 60.0
CGROUPS, KEYS = Path("/sys/fs/cgroup"), Path("/etc/docker")


class Unavailable(Exception):
    """This machine has no engine and can't get one; the sentence says why."""


@contextlib.contextmanager
def engine() -> Iterator["OwnEngine | None"]:
    """While entered, `docker` and a compose command work; yields the engine where it is our own. Raises Unavailable."""
    if answers():
        _require_compose()
        yield None
        return
    if os.getuid() != 0:
        raise Unavailable("no Docker engine answers, and only root can start one: set DOCKER_HOST, or run this as root")
    _install()
    with OwnEngine() as own:
        yield own


@contextlib.contextmanager
def base_image() -> Iterator[None]:
    """While entered, the Dockerfile's base image is there: as it was, pulled, or a stand-in that is removed in the end."""
    if _succeeds("docker", "image", "inspect", BASE) or _succeeds("docker", "pull", BASE):
        yield
        return
    subprocess.run([STAND_IN, BASE], check=True)
    try:
        yield
    finally:
        subprocess.run(["docker", "image", "rm", BASE], check=True, stdout=subprocess.DEVNULL)


def compose_command() -> Sequence[str]:
    """`docker compose`, or `docker-compose` as Debian has it."""
    return ("docker", "compose") if _succeeds("docker", "compose", "version") else ("docker-compose",)


def answers() -> bool:
    """Whether an engine does, at DOCKER_HOST or where the `docker` command looks by itself."""
    return shutil.which("docker") is not None and _succeeds("docker", "version")


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False).returncode == 0


def _require_compose() -> None:
    if shutil.which(compose_command()[0]) is None:
        raise Unavailable("neither `docker compose` nor `docker-compose` is there; install one of them")


def _install() -> None:
    """What of Debian's packages is missing. Raises Unavailable where apt does not have it."""
    if all(shutil.which(command) for command in ("dockerd", "docker", "iptables", "debootstrap")):
        _require_compose()
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        for arguments in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *PACKAGES]):
            subprocess.run(["apt-get", *arguments], check=True, env=environment, stdout=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Unavailable(f"no Docker engine is here, and apt can't install one: {error}") from error


class OwnEngine:
    """A daemon that keeps everything in a folder, and sets up nothing in this machine's network. Needs root.

    It begins on this machine's network, to build images, without a bridge or a packet filter of its own; an idle `docker0` of an
    earlier engine goes. After `isolate` it has a network namespace to itself, where it does what engines do; all that is
    gone with the daemon.
    """

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="conlora-engine-"))
        self._before = set(_traces())
        self._outside = os.environ.get("DOCKER_HOST")
        self._daemon: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        os.environ["DOCKER_HOST"] = f"unix://{self._folder}/docker.sock"
        try:
            self._start(on_host=True)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        if self._outside is None:
            del os.environ["DOCKER_HOST"]
        else:
            os.environ["DOCKER_HOST"] = self._outside
        self._stop()
        _clean_up(self._folder, self._before)

    def isolate(self) -> None:
        """From now on containers have networks, and no way to this machine's."""
        self._stop()
        self._start(on_host=False)

    def _start(self, on_host: bool) -> None:
        folder, log = self._folder, self._folder / "dockerd.log"
        (folder / "daemon.json").write_text("{}")
        command = [
            "dockerd", "-H", os.environ["DOCKER_HOST"], "--config-file", f"{folder}/daemon.json",
            "--pidfile", f"{folder}/docker.pid", "--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec",
        ]  # fmt: skip
        if on_host:
            command += ["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"]
        else:
            command = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *command]
        with log.open("ab") as output:
            daemon = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        self._daemon = daemon
        wait_until(lambda: answers() or daemon.poll() is not None, "a Docker engine of our own", START_SECONDS)
        if daemon.poll() is not None:
            raise Unavailable(f"dockerd does not start: {log.read_text()[-2000:]}")

    def _stop(self) -> None:
        if self._daemon is None:
            return
        self._daemon.send_signal(signal.SIGTERM)
        try:
            self._daemon.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._daemon.kill()
            self._daemon.wait()


def _clean_up(folder: Path, before: set[Path]) -> None:
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    ours = [mount for mount in mounts if mount.startswith(f"{folder}/")]
    for mount in sorted(ours, reverse=True):  # inner ones first
        subprocess.run(["umount", mount], check=True)
    shutil.rmtree(folder)
    for trace in sorted(set(_traces()) - before, reverse=True):
        if trace.is_dir():
            trace.rmdir()
        else:
            trace.unlink()


def _traces() -> Iterator[Path]:
    """What engines leave outside their folders: empty groups of processes, and a key that nobody asks for."""
    for group in (*CGROUPS.glob("docker"), *CGROUPS.glob("*/docker")):
        yield from (group, *(path for path in group.rglob("*") if path.is_dir()))
    if KEYS.exists():
        yield from (KEYS, *KEYS.iterdir())
