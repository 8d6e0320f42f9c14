"""`conlora export --hub` with the real client of hubs, against a small hub on loopback."""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from conlora.net.identity import create_identity
from conlora.store.checkpoints import ADAPTER_FILES, CheckpointStore

TOKEN = "hf_thetokenofauser"


class Hub(ThreadingHTTPServer):
    """Takes what a hub takes, as far as it is needed here; `refuse`: answers everything with that status."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Asked)
        self.refuse = 0
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Asked(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length")
        body = self.rfile.read(int(length)) if length else self._chunks()
        self.server.tokens.add(self.headers.get("Authorization"))
        hub = self.server
        path = self.path.partition("?")[0]
        if hub.refuse:
            self._answer(hub.refuse, {"error": "not today"})
        elif path == "/api/repos/create":
            hub.created.append(json.loads(body))
            self._answer(200, {"url": f"{hub.address}/mercy/notes"})
        elif path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif path == "/api/models/mercy/notes/preupload/main":
            asked = [file["path"] for file in json.loads(body)["files"]]
            told = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in asked]
            self._answer(200, {"files": told})
        elif path == "/api/models/mercy/notes/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._answer(200, {"commitUrl": f"{hub.address}/mercy/notes/commit/1", "commitOid": "1" * 40})
        else:
            self._answer(404, {"error": f"no {path} here"})

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/mercy/notes"):
            self._answer(200, {"id": "mercy/notes", "sha": "0" * 40, "siblings": [], "private": True, "tags": []})
        else:
            self._answer(404, {"error": f"no {self.path} here"})

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        return b"".join(parts)

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever)
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A node's directory after training: its configuration, identity, and a checkpoint."""
    directory = tmp_path / "node"
    create_identity(directory / "identity")
    (directory / "base").mkdir()
    (directory / "rows.csv").write_text("text,label\n")
    config = {
        "name": "mercy", "model": {"base": "base"}, "task": {"labels": ["a", "b"]}, "data": {"path": "rows.csv"},
    }  # fmt: skip
    (directory / "conlora.yaml").write_text(yaml.safe_dump(config))
    store = CheckpointStore(directory / "state" / "checkpoints", keep=1)
    store.prepare()
    staged = store.staging / "checkpoint-8"
    staged.mkdir()
    (staged / ADAPTER_FILES[0]).write_text(json.dumps({"target_modules": ["query"]}))
    (staged / ADAPTER_FILES[1]).write_bytes(bytes(range(256)) * 10)
    (staged / "optimizer.pt").write_bytes(b"stays here")
    store.seal(staged, 2, 8, "digest", "print")
    return directory


def export(node: Path, target: Path, *options: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    home = {"HF_HOME": str(target.parent / "hf-home"), "HOME": str(target.parent), "NO_PROXY": "127.0.0.1"}
    return subprocess.run(
        [sys.executable, "-m", "conlora", "export", str(target), "-c", str(node), *options],
        env=inherited | home | environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_hub_gets_exactly_what_was_exported(hub: Hub, node: Path, tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    done = export(node, target, "--hub", "mercy/notes", "--json", HF_ENDPOINT=hub.address, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"path": str(target), "round": 2, "hub": f"{hub.address}/mercy/notes"}
    (asked,) = hub.created
    assert (asked["organization"], asked["name"], asked["visibility"]) == ("mercy", "notes", "private")
    assert sorted(hub.files) == ["README.md", *ADAPTER_FILES]
    assert hub.files == files(target)
    assert hub.tokens == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize(
    ("environment", "refuse", "reason"),
    [
        ({"HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1"}, 0, "offline mode is enabled"),
        ({}, 0, "there is no token: set HF_TOKEN, or log in with `hf auth login`"),
        ({"HF_TOKEN": TOKEN}, 403, "not today"),
        ({"HF_TOKEN": TOKEN, "HF_ENDPOINT": "http://127.0.0.1:1"}, 0, "refused"),
    ],
    ids=["offline", "no token", "refused", "no hub"],
)
def test_what_a_hub_does_not_get_is_a_sentence_and_stays(
    hub: Hub, node: Path, tmp_path: Path, environment: dict[str, str], refuse: int, reason: str
) -> None:
    hub.refuse = refuse
    target = tmp_path / "adapter"
    done = export(node, target, "--hub", "mercy/notes", **{"HF_ENDPOINT": hub.address, **environment})
    assert (done.returncode, done.stdout) == (8, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"conlora: {target} is written, but the hub has not got it as mercy/notes (")
    assert reason in done.stderr.lower() or reason in done.stderr
    assert TOKEN not in done.stderr
    assert sorted(files(target)) == ["README.md", *ADAPTER_FILES]
    assert hub.files == {}


@pytest.mark.parametrize("name", ["notes", "mercy/notes/more", "mercy/no tes", "/notes"])
def test_a_name_that_no_hub_has_is_refused_first(node: Path, tmp_path: Path, name: str) -> None:
    done = export(node, tmp_path / "adapter", "--hub", name)
    assert done.returncode == 2
    assert done.stderr == (
        f"conlora: --hub: {name!r} is not OWNER/NAME in letters, digits and `. _ -`; correct it, as in mercy/notes\n"
    )
    assert not (tmp_path / "adapter").exists()
