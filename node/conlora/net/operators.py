"""Operators on other machines: their identity cards, and what each of them may ask."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from conlora.errors import ConfigError
from conlora.net.identity import Peer, load_card


class Role(StrEnum):
    """What an operator may do. The values are names of folders."""

    READ = "read"
    FULL = "full"


@dataclass(frozen=True)
class Operator:
    """One whose card was checked. A card is made, read and checked as a peer's is; its address means nothing here."""

    card: Peer
    role: Role

    @property
    def name(self) -> str:
        """As on the card."""
        return self.card.name


def load_operators(directory: Path, own_id: str) -> list[Operator]:
    """All operators whose cards (`*.yaml`) lie in the directory's folders `read` and `full`; an absent folder means none.

    Raises ConfigError for a damaged card, this node's own card, two cards of one operator or one name, and a card that lies
    beside the folders.
    """
    for path in sorted(directory.glob("*.yaml")):
        raise ConfigError(
            f"{path}: says who the operator is, and not what they may do; move it into read/ or full/, beside it"
        )
    operators: list[Operator] = []
    for role in Role:
        for path in sorted((directory / role).glob("*.yaml")):
            card = load_card(path)
            if card.node_id == own_id:
                raise ConfigError(f"{path}: is this node's own card; a node is no operator of itself, remove the file")
            if any(card.node_id == other.card.node_id or card.name == other.name for other in operators):
                raise ConfigError(
                    f"{path}: operator {card.name} has a second card with the same name or id; remove one of them"
                )
            operators.append(Operator(card, role))
    return operators
