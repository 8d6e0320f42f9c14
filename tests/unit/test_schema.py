"""Schema and seeded start: layout and determinism."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conlora.core.federation import FederationSettings
from conlora.core.schema import Role, Schema, TensorSpec
from conlora.core.seeding import HEAD_STD, initial_vector

specs = st.lists(
    st.tuples(st.sampled_from(list(Role)), st.lists(st.integers(1, 5), min_size=1, max_size=3)), min_size=1, max_size=6
)
schemas = specs.map(
    lambda items: Schema(
        tuple(TensorSpec(f"t{i}.{role}", f"t{i}", role, tuple(s)) for i, (role, s) in enumerate(items))
    )
)


def test_views_are_the_vector_itself() -> None:
    schema = Schema((TensorSpec("a", "m", Role.A, (2, 2)), TensorSpec("b", "m", Role.B, (3,))))
    vector = np.zeros(7, np.float32)
    schema.views(vector)["b"][...] = 1
    np.testing.assert_array_equal(vector, [0, 0, 0, 0, 1, 1, 1])


@given(schemas)
def test_json_there_and_back_keeps_the_digest(schema: Schema) -> None:
    assert Schema.from_json(schema.to_json()).digest == schema.digest


@given(schemas)
def test_digest_tells_schemas_apart(schema: Schema) -> None:
    first, *rest = schema.tensors
    changed = Schema((replace(first, shape=(*first.shape, 1)), *rest))
    assert changed.digest != schema.digest


START = Schema(
    (
        TensorSpec("m.lora_A.weight", "m", Role.A, (8, 384)),
        TensorSpec("m.lora_B.weight", "m", Role.B, (384, 8)),
        TensorSpec("classifier.weight", "classifier", Role.HEAD, (2, 384)),
        TensorSpec("classifier.bias", "classifier", Role.HEAD, (2,)),
    )
)


def test_the_start_is_the_same_wherever_it_is_made() -> None:
    """Fixed digest: a change of numpy, of the platform or of our code that alters the start is found here."""
    digest = hashlib.sha256(initial_vector(START, 1).tobytes()).hexdigest()
    assert digest == "2a1b1d2f16e271b6be6b05c380474e8a8db7d47336ac90822537b712b5422161"


def test_the_start_has_the_distributions_it_should() -> None:
    views = START.views(initial_vector(START, 7))
    a, head = views["m.lora_A.weight"], views["classifier.weight"]
    bound = 1 / np.sqrt(384)
    assert -bound <= a.min() < -0.95 * bound
    assert 0.95 * bound < a.max() <= bound
    assert head.std() == pytest.approx(HEAD_STD, rel=0.1)
    assert not views["m.lora_B.weight"].any()
    assert not views["classifier.bias"].any()


def test_a_tensors_start_depends_on_seed_and_name_alone() -> None:
    alone = Schema(START.tensors[:1])
    np.testing.assert_array_equal(initial_vector(alone, 3), initial_vector(START, 3)[: alone.size])
    assert (initial_vector(alone, 3) != initial_vector(alone, 4)).any()
    renamed = Schema((replace(START.tensors[0], name="n.lora_A.weight"),))
    assert (initial_vector(renamed, 3) != initial_vector(alone, 3)).any()


def test_settings_that_differ_are_named() -> None:
    ours = FederationSettings("f", "x", "{}", 1, "lora", "async", 4, "a", "s")
    assert ours.differences(ours) == []
    theirs = replace(ours, rule="freeze-a", task="b")
    assert ours.differences(theirs) == ["rule: ours is lora, theirs freeze-a", "task: ours is a, theirs b"]
    assert "\x1b" not in ours.differences(replace(ours, federation="\x1b[31m"))[0]


def test_a_can_begin_with_orthonormal_rows() -> None:
    start = initial_vector(START, 1, orthonormal=True)
    a = START.views(start)["m.lora_A.weight"].astype(np.float64)
    np.testing.assert_allclose(a @ a.T, np.eye(8), atol=1e-7)
    assert (
        hashlib.sha256(start.tobytes()).hexdigest()
        == "a070cf8a23c49ee8a4d7e4bbba7bc72c8c052fd62c7b35adf031f6acdf4f51f9"
    ), "the same bits wherever it is made"
    np.testing.assert_array_equal(start[8 * 384 :], initial_vector(START, 1)[8 * 384 :], "B and head as ever")
    tall = Schema((TensorSpec("m.lora_A.weight", "m", Role.A, (8, 4)),))
    np.testing.assert_array_equal(initial_vector(tall, 1, orthonormal=True), initial_vector(tall, 1), "it has none")


def test_a_fresh_normalisation_begins_as_one() -> None:
    head = Schema(
        (
            TensorSpec("head.norm.weight", "head.norm", Role.HEAD, (4,)),
            TensorSpec("head.norm.bias", "head.norm", Role.HEAD, (4,)),
        )
    )
    np.testing.assert_array_equal(initial_vector(head, 1), [1, 1, 1, 1, 0, 0, 0, 0])
