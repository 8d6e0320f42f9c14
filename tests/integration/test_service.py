"""Nodes as the unit starts them, where no systemd runs: a stand-in makes user, directories, credentials, confinement. As root."""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml
from tests.daemons import PATIENCE, free_port, wait_until
from tests.installs import SOURCE, make_user, run
from tests.managers import Manager

from conlora.cli.peers import add
from conlora.cli.template import write_node
from conlora.net.admin_client import AdminClient
from conlora.net.identity import load_identity

CLONE_NEWNS = 0x00020000
UNIT = "etc/systemd/system/conlora@.service"
CHECK = "etc/systemd/system/conlora-check@.service"
MODEL, DATA = Path("/srv/model"), Path("/srv/films.csv")


def unavailable() -> str:
    """Why the stand-in can't be used here, or nothing."""
    if os.geteuid() != 0:
        return "needs root"
    code = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode
    if code:
        return "no mount namespaces here"
    try:
        ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return "no libseccomp here"
    return ""


pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable() or "-")


class Host:
    """A machine on which ConLoRA is installed: a directory that a service sees as its root."""

    def __init__(self, root: Path, data: Path) -> None:
        self.root = root
        done = run("install.sh", root)
        assert done.returncode == 0, done.stderr
        make_user(root)
        for name in ("run/systemd", "run/conlora", "srv/model"):
            (root / name).mkdir(parents=True)
        root.chmod(0o755)
        shutil.copyfile(data, root / "srv/films.csv")

    def node(self, name: str, **sections: Any) -> Path:
        """Makes a node as an operator does whose files are nobody else's business, and fills in its file."""
        directory = self.root / "etc" / "conlora" / name
        address = f"127.0.0.1:{free_port()}"
        with umask(0o077):
            write_node(directory, name, address, address, service=True)
        path = directory / "conlora.yaml"
        config = yaml.safe_load(path.read_text())
        config |= {
            "model": {"base": str(MODEL)}, "lora": {"rank": 2, "alpha": 4}, "data": {"path": str(DATA)},
            "task": {"labels": ["negative", "positive"], "max_length": 16},
            "training": {"rounds": 1_000_000, "local_steps": 2, "batch_size": 8, "threads": 1, "device": "cpu", "slowdown": 5},
        }  # fmt: skip
        path.write_text(yaml.safe_dump({key: value for key, value in (config | sections).items() if value is not None}))
        return directory

    @contextlib.contextmanager
    def started(self, name: str) -> Iterator["Service"]:
        """`systemctl start`, and in the end whatever still runs is killed."""
        with (
            Manager(self.root / "run" / "systemd" / f"{name}.notify") as manager,
            (self.root / "journal").open("ab") as journal,
        ):
            process = subprocess.Popen(
                self.command(name), stdout=journal, stderr=journal, stdin=subprocess.DEVNULL, env=environment()
            )
            try:
                with AdminClient(self.root / "run" / "conlora" / name / "admin.sock") as admin:
                    yield Service(process, manager, admin)
            except BaseException as error:
                error.add_note(self.journal()[-3000:])
                raise
            finally:
                process.kill()
                process.wait()

    def command(self, name: str, *command: str, unit: str = UNIT) -> list[str]:
        """The stand-in's, for the unit or for another command in its place."""
        places = [place for place in (SOURCE, sys.prefix, sys.base_prefix) if not Path(place).is_relative_to("/usr")]
        shown = [*((Path(place), Path(place)) for place in places), (self.root / "srv", Path("/srv"))]
        binds = [word for source, target in shown for word in ("--bind", f"{source}:{target}")]
        return [sys.executable, "-m", "tests.service", *binds, str(self.root / unit), name, str(self.root), *command]

    def check(self, name: str) -> "subprocess.CompletedProcess[str]":
        """`systemctl start conlora-check@NAME`."""
        command = self.command(name, unit=CHECK)
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment())

    def journal(self) -> str:
        """What the services have said."""
        return (self.root / "journal").read_text()


