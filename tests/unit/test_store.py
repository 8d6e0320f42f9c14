"""Checkpoints that are whole or not there, exports, history and recordings."""

import contextlib
import json
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from conlora.core.consensus import EdgeError
from conlora.core.schema import Role, Schema, TensorSpec
from conlora.errors import StateError
from conlora.store.checkpoints import ADAPTER_FILES, CheckpointStore, export_adapter, read_checkpoint
from conlora.store.history import EdgeRecord, History
from conlora.store.recording import Recorder, Recording


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    store = CheckpointStore(tmp_path / "checkpoints", keep=2)
    store.prepare()
    return store


def stage(store: CheckpointStore, step: int) -> Path:
    staged = store.staging / f"checkpoint-{step}"
    staged.mkdir()
    for name in ADAPTER_FILES:
        (staged / name).write_text(json.dumps({"step": step, "base_model_name_or_path": "/somewhere/base"}))
    return staged


def test_the_newest_is_found_and_the_last_k_are_kept(store: CheckpointStore) -> None:
    for step in (4, 8, 12):
        store.seal(stage(store, step), step // 4, step, "digest")
    newest, damaged = store.newest()
    assert newest is not None
    assert (newest.round, newest.step, newest.schema) == (3, 12, "digest")
    assert damaged == []
    assert sorted(p.name for p in store.directory.glob("step-*")) == ["step-000000008", "step-000000012"]
    assert list(store.staging.iterdir()) == []


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        ("flip", f"{ADAPTER_FILES[1]}: does not have the digest in manifest.json; the checkpoint is not used"),
        ("truncate", f"{ADAPTER_FILES[1]}: does not have the digest in manifest.json; the checkpoint is not used"),
        ("remove", "step-000000008: not an intact checkpoint ("),
        ("manifest", "step-000000008: not an intact checkpoint ("),
        ("another round", "manifest.json: is damaged; the checkpoint is not used"),
        ("an unknown key", "manifest.json: is damaged; the checkpoint is not used"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    store: CheckpointStore, harm: str, sentence: str
) -> None:
    store.seal(stage(store, 4), 1, 4, "digest")
    path = store.seal(stage(store, 8), 2, 8, "digest").path / ADAPTER_FILES[1]
    manifest = path.parent / "manifest.json"
    match harm:
        case "flip":
            path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
        case "truncate":
            path.write_bytes(path.read_bytes()[:-1])
        case "remove":
            path.unlink()
        case "manifest":
            manifest.write_text("{")
        case "another round":
            manifest.write_text(manifest.read_text().replace('"round": 2', '"round": 3'))
        case "an unknown key":
            manifest.write_text(manifest.read_text().replace('"round": 2', '"turns": 2'))
    newest, damaged = store.newest()
    assert newest is not None
    assert newest.step == 4
    assert len(damaged) == 1
    assert "step-000000008" in damaged[0]
    assert sentence in damaged[0]


def test_debris_of_a_crash_is_no_checkpoint(store: CheckpointStore) -> None:
    stage(store, 4)
    assert store.newest() == (None, [])
    store.prepare()
    assert list(store.staging.iterdir()) == []


def test_sealing_the_same_step_again_replaces_it(store: CheckpointStore) -> None:
    store.seal(stage(store, 4), 1, 4, "digest")
    again = store.seal(stage(store, 4), 1, 4, "other")
    assert read_checkpoint(again.path).schema == "other"


def test_a_failed_seal_says_so_and_keeps_the_older_ones(store: CheckpointStore) -> None:
    store.seal(stage(store, 4), 1, 4, "digest")
    with pytest.raises(StateError, match="older ones are intact"):
        store.seal(store.staging / "never-written", 2, 8, "digest")
    newest, _ = store.newest()
    assert newest is not None
    assert newest.step == 4


def test_export_replaces_only_an_earlier_export(store: CheckpointStore, tmp_path: Path) -> None:
    checkpoint = store.seal(stage(store, 4), 1, 4, "digest")
    target = tmp_path / "adapter"
    export_adapter(checkpoint, target, "base", "readme", overwrite=False)
    assert sorted(p.name for p in target.iterdir()) == ["README.md", *ADAPTER_FILES]
    with pytest.raises(StateError, match="exists already; choose another directory or pass --overwrite"):
        export_adapter(checkpoint, target, "base", "readme", overwrite=False)
    export_adapter(checkpoint, target, "base", "new", overwrite=True)
    assert (target / "README.md").read_text() == "new"

    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("keep me")
    with pytest.raises(
        StateError, match=r"precious: is no PEFT directory, so it is not overwritten; choose another one$"
    ):
        export_adapter(checkpoint, precious, "base", "readme", overwrite=True)
    assert (precious / "file").read_text() == "keep me"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "checkpoints", "precious"]


