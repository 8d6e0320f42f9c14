"""Rules: which factors are trained and shared, and how neighbours' factors are combined.

A rule is chosen for a whole federation. `lora` is the plain method, which amplifies consensus error because the mean
of products is not the product of means; `freeze-a` makes mixing B the same as mixing the product B A.
"""

from collections.abc import Sequence
from typing import Protocol

from conlora.core.mixing import Blend, blend, mix
from conlora.core.schema import Role, Schema, Vector


class Rule(Protocol):
    """What a rule decides. A later rule adds a class here and its instance to `RULES`."""

    @property
    def name(self) -> str:
        """The word in a configuration."""
        ...

    @property
    def shared(self) -> frozenset[Role]:
        """Roles that are trained, published and mixed; the others stay at their seeded start on every node."""
        ...

    @property
    def default_learning_rate(self) -> float:
        """A learning rate that suits this rule where the configuration names none."""
        ...

    def mix(
        self,
        schema: Schema,
        own: Vector,
        neighbours: Sequence[tuple[float, Vector]],
        out: Vector | None = None,
        blend: Blend = blend,
    ) -> Vector:
        """The new shared vector (shape `(schema.size,)`, fp32) from the node's own and its neighbours' weighted ones.

        Written to `out` where that is given (it may be `own`), and returned. `blend` is all the arithmetic that a rule needs:
        a caller that has torch brings a faster one.
        """
        ...


class MixFactors:
    """Mixes every shared tensor on its own, with the same weights."""

    def __init__(self, name: str, shared: frozenset[Role], default_learning_rate: float) -> None:
        self.name = name
        self.shared = shared
        self.default_learning_rate = default_learning_rate

    def mix(
        self,
        schema: Schema,
        own: Vector,
        neighbours: Sequence[tuple[float, Vector]],
        out: Vector | None = None,
        blend: Blend = blend,
    ) -> Vector:
        """See `Rule.mix`; the schema does not matter, since all tensors are treated alike."""
        return mix(own, neighbours, out, blend)


LORA = MixFactors("lora", frozenset({Role.A, Role.B, Role.HEAD}), default_learning_rate=2e-3)
# Half of the factors do all of the learning, so steps have to be larger: 2-3 times LoRA's (docs/decisions/0004).
FREEZE_A = MixFactors("freeze-a", frozenset({Role.B, Role.HEAD}), default_learning_rate=5e-3)

RULES: dict[str, Rule] = {rule.name: rule for rule in (LORA, FREEZE_A)}
