"""LoRA on experts' parameters: what is measured is each expert's own update, against dense matrices from PEFT itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft.tuners.lora.layer import LoraLayer
from tests.families import make_base, make_data

from conlora.config import NodeConfig
from conlora.core.consensus import consensus, factors, measure
from conlora.core.schema import Role, Vector
from conlora.daemon.meter import Meter
from conlora.training.model import Built, build_model

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.fixture(params=["mixtral", "qwen-moe"])
def built(request: pytest.FixtureRequest, tmp_path: Path) -> Built:
    task, rows = make_data("causal-lm", tmp_path)
    lora: dict[str, Any] = {
        "rank": 2,
        "target_modules": ["v_proj"],
        "target_parameters": EXPERTS,
        "init": "orthonormal",
    }
    return build_model(
        NodeConfig.model_validate(
            {
                "name": "node", "model": {"base": str(make_base(request.param, tmp_path / "base"))}, "task": task,
                "lora": lora, "federation": {"rule": "lora"}, "data": {"path": str(rows)},
            }
        )
    )  # fmt: skip


def drawn(built: Built, count: int) -> list[Vector]:
    draw = np.random.default_rng(0)
    return [draw.normal(size=built.shared.size).astype(np.float32) for _ in range(count)]


def dense(built: Built, vector: Vector) -> dict[str, np.ndarray]:
    """B A of each module, expert by expert where it has some, with this vector in the model."""
    built.adapter.write(built.shared, vector)
    found = {}
    for name, module in built.model.named_modules():
        if isinstance(module, LoraLayer):
            delta = (module.get_delta_weight("default") / module.scaling["default"]).detach().double().numpy()
            found |= {f"{name}.{e}": delta[e] for e in range(len(delta))} if delta.ndim == 3 else {name: delta}
    return found


def norm(matrix: np.ndarray) -> float:
    return float(np.linalg.norm(matrix))


def test_edge_errors_are_those_of_dense_products(built: Built) -> None:
    own, other = drawn(built, 2)
    mine, theirs = dense(built, own), dense(built, other)
    meter = Meter(built.adapter.schema, built.shared, own, seed=0)
    (edge,) = meter.measure(own, own, [other]).errors
    modules = [name for name, _, _ in built.shared.modules()]
    assert sorted(modules) == sorted(mine)
    assert len(modules) == 2 * (1 + 2 * 4), "of two layers: v_proj, and two parameters of four experts each"
    expected = [norm(mine[name] - theirs[name]) for name in modules]
    np.testing.assert_allclose([module.product for module in edge], expected, rtol=1e-5)


def test_consensus_is_that_of_dense_products(built: Built) -> None:
    vectors = drawn(built, 3)
    told = consensus(measure([factors(built.shared, vector, {}) for vector in vectors]))
    products = [dense(built, vector) for vector in vectors]
    of_mean = dense(built, np.mean(vectors, axis=0))
    mean = {name: np.mean([product[name] for product in products], axis=0) for name in of_mean}
    v = np.mean([sum(norm(product[name] - mean[name]) ** 2 for name in mean) for product in products]) ** 0.5
    d = np.mean([sum(norm(product[name] - of_mean[name]) for name in mean) for product in products])
    c = sum(norm(mean[name] - of_mean[name]) ** 2 for name in mean) ** 0.5
    np.testing.assert_allclose([told.V, told.D, told.C], [v, d, c], rtol=1e-5)


def test_what_is_written_is_read(built: Built) -> None:
    (vector,) = drawn(built, 1)
    built.adapter.write(built.shared, vector)
    np.testing.assert_array_equal(built.adapter.read(built.shared), vector)


def test_each_expert_begins_with_orthonormal_rows(built: Built) -> None:
    schema = built.adapter.schema
    views = schema.views(built.adapter.read(schema))
    rows = [views[spec.name] for spec in schema.tensors if spec.role is Role.A]
    assert all(np.allclose(a @ a.T, np.eye(2), atol=1e-6) for a in rows)
    assert len({a.tobytes() for a in rows}) == len(rows)
