"""A hub that does not answer is told from one that has no such thing: a service manager tries again after the first."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import datasets
import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from conlora.config import ModelSection
from conlora.errors import ConfigError, ConLoRAError, StateError, TrainingFailed, Unavailable, error_of
from conlora.training.outside import is_outside
from conlora.training.sources import read_hub
from conlora.training.tasks import loading


def hub_is_away() -> None:
    """As huggingface_hub raises it where nobody answers and nothing is cached, and transformers passes it on."""
    try:
        raise LocalEntryNotFoundError("we cannot find the requested files in the local cache")
    except LocalEntryNotFoundError as error:
        raise OSError("We couldn't connect to the hub\nCheck your connection") from error


def hub_has_no_such_model() -> None:
    """As they do where it answers."""
    raise OSError("mercy/base is not a valid model identifier")


@pytest.mark.parametrize(
    ("status", "outside"), [(401, False), (403, False), (404, False), (408, True), (429, True), (503, True)]
)
def test_what_has_answered_for_good_is_there(status: int, outside: bool) -> None:
    """A mirror that has no such thing, a proxy that forbids the host: as the client of hubs wraps it."""
    answer = SimpleNamespace(status_code=status, headers={}, request=None)
    error = LocalEntryNotFoundError("and nothing is cached")
    error.__cause__ = HfHubHTTPError("no", response=cast(httpx2.Response, answer))
    assert is_outside(error) is outside


@pytest.mark.parametrize(
    ("fail", "kind", "sentence"),
    [
        (
            hub_is_away,
            Unavailable,
            r"can't be fetched \(We couldn't connect to the hub\); start again once the hub answers, or give a folder$",
        ),
        (hub_has_no_such_model, ConfigError, r"can't be loaded \(mercy/base is not a valid .*\); give a folder"),
    ],
)
def test_a_model_whose_hub_does_not_answer_is_no_mistake(
    fail: Callable[[], None], kind: type[ConfigError], sentence: str
) -> None:
    with (
        pytest.raises(ConfigError, match=f"model.base: mercy/base {sentence}") as caught,
        loading(ModelSection(base="mercy/base")),
    ):
        fail()
    assert type(caught.value) is kind


def test_rows_whose_hub_does_not_answer_are_no_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(**_: object) -> None:
        raise ConnectionError("Couldn't reach 'mercy/notes' on the Hub") from FileNotFoundError("not cached")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    sentence = (
        r"data: mercy/notes can't be fetched \(Couldn't reach .*\); start again once the hub answers, or give a file"
    )
    with pytest.raises(Unavailable, match=sentence):
        read_hub("mercy/notes", "train", (), tmp_path, streaming=False)


@pytest.mark.parametrize("kind", [ConfigError, Unavailable, StateError, TrainingFailed])
def test_the_exit_code_of_a_trainer_is_that_of_its_node(kind: type[ConLoRAError]) -> None:
    assert error_of(kind.exit_code) is kind
    assert error_of(1) is TrainingFailed
