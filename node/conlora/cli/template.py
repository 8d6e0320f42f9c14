"""What `conlora init` writes, and the part of a configuration that `conlora id` needs before the rest is filled in."""

from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field

from conlora.config import Address, FilePath, Section, load_section
from conlora.errors import ConfigError
from conlora.net.identity import Identity, create_identity

TEMPLATE = """\
# A ConLoRA node. Paths are relative to this file. Every key: docs/reference/configuration.md
name: {name}
listen: {listen}            # the peer port, mutual TLS only
{advertise}

# Has to be the same on every node of the federation (peers compare it when they meet):
model:
  base: PATH-OR-HUB-ID      # folder with config.json and weights, or a hub id
  # revision: main
lora:
  rank: 8
  alpha: 16
  # target_modules: [query, value]      # default: PEFT's choice for the architecture
federation:
  name: my-federation
  seed: 1                   # generates the same start on every node
  rule: freeze-a            # or lora
  mode: async               # nobody waits for anybody
task:
  type: text-classification
  labels: [negative, positive]          # all classes of the federation, in this order
  text_column: text
  label_column: label
  max_length: 128

# This node's own:
data:
  path: data.csv            # CSV, JSONL or Parquet; never leaves this machine
  evaluation_fraction: 0.1  # held out to measure accuracy
training:
  rounds: 100
  local_steps: 8            # optimizer steps between two exchanges; the same on every node
  batch_size: 16
  # learning_rate: 0.005    # default: the rule's
  evaluate_every: 5         # rounds
  checkpoint_every: 5       # rounds

# Partners: put each one's identity card into peers/ with `conlora peers add CARD`.
"""


class IdentityPart(Section):
    """The keys that `conlora init` fills in and a node's card is made from; the others may still be unfinished."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    identity_dir: Annotated[FilePath, Field(validate_default=True)] = Path("identity")
    peers_dir: Annotated[FilePath, Field(validate_default=True)] = Path("peers")
    listen: Address = "0.0.0.0:7443"
    advertise: Address | None = None


def read_identity_part(path: Path) -> IdentityPart:
    """Reads just these keys. Raises ConfigError."""
    return load_section(path, IdentityPart)


def write_node(directory: Path, name: str, listen: str, advertise: str | None) -> Identity:
    """Makes a node's directory. Raises ConfigError where it holds a node already, or a value does not fit."""
    path = directory / "conlora.yaml"
    if path.exists():
        raise ConfigError(f"{path}: exists already; choose another directory")
    line = f"advertise: {advertise}" if advertise else "# advertise: HOST:7443    # where partners can dial this node"
    text = TEMPLATE.format(name=name, listen=listen, advertise=line)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "peers").mkdir(exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise ConfigError(f"{directory}: can't be written ({error}); choose a writable directory") from error
    try:
        load_section(path, IdentityPart)
        return create_identity(directory / "identity")
    except ConfigError:
        path.unlink()
        raise
