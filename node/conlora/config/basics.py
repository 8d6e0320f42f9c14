"""Who and where a node is, apart from the rest of its configuration: short commands read, and import, no more than that."""

from pathlib import Path

from pydantic import ConfigDict, Field

from conlora.config.fields import Address, FilePath, Section
from conlora.config.reading import load_section


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

    @property
    def admin_path(self) -> Path:
        """The admin service's Unix socket."""
        return self.admin_socket or self.state_dir / "admin.sock"


def load_basics(path: Path) -> NodeBasics:
    """Reads just who and where the node is. Raises ConfigError."""
    return load_section(path, NodeBasics)
