"""Real weights and real data: the federations of deploy/models, whose figures docs/models.md shows.

Their reports stay in runs/models, from which `python deploy/models/table.py runs/models` makes its table.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conlora.testbed.metric import Metric, metric_of
from conlora.testbed.plots import groups

ROOT = Path(__file__).parents[2]
SPECS = sorted((ROOT / "deploy" / "models").glob("*.yaml"))


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.stem)
def test_a_federation_beats_its_nodes_alone(spec: Path) -> None:
    output = ROOT / "runs" / "models" / spec.stem
    command = [sys.executable, "-m", "conlora", "testbed", "run", str(spec), "-o", str(output), "--overwrite"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, cwd=ROOT, env=environment, timeout=3500)
    summary = json.loads((output / "summary.json").read_text())
    metric = metric_of(summary)
    assert [run["rule"] for run in summary["runs"]] == ["lora", "freeze-a"]
    for run in summary["runs"]:
        _check(metric, groups(summary, run), metric.before(run["nodes"][0]))
        assert (run["consensus"]["C"] == 0) is (run["rule"] == "freeze-a")


def _check(metric: Metric, by_group: dict[str, list[float]], before: float) -> None:
    """Every node learns, and more than alone: shares are unlike on purpose."""
    for federated, alone in zip(by_group["federated"], by_group["alone"], strict=True):
        assert metric.better(federated, before), by_group
        assert metric.better(federated, alone), by_group
    if metric.name == "perplexity":
        assert max(by_group["federated"]) < 45 < before / 3, by_group


def test_all_kinds_of_models_are_there() -> None:
    assert {spec.stem for spec in SPECS} == {"language", "glosses", "garments", "captions"}
