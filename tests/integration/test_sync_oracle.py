"""Lockstep with real daemons over gRPC equals W applied to all nodes' vectors with plain numpy."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from conlora.core.topology import metropolis_matrix, named_graph
from conlora.store.recording import Recording

ROUNDS = 5


@pytest.mark.usefixtures("forks")
@pytest.mark.parametrize(("topology", "nodes"), [("ring", 4), ("T2", 7)])
def test_sync_equals_the_dumb_oracle(
    topology: str, nodes: int, tmp_path: Path, tiny_model: Path, tiny_data: Path
) -> None:
    spec = {
        "name": "oracle", "nodes": nodes, "topology": topology, "rules": ["lora"], "mode": "sync", "seed": 3,
        "exchange": {"encoding": "fp32"},
        "model": {"base": str(tiny_model)}, "lora": {"rank": 2},
        "task": {"labels": ["negative", "positive"], "max_length": 16},
        "training": {"rounds": ROUNDS, "local_steps": 2, "batch_size": 8, "device": "cpu"},
        "data": {"path": str(tiny_data), "partition": {"dirichlet": 0.5}, "rows_per_node": 40, "test_rows": 100},
    }  # fmt: skip
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    command = [
        sys.executable,
        "-m",
        "conlora",
        "testbed",
        "run",
        str(tmp_path / "spec.yaml"),
        "-o",
        str(tmp_path / "out"),
    ]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)

    w = metropolis_matrix(named_graph(topology, nodes))
    recordings = [Recording(tmp_path / "out" / "lora" / f"node-{i + 1}" / "state" / "recording") for i in range(nodes)]
    for round_ in range(1, ROUNDS + 1):
        vectors = [recording.load(round_) for recording in recordings]
        y = np.stack([published for published, _ in vectors]).astype(np.float64)
        x = np.stack([mixed for _, mixed in vectors])
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
