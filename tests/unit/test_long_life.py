"""What a node writes for weeks: a history that stays small, logs that a full disk does not stop, words for a trainer's end."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from conlora.cli.logs import Lines
from conlora.daemon.troubles import Troubles
from conlora.errors import StateError
from conlora.store import history as store
from conlora.store.history import EdgeRecord, History
from conlora.training import output
from conlora.training.ending import in_words, memory_kills
from conlora.training.output import Output


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a history were long after a hundred rounds."""
    monkeypatch.setattr(store, "FULL_ROUNDS", 100)
    monkeypatch.setattr(store, "THINNING_ROUNDS", 10)


def lived(history: History, rounds: range) -> None:
    for i in rounds:
        history.add_edges(
            i, [EdgeRecord("early" if i < 50 else f"peer-{j}", i, 0.5) for j in range(1 if i < 50 else 3)]
        )
        history.add_round(i, 2 * i, 0.1, 1 / i, 3)
        if i % 5 == 0:
            history.add_evaluation(i, {"accuracy": i / 1e4})


@pytest.mark.usefixtures("small_windows")
def test_a_history_grows_with_the_logarithm_of_its_age(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    with History(path) as history:
        lived(history, range(1, 1001))
        size = path.stat().st_size
        lived(history, range(1001, 4001))
        rounds = [row["round"] for row in history.rows("rounds")]
        assert rounds[-100:] == list(range(3901, 4001)), "the newest are all there"
        assert len(rounds) < 100 + 60 * 7
        spread = [sum(4000 - 2 * age < r <= 4000 - age for r in rounds) for age in (100, 200, 400, 800, 1600)]
        assert all(40 <= count <= 70 for count in spread), "as many of each age as of twice that age"
        assert len(history.rows("edges")) <= 3 * len(rounds)
        assert history.figures_at(4000) == (1 / 4000, {"accuracy": 0.4})
        assert history.peers_until(40) == ["early"]
        assert history.peers_until(4000) == ["early", "peer-0", "peer-1", "peer-2"]
        assert path.stat().st_size < 1.6 * size, "four times as old"


@pytest.mark.usefixtures("small_windows")
def test_a_history_of_an_earlier_version_is_thinned_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as before:
        before.setattr(store, "FULL_ROUNDS", 10**9)
        with History(tmp_path / "history.db") as history:
            lived(history, range(1, 2001))
            history._db.execute("PRAGMA user_version = 5")
    with History(tmp_path / "history.db") as history:
        assert len(history.rows("rounds")) < 100 + 60 * 6


def test_a_full_disk_is_a_sentence_and_the_history_goes_on_later(tmp_path: Path) -> None:
    with History(tmp_path / "history.db") as history:
        lived(history, range(1, 10))
        (pages,) = history._db.execute("PRAGMA page_count").fetchone()
        history._db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StateError, match=r"history\.db: the history can't be written .*full.*; free space on that"):
            lived(history, range(10, 1000))
        history._db.execute("PRAGMA max_page_count = 1000000")
        last = history.rows("rounds")[-1]["round"]
        lived(history, range(last + 1, 1000))
        assert [row["round"] for row in history.rows("rounds")] == list(range(1, 1000))


def test_a_history_on_a_read_only_disk_is_a_sentence(tmp_path: Path) -> None:
    with History(tmp_path / "history.db") as history:
        history._db.execute("PRAGMA query_only = 1")  # which fails as such a disk does
        with pytest.raises(
            StateError, match=r"can't be written \(.*readonly.*\); make it writable for the node's user"
        ):
            lived(history, range(1, 2))


def read(path: Path) -> None:
    with History(path) as history:
        history.rows("rounds")
        history.rows("edges")


def test_a_damaged_history_is_a_sentence_whenever_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    with History(path) as history:
        lived(history, range(1, 500))
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 4096))
    with pytest.raises(StateError, match="move the file away to start anew"):
        read(path)


