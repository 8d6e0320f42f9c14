"""What a node says of its checkpoints when it starts, with a trainer that only plays its part."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from structlog.testing import capture_logs
from tests.sketch_records import SCHEMA

from conlora.config import load_config
from conlora.daemon.supervisor import Supervisor
from conlora.errors import ConfigError, Refused
from conlora.store.checkpoints import MANIFEST
from conlora.store.history import History
from conlora.training import messages


class Observatory:
    """Hears whether the node trains."""

    def stand(self, still: bool) -> None:
        """Nobody asks."""


class Trainer:
    """Says that its model is there, and ends."""

    pid = 1

    def send(self, message: object) -> None:
        """Hears nothing."""

    def kill(self) -> None:
        """Is about to end anyway."""

    async def messages(self) -> AsyncIterator[messages.FromTrainer]:
        """The only one."""
        tensors = SCHEMA.to_json()
        yield messages.Ready(fingerprint="print", peft="1", adapter_schema=tensors, shared_schema=tensors)

    async def exited(self) -> str:
        """In good order."""
        return ""


@pytest.fixture
def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    nobody: Any = None
    observatory: Any = Observatory()
    path = tmp_path / "conlora.yaml"
    path.write_text(yaml.safe_dump({"name": "mercy", "model": {"base": "owner/model"}, "task": {"type": "guest"}}))

    async def start() -> Trainer:
        return Trainer()

    def unexpected(_: object) -> None:
        raise AssertionError("nothing fits")

    with History(tmp_path / "history.db") as history:
        made = Supervisor(
            load_config(path), nobody, observatory, history, nobody,
            paused=False, on_ready=unexpected, on_publish=unexpected,
        )  # fmt: skip
        monkeypatch.setattr(made, "_start", start)
        yield made


def seal(supervisor: Supervisor, step: int) -> Path:
    """A checkpoint of another model."""
    store = supervisor.seals.store
    store.prepare()
    (staged := store.staging / "staged").mkdir()
    return store.seal(staged, step // 4, step, "another schema").path


async def test_before_anything_is_trained_there_is_nothing_to_save(supervisor: Supervisor) -> None:
    with pytest.raises(Refused, match=r"^there is no checkpoint yet: nothing has been trained$"):
        await supervisor.checkpoint()


async def test_another_model_does_not_go_on_from_a_checkpoint(supervisor: Supervisor) -> None:
    path = seal(supervisor, 4)
    with pytest.raises(ConfigError) as caught:
        await supervisor.run()
    assert str(caught.value) == (
        f"{path}: was made with another model or other LoRA settings; put those back, or start anew with another state_dir"
    )


async def test_a_damaged_checkpoint_is_in_the_log_and_the_one_before_counts(supervisor: Supervisor) -> None:
    intact, damaged = seal(supervisor, 4), seal(supervisor, 8)
    (damaged / MANIFEST).write_text("{")
    with capture_logs() as logs, pytest.raises(ConfigError, match=rf"^{intact}: was made with another model"):
        await supervisor.run()
    found = [entry for entry in logs if entry["log_level"] == "error"]
    assert [entry["event"] for entry in found] == ["damaged checkpoint"]
    assert found[0]["reason"].startswith(f"{damaged}: not an intact checkpoint (")
