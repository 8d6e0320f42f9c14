"""What `conlora check` says of a disk, and how it ends."""

import contextlib
import os
import re
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from tests.daemons import free_port

from conlora.cli.preflight import _check_address, _check_disk, preflight
from conlora.config import NodeConfig, load_config
from conlora.errors import CheckFailed, ConfigError, StateError
from conlora.net.identity import create_identity


@pytest.fixture
def config(tmp_path: Path) -> NodeConfig:
    """Of a node whose model nobody has to load, and whose identity is missing."""
    path = tmp_path / "conlora.yaml"
    listen = f"127.0.0.1:{free_port()}"
    path.write_text(
        yaml.safe_dump({"name": "mercy", "listen": listen, "model": {"base": "a/b"}, "task": {"type": "guest"}})
    )
    return load_config(path)


def test_failures_are_counted(config: NodeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CheckFailed, match=r"^1 of the checks failed; see above$"):
        preflight(tmp_path / "conlora.yaml", seconds=1)
    verdicts = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert verdicts == [["ok", "configuration"], ["fails", "identity"], ["ok", "model"], ["ok", "address"]]


@pytest.mark.parametrize(("taken", "code"), [(False, "ok"), (True, "fails")])
def test_operators_and_their_port_are_looked_at(
    config: NodeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], taken: bool, code: str
) -> None:
    address = f"127.0.0.1:{free_port()}"
    with (tmp_path / "conlora.yaml").open("a") as file:
        file.write(f"admin_listen: {address}\n")
    create_identity(tmp_path / "identity")
    (tmp_path / "operators" / "read").mkdir(parents=True)
    (tmp_path / "operators" / "read" / "bob.yaml").write_text(create_identity(tmp_path / "bob").card("bob", None))
    with socket.socket() as other, pytest.raises(CheckFailed) if taken else contextlib.nullcontext():
        if taken:
            other.bind(("127.0.0.1", int(address.rpartition(":")[2])))
            other.listen()
        preflight(tmp_path / "conlora.yaml", seconds=1)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.split()[1] == "operators")
    assert line.startswith(code)
    assert (f"admin_listen: {address} can't be used" if taken else f"{address} is free; 1 may look, 0 may also") in line


def test_a_disk_with_room(config: NodeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5e9))
    assert _check_disk(config, 1000) == "5.0 GB free, checkpoints need 104.9 MB"


def test_a_disk_that_is_too_full(config: NodeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5e6))
    with pytest.raises(StateError, match=r"^state_dir: 5\.0 MB free where checkpoints need 104\.9 MB; make room$"):
        _check_disk(config, 1000)


def test_a_state_directory_of_somebody_else(config: NodeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    sentence = f"state_dir: {config.state_dir} is not writable for this user; change its owner"
    with pytest.raises(StateError, match=f"^{re.escape(sentence)}$"):
        _check_disk(config, 1000)


def test_a_file_where_the_state_directory_would_be(config: NodeConfig) -> None:
    config.state_dir.touch()
    sentence = rf"^state_dir: {config.state_dir} can't be written \(.*File exists.*\)$"
    with pytest.raises(StateError, match=sentence):
        _check_disk(config, 1000)


def test_an_address_that_is_taken(config: NodeConfig) -> None:
    host, port = config.listen.split(":")
    with socket.create_server((host, int(port))):
        sentence = rf"^listen: {config.listen} can't be used \(.*in use.*\); choose another address or port$"
        with pytest.raises(ConfigError, match=sentence):
            _check_address(config, "listen", config.listen)
