"""What daemon and trainer say to each other: one JSON object a line; vectors go through the arena instead.

The conversation:  daemon  Setup ->            trainer  <- Ready
                   daemon  Layout ->
    each round:    trainer <- Published        daemon   Contributions ->        trainer <- Mixed, RoundDone
    now and then:  trainer <- Evaluated, Saved, Paused     daemon  Sealed, Pause, Resume, Checkpoint, Stop ->
    who was away:  trainer <- Rejoining        daemon   Offer ->                trainer <- Adopted, if it is offered anything
    at the end:    trainer <- Finished or Failed, and it exits

Between the first rank of a trainer and each of the others: Setup ->, and <- Failed.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter


class Setup(BaseModel):
    """To the trainer, first: the node's configuration and where to go on from."""

    type: Literal["setup"] = "setup"
    config: dict[str, Any]
    staging: str = Field(description="directory that checkpoints are written to")
    resume_from: str | None = Field(description="a sealed checkpoint")
    round: int = Field(description="rounds that the checkpoint has mixed")
    step: int = Field(description="optimizer steps that the checkpoint has made")
    paused: bool = Field(description="wait for Resume before the first step")
    absent: bool = Field(False, description="say Rejoining before the first step")


class Layout(BaseModel):
    """To the trainer: the arena has its size now and can be mapped. publish: the own slot that it publishes in first."""

    type: Literal["layout"] = "layout"
    publish: int


class Contribution(BaseModel):
    """A neighbour's snapshot in the arena, and its weight in this mix."""

    place: int = Field(description="of the neighbour in the arena, which may have grown")
    slot: int
    weight: float
    radius: float | None = Field(None, description="what the neighbour clips at, if it does")


class Contributions(BaseModel):
    """To the trainer, after Published: what to mix. `interrupted`: don't, for the node stops.

    mix: the own slot for what it makes of them. publish: the one that it publishes in next, which may be the same.
    """

    type: Literal["contributions"] = "contributions"
    round: int
    items: list[Contribution]
    mix: int
    publish: int
    interrupted: bool = False


class Pause(BaseModel):
    """To the trainer: stand still after this step, or once the round under way is over."""

    type: Literal["pause"] = "pause"
    after_round: bool = False


class Resume(BaseModel):
    """To the trainer: go on; say Rejoining before the next step where the node was away."""

    type: Literal["resume"] = "resume"
    absent: bool = False


class Offer(BaseModel):
    """To the trainer, after Rejoining: the neighbour's snapshot to go on from; none: go on from its own vector."""

    type: Literal["offer"] = "offer"
    item: Contribution | None


class Checkpoint(BaseModel):
    """To the trainer: save after this step."""

    type: Literal["checkpoint"] = "checkpoint"


class Stop(BaseModel):
    """To the trainer: save after this step, and exit."""

    type: Literal["stop"] = "stop"


class Ready(BaseModel):
    """From the trainer: the model is built."""

    type: Literal["ready"] = "ready"
    fingerprint: str
    peft: str
    adapter_schema: list[dict[str, Any]] = Field(description="all trainable tensors, frozen ones of the rule included")
    shared_schema: list[dict[str, Any]] = Field(description="the tensors that are exchanged")


class Published(BaseModel):
    """From the trainer: its slot holds this round's vector; Contributions are awaited."""

    type: Literal["published"] = "published"
    round: int
    radius: float | None = Field(None, description="what this node clips at, for its neighbours to know")


class Mixed(BaseModel):
    """From the trainer: the contributions have been read, and what they came to lies in its slot."""

    type: Literal["mixed"] = "mixed"
    round: int
    weights: list[float] = Field(description="of the contributions; robust mixing may have left less of them")


class Rejoining(BaseModel):
    """From the trainer: it goes on after an absence, and an Offer is awaited."""

    type: Literal["rejoining"] = "rejoining"
    round: int


class Adopted(BaseModel):
    """From the trainer: the offered snapshot has been read, and is its own vector now."""

    type: Literal["adopted"] = "adopted"
    round: int


class RoundDone(BaseModel):
    """From the trainer: a round's figures. seconds: from the end of the round before, waits included."""

    type: Literal["round-done"] = "round-done"
    round: int
    step: int
    seconds: float
    loss: float | None


class Evaluated(BaseModel):
    """From the trainer: an evaluation on the held-out rows."""

    type: Literal["evaluated"] = "evaluated"
    round: int
    figures: dict[str, float] = Field(description="loss, and the task's own, such as accuracy, f1 or perplexity")


def evaluated(round_: int, metrics: Mapping[str, Any], figures: Iterable[str]) -> Evaluated:
    """From what an evaluation of the Trainer found (`eval_loss` and others), those figures that there are."""
    found = {name: float(metrics[f"eval_{name}"]) for name in ("loss", *figures) if f"eval_{name}" in metrics}
    return Evaluated(round=round_, figures={name: value for name, value in found.items() if math.isfinite(value)})


def finite(value: float) -> float | None:
    """JSON has no word for other numbers."""
    return value if math.isfinite(value) else None


class Saved(BaseModel):
    """From the trainer: a checkpoint lies in the staging directory, to be sealed by the daemon; or why none does."""

    type: Literal["saved"] = "saved"
    path: str
    round: int
    step: int
    problem: str = Field("", description="the disk's reason, where it could not be written")


class Sealed(BaseModel):
    """To the trainer, after each Saved. `intact`: the checkpoint is there to stay."""

    type: Literal["sealed"] = "sealed"
    intact: bool


class Unchanged(BaseModel):
    """From the trainer: no step since the last checkpoint (or since the start), so there is nothing to save."""

    type: Literal["unchanged"] = "unchanged"


class Paused(BaseModel):
    """From the trainer: it stands still."""

    type: Literal["paused"] = "paused"
    round: int


class Finished(BaseModel):
    """From the trainer: it exits in good order; `complete`: all rounds are done."""

    type: Literal["finished"] = "finished"
    complete: bool


class Failed(BaseModel):
    """From the trainer: it can't go on, and a restart would not help. `message` is a sentence for the user."""

    type: Literal["failed"] = "failed"
    message: str
    exit_code: int


ToTrainer = Setup | Layout | Contributions | Offer | Sealed | Pause | Resume | Checkpoint | Stop
FromTrainer = (
    Ready
    | Published
    | Mixed
    | Rejoining
    | Adopted
    | RoundDone
    | Evaluated
    | Saved
    | Unchanged
    | Paused
    | Finished
    | Failed
)

TO_TRAINER: TypeAdapter[ToTrainer] = TypeAdapter(Annotated[ToTrainer, Field(discriminator="type")])
FROM_TRAINER: TypeAdapter[FromTrainer] = TypeAdapter(Annotated[FromTrainer, Field(discriminator="type")])


def line(message: BaseModel) -> bytes:
    """One message on the wire between the processes."""
    return message.model_dump_json().encode() + b"\n"
