"""What sections of our YAML files are made of."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo


def _relative_to_file(value: object, info: ValidationInfo) -> object:
    if isinstance(value, str | Path) and info.context:
        return resolved(info.context["directory"], value)
    return value


def resolved(directory: Path, path: str | Path) -> Path:
    """A path as it is meant in a file of `directory`. Raises ValueError."""
    try:
        return directory / Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{path}: there is no such user's home directory; correct the path") from None


def existing(path: Path) -> Path:
    """The path. Raises ValueError where nothing is there."""
    if not path.exists():
        raise ValueError(f"{path} does not exist; correct the path or put the file there")
    return path


def _with_a_port_that_exists(address: str) -> str:
    if int(address.rpartition(":")[2]) > 65535:
        raise ValueError(f"{address!r} is not an address; the port has to be at most 65535")
    return address


FilePath = Annotated[Path, BeforeValidator(_relative_to_file)]
Address = Annotated[
    str, Field(pattern=r"^(\[[0-9a-fA-F:]+\]|[^\s:/]+):\d{1,5}$"), AfterValidator(_with_a_port_that_exists)
]


def _on_loopback(address: object) -> object:
    """A port alone: nobody else reaches it."""
    alone = isinstance(address, int) and not isinstance(address, bool)
    return f"127.0.0.1:{address}" if alone or (isinstance(address, str) and address.isdecimal()) else address


LocalAddress = Annotated[Address, BeforeValidator(_on_loopback)]


class Section(BaseModel):
    """Strict base: unknown keys are errors, values are fixed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)
