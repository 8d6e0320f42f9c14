"""The unit and what is installed with it, as far as systemd's own tools judge them; the scripts below a directory."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.installs import SYSTEMD, files, make_user, run
from tests.service import Unit

from conlora.cli.template import SERVICE
from conlora.config.basics import NodeBasics
from conlora.daemon.notify import BEATS_PER_PERIOD, STATUS_SECONDS
from conlora.errors import ConfigError, StateError, Unavailable
from conlora.net.identity import CREDENTIAL

MOST_EXPOSED = 3.0
UNIT = "/etc/systemd/system/conlora@.service"
CHECK = "/etc/systemd/system/conlora-check@.service"
GPU = "/etc/systemd/system/conlora@.service.d/gpu.conf"
WITH_GPU = {GPU, f"{CHECK}.d/gpu.conf"}
PAGE = SYSTEMD.parents[1] / "docs/how-to/systemd.md"
NODES = ("conlora@mercy.service", "conlora-check@mercy.service")
INSTALLED = {
    UNIT, CHECK, "/etc/systemd/system/conlora-gpu.service", "/etc/sysusers.d/conlora.conf", "/etc/tmpfiles.d/conlora.conf",
    "/usr/local/bin/conlora",
    "/opt/conlora/pyvenv.cfg", "/opt/conlora/pip.log", "/opt/conlora/bin/pip", "/opt/conlora/bin/conlora",
}  # fmt: skip

needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd's tools are not installed")


@pytest.fixture(scope="module", params=[(), ("--gpu",)], ids=["plain", "gpu"])
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    done = run("install.sh", root, *request.param)
    assert done.returncode == 0, done.stderr
    shutil.copytree("/lib/systemd/system", root / "lib" / "systemd" / "system", symlinks=True)  # what units refer to
    return root


def analyze(root: Path, *words: str, unit: str = "conlora@mercy.service") -> "subprocess.CompletedProcess[str]":
    command = ["systemd-analyze", f"--root={root}", *words, unit]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@needs_systemd
@pytest.mark.parametrize("unit", NODES)
def test_the_unit_is_sound(installed: Path, unit: str) -> None:
    done = analyze(installed, "verify", "--man=no", unit=unit)  # and, where it wants that, conlora-gpu.service
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_systemd
def test_a_mistake_in_the_unit_would_be_found(installed: Path) -> None:
    unit = installed / UNIT[1:]
    unit.with_name("odd@.service").write_text(unit.read_text().replace("WatchdogSec=", "WatchdogSeconds="))
    assert "Unknown key 'WatchdogSeconds'" in analyze(installed, "verify", "--man=no", unit="odd@mercy.service").stderr


@needs_systemd
@pytest.mark.parametrize("unit", NODES)
def test_the_unit_is_confined(installed: Path, unit: str) -> None:
    words = ("security", "--offline=true", "--no-pager")
    done = analyze(installed, *words, f"--threshold={MOST_EXPOSED * 10:.0f}", unit=unit)
    assert done.returncode == 0, done.stdout
    exposure = float(done.stdout.rpartition("Overall exposure level for ")[2].split(": ")[1].split()[0])
    assert 0 < exposure < MOST_EXPOSED
    gpu = (installed / GPU[1:]).exists()
    table = json.loads(analyze(installed, *words, "--json=short", unit=unit).stdout)
    assert ("PrivateDevices" in {row["json_field"] for row in table if row["set"] is False}) == gpu
    told = re.search(r"(\d\.\d) for the unit,\s(\d\.\d) with the GPU, .* \(systemd (\d+)\)", PAGE.read_text())
    assert told
    version = subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True, check=True).stdout
    if version.split()[1] == told[3]:  # each judges by its own list
        assert exposure == float(told[2] if gpu else told[1])


def test_the_preflight_sees_what_the_node_sees() -> None:
    node, check = (settings(SYSTEMD / name) for name in ("conlora@.service", "conlora-check@.service"))
    of_the_daemon = {
        "Type", "NotifyAccess", "ExecStart", "ExecReload", "TimeoutStartSec", "WatchdogSec", "KillMode", "TimeoutStopSec",
        "Restart", "RestartSec", "RestartPreventExitStatus", "RuntimeDirectory", "RuntimeDirectoryMode",
    }  # fmt: skip
    assert [line for line in check if line.partition("=")[0] not in of_the_daemon] == [
        line for line in node if line.partition("=")[0] not in of_the_daemon
    ]
    assert {line.partition("=")[0] for line in check} & of_the_daemon == {"Type", "ExecStart"}


def settings(path: Path) -> list[str]:
    """Of the section [Service]."""
    section = path.read_text().partition("[Service]\n")[2].partition("\n[Install]")[0]
    return [line for line in section.splitlines() if line and not line.startswith("#")]


@needs_systemd
def test_user_and_directories(tmp_path: Path) -> None:
    for kind in ("sysusers.d", "tmpfiles.d"):
        shutil.copytree(SYSTEMD / kind, tmp_path / "etc" / kind)
    make_user(tmp_path)
    (user,) = (tmp_path / "etc" / "passwd").read_text().splitlines()
    assert user.startswith("conlora:x:")
    assert user.endswith(":/var/lib/conlora:/usr/sbin/nologin")
    assert (tmp_path / "etc" / "group").read_text().startswith("conlora:x:")
    for place in ("etc", "var/lib", "var/cache"):
        assert (tmp_path / place / "conlora").stat().st_mode & 0o777 == 0o755


def test_the_unit_fits_the_code() -> None:
    unit = Unit(SYSTEMD / "conlora@.service", "mercy")
    mended_by_hand = {ConfigError.exit_code, StateError.exit_code}
    assert set(map(int, unit.one("RestartPreventExitStatus").split())) == mended_by_hand
    assert Unavailable.exit_code not in mended_by_hand
    for sentence in (
        f"the node after {unit.one('RestartSec')} s",
        f"at most {unit.one('StartLimitBurst')} starts an hour",
    ):
        assert sentence in PAGE.read_text()
    assert int(unit.one("WatchdogSec")) / BEATS_PER_PERIOD > STATUS_SECONDS == 5, "what the unit's comment says"
    assert unit.one("LoadCredential") == "identity:/etc/conlora/mercy/identity"
    assert CREDENTIAL == "identity_"
    places = dict(
        line.split(": ") for line in SERVICE.format(instance="mercy").splitlines() if not line.startswith("#")
    )
    basics = NodeBasics(name="mercy", **{key: value.split()[0] for key, value in places.items()})
    assert str(basics.state_dir) == f"/var/lib/{unit.one('StateDirectory')}"
    assert str(basics.admin_path) == f"/run/{unit.one('RuntimeDirectory')}/admin.sock"
    assert basics.admin_group == unit.one("Group")


def test_installing_twice_changes_nothing(tmp_path: Path) -> None:
    first = run("install.sh", tmp_path)
    assert first.returncode == 0, first.stderr
    assert f"written    {UNIT}" in first.stdout
    assert "conlora 0." in first.stdout
    assert files(tmp_path) - {"/python3.11"} == INSTALLED
    assert os.readlink(tmp_path / "usr/local/bin/conlora") == "/opt/conlora/bin/conlora"
    again = run("install.sh", tmp_path)
    assert again.returncode == 0
    assert "written" not in again.stdout
    assert files(tmp_path) - {"/python3.11"} == INSTALLED
    asked = (tmp_path / "opt/conlora/pip.log").read_text().splitlines()
    assert asked == [f"install --quiet -c {SYSTEMD.parents[1]}/constraints.txt {SYSTEMD.parents[1]}"] * 2


def test_uninstalling_keeps_what_is_the_operators(tmp_path: Path) -> None:
    assert run("install.sh", tmp_path, "--gpu").returncode == 0
    own = {
        "/etc/conlora/mercy/identity/node.key",
        "/var/lib/conlora/mercy/history.db",
        f"{GPU.rpartition('/')[0]}/own.conf",
    }
    for name in own:
        (tmp_path / name[1:]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name[1:]).touch()
    done = run("uninstall.sh", tmp_path)
    assert done.returncode == 0, done.stderr
    assert files(tmp_path) - {"/python3.11"} == own
    for sentence in (f"removed    {UNIT}", f"removed    {GPU}", "removed    /opt/conlora", "kept       /etc/conlora"):
        assert sentence in done.stdout
    assert f"kept       {GPU.rpartition('/')[0]}: not of install.sh" in done.stdout
    again = run("uninstall.sh", tmp_path)
    assert again.returncode == 0
    assert "removed" not in again.stdout.replace("removes what", "")
    purged = run("uninstall.sh", tmp_path, "--purge")
    assert purged.returncode == 0
    assert files(tmp_path) - {"/python3.11"} == {f"{GPU.rpartition('/')[0]}/own.conf"}


def test_what_is_no_installation_of_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "opt/conlora").mkdir(parents=True)
    (tmp_path / "opt/conlora/precious").touch()
    (tmp_path / "usr/local/bin").mkdir(parents=True)
    (tmp_path / "usr/local/bin/conlora").symlink_to("/srv/other")
    done = run("install.sh", tmp_path)
    assert done.returncode == 2
    assert "is there already, and no virtual environment; move it away" in done.stderr
    assert run("uninstall.sh", tmp_path).returncode == 0
    assert files(tmp_path) - {"/python3.11"} == {"/opt/conlora/precious", "/usr/local/bin/conlora"}


@pytest.mark.parametrize("link", [False, True])
def test_a_command_of_that_name_that_is_not_ours_stays(tmp_path: Path, link: bool) -> None:
    place = tmp_path / "usr/local/bin/conlora"
    place.parent.mkdir(parents=True)
    if link:
        place.symlink_to("/srv/other")
    else:
        place.write_text("precious")
    done = run("install.sh", tmp_path)
    assert done.returncode == 2
    assert f"{place} is there already, and not of this script; move it away" in done.stderr
    assert files(tmp_path) - {"/python3.11"} == {"/usr/local/bin/conlora"}


def test_an_upgrade_keeps_the_gpu(tmp_path: Path) -> None:
    assert run("install.sh", tmp_path, "--gpu").returncode == 0
    (tmp_path / GPU[1:]).write_text("of an earlier version")
    again = run("install.sh", tmp_path)
    assert again.returncode == 0, again.stderr
    assert f"written    {GPU}" in again.stdout
    assert files(tmp_path) - {"/python3.11"} == INSTALLED | WITH_GPU


@pytest.mark.parametrize(("script", "option"), [("install.sh", "--purge"), ("uninstall.sh", "--gpu")])
def test_an_option_that_there_is_not(tmp_path: Path, script: str, option: str) -> None:
    done = run(script, tmp_path, option)
    assert done.returncode == 2
    assert f"{script}: {option}: no such option" in done.stderr
    assert files(tmp_path) == {"/python3.11"}


def test_a_python_without_venv_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    done = run("install.sh", tmp_path, FAILS="import")
    assert done.returncode == 2
    assert "python3.11 lacks its venv module; install python3.11-venv, or set PYTHON" in done.stderr
    assert files(tmp_path) == {"/python3.11"}


def test_an_installation_that_was_broken_off_is_begun_anew(tmp_path: Path) -> None:
    assert run("install.sh", tmp_path, FAILS="venv").returncode != 0
    assert (tmp_path / "opt/conlora/pyvenv.cfg").exists()
    again = run("install.sh", tmp_path)
    assert again.returncode == 0, again.stderr
    assert files(tmp_path) - {"/python3.11"} == INSTALLED


def test_a_python_that_the_service_could_not_run(tmp_path: Path) -> None:
    done = run("install.sh", tmp_path, PYTHON="no-such-python")
    assert done.returncode == 2
    assert "no-such-python: no such command; install Python 3.11" in done.stderr
