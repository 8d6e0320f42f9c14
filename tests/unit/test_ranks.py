"""What ranks tell one another, by two of them in threads; and parameters that are not where they were."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed, nn

from conlora.errors import ConfigError, RankLost
from conlora.training.adapter import Adapter
from conlora.training.ranks import OneRank, Ranks, SeveralRanks, launched

VECTOR = np.linspace(-1, 1, 5000, dtype=np.float32)


def on_two(do: Callable[[SeveralRanks], Any]) -> list[Any]:
    """What it returns or raises on rank 0 and on rank 1."""
    store, results = distributed.HashStore(), [None, None]

    def rank(number: int) -> None:
        group = distributed.ProcessGroupGloo(distributed.PrefixStore("x", store), number, 2, timedelta(seconds=20))
        ranks = SeveralRanks(group)
        del group
        try:
            results[number] = do(ranks)
        except Exception as error:
            results[number] = error
        finally:
            ranks.leave()

    threads = [threading.Thread(target=rank, args=[number]) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_the_first_tells() -> None:
    assert on_two(lambda r: (r.tell(b"one" if r.rank == 0 else b""), r.tell(b""))) == [(b"one", b"")] * 2
    first, second = on_two(lambda r: r.broadcast(VECTOR + r.rank))
    assert np.array_equal(first, VECTOR)
    assert np.array_equal(second, VECTOR)


@pytest.mark.parametrize(("values", "mean"), [((1.0, 2.0), 1.5), ((None, 2.0), 2.0), ((None, None), None)])
def test_a_mean_is_of_those_who_have_a_value(values: tuple[float | None, ...], mean: float | None) -> None:
    assert on_two(lambda r: r.mean(values[r.rank])) == [mean, mean]


@pytest.mark.parametrize(("apart", "alike"), [(0, True), (1e-7, True), (1e-4, False), (np.nan, False)])
def test_vectors_are_alike_up_to_rounding(apart: float, alike: bool) -> None:
    assert on_two(lambda r: r.alike(VECTOR + np.float32(r.rank * apart))) == [alike, alike]


@pytest.mark.parametrize("wrong", [(0,), (1,), (0, 1)])
def test_a_mistake_of_one_is_everybodys(wrong: tuple[int, ...]) -> None:
    def do(ranks: Ranks) -> int:
        if ranks.rank in wrong:
            raise ConfigError(f"rank {ranks.rank} is ñot right")
        return ranks.rank

    for error in on_two(lambda r: r.together(lambda: do(r))):
        assert isinstance(error, ConfigError)
        assert str(error) == f"rank {wrong[0]} is ñot right"
    assert on_two(lambda r: r.together(lambda: r.rank)) == [0, 1]


def test_the_first_goes_first() -> None:
    done: list[int] = []
    on_two(lambda r: r.after_first(lambda: done.append(r.rank)))
    assert done == [0, 1]


def test_a_rank_that_ends_is_missed() -> None:
    first, second = on_two(lambda r: r.barrier() if r.rank else None)
    assert first is None
    assert isinstance(second, RankLost)
    assert str(second) == "another rank of this program has ended; what it printed says why"


def test_one_process_is_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert isinstance(launched.__wrapped__(), OneRank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match=r"WORLD_SIZE is 2, but the other ranks can't be found \(.*RANK expected"):
        launched.__wrapped__()


def test_parameters_that_were_flattened_are_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 3))
    adapter = Adapter(model)
    model[0].weight = nn.Parameter(torch.zeros(6))
    with pytest.raises(ConfigError, match=r"0\.weight: is no longer where it was, or has another shape; .*fully_shard"):
        adapter.read(adapter.schema)