def test_epochs_grow_where_the_clock_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for now in (2_000, 9_000, 1, 1, 10_000):
        monkeypatch.setattr(time, "time_ns", lambda now=now: now)
        with History(tmp_path / "history.db") as history:
            found.append(history.new_epoch())
    assert found == [2_000, 9_000, 9_001, 9_002, 10_000]


def test_a_trouble_is_logged_when_it_begins_and_when_it_ends() -> None:
    troubles = Troubles()
    with capture_logs() as logs:
        for problem in ("disk full", "disk full", "read-only", "", ""):
            with troubles.of("history"):
                if problem:
                    raise StateError(problem)
            assert str(troubles) == problem
    with troubles.of("history", heals=False):
        assert "history" not in troubles
    assert [(entry["event"], entry.get("reason")) for entry in logs] == [
        ("no history, training goes on", "disk full"),
        ("no history, training goes on", "read-only"),
        ("history is written again", None),
    ]


@pytest.mark.parametrize(
    ("code", "line", "kills", "words"),
    [
        (0, "RuntimeError: CUDA out of memory", True, ""),
        (1, "", True, "the trainer exited with status 1"),
        (-signal.SIGKILL, "", False, "the trainer was ended by SIGKILL"),
        (-signal.SIGKILL, "", True, "SIGKILL, while the kernel ended processes for lack of memory; it needs less with"),
        (1, "MemoryError", False, "status 1 (MemoryError; more in trainer.log); it needs less with"),
        (
            1,
            "torch.OutOfMemoryError: CUDA out of memory. Tried to",
            False,
            "; it needs less with a smaller training.batch_",
        ),
        (1, "RuntimeError: DefaultCPUAllocator: can't allocate memory: you", False, "; it needs less with"),
        (1, "ValueError: remember", False, "status 1 (ValueError: remember; more in trainer.log)"),
    ],
)
def test_the_end_of_a_trainer_in_words(code: int, line: str, kills: bool, words: str) -> None:
    said = in_words(code, line, Path("trainer.log"), kills)
    assert words in said
    assert bool(said) == bool(code)
    assert ("it needs less" in said) == ("it needs less" in words)


def test_the_kernels_count_is_read() -> None:
    assert memory_kills() >= 0
    assert "oom_kill " in Path("/proc/vmstat").read_text()


async def printed(log: Path, *lines: bytes) -> str:
    out = Output(log)
    for line in lines:
        os.write(out.writing, line)
        await asyncio.sleep(0)
    os.close(out.writing)
    return await out.last_line()


async def test_a_trainers_log_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "MOST_BYTES", 1000)
    log = tmp_path / "trainer.log"
    for i in range(100):
        assert await printed(log, b"x" * 98 + b"\n", f"line {i}\n".encode()) == f"line {i}"
    assert log.read_text().endswith("line 99\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trainer.log", "trainer.log.1"]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2500


async def test_a_trainer_prints_on_where_the_disk_is_full() -> None:
    assert await printed(Path("/dev/full"), b"Traceback ...\n", b"MemoryError\n") == "MemoryError"


async def test_a_process_that_keeps_the_pipe_is_not_waited_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "DRAIN_SECONDS", 0.05)
    out = Output(tmp_path / "trainer.log")
    os.write(out.writing, b"Killed\n")
    assert await out.last_line() == "Killed"
    os.close(out.writing)


def test_a_daemons_log_on_a_full_disk_leaves_lines_out_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = Lines()
    with (tmp_path / "daemon.log").open("w") as good, open("/dev/full", "w") as full:
        for file, text in ((good, "one"), (full, "two"), (full, "three"), (good, "four")):
            monkeypatch.setattr(sys, "stderr", file)
            print(text, file=lines, flush=True)  # type: ignore[call-overload]
    assert (tmp_path / "daemon.log").read_text().splitlines() == ["one", "(2 lines could not be written)", "four"]


def test_a_command_keeps_its_exit_code_where_its_sentence_has_no_room(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "conlora", "status", "-c", str(tmp_path / "none.yaml")]
        assert subprocess.run(command, stderr=full, check=False).returncode == 2