def test_export_of_settings_that_are_none_leaves_nothing(store: CheckpointStore, tmp_path: Path) -> None:
    checkpoint = store.seal(stage(store, 4), 1, 4, "digest")
    (checkpoint.path / ADAPTER_FILES[0]).write_text("{")
    with pytest.raises(StateError, match=rf"{ADAPTER_FILES[0]}: can't be read \(.*\); choose another checkpoint$"):
        export_adapter(checkpoint, tmp_path / "adapter", "base", "readme", overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_history_keeps_rounds_edges_and_evaluations(tmp_path: Path) -> None:
    with History(tmp_path / "history.db") as history:
        for peer_round, error, loss in ((1, 0.25, 0.7), (2, 0.125, 0.6)):  # done again after a restart
            history.add_edges(1, [EdgeRecord("peer", peer_round, 0.5), EdgeRecord("unmeasured", 3, 0.25)])
            history.add_errors(1, {"peer": EdgeError(error, 0.0, 0.1)})
            history.add_round(1, 4, 0.5, loss, 1)
        history.add_round(2, 8, 0.5, None, 1)
        history.add_evaluation(2, {"accuracy": 0.9, "loss": 0.3})
    with History(tmp_path / "history.db") as history:
        assert [(r["round"], r["loss"]) for r in history.rows("rounds")] == [(1, 0.6), (2, None)]
        edges = [(e["round"], e["peer"], e["peer_round"], e["error"], e["error_b"]) for e in history.rows("edges")]
        assert edges == [(1, "peer", 2, 0.125, 0.1), (1, "unmeasured", 3, None, None)]
        assert history.rows("evaluations")[0]["accuracy"] == 0.9


def test_a_history_of_the_first_version_goes_on(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "history.db")) as first, first:
        first.execute(
            "CREATE TABLE edges (round INTEGER NOT NULL, peer TEXT NOT NULL, peer_round INTEGER NOT NULL,"
            " weight REAL NOT NULL, error REAL NOT NULL, PRIMARY KEY (round, peer))"
        )
        first.execute("INSERT INTO edges VALUES (1, 'peer', 1, 0.5, 0.25)")
    with History(tmp_path / "history.db") as history:
        history.add_edges(2, [EdgeRecord("peer", 2, 0.5), EdgeRecord("unmeasured", 2, 0.5)])
        history.add_errors(2, {"peer": EdgeError(0.125, 0.0, 0.1)})
    with History(tmp_path / "history.db") as history:
        expected = [(0.25, 0.0), (0.125, 0.1), (None, None)]
        assert [(e["error"], e["error_b"]) for e in history.rows("edges")] == expected


def test_a_history_that_is_no_database_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "history.db").write_text("this is not a database, and it is long enough to be seen as none" * 20)
    with pytest.raises(StateError, match="move the file away"):
        History(tmp_path / "history.db")


