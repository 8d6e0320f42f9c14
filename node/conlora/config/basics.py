"""Who and where a node is, apart from the rest of its configuration: short commands read, and import, no more than that."""

from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, model_validator

from conlora.config.fields import Address, FilePath, Section
from conlora.config.reading import load_section, read_mapping, validated


class NodeBasics(Section):
    """Who and where a node is: what commands need that must work while the rest of the file is unfinished or wrong."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", description="what partners call this node")
    state_dir: FilePath = Field(Path("state"), validate_default=True, description="checkpoints, history, logs")
    identity_dir: FilePath = Field(Path("identity"), validate_default=True, description="node.key and node.crt")
    peers_dir: FilePath = Field(Path("peers"), validate_default=True, description="one identity card per peer")
    ca_file: FilePath | None = Field(
        None,
        description="authorities, in PEM, with revocation lists if any: one has to have issued a peer's certificate, for the "
        "key on its card; none: exactly the certificates on cards, and what follows them",
    )
    listen: Address = Field("0.0.0.0:7443", description="the peer port")
    advertise: Address | None = Field(None, description="where peers can dial this node; none: it only dials out")
    admin_socket: FilePath | None = Field(None, description="default: admin.sock in state_dir")
    admin_group: str | None = Field(
        None, description="its members may use the admin socket; none: the node's user alone"
    )

    admin_listen: Address | None = Field(
        None, description="the admin port, for operators on other machines, mutual TLS only; none: no such port"
    )
    operators_dir: FilePath = Field(
        Path("operators"),
        validate_default=True,
        description="identity cards of operators: in `read/` of those who may look, in `full/` of those who may also change",
    )

    @model_validator(mode="before")
    @classmethod
    def _is_of_a_node(cls, data: Any) -> Any:
        if isinstance(data, dict) and _is_an_operators(data):
            raise ValueError(
                "is an operator's file, which names a node on another machine; give the node's own configuration, on its machine"
            )
        return data

    @property
    def admin_path(self) -> Path:
        """The admin service's Unix socket."""
        return self.admin_socket or self.state_dir / "admin.sock"


class RemoteNode(Section):
    """A node on another machine, and who one is there: what an operator gives in the place of a node's configuration."""

    address: Address = Field(description="the node's `admin_listen`, as it is reached from here")
    card: FilePath = Field(description="the node's identity card: whom to trust")
    identity_dir: FilePath = Field(
        Path("identity"), validate_default=True, description="the operator's own node.key and node.crt"
    )


def _is_an_operators(data: dict[Any, Any]) -> bool:
    """Whether a file's keys are those of a RemoteNode. Every node's configuration has a name."""
    return "name" not in data and not data.keys().isdisjoint({"address", "card"})


def load_place(path: Path) -> NodeBasics | RemoteNode:
    """Reads how to ask a node: from its own configuration, or from an operator's file. Raises ConfigError."""
    data = read_mapping(path)
    return validated(path, data, RemoteNode) if _is_an_operators(data) else validated(path, data, NodeBasics)


def load_basics(path: Path) -> NodeBasics:
    """Reads just who and where the node is. Raises ConfigError."""
    return load_section(path, NodeBasics)
