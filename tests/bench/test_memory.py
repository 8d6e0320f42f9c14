"""Figure: resident memory of five daemon processes that train MiniLM on a ring, trainers not counted."""

from pathlib import Path

import psutil
import pytest
from tests.bench.figures import Figures
from tests.daemons import Daemons

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3600)]

ASSETS = Path(__file__).resolve().parents[2] / "assets"
NODES = 5


def test_five_daemons(tmp_path: Path, figures: Figures) -> None:
    with Daemons(tmp_path, ASSETS / "minilm", ASSETS / "tweets.csv") as daemons:
        training = {"rounds": 1_000_000, "local_steps": 1, "evaluate_every": 1_000_000, "batch_size": 2}
        nodes = [daemons.make(f"node-{i}", training, lora={"rank": 8}) for i in range(NODES)]
        for i, node in enumerate(nodes):
            for step in (1, -1):
                node.knows(nodes[(i + step) % NODES])
            node.start()
        statuses = [node.wait_for(lambda s: s.round >= 20 and s.peers[0].snapshot_round, "20 rounds") for node in nodes]
        sizes = [psutil.Process(status.pid).memory_info().rss / 1e6 for status in statuses]
    print("\nresident MB of each daemon:", ", ".join(f"{size:.0f}" for size in sizes))
    figures.record("resident memory of a daemon that trains MiniLM on a ring of five", samples=sizes, unit="MB")
