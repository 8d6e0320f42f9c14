"""Schemas of adapters, by the shapes of their modules."""

from conlora.core.schema import Role, Schema, TensorSpec

Shapes = list[tuple[int, int, int]]  # d, k, r of each module


def full_schema(shapes: Shapes) -> Schema:
    """A and B of modules l0, l1, ..."""
    return Schema(
        tuple(
            spec
            for i, (d, k, r) in enumerate(shapes)
            for spec in (
                TensorSpec(f"l{i}.lora_A.weight", f"l{i}", Role.A, (r, k)),
                TensorSpec(f"l{i}.lora_B.weight", f"l{i}", Role.B, (d, r)),
            )
        )
    )
