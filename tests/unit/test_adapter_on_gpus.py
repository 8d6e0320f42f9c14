"""A model's adapter that lies on GPUs is copied by way of page-locked memory. Here two GPUs are made believe."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from conlora.training.adapter import Adapter


@pytest.fixture
def waited_for(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The devices that were waited for, in order; the adapter's tensors pass for such on two GPUs."""
    devices: list[str] = []
    empty = torch.empty

    def unlocked(*size: int, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        return empty(*size, **options)

    monkeypatch.setattr(Adapter, "_gpus", lambda self: {"cuda:0", "cuda:1"})
    monkeypatch.setattr(torch, "empty", unlocked)
    monkeypatch.setattr(torch.cuda, "synchronize", devices.append)
    return devices


def test_all_devices_that_a_model_is_spread_over_are_waited_for(waited_for: list[str]) -> None:
    adapter = Adapter(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)))
    written = np.arange(adapter.schema.size, dtype=np.float32)
    adapter.write(adapter.schema, written)
    assert sorted(waited_for) == ["cuda:0", "cuda:1"]
    assert np.array_equal(adapter.read(adapter.schema), written)
    assert sorted(waited_for[2:]) == ["cuda:0", "cuda:1"]


def test_what_was_read_is_not_overwritten_by_the_next_copy(waited_for: list[str]) -> None:
    adapter = Adapter(nn.Linear(4, 3))
    before = adapter.read(adapter.schema)
    kept = before.copy()
    adapter.write(adapter.schema, before + 1)
    assert np.array_equal(before, kept)
