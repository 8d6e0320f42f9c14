"""The wheel as users install it: built from the sources, in an environment of its own, and every command works from there.

The environment borrows the libraries of this one, so that nothing large is installed twice; ConLoRA itself it has from the wheel.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from tests.daemons import free_port, wait_until

from conlora.cli.main import app

ROOT = Path(__file__).parents[2]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "node")
PLAIN = {"TERM": "dumb", "COLUMNS": "200", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]


class Installed:
    """An environment with the wheel, and a directory to work in that is no checkout."""

    def __init__(self, home: Path, wheel: Path) -> None:
        self.wheel = wheel
        self.work = home / "work"
        self.work.mkdir()
        environment = home / "venv"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
        self.python = environment / "bin" / "python"
        pip = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(self.python),
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
        ]
        subprocess.run([*pip, str(wheel)], check=True)
        (site,) = environment.glob("lib/python*/site-packages")
        # a plain path: .pth files that lie there, such as that of an editable ConLoRA, are not read
        (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
        self.command = environment / "bin" / "conlora"
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CONLORA_CONFIG")}
        self.environment = kept | PLAIN

    def says(self, *arguments: object, code: int | None = 0) -> str:
        """What a command prints, on both streams. code: what it ends with; None: whatever."""
        done = subprocess.run(
            [self.command, *map(str, arguments)], cwd=self.work, env=self.environment, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert code in (None, done.returncode), f"{arguments}: {done.stdout}"
        return done.stdout

    def begins(self, *arguments: object, log: Path) -> subprocess.Popen[bytes]:
        """A command that goes on."""
        with log.open("ab") as file:
            return subprocess.Popen(
                [self.command, *map(str, arguments)], cwd=self.work, env=self.environment, stdin=subprocess.DEVNULL,
                stdout=file, stderr=file,
            )  # fmt: skip


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    home = tmp_path_factory.mktemp("wheel")
    sources = home / "sources"
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            sources.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, sources / name)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w"]
    subprocess.run([*build, str(home / "dist"), str(sources)], check=True)
    (wheel,) = (home / "dist").iterdir()
    return Installed(home, wheel)


def test_the_wheel_has_every_file_of_the_package(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("conlora/")}
    listed = subprocess.run(["git", "ls-files", "node"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert packed == {line.removeprefix("node/") for line in listed.splitlines()}


def test_the_package_is_that_of_the_wheel(installed: Installed) -> None:
    code = "import conlora, importlib.metadata as m; print(conlora.__file__, m.version('conlora'))"
    done = subprocess.run(
        [installed.python, "-c", code],
        cwd=installed.work,
        env=installed.environment,
        check=True,
        capture_output=True,
        text=True,
    )
    path, version = done.stdout.split()
    assert Path(path).is_relative_to(installed.python.parents[1])
    assert installed.says("--version") == f"conlora {version}\n"


def commands(path: tuple[str, ...], command: Any) -> Iterator[tuple[str, ...]]:
    yield path
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands((*path, name), inner)


@pytest.mark.parametrize(
    "path", list(commands((), typer.main.get_command(app))), ids=lambda path: " ".join(path) or "conlora"
)
def test_every_command_has_help(installed: Installed, path: tuple[str, ...]) -> None:
    assert f"Usage: conlora {' '.join(path)}".rstrip() in installed.says(*path, "--help")


def test_two_nodes_from_nothing_to_an_adapter(installed: Installed, tiny_model: Path, tiny_data: Path) -> None:
    work = installed.work
    ports = {name: free_port() for name in ("a", "b")}
    sockets = {name: Path(f"/tmp/conlora-wheel-{ports[name]}.sock") for name in ports}  # a short path
    running = []
    try:
        for name, port in ports.items():
            installed.says(
                "init", name, "--name", name, "--listen", f"127.0.0.1:{port}", "--advertise", f"127.0.0.1:{port}"
            )
            config = yaml.safe_load((work / name / "conlora.yaml").read_text())
            config["model"]["base"], config["data"]["path"] = str(tiny_model), str(tiny_data)
            config["task"]["max_length"], config["admin_socket"] = 16, str(sockets[name])
            config["training"] |= {"rounds": 4, "local_steps": 2, "device": "cpu", "threads": 1}
            (work / name / "conlora.yaml").write_text(yaml.safe_dump(config))
            (work / f"{name}.yaml").write_text(installed.says("id", "-c", name))
        installed.says("peers", "add", "b.yaml", "-c", "a")
        installed.says("peers", "add", "a.yaml", "-c", "b")
        assert "peer b" in installed.says("check", "a", "--seconds", "1", code=4), (
            "all but the peer, who does not run yet"
        )
        running += [installed.begins("run", name, log=work / f"{name}.log") for name in ports]
        for name in ports:
            wait_until(lambda name=name: sockets[name].exists(), f"{name} answers")
            wait_until(lambda name=name: '"state": "finished"' in installed.says("status", "-c", name, "--json"), name)
            assert '"link": "up"' in installed.says("status", "-c", name, "--json")
        # the first time that a busy machine's node is asked, it may need longer than the command waits
        wait_until(lambda: "amplification" in installed.says("consensus", "-c", "a", code=None), "consensus")
        _the_dashboard_serves(installed, "a", "b")
        installed.says("export", "adapter", "-c", "a")
        assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= {
            path.name for path in (work / "adapter").iterdir()
        }
        installed.says("monitoring", "-o", "monitoring")
        assert len(list((work / "monitoring").iterdir())) == 3
        for name in ports:
            installed.says("stop", "-c", name)
        assert [process.wait(60) for process in running] == [0, 0]
    finally:
        for process in running:
            if process.poll() is None:
                process.terminate()
                process.wait(60)


def _the_dashboard_serves(installed: Installed, *nodes: str) -> None:
    port, log = free_port(), installed.work / "dashboard.log"
    process = installed.begins("dashboard", *nodes, "--listen", f"127.0.0.1:{port}", log=log)
    try:
        wait_until(lambda: log.read_text().startswith("dashboard: "), "the page's address")
        base = f"http://127.0.0.1:{port}"

        def page(path: str) -> str:
            with urllib.request.urlopen(base + path, timeout=20) as reply:
                return str(reply.read().decode())

        wait_until(lambda: process.poll() is None and _answers(page), "the page")
        parts = re.findall(r'(?:src|href)="(/?[\w./-]+\.(?:js|css))"', page("/"))
        assert len(parts) >= 2
        for part in parts:
            assert page("/" + part.lstrip("/"))
    finally:
        process.terminate()
        process.wait(60)


def _answers(page: Any) -> bool:
    try:
        return "<html" in page("/")
    except OSError:
        return False


def test_a_testbed_finds_its_template_and_draws(installed: Installed, tiny_model: Path, tiny_data: Path) -> None:
    common = {
        "nodes": 3,
        "model": {"base": str(tiny_model)},
        "task": {"labels": ["negative", "positive"], "max_length": 16},
        "training": {"rounds": 2, "local_steps": 2, "batch_size": 8, "device": "cpu"},
    }
    grid = common | {
        "name": "grid",
        "grid": [{"rules": ["freeze-a"], "topologies": ["complete"], "seeds": [3]}],
        "data": {"path": str(tiny_data), "rows_per_node": 40, "test_rows": 50},
    }
    spec = common | {
        "name": "run",
        "topology": "complete",
        "rules": ["freeze-a"],
        "data": {"path": str(tiny_data), "test_rows": 50},
    }
    for name, content in (("grid", grid), ("run", spec)):
        (installed.work / f"{name}.yaml").write_text(yaml.safe_dump(content))
    installed.says("testbed", "run", "run.yaml", "-o", "run")
    assert "<svg" in (installed.work / "run" / "report.html").read_text() or list(
        (installed.work / "run").rglob("*.png")
    )
    assert "<html" in (installed.work / "run" / "report.html").read_text()
    installed.says("testbed", "compare", "grid.yaml", "-o", "grid")
    assert {"evaluation.svg", "evaluation.png"} <= {
        path.name for path in (installed.work / "grid" / "figures").iterdir()
    }
