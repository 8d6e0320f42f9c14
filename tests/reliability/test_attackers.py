"""Figures: what one liar among seven nodes on T3 does to the accuracy of the honest ones, with and without robust mixing."""

import contextlib
import json
import multiprocessing
import statistics
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
from tests.bench.figures import ROOT, Figures
from tests.daemons import Daemons
from tests.reliability.attackers import ATTACKS, read_rows, train

from conlora.core.topology import named_graph
from conlora.testbed.partition import dirichlet, hold_out

pytestmark = [pytest.mark.bench, pytest.mark.timeout(7200)]

NODES, ROUNDS, LOCAL_STEPS = 7, 60, 2
ROWS, TEST_ROWS, ALPHA = 150, 800, 0.5
LIAR = 2  # all have four neighbours, so one is as good as another
DEFENCES = {"none": {}, "clipping": {"robust": "clipping"}, "trimmed mean": {"robust": "trimmed-mean"}}
MOST_LOST = 0.015


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_one_liar_among_seven(tmp_path: Path, figures: Figures, seed: int) -> None:
    """All is compared with what the honest nodes reach without a liar and without a defence, which is run first.

    What they reach without the liar's node says what its rows are worth, which no defence can give back.
    """
    honest: float | None = None
    for i, (defence, mixing) in enumerate(DEFENCES.items()):
        for j, attack in enumerate((None, *ATTACKS)):
            accuracy = federation(tmp_path / f"{i}-{j}", seed, mixing, attack)  # short: nodes make sockets there
            mean = statistics.fmean(accuracy)
            honest = mean if honest is None else honest
            figures.record(
                f"accuracy of honest nodes, seed {seed}, attacker: {attack or 'none'}, defence: {defence}", mean,
                samples=accuracy,
                remark=f"{100 * (mean - honest):+.1f} points",
                at_least=honest - MOST_LOST if mixing else None,
            )  # fmt: skip
    assert honest is not None
    alone = federation(tmp_path / "alone", seed, {}, None, absent={LIAR})
    mean = statistics.fmean(alone)
    figures.record(
        f"accuracy of the same nodes among themselves, seed {seed}", mean, samples=alone,
        remark=f"{100 * (mean - honest):+.1f} points: what the liar's rows are worth",
    )  # fmt: skip


def federation(
    folder: Path, seed: int, mixing: dict[str, object], attack: str | None, absent: Collection[int] = ()
) -> list[float]:
    """Accuracies of all nodes but the liar, and without one, of the same nodes.

    seed: of the rows' distribution and of the federation. absent: nodes that are left out of the graph, with all their edges.
    """
    folder.mkdir(parents=True)
    minilm, tweets = ROOT / "assets" / "minilm", ROOT / "assets" / "tweets.csv"
    rows = read_rows(tweets)
    labels = np.array([label for _, label in rows])
    rng = np.random.default_rng(seed)
    held, others = hold_out(labels, TEST_ROWS, rng)
    shares = [others[share] for share in dirichlet(labels[others], NODES, ROWS, ALPHA, rng)]
    with Daemons(folder, minilm, tweets) as daemons:
        nodes = [
            daemons.make(
                f"node-{i + 1}",
                {"rounds": ROUNDS, "local_steps": LOCAL_STEPS, "checkpoint_every": ROUNDS, "learning_rate": 1e-2},
                lora={"rank": 8, "target_modules": ["query", "value"]},
                federation={"seed": seed, "rule": "freeze-a", "mode": "sync"},
                task={"type": "guest"},
                mixing=mixing,
            )
            for i in range(NODES)
        ]
        for node in nodes:
            del node.config["data"]
            node.write()
        graph = named_graph("T3", NODES)
        graph.remove_nodes_from(absent)
        for i, j in graph.edges:
            nodes[i].knows(nodes[j])
            nodes[j].knows(nodes[i])
        present = [(i, nodes[i]) for i in graph]
        for _, node in present:
            node.start()
        for _, node in present:
            node.wait_for(lambda status: status.state == "waiting", "waits for a program")
        start = multiprocessing.get_context("forkserver")
        start.set_forkserver_preload(["tests.reliability.attackers"])
        test = [rows[number] for number in held]
        with contextlib.ExitStack() as programs:
            started = []
            for i, node in present:
                mine = [rows[number] for number in shares[i]]
                lie = attack if i == LIAR else None
                args = (node.directory, mine, test, lie, i, folder / f"{i}.json")
                started.append(start.Process(target=train, args=args))
                started[-1].start()
                programs.callback(started[-1].kill)
            for program in started:
                program.join()
                assert program.exitcode == 0
    return [json.loads((folder / f"{i}.json").read_text()) for i in range(NODES) if i != LIAR]
