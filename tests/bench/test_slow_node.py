"""Figure: rounds per minute of a slow node's neighbours, with and without it, in async mode.

Three nodes on a complete graph. Every step is stretched to about ten times its computing time by idling, so that the
nodes don't compete for the cores and only waiting for each other could slow them down.
"""

import statistics

import pytest
from tests.bench.figures import Figures
from tests.daemons import Daemon, Daemons

from conlora.store.history import History

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3600)]

ROUNDS = 30
PAIRS = 3


def seconds_per_round(daemons: Daemons, tag: str, slow: float) -> float:
    """Median round of the two ordinary nodes; the third is `slow` times as slow."""
    training = {
        "rounds": 1_000_000,
        "local_steps": 4,
        "slowdown": 10,
        "checkpoint_every": 1_000_000,
        "evaluate_every": 1_000_000,
    }
    nodes = [daemons.make(f"{tag}-{i}", {**training, "slowdown": 10 * (slow if i == 2 else 1)}) for i in range(3)]
    for node in nodes:
        for other in nodes:
            if other is not node:
                node.knows(other)
        node.start("--paused")
    for node in nodes:
        node.wait_for(lambda s: s.state == "paused" and all(p.link == "up" for p in s.peers), "linked")
    for node in nodes:
        node.admin.resume()
    for node in nodes[:2]:
        node.wait_for(lambda s: s.round >= ROUNDS, "rounds", seconds=300)
    ordinary: list[float] = []
    for node in nodes:
        node.admin.stop()
        node.exit_code()
    for node in nodes[:2]:
        ordinary += rounds_of(node)
    return statistics.median(ordinary)


def rounds_of(node: Daemon) -> list[float]:
    with History(node.state_dir / "history.db") as history:
        return [row["seconds"] for row in history.rows("rounds")][5:]


def test_neighbours_of_a_slow_node(daemons: Daemons, figures: Figures) -> None:
    ratios, rates = [], []
    for pair in range(PAIRS):
        without = seconds_per_round(daemons, f"even{pair}", slow=1)
        with_slow = seconds_per_round(daemons, f"slow{pair}", slow=4)
        ratios.append(without / with_slow)
        rates.append(60 / with_slow)
        print(
            f"\npair {pair + 1}: {60 / without:.1f} rounds a minute among equals, {60 / with_slow:.1f} beside a 4x slower node, "
            f"ratio {ratios[-1]:.3f}"
        )
    print(f"ratio, median of {PAIRS} pairs: {statistics.median(ratios):.3f}")
    figures.record(
        "rounds of the neighbours of a node that is four times slower",
        samples=rates,
        unit="a minute",
        against="the same nodes among equals",
        ratio=statistics.median(ratios),
        remark="pairs: " + ", ".join(f"{ratio:.3f}" for ratio in ratios),
    )