class Service:
    """One that runs."""

    def __init__(self, process: "subprocess.Popen[bytes]", manager: Manager, admin: AdminClient) -> None:
        self.process, self.manager, self.admin = process, manager, admin

    def ready(self) -> None:
        """Waits until it says so."""
        self.manager.wait_for("READY=1")

    def stop(self) -> int:
        """`systemctl stop`, as far as SIGTERM goes; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(PATIENCE)
        assert self.manager.hear().count("STOPPING=1") == 1
        return code


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    """An operator's, for a while."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def environment() -> dict[str, str]:
    """Nothing of a service's environment comes from here; the stand-in has to find itself."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), str(SOURCE)])}


@pytest.fixture
def host(tiny_data: Path) -> Iterator[Host]:
    with TemporaryDirectory(prefix="conlora-") as root:  # short: a Unix socket's path may have 108 bytes
        yield Host(Path(root), tiny_data)


def status_of(pid: int) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)


def test_a_node_as_the_unit_starts_it(host: Host) -> None:
    """Without a trainer: its program of the user's own never joins."""
    host.node("mercy", task={"type": "guest"})
    with host.started("mercy") as service:
        service.ready()
        node = service.admin.status()
        assert (node.name, node.state, node.pid) == ("mercy", "waiting", service.process.pid)
        service.manager.wait_for("STATUS=waiting, round 0")
        seen = status_of(service.process.pid)
        uid = int(next(line for line in (host.root / "etc/passwd").read_text().splitlines()).split(":")[2])
        assert seen["Uid"].split() == [str(uid)] * 4
        assert (int(seen["CapBnd"], 16), int(seen["CapEff"], 16), seen["NoNewPrivs"], seen["Seccomp"]) == (
            0,
            0,
            "1",
            "2",
        )
        socket = host.root / "run/conlora/mercy/admin.sock"
        assert (socket.stat().st_mode & 0o777, socket.stat().st_uid) == (0o660, uid)
        assert service.stop() == 0
    assert not socket.exists()
    assert (host.root / "var/lib/conlora/mercy/history.db").stat().st_uid == uid
    assert "[info     ] node up" in host.journal()
    assert "[error" not in host.journal()


def test_a_mistake_ends_with_a_code_that_is_not_started_again(host: Host) -> None:
    directory = host.node("mercy", colour="red")
    with host.started("mercy") as service:
        assert service.process.wait(PATIENCE) == 2
        assert "READY=1" not in service.manager.hear()
    assert f"/etc/conlora/{directory.name}/conlora.yaml: colour: unknown key" in host.journal()


@pytest.mark.long
def test_two_nodes_train_under_the_unit(host: Host, tiny_model: Path) -> None:
    """The trainer is confined too; a reload runs beside it; a stop ends with a checkpoint."""
    shutil.copytree(tiny_model, host.root / "srv" / "model", dirs_exist_ok=True)
    for path in (host.root / "srv" / "model", *(host.root / "srv" / "model").iterdir()):
        path.chmod(0o755)  # what a test, or safetensors, writes is for its user only, and so is the copy
    directories = {name: host.node(name) for name in ("mercy", "st-anna")}
    for name, other in (("mercy", "st-anna"), ("st-anna", "mercy")):
        basics = yaml.safe_load((directories[other] / "conlora.yaml").read_text())
        card = host.root / f"{other}.yaml"
        card.write_text(load_identity(directories[other] / "identity").card(other, basics["advertise"]))
        with umask(0o077):
            add(card, directories[name])
    check = host.check("mercy")
    assert check.returncode == 4, check.stdout + check.stderr
    said = [" ".join(line.split()) for line in check.stdout.splitlines()]
    assert "ok data 540 rows to train on, 60 held out" in said
    (failed,) = (line for line in said if not line.startswith("ok "))
    assert failed.startswith("fails peer st-anna st-anna can't be reached"), "it does not run yet"
    state = host.root / "var/lib/conlora/mercy"
    assert [place.stat().st_mode & 0o777 for place in (state, state / "datasets")] == [0o700, 0o700]
    with host.started("mercy") as mercy, host.started("st-anna") as anna:
        for service in (mercy, anna):
            service.ready()
        for service in (mercy, anna):
            wait_until(lambda s=service: s.admin.status().peers[0].weight == 0.5, "they mix")
            service.manager.wait_for("STATUS=training", seconds=PATIENCE)
        trainer = status_of(mercy.admin.status().trainer_pid)
        assert (int(trainer["CapBnd"], 16), trainer["NoNewPrivs"], trainer["Seccomp"]) == (0, "1", "2")
        reload = subprocess.run(
            host.command("mercy", "/opt/conlora/bin/conlora", "reload", "-c", "/etc/conlora/mercy"),
            capture_output=True, text=True, check=False, env=environment(),
        )  # fmt: skip
        assert (reload.returncode, reload.stdout) == (0, "reloaded: nothing differs\n"), reload.stderr
        assert mercy.manager.hear().count("READY=1") == 2
        for service in (mercy, anna):
            assert service.stop() == 0
    for name in directories:
        assert list((host.root / "var/lib/conlora" / name / "checkpoints").glob("step-*/manifest.json"))
    assert "[error" not in host.journal()