def test_a_reader_sees_one_moment_while_the_history_is_written(tmp_path: Path) -> None:
    """Else who asks for later rounds only would never learn of edges that were written after it had looked at those."""
    folder = tmp_path / "50% #1?"
    folder.mkdir()
    with History(folder / "history.db") as history:
        history.add_edges(1, [EdgeRecord("peer", 1, 0.5)])
        history.add_round(1, 8, 0.1, 0.5, 1)
        with history.reader() as reader:
            assert [row["round"] for row in reader.rows("edges")] == [1]
            history.add_edges(2, [EdgeRecord("peer", 2, 0.5)])  # which does not wait
            history.add_round(2, 16, 0.1, 0.5, 1)
            assert [row["round"] for row in reader.rows("rounds")] == [1]
        with history.reader() as reader:
            assert [row["round"] for row in reader.rows("rounds", 1)] == [2]
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                reader._db.execute("DELETE FROM rounds")


def test_a_history_that_is_gone_can_not_be_read(tmp_path: Path) -> None:
    with History(tmp_path / "history.db") as history:
        (tmp_path / "history.db").unlink()
        with pytest.raises(StateError, match=r"history\.db: the history can't be opened \(.*\); make it writable"):
            history.reader()
    assert not (tmp_path / "history.db").exists()


def test_recordings_come_back(tmp_path: Path) -> None:
    schema = Schema((TensorSpec("m.lora_B.weight", "m", Role.B, (2, 2)),))
    recorder = Recorder(tmp_path / "recording", schema, {"m.lora_A.weight": np.ones((2, 2), np.float32)})
    for round_ in (2, 1):
        recorder.add(round_, np.full(4, round_, np.float32), np.zeros(4, np.float32))
    recording = Recording(tmp_path / "recording")
    assert recording.rounds() == [1, 2]
    assert recording.schema.digest == schema.digest
    np.testing.assert_array_equal(recording.load(2)[0], [2, 2, 2, 2])
    assert json.loads((tmp_path / "recording" / "schema.json").read_text())[0]["role"] == "B"


def test_a_recording_that_can_not_be_written_says_what_to_do(tmp_path: Path) -> None:
    schema = Schema((TensorSpec("m.lora_B.weight", "m", Role.B, (2, 2)),))
    (tmp_path / "file").write_text("")
    what_to_do = r"can't be written \(.*\); free space, or set training\.record_vectors to false$"
    with pytest.raises(StateError, match=f"file/recording: {what_to_do}"):
        Recorder(tmp_path / "file" / "recording", schema, {})
    recorder = Recorder(tmp_path / "recording", schema, {})
    shutil.rmtree(tmp_path / "recording")
    with pytest.raises(StateError, match=rf"round-000001\.safetensors: {what_to_do}"):
        recorder.add(1, np.zeros(4, np.float32), np.zeros(4, np.float32))


def test_a_history_knows_the_figures_of_a_checkpoints_round(tmp_path: Path) -> None:
    with History(tmp_path / "history.db") as history:
        assert history.figures_at(0) == (None, {})
        for round_ in range(1, 8):
            history.add_round(round_, 2 * round_, 0.1, 1 / round_, 0)
        history.add_evaluation(5, {"perplexity": 20.0, "loss": 3.0})
        assert history.figures_at(4) == (0.25, {})
        assert history.figures_at(6) == (1 / 6, {"perplexity": 20.0, "loss": 3.0})


def test_what_was_mixed_last_is_as_of_a_round(tmp_path: Path) -> None:
    """A checkpoint may be older than the newest rounds of the history."""
    with History(tmp_path / "history.db") as history:
        assert history.last_mixed(9) == {}
        history.add_edges(1, [EdgeRecord("A", 70, 0.5), EdgeRecord("B", 7, 0.5)])
        history.add_edges(2, [EdgeRecord("A", 71, 0.5)])
        history.add_edges(3, [EdgeRecord("A", 2, 0.5), EdgeRecord("B", 9, 0.5)])  # A has started anew
        assert history.last_mixed(3) == {"A": 2, "B": 9}
        assert history.last_mixed(2) == {"A": 71, "B": 7}
