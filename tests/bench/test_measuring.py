"""Figures: what measuring costs a round of the demo, what sketches add to snapshots, and how near their estimates are."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.bench.figures import Figures
from tests.schemas import Shapes, full_schema

from conlora.core.consensus import Factors, consensus, measure
from conlora.core.schema import Role
from conlora.core.sketch import FACTOR_PAIRS, PAIRS, Sketcher, SketchLayout, estimate
from conlora.core.sketchbook import allowance
from conlora.net.identity import create_identity
from conlora.net.sketches import Scribe

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3600)]

RULES = {"lora": frozenset({Role.A, Role.B}), "freeze-a": frozenset({Role.B})}
REPEATS = 9
MINILM: Shapes = [(384, 384, 8)] * 12
SEVEN_BILLION: Shapes = [(4096, 4096, 16)] * 64  # query and value of 32 layers


def seconds_of(action: Callable[[], Any], inner: int) -> float:
    """Median over repeats, after one to warm up."""
    action()
    taken = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        for _ in range(inner):
            action()
        taken.append((time.perf_counter() - began) / inner)
    return statistics.median(taken)


def demo_round() -> Callable[[], None]:
    """Two optimizer steps at batch 8 and length 32 of a model of MiniLM's size, without what a Trainer adds to them."""
    import torch
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    lora = LoraConfig(task_type=TaskType.SEQ_CLS, r=8, target_modules=["query", "value"])
    model = get_peft_model(BertForSequenceClassification(config), lora)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    words, labels = torch.randint(0, 30_000, (8, 32)), torch.randint(0, 2, (8,))

    def steps() -> None:
        for _ in range(2):
            model(input_ids=words, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return steps


def measuring(rule: str) -> Callable[[], Any]:
    """What a node with two neighbours measures at a mix."""
    from conlora.daemon.meter import Meter

    full = full_schema(MINILM)
    shared = full.select(RULES[rule])
    rng = np.random.default_rng(1)
    vectors = [rng.normal(size=shared.size).astype(np.float32) for _ in range(4)]
    meter = Meter(full, shared, rng.normal(size=full.size).astype(np.float32), seed=1)
    return lambda: meter.measure(vectors[0], vectors[1], vectors[2:])


def test_share_of_a_round(figures: Figures) -> None:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the demo's nodes train
    try:
        whole = seconds_of(demo_round(), 1)
    finally:
        torch.set_num_threads(threads)
    print()
    for rule in RULES:
        part = seconds_of(measuring(rule), 5)
        print(f"{rule}: measuring {1e3 * part:.1f} ms, two steps {1e3 * whole:.0f} ms, ratio {part / whole:.3f}")
        figures.record(
            f"measuring at a mix, {rule}", 1e3 * part, "ms", against="two optimizer steps of MiniLM", ratio=part / whole
        )


def test_bytes_beside_a_snapshot(tmp_path: Path, figures: Figures) -> None:
    identity = create_identity(tmp_path / "identity")
    print()
    for name, shapes in (("7B, rank 16", SEVEN_BILLION), ("MiniLM, rank 8", MINILM)):
        full = full_schema(shapes)
        for rule, roles in RULES.items():
            shared = full.select(roles)
            snapshot, layout = 4 * shared.size, SketchLayout.of(full, shared)
            record, most = Scribe(identity, b"", layout.size).record_bytes, allowance(4 * shared.size)
            print(
                f"{name}, {rule}: snapshot {snapshot / 1e6:.2f} MB, record {record / 1e3:.0f} kB ({record / snapshot:.2%}), "
                f"at most {most / 1e3:.0f} kB a snapshot ({most / snapshot:.2%}): {most / record:.1f} records"
            )
            what = f"sketches that go with a snapshot, at most: {name}, {rule}"
            figures.record(what, most / 1e3, "kB", against="the snapshot", ratio=most / snapshot)


def test_relative_errors_of_the_estimates(figures: Figures) -> None:
    """Seven nodes around a common adapter, against the exact figures."""
    print(f"\nroot mean square of relative errors, {PAIRS} pairs, {FACTOR_PAIRS} of them with factors:")
    for name, shapes in (("one module", [(384, 384, 8)]), ("MiniLM's 12 modules", MINILM)):
        layout = SketchLayout.of(full_schema(shapes), full_schema(shapes))
        errors: dict[str, list[float]] = {}
        for seed in range(20):
            nodes = around(7, shapes, 0.1, seed)
            seen = estimate(layout, Sketcher(layout, seed).sketch(*nodes)).figures.to_json()
            for figure, truth in consensus(measure(nodes)).to_json().items():
                errors.setdefault(figure, []).append(seen[figure] / truth - 1)
        rms = {figure: float(np.sqrt(np.mean(np.square(e)))) for figure, e in errors.items()}
        print(f"{name}:", ", ".join(f"{figure} {error:.1%}" for figure, error in rms.items()))
        for figure, error in rms.items():
            what = f"relative error of the estimate of {figure}, {name}"
            figures.record(what, error, samples=errors[figure], remark="root mean square over seeds")


def around(n: int, shapes: Shapes, spread: float, seed: int) -> list[Factors]:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    centre = [(normal(d, r), normal(r, k)) for d, k, r in shapes]
    return [
        {f"l{i}": (b + spread * normal(*b.shape), a + spread * normal(*a.shape)) for i, (b, a) in enumerate(centre)}
        for _ in range(n)
    ]
