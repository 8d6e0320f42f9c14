"""The settings that all nodes of a federation share, and the differences between two nodes' settings."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FederationSettings:
    """What both ends of an edge compare before they mix; the fields are those of the protocol's message.

    peft and task are canonical JSON of the LoRA settings and of the task's; schema is `Schema.digest` of the exchanged tensors.
    """

    federation: str
    base_model_fingerprint: str
    peft: str
    seed: int
    rule: str
    mode: str
    local_steps: int
    task: str
    schema: str

    @property
    def digest(self) -> bytes:
        """SHA-256: equal for the nodes of one federation, and for no others."""
        return hashlib.sha256(json.dumps(dataclasses.astuple(self)).encode()).digest()

    def differences(self, theirs: "FederationSettings") -> list[str]:
        """A phrase for each field that differs, `rule: ours is freeze-a, theirs lora`; empty when all agree."""
        return [
            f"{field.name}: ours is {_shown(ours)}, theirs {_shown(other)}"
            for field in dataclasses.fields(self)
            if (ours := getattr(self, field.name)) != (other := getattr(theirs, field.name))
        ]


def _shown(value: object) -> str:
    """Short and printable, since half of it comes from a peer."""
    text = "".join(c if c.isprintable() else "?" for c in str(value))
    return (text if len(text) <= 200 else text[:200] + "...") or "empty"
