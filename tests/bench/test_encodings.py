"""Figures: bytes a round and accuracy by rule and encoding, against fp32 LoRA: MiniLM on definitions, three seeds."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.bench.figures import ROOT, Figures

pytestmark = [pytest.mark.bench, pytest.mark.timeout(7200)]

SEEDS = (1, 2, 3)
RULES = {"fp32": ["lora"], "bf16": ["lora", "freeze-a"], "int8": ["freeze-a"]}  # by encoding
MOST_LOST = 0.005
SPEC = ROOT / "deploy" / "testbed" / "encodings.yaml"


def test_accuracy_and_bytes(tmp_path: Path, figures: Figures) -> None:
    accuracy: dict[tuple[str, str], list[float]] = {}
    sent: dict[tuple[str, str], list[float]] = {}
    sketches: list[float] = []
    for seed in SEEDS:
        for encoding in RULES:
            for run in federation(seed, encoding, tmp_path / f"{encoding}-{seed}")["runs"]:
                key = (run["rule"], encoding)
                accuracy.setdefault(key, []).append(
                    statistics.fmean(node["after"]["accuracy"] for node in run["nodes"])
                )
                sent.setdefault(key, []).append(run["bytes_per_round"]["snapshots"])
                sketches.append(run["bytes_per_round"]["sketches"])
    exact = ("lora", "fp32")
    for key in sorted(accuracy):
        points = 100 * (statistics.fmean(accuracy[key]) - statistics.fmean(accuracy[exact]))
        smallest = key == ("freeze-a", "int8")
        figures.record(
            f"bytes of a node's snapshots a round, {key[0]} in {key[1]}", unit="B", samples=sent[key], against="lora in fp32",
            ratio=statistics.fmean(sent[key]) / statistics.fmean(sent[exact]), at_most=1 / 7 if smallest else None,
        )  # fmt: skip
        figures.record(
            f"accuracy, {key[0]} in {key[1]}", statistics.fmean(accuracy[key]), samples=accuracy[key],
            at_least=statistics.fmean(accuracy[exact]) - MOST_LOST if smallest else None,
            remark=f"{points:+.2f} points against lora in fp32",
        )  # fmt: skip
    figures.record(
        "bytes of a node's sketches a round",
        unit="B",
        samples=sketches,
        remark="whatever rule and encoding; not in the above",
    )


def federation(seed: int, encoding: str, folder: Path) -> dict[str, object]:
    """The summary of a testbed run."""
    spec = yaml.safe_load(SPEC.read_text())
    for section, key in (("model", "base"), ("data", "path")):
        spec[section][key] = str((SPEC.parent / spec[section][key]).resolve())
    spec |= {"seed": seed, "rules": RULES[encoding], "exchange": {"encoding": encoding}}
    spec["learning_rates"] = {rule: spec["learning_rates"][rule] for rule in RULES[encoding]}
    folder.mkdir()
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    command = [sys.executable, "-m", "conlora", "testbed", "run", str(folder / "spec.yaml"), "-o", str(folder / "out")]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return json.loads((folder / "out" / "summary.json").read_text())
