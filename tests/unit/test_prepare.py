"""The demo's fetching script: what it takes from the tweets' archive, and that it trusts digests and nothing else."""

import importlib.util
import io
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy" / "demo" / "prepare.py"


@pytest.fixture
def prepare(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("prepare", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "prepare", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def archive(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def test_tweets_are_labelled_by_the_sign_of_a_clear_rating(prepare: ModuleType) -> None:
    lines = "1\t2.7\tSo lucky.\r\n2\t-1.4\tUgh, \xa3 5\r\n3\t0.5\tneutral\r\n4\t-0.5\tneutral\r\n5\t-0.51\tless so\r\n"
    source = archive(prepare.TWEETS_ARCHIVE, archive(prepare.TWEETS_MEMBER, lines.encode("latin-1")))
    assert prepare.read_tweets(source) == [
        ("So lucky.", "positive"),
        ("Ugh, £ 5", "negative"),
        ("less so", "negative"),
    ]


def test_the_csv_is_the_same_bytes_everywhere(prepare: ModuleType, tmp_path: Path) -> None:
    prepare.write_csv([("a, £", "positive")], tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").read_bytes() == 'text,label\n"a, £",positive\n'.encode()


def test_a_file_with_another_digest_is_refused_in_a_sentence(prepare: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"tampered")
    with pytest.raises(prepare.PrepareError, match=r"^weights: has the SHA-256 \w{64} instead of 00; it is not used$"):
        prepare.require_digest(tmp_path / "weights", "00")


@pytest.mark.parametrize(
    ("stderr", "sentence"),
    [
        (
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n ...",
            "does not have the SHA-256",
        ),
        ("WARNING: x\nERROR: No matching distribution found\n", "can't download it (ERROR: No matching distribution"),
    ],
)
def test_a_failing_pip_is_one_sentence_and_leaves_nothing(
    prepare: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stderr: str,
    sentence: str,
) -> None:
    def fail(command: list[str], **options: object) -> "subprocess.CompletedProcess[str]":
        assert "--require-hashes" in command
        return subprocess.CompletedProcess(command, 1, "", stderr)

    monkeypatch.setattr(prepare.subprocess, "run", fail)
    assert prepare.main([str(tmp_path / "assets")]) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert list((tmp_path / "assets").iterdir()) == []


def test_verified_files_are_left_alone(
    prepare: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "minilm").mkdir()
    (tmp_path / "minilm" / "config.json").write_text("{}")
    (tmp_path / "tweets.csv").write_text("text,label\n")
    monkeypatch.setattr(prepare, "MODEL_FILES", {"config.json": prepare.digest_of(tmp_path / "minilm" / "config.json")})
    monkeypatch.setattr(prepare, "TWEETS_SHA256", prepare.digest_of(tmp_path / "tweets.csv"))
    monkeypatch.delattr(prepare.subprocess, "run")  # nothing may be fetched
    assert prepare.main([str(tmp_path)]) == 0
    assert "with the right digests" in capsys.readouterr().out
