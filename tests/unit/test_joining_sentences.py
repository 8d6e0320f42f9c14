"""The sentences for programs that join a node, and for the ranks of a trainer: provoked, and read."""

import contextlib
import os
import socket
import threading
from pathlib import Path
from typing import Self

import pytest
import torch
import yaml
from tests.families import make_base
from transformers import BertForSequenceClassification

import conlora
from conlora.config import load_config
from conlora.core.schema import Schema
from conlora.errors import ConfigError, StateError
from conlora.training.arena import arena_bytes, create_memory
from conlora.training.channel import Channel
from conlora.training.launcher import all_ranks
from conlora.training.messages import FROM_TRAINER, Layout, Ready, Setup, line
from conlora.training.process import waiting_room


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base("bert", tmp_path_factory.mktemp("bert"))


class Waiting:
    """A node that waits for a program, as far as the program can tell."""

    def __init__(self, directory: Path, base: Path) -> None:
        self.directory = directory
        (directory / "conlora.yaml").write_text(
            yaml.safe_dump({"name": "n", "model": {"base": str(base)}, "task": {"type": "guest"}})
        )
        self._config = load_config(directory / "conlora.yaml")
        self._config.state_dir.mkdir()
        self._memory = create_memory()
        self._room = contextlib.ExitStack()
        self._thread = threading.Thread(target=self._receive)

    def __enter__(self) -> Self:
        self._guests = self._room.enter_context(waiting_room(self._config.guest_socket))
        self._guests.settimeout(20)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._thread.join()
        self._room.close()
        os.close(self._memory)

    def _receive(self) -> None:
        link, _ = self._guests.accept()
        setup = Setup(
            config=self._config.model_dump(mode="json"), staging="", resume_from=None, round=0, step=0, paused=False
        )
        with link, link.makefile("rb") as heard:
            socket.send_fds(link, [b"\0"], [self._memory])
            link.sendall(line(setup))
            for data in heard:
                if isinstance(said := FROM_TRAINER.validate_json(data), Ready):
                    size = Schema.from_json(said.shared_schema).size
                    os.ftruncate(self._memory, arena_bytes(size, 0))
                    link.sendall(line(Layout(publish=0)))


def test_a_program_adapts_one_model(bert: Path, tmp_path: Path) -> None:
    with Waiting(tmp_path, bert) as node, conlora.join(node.directory) as guest:
        for use in (guest.step, guest.callback):
            with pytest.raises(ConfigError, match=r"^there is no model yet; call adapt first$"):
                use()
        model = BertForSequenceClassification.from_pretrained(bert)
        guest.adapt(model, fresh=["classifier.weight", "classifier.bias"])
        with pytest.raises(ConfigError, match=r"^a node trains one model at a time; join again for another$"):
            guest.adapt(model)


def test_the_base_of_a_program_has_to_be_a_folder_with_weights(bert: Path, tmp_path: Path) -> None:
    """Whatever the program has loaded: peers compare the files."""
    empty = tmp_path / "empty"
    empty.mkdir()
    kinds = r"\*\.safetensors, \*\.gguf, \*\.bin, \*\.h5"
    sentence = rf"^model\.base: {empty} holds no weights \({kinds}\); give the folder that does$"
    model = BertForSequenceClassification.from_pretrained(bert)
    with (
        Waiting(tmp_path, empty) as node,
        conlora.join(node.directory) as guest,
        pytest.raises(ConfigError, match=sentence),
    ):
        guest.adapt(model)


def test_programs_join_at_a_path_that_a_socket_can_have(tmp_path: Path) -> None:
    path = tmp_path / ("state" * 30) / "trainer.sock"
    with pytest.raises(
        StateError,
        match=rf"^{path}: no program can join there \(AF_UNIX path too long\); a shorter state_dir may help$",
    ):
        waiting_room(path).__enter__()


@pytest.mark.parametrize("there", [1, 3])
def test_a_process_for_each_gpu(there: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    node = {"name": "n", "model": {"base": "a/b"}, "task": {"labels": ["+", "-"]}, "data": {"hub": "a/b"}}
    setup = Setup(
        config={**node, "training": {"processes": 4}}, staging="", resume_from=None, round=0, step=0, paused=False
    )
    with pytest.raises(
        ConfigError,
        match=rf"^training\.processes: 4, but this machine shows {there} GPUs; lower it, or set training\.device to cpu$",
    ):
        all_ranks(setup, Channel(None)).__enter__()
