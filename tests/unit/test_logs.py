"""The daemon's log as JSON: one object a line, whatever is logged and whatever the disk takes."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
import yaml
from tests.unit.test_config import config, folder  # noqa: F401  # a fixture

from conlora.cli.common import LogFormat
from conlora.cli.logs import ending_in_log, set_up_logging
from conlora.errors import StateError


@pytest.fixture
def as_json():
    set_up_logging(LogFormat.JSON, "mercy")
    yield
    structlog.reset_defaults()


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


@pytest.mark.usefixtures("as_json")
def test_an_event_is_one_object(capfd: pytest.CaptureFixture[str]) -> None:
    structlog.get_logger().info("round", round=3, loss=0.5, worst=float("nan"), path=Path("/x"), said="two\nlines é")
    (told,) = objects(capfd.readouterr().err)
    at = datetime.fromisoformat(told.pop("timestamp"))
    assert at.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - at) < timedelta(minutes=5)
    assert told == {
        "level": "info", "node": "mercy", "event": "round", "round": 3, "loss": 0.5, "worst": "nan", "path": "/x",
        "said": "two\nlines é",
    }  # fmt: skip


@pytest.mark.usefixtures("as_json")
def test_a_traceback_is_a_part_of_its_object(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="1"), ending_in_log():
        raise RuntimeError("no\nsuch thing")
    (told,) = objects(capfd.readouterr().err)
    assert (told["level"], told["event"], told["exit_code"]) == ("critical", "node ended by a defect", 1)
    assert "Traceback" in told["exception"]
    assert "such thing" in told["exception"]


@pytest.mark.usefixtures("as_json")
def test_the_sentence_with_which_a_node_ends_is_in_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="7"), ending_in_log():
        raise StateError("the disk is full")
    (told,) = objects(capfd.readouterr().err)
    assert (told["event"], told["reason"], told["exit_code"]) == ("node ended", "the disk is full", 7)


@pytest.mark.usefixtures("as_json")
def test_what_a_full_disk_had_no_room_for_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = structlog.get_logger()
    with (tmp_path / "log").open("w") as disk, Path("/dev/full").open("w") as full:
        for sentence, stream in (("one", disk), ("two", full), ("three", full), ("four", disk)):
            monkeypatch.setattr(sys, "stderr", stream)
            log.info(sentence)
        monkeypatch.undo()
    told = objects((tmp_path / "log").read_text())
    assert [line["event"] for line in told] == ["one", "lines of the log could not be written", "four"]
    assert told[1]["lines"] == 2
    assert told[1]["node"] == "mercy"


@pytest.mark.parametrize("how", ["option", "environment"])
def test_run_takes_it(folder: Path, how: str) -> None:  # noqa: F811
    """A node whose identity is missing ends at once, with all that it says in one object."""
    (folder / "conlora.yaml").write_text(yaml.safe_dump(config({})))
    told = ended(folder, *(["--log-format", "json"] if how == "option" else []), from_environment=how == "environment")
    assert (told["exit_code"], told["node"]) == (2, "mercy")
    assert "identity" in told["reason"]


def test_a_file_that_can_not_be_read_is_told_alike(folder: Path) -> None:  # noqa: F811
    (folder / "conlora.yaml").write_text("name: [")
    assert "conlora.yaml" in ended(folder, "--log-format", "json")["reason"]


def ended(directory: Path, *options: str, from_environment: bool = False) -> dict[str, Any]:
    """The one object that a node says which can't start."""
    environment = os.environ | ({"CONLORA_LOG_FORMAT": "json"} if from_environment else {})
    command = [sys.executable, "-m", "conlora", "run", str(directory), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    (told,) = objects(done.stderr)
    assert done.returncode == told["exit_code"] == 2
    return told
