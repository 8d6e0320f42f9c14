"""How far a node trusts its neighbours: the section `mixing` of its configuration."""

from typing import Literal, Self

from pydantic import Field, model_validator

from conlora.config.fields import Section
from conlora.core.robustness import Clipping, Screen, TrimmedMean, Trust


class MixingSection(Section):
    """What bounds the harm that lying neighbours can do; each node as it likes."""

    robust: Literal["clipping", "trimmed-mean"] | None = Field(
        None,
        description="clipping: a neighbour moves this node by a radius at most, the same one at both ends of an edge; "
        "trimmed-mean: of each value the neighbours' largest and smallest are left out; none: neighbours are trusted",
    )
    attackers: int = Field(1, ge=1, description="how many neighbours of a node may lie")
    radius: float | None = Field(
        None, gt=0, description="clipping only: of the distance between two adapters; default: adapts to the neighbours"
    )

    @model_validator(mode="after")
    def _radius_is_for_clipping(self) -> Self:
        if self.radius is not None and self.robust != "clipping":
            raise ValueError("radius: goes with robust: clipping; leave it out")
        return self

    def screen(self) -> Screen:
        """What it says, for one trainer."""
        match self.robust:
            case "clipping":
                return Clipping(self.attackers, self.radius)
            case "trimmed-mean":
                return TrimmedMean(self.attackers)
            case None:
                return Trust()
