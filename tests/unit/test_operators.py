"""Operators' cards: who may look, who may also change, and what lies in the wrong place."""

from pathlib import Path

import pytest

from conlora.errors import CardError, ConfigError
from conlora.net.identity import Identity, create_identity
from conlora.net.operators import Operator, Role, load_operators


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """With its two folders."""
    for role in Role:
        (tmp_path / "operators" / role).mkdir(parents=True)
    return tmp_path / "operators"


def put(folder: Path, identity: Identity, name: str, file: str = "") -> None:
    (folder / f"{file or name}.yaml").write_text(identity.card(name, None))


def names(operators: list[Operator]) -> list[tuple[str, Role]]:
    return [(operator.name, operator.role) for operator in operators]


def test_the_folder_says_what_an_operator_may_do(directory: Path, tmp_path: Path, mercy: Identity) -> None:
    alice, bob = create_identity(tmp_path / "alice"), create_identity(tmp_path / "bob")
    put(directory / "full", alice, "alice")
    put(directory / "read", bob, "bob")
    operators = load_operators(directory, mercy.node_id)
    assert names(operators) == [("bob", Role.READ), ("alice", Role.FULL)]
    assert [operator.card.node_id for operator in operators] == [bob.node_id, alice.node_id]


def test_no_folders_are_no_operators(tmp_path: Path, mercy: Identity) -> None:
    assert load_operators(tmp_path / "operators", mercy.node_id) == []


def test_a_node_is_no_operator_of_itself(directory: Path, mercy: Identity) -> None:
    put(directory / "full", mercy, "mercy")
    with pytest.raises(
        ConfigError, match=r"full/mercy\.yaml: is this node's own card; a node is no operator of itself"
    ):
        load_operators(directory, mercy.node_id)


@pytest.mark.parametrize(
    ("folder", "name", "own_key"), [("full", "alice", False), ("full", "bob", True), ("read", "x", True)]
)
def test_an_operator_has_one_card(
    directory: Path, tmp_path: Path, mercy: Identity, folder: str, name: str, own_key: bool
) -> None:
    alice = create_identity(tmp_path / "alice")
    put(directory / "read", alice, "alice", file="1")
    put(directory / folder, alice if own_key else create_identity(tmp_path / "other"), name, file="2")
    with pytest.raises(
        ConfigError, match=rf"{folder}/2\.yaml: operator {name} has a second card with the same name or id"
    ):
        load_operators(directory, mercy.node_id)


def test_a_card_beside_the_folders_gives_no_rights(directory: Path, tmp_path: Path, mercy: Identity) -> None:
    put(directory, create_identity(tmp_path / "alice"), "alice")
    with pytest.raises(
        ConfigError, match=r"alice\.yaml: says who the operator is, and not what they may do; move it into"
    ):
        load_operators(directory, mercy.node_id)


def test_a_changed_card_is_refused_as_a_peers_is(directory: Path, tmp_path: Path, mercy: Identity) -> None:
    text = create_identity(tmp_path / "alice").card("alice", None)
    (directory / "full" / "alice.yaml").write_text(text.replace("id: ", "id: A"))
    with pytest.raises(CardError, match="is not the id of this certificate"):
        load_operators(directory, mercy.node_id)
