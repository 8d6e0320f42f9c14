"""The file of quarantined peers, and who puts them there: it outlives the daemon, and damage lets nobody out."""

import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from conlora.core.conduct import OFFENCES, Quarantine
from conlora.errors import StateError
from conlora.net.identity import Peer
from conlora.net.warden import Warden
from conlora.store.quarantines import Quarantines

NORM = Quarantine(1.5e9, "norm 5")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "quarantines.json"


def test_what_is_put_in_is_there_after_a_restart_until_it_is_taken_out(path: Path) -> None:
    assert Quarantines(path) == {}
    assert not path.exists()
    quarantines = Quarantines(path)
    quarantines["ABC"] = NORM
    assert Quarantines(path) == {"ABC": NORM}
    del quarantines["ABC"]
    assert Quarantines(path) == {}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_offence_that_is_one_too_many_is_kept_and_in_the_log_once(path: Path) -> None:
    conduct = Warden(Quarantines(path)).conduct(Peer("anna", "ABC", None, b""))
    with capture_logs() as logs:
        for _ in range(OFFENCES + 1):
            conduct.offend("norm", 0.0)
    assert Quarantines(path)["ABC"].offences == f"norm {OFFENCES}"
    assert logs == [{"event": "peer quarantined", "log_level": "error", "peer": "anna", "offences": f"norm {OFFENCES}"}]


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"ABC": {}}', '{"ABC": {"since": 1, "offences": "", "x": 1}}', "\xff"]
)
def test_a_damaged_file_is_named_and_lets_nobody_out(path: Path, text: str) -> None:
    path.write_bytes(text.encode("latin1"))
    with pytest.raises(
        StateError, match=r"quarantines\.json: the list of quarantined peers can't be read .*mend the file"
    ):
        Quarantines(path)


def test_what_is_put_in_outlives_a_power_cut(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file's content, and after it the name that it gets."""
    synced, fsync = [], os.fsync

    def noting(descriptor: int) -> None:
        synced.append((Path(os.readlink(f"/proc/self/fd/{descriptor}")), path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    Quarantines(path)["ABC"] = NORM
    assert synced == [(path.with_name("quarantines.json.new"), False), (path.parent, True)]


def test_a_disk_that_takes_nothing_is_in_the_log_and_the_quarantine_holds(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    quarantines = Quarantines(path)
    monkeypatch.setattr(os, "fsync", full)
    with capture_logs() as logs:
        quarantines["ABC"] = NORM
    assert quarantines["ABC"] == NORM
    assert [entry["event"] for entry in logs] == ["a restart will not know who is quarantined now"]
    assert "No space left" in logs[0]["reason"]
