"""The demo's fetching script: what it takes from the tweets' archive, and that it trusts digests and nothing else."""

import importlib
import io
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[2] / "deploy" / "assets"


@pytest.fixture
def prepare(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return _script("prepare", monkeypatch)


@pytest.fixture
def fetch(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return _script("fetch", monkeypatch)


def _script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """As Python finds it when it runs a script of that folder."""
    monkeypatch.syspath_prepend(SCRIPTS)
    module = importlib.import_module(name)
    monkeypatch.setitem(sys.modules, name, module)
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


def test_a_file_with_another_digest_is_refused_in_a_sentence(fetch: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"tampered")
    with pytest.raises(fetch.PrepareError, match=r"^weights: has the SHA-256 \w{64} instead of 00; it is not used$"):
        fetch.require_digest(tmp_path / "weights", "00")


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
    fetch: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stderr: str,
    sentence: str,
) -> None:
    def fail(command: list[str], **options: object) -> "subprocess.CompletedProcess[str]":
        assert "--require-hashes" in command
        return subprocess.CompletedProcess(command, 1, "", stderr)

    monkeypatch.setattr(fetch.subprocess, "run", fail)
    assert fetch.run_script(prepare.prepare, ["prepare.py", str(tmp_path / "assets")]) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert list((tmp_path / "assets").iterdir()) == []


def test_verified_files_are_left_alone(
    prepare: ModuleType,
    fetch: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "minilm").mkdir()
    (tmp_path / "minilm" / "config.json").write_text("{}")
    (tmp_path / "tweets.csv").write_text("text,label\n")
    monkeypatch.setattr(prepare, "MODEL_FILES", {"config.json": prepare.digest_of(tmp_path / "minilm" / "config.json")})
    monkeypatch.setattr(prepare, "TWEETS_SHA256", prepare.digest_of(tmp_path / "tweets.csv"))
    monkeypatch.delattr(fetch.subprocess, "run")  # nothing may be fetched
    assert fetch.run_script(prepare.prepare, ["prepare.py", str(tmp_path)]) == 0
    assert "with the right digests" in capsys.readouterr().out


def test_a_debian_file_is_taken_where_it_is_installed(
    fetch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").write_bytes(b"nouns")
    monkeypatch.delattr(fetch.subprocess, "run")  # nothing may be fetched
    wanted = fetch.DebianFile("wordnet", str(tmp_path / "data"), fetch.digest_of(tmp_path / "data"))
    assert fetch.debian_file(wanted, tmp_path) == tmp_path / "data"


def test_a_failing_apt_is_one_sentence(fetch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = fetch.DebianFile("wordnet", str(tmp_path / "absent"), "00")
    failed = subprocess.CompletedProcess([], 100, "", "W: x\nE: Unable to locate package wordnet\n")
    monkeypatch.setattr(fetch.subprocess, "run", lambda *args, **options: failed)
    monkeypatch.setattr(fetch.shutil, "which", lambda name: name)
    with pytest.raises(fetch.PrepareError, match=r"apt can't fetch it \(E: Unable to locate .*; run `apt-get update`"):
        fetch.debian_file(wanted, tmp_path)
    monkeypatch.setattr(fetch.shutil, "which", lambda name: None)
    (tmp_path / "wordnet").rmdir()
    with pytest.raises(fetch.PrepareError, match="there is no apt here"):
        fetch.debian_file(wanted, tmp_path)
