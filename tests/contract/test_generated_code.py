"""The committed generated code is what proto/ generates, and the check that says so can fail."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def check(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, root / "proto" / "generate.py", "--check"], capture_output=True, text=True, check=False
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The sources and the generated code, to be changed."""
    shutil.copytree(ROOT / "proto", tmp_path / "proto", ignore=shutil.ignore_patterns("__pycache__"))
    generated = tmp_path / "node" / "conlora" / "v1"
    shutil.copytree(ROOT / "node" / "conlora" / "v1", generated, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_the_committed_code_is_current() -> None:
    done = check(ROOT)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_changed_proto_is_seen(copy: Path) -> None:
    proto = copy / "proto" / "conlora" / "v1" / "peer.proto"
    proto.write_text(proto.read_text().replace("bool probe = 5;", "bool probe = 9;"))
    done = check(copy)
    assert done.returncode == 1
    assert "node/conlora/v1 differs from proto/: peer_pb2.py" in done.stderr
    assert "run `make proto` and commit" in done.stderr


def test_edited_missing_and_surplus_code_is_seen(copy: Path) -> None:
    generated = copy / "node" / "conlora" / "v1"
    (generated / "admin_pb2.pyi").unlink()
    (generated / "admin_pb2_grpc.py").write_text("# edited")
    (generated / "old_pb2.py").write_text("")
    done = check(copy)
    assert done.returncode == 1
    assert "differs from proto/: admin_pb2.pyi, admin_pb2_grpc.py, old_pb2.py;" in done.stderr
