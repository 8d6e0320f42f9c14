"""TensorBoard event files beside the history, read back with TensorBoard's own reader."""

import errno
import io
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.fakes import figures

from conlora.core.consensus import EdgeError
from conlora.core.sketch import Estimate
from conlora.daemon.troubles import Troubles
from conlora.errors import ConfigError, StateError
from conlora.store.events import EventHistory
from conlora.store.history import EdgeRecord


def read(directory: Path) -> dict[str, dict[int, float]]:
    """Every scalar, by tag and round."""
    events = EventAccumulator(str(directory)).Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def opened(folder: Path) -> EventHistory:
    history = EventHistory(folder / "history.db", folder / "events")
    history.name_of = {"ABC": "st-anna"}.__getitem__
    return history


def test_every_figure_of_a_round(tmp_path: Path) -> None:
    estimate = Estimate(figures(1.0), figures(0.5), [])
    with opened(tmp_path) as history:
        for round_ in (1, 2):
            history.add_edges(round_, [EdgeRecord("ABC", round_, 0.25)])
            history.add_round(round_, 8 * round_, 1.5, 0.5 / round_, 1)
            history.add_errors(round_, {"ABC": EdgeError(4.0, 1.0, 2.0)})
            history.add_federation(round_, 3, estimate, replace(estimate, figures=figures(2.0)))
        history.add_edges(3, [])
        history.add_round(3, 24, 1.5, None, 0)
        history.add_evaluation(2, {"accuracy": 0.75, "loss": 0.5})
        assert len(history.rows("rounds")) == 3
    seen = read(tmp_path / "events")
    assert {tag: rounds for tag, rounds in seen.items() if not tag.startswith("consensus")} == {
        "training/loss": {1: 0.5, 2: 0.25},
        "training/step": {1: 8, 2: 16, 3: 24},
        "round/seconds": {1: 1.5, 2: 1.5, 3: 1.5},
        "round/neighbours": {1: 1, 2: 1, 3: 0},
        "weight/st-anna": {1: 0.25, 2: 0.25},
        "edge_error/st-anna": {1: 4.0, 2: 4.0},
        "evaluation/accuracy": {2: 0.75},
        "evaluation/loss": {2: 0.5},
    }
    assert seen["consensus_before/D"] == {1: 1.0, 2: 1.0}
    assert seen["consensus_after/relative"] == {1: 8.0, 2: 8.0}
    assert seen["consensus_after/nodes"] == {1: 3, 2: 3}


def test_rounds_that_are_done_again_replace_those_before(tmp_path: Path) -> None:
    for loss, rounds in ((0.5, range(1, 6)), (0.25, range(4, 7))):
        with opened(tmp_path) as history:
            for round_ in rounds:
                history.add_round(round_, round_, 1.0, loss, 0)
    assert read(tmp_path / "events")["training/loss"] == {i: 0.5 if i < 4 else 0.25 for i in range(1, 7)}


def test_a_full_disk_costs_what_it_has_no_room_for_and_no_more(tmp_path: Path) -> None:
    troubles = Troubles()
    with opened(tmp_path) as history:
        history.add_round(1, 1, 1.0, 0.5, 0)
        whole = io.FileIO.write

        class Full(io.FileIO):
            def write(self, data: bytes) -> int:  # type: ignore[override]
                return whole(self, data[:20])

        (path,) = (tmp_path / "events").iterdir()
        history._events.close()
        history._events._file = Full(path, "ab")
        with troubles.of("history"):
            history.add_round(2, 2, 1.0, 0.5, 0)
        assert str(troubles).startswith(f"{tmp_path / 'events'}: TensorBoard's event files can't be written (")
        assert str(troubles).endswith("free space on that disk")
        with troubles.of("history"):
            history.add_round(3, 3, 1.0, 0.5, 0)
        assert not str(troubles)
        assert len(history.rows("rounds")) == 3, "the history has what the event files miss"
    assert read(tmp_path / "events")["training/step"] == {1: 1, 3: 3}


def test_a_directory_that_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "events").write_text("")
    with opened(tmp_path) as history, pytest.raises(StateError, match="event files can't be written") as caught:
        history.add_round(1, 1, 1.0, 0.5, 0)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EEXIST


def test_the_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ConfigError, match=r"needs the package tensorboard, .*pip install 'conlora\[tensorboard\]'"):
        opened(tmp_path)
    assert not (tmp_path / "history.db").exists()
