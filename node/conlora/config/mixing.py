"""How a node takes in what its neighbours send, and how far it trusts them: the section `mixing` of its configuration."""

from typing import Literal, Self

from pydantic import Field, model_validator

from conlora.config.fields import Section
from conlora.core.gossip import FAR_BEHIND
from conlora.core.robustness import Clipping, Screen, TrimmedMean, Trust


class MixingSection(Section):
    """What bounds the harm that lying neighbours can do, and how this node comes back; each node as it likes."""

    robust: Literal["clipping", "trimmed-mean"] | None = Field(
        None,
        description="clipping: a neighbour moves this node by a radius at most, the same one at both ends of an edge; "
        "trimmed-mean: of each value the neighbours' that are farthest from the median are left out; none: neighbours are "
        "trusted",
    )
    attackers: int = Field(1, ge=1, description="how many neighbours of a node may lie")
    radius: float | None = Field(
        None, gt=0, description="clipping only: of the distance between two adapters; default: adapts to the neighbours"
    )

    rejoin: Literal["mix", "adopt"] = Field(
        "mix",
        description="after an absence: mix goes on from this node's own adapter; adopt takes over the snapshot of the "
        f"neighbour that has got farthest, where that has made {FAR_BEHIND} rounds or more meanwhile; async only",
    )

    @model_validator(mode="after")
    def _adopts_from_who_is_trusted(self) -> Self:
        if self.adopts and self.robust:
            raise ValueError(
                f"rejoin: adopt trusts one neighbour wholly, which robust: {self.robust} is there to prevent; leave one out"
            )
        return self

    @model_validator(mode="after")
    def _radius_is_for_clipping(self) -> Self:
        if self.radius is not None and self.robust != "clipping":
            raise ValueError("radius: goes with robust: clipping; leave it out")
        return self

    @property
    def adopts(self) -> bool:
        """Whether a long absence ends with a neighbour's snapshot."""
        return self.rejoin == "adopt"

    def screen(self) -> Screen:
        """What it says, for one trainer."""
        match self.robust:
            case "clipping":
                return Clipping(self.attackers, self.radius)
            case "trimmed-mean":
                return TrimmedMean(self.attackers)
            case None:
                return Trust()
