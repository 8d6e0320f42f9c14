"""Lockstep with real daemons over gRPC equals what plain numpy makes of all nodes' vectors: W applied, or clipping."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import yaml

from conlora.core.topology import metropolis_matrix, named_graph
from conlora.store.recording import Recording

ROUNDS = 5


Rounds = list[tuple[np.ndarray, np.ndarray]]  # of all nodes: what they published, and what they made of it


def federation(folder: Path, model: Path, data: Path, nodes: int, topology: str, **sections: Any) -> Rounds:
    """A testbed's recording."""
    spec = {
        "name": "oracle", "nodes": nodes, "topology": topology, "rules": ["lora"], "mode": "sync", "seed": 3,
        "exchange": {"encoding": "fp32"},
        "model": {"base": str(model)}, "lora": {"rank": 2},
        "task": {"labels": ["negative", "positive"], "max_length": 16},
        "training": {"rounds": ROUNDS, "local_steps": 2, "batch_size": 8, "device": "cpu"},
        "data": {"path": str(data), "partition": {"dirichlet": 0.5}, "rows_per_node": 40, "test_rows": 100},
    } | sections  # fmt: skip
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    command = ["testbed", "run", str(folder / "spec.yaml"), "-o", str(folder / "out")]
    subprocess.run([sys.executable, "-m", "conlora", *command], check=True, stdin=subprocess.DEVNULL)
    recordings = [Recording(folder / "out" / "lora" / f"node-{i + 1}" / "state" / "recording") for i in range(nodes)]
    rounds = []
    for round_ in range(1, ROUNDS + 1):
        published, mixed = zip(*(recording.load(round_) for recording in recordings), strict=True)
        rounds.append((np.stack(published).astype(np.float64), np.stack(mixed)))
    return rounds


@pytest.mark.usefixtures("forks")
@pytest.mark.parametrize(("topology", "nodes"), [("ring", 4), ("T2", 7)])
def test_sync_equals_the_dumb_oracle(
    topology: str, nodes: int, tmp_path: Path, tiny_model: Path, tiny_data: Path
) -> None:
    w = metropolis_matrix(named_graph(topology, nodes))
    for y, x in federation(tmp_path, tiny_model, tiny_data, nodes, topology):
        assert np.abs(y - y.mean(axis=0)).max() > 1e-4, "the nodes differ, so that mixing has something to do"
        np.testing.assert_allclose(x, w @ y, rtol=0, atol=1e-6)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    *earlier, last = summary["runs"][0]["consensus_by_round"]
    assert not any("layers" in entry for entry in earlier)
    for moment in ("before", "after"):
        layers = [figures[moment] for figures in last["layers"].values()]
        assert sum(layer["D"] for layer in layers) == pytest.approx(last[moment]["D"])
        assert np.linalg.norm([layer["V"] for layer in layers]) == pytest.approx(last[moment]["V"])
    assert [node["rounds"] for node in summary["runs"][0]["nodes"]] == [ROUNDS] * nodes


def radius(neighbours: list[tuple[float, float]]) -> float:
    """Of distances and weights: the farthest one is left out."""
    *near, (_, weight) = sorted(neighbours)
    return math.sqrt(sum(w * d * d for d, w in near) / weight) if near else neighbours[0][0]


@pytest.mark.usefixtures("forks")
@pytest.mark.long
def test_clipping_equals_the_dumb_oracle(tmp_path: Path, tiny_model: Path, tiny_data: Path) -> None:
    """Each radius goes over the wire: in a round both ends clip at what either had seen in the round before."""
    graph = nx.convert_node_labels_to_integers(named_graph("T2", 7))
    w = metropolis_matrix(graph)
    radii = None
    for y, x in federation(tmp_path, tiny_model, tiny_data, 7, "T2", mixing={"robust": "clipping"}):
        far = np.linalg.norm(y[:, None] - y[None], axis=2)
        seen = [radius([(far[i, j], w[i, j]) for j in graph.neighbors(i)]) for i in graph]
        told = radii or seen
        mixed, clipped = y.copy(), 0
        for i, j in graph.to_directed().edges:
            limit = min(told[i], told[j]) if radii else told[i]
            clipped += limit < far[i, j]
            mixed[i] += w[i, j] * min(1.0, limit / far[i, j]) * (y[j] - y[i])
        assert clipped
        np.testing.assert_allclose(x, mixed, rtol=0, atol=2e-6)
        radii = seen
