"""What a finished run shows: consensus error by round, figures on the common test rows, and each node's history."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import networkx as nx

from conlora.core.consensus import Factors, Sums, consensus, factors, measure
from conlora.core.schema import Vector
from conlora.core.topology import spectrum
from conlora.errors import TrainingFailed
from conlora.store.history import History
from conlora.store.recording import Recording
from conlora.testbed.federation import Trained
from conlora.testbed.layout import NodeSetup, cores
from conlora.testbed.processes import Interrupts, NodeProcesses
from conlora.testbed.spec import TestbedSpec

EVALUATION_SECONDS = 3600.0


def measure_run(graph: "nx.Graph[int]", setups: Sequence[NodeSetup], interrupts: Interrupts) -> dict[str, Any]:
    """A federated run's figures: of its graph, and its consensus error after the last mix and by round."""
    rho, s = spectrum(graph)
    measured = consensus_by_round(setups, interrupts)
    return {"rho": rho, "s": s, "consensus": measured[-1]["after"], "consensus_by_round": measured}


def consensus_by_round(setups: Sequence[NodeSetup], interrupts: Interrupts) -> list[dict[str, Any]]:
    """Consensus error before and after the mix of every round that all nodes recorded, in total and module by module.

    `layers` is there for the last round only.
    """
    recordings = [Recording(setup.state / "recording") for setup in setups]
    common = set.intersection(*(set(recording.rounds()) for recording in recordings))
    if not common:
        raise TrainingFailed(f"{setups[0].state / 'recording'}: no round was recorded by every node")
    measured = []
    for round_ in sorted(common):
        interrupts.check()
        vectors = [recording.load(round_) for recording in recordings]
        before = _measure(recordings, [published for published, _ in vectors])
        after = _measure(recordings, [mixed for _, mixed in vectors])
        measured.append({"round": round_, "before": consensus(before).to_json(), "after": consensus(after).to_json()})
    measured[-1]["layers"] = {
        module: {"before": before[module].consensus().to_json(), "after": after[module].consensus().to_json()}
        for module in before
    }
    return measured


def _measure(recordings: Sequence[Recording], vectors: Sequence[Vector]) -> dict[str, Sums]:
    nodes: list[Factors] = [
        factors(recording.schema, vector, recording.frozen)
        for recording, vector in zip(recordings, vectors, strict=True)
    ]
    return measure(nodes)


def evaluate(
    setups: Sequence[NodeSetup], directory: Path, test: Path, env: dict[str, str], interrupts: Interrupts
) -> dict[str, Any]:
    """Figures on the common test rows, as `conlora.training.evaluate` answers them, by the adapters' paths.

    setups: nodes of one rule, so that they share the start. directory: made for the evaluation's own files. The
    work is done in a process of its own, because it needs torch.
    """
    directory.mkdir()
    request, answer, log = (directory / f"evaluation{suffix}" for suffix in (".request.json", ".json", ".log"))
    request.write_text(
        json.dumps(
            {
                "config": str(setups[0].config),
                "test": str(test),
                "adapters": {str(setup.adapter): str(setup.adapter) for setup in setups},
                "threads": cores(),
            },
            indent=1,
        )
    )
    with NodeProcesses(interrupts) as processes:
        command = [sys.executable, "-m", "conlora.training.evaluate", str(request)]
        child = processes.start("the evaluation", command, log, env, stdout=answer)
        processes.finish(child, EVALUATION_SECONDS)
    try:
        result: dict[str, Any] = json.loads(answer.read_text())
    except ValueError as error:
        raise TrainingFailed(f"{answer}: the evaluation's answer is not JSON ({error}); its log is {log}") from error
    return result


def describe_federation(
    spec: TestbedSpec,
    rule: str,
    trained: Trained,
    setups: Sequence[NodeSetup],
    evaluation: dict[str, Any],
    output: Path,
    interrupts: Interrupts,
) -> dict[str, Any]:
    """A federated run's part of the summary; paths are relative to `output`."""
    return {
        "rule": rule,
        **trained.to_json(),
        "nodes": describe_nodes(setups, evaluation, output),
        "topology": spec.topology or "custom",
        "mode": spec.mode.value,
        "seed": spec.seed,
        "edges": sorted([i + 1, j + 1] for i, j in spec.graph.edges),
        **measure_run(spec.graph, setups, interrupts),
    }


def describe_nodes(setups: Sequence[NodeSetup], evaluation: dict[str, Any], output: Path) -> list[dict[str, Any]]:
    """Each node's part of the summary; paths are relative to `output`."""
    return [_describe(setup, evaluation, output) for setup in setups]


def _describe(setup: NodeSetup, evaluation: dict[str, Any], output: Path) -> dict[str, Any]:
    with History(setup.state / "history.db") as history:
        rounds, evaluations = history.rows("rounds"), history.rows("evaluations")
    return {
        "name": setup.name,
        "rounds": rounds[-1]["round"] if rounds else 0,
        "rows": setup.rows,
        "class_counts": setup.class_counts,
        "before": evaluation["before"],
        "after": evaluation["after"][str(setup.adapter)],
        "adapter": str(setup.adapter.relative_to(output)),
        "peers": setup.peers,
        "history": [{key: row[key] for key in ("round", "loss", "seconds")} for row in rounds],
        "evaluations": [{"round": row["round"], **json.loads(row["figures"])} for row in evaluations],
    }
