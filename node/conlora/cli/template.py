"""What `conlora init` writes."""

from pathlib import Path

from conlora.config import load_basics
from conlora.errors import ConfigError
from conlora.net.identity import CERTIFICATE_FILE, KEY_FILE, Identity, create_identity, load_card

TEMPLATE = """\
# A ConLoRA node. Paths are relative to this file. Every key: docs/reference/configuration.md
name: {name}
listen: {listen}            # the peer port, mutual TLS only
{advertise}
{service}
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
  type: text-classification             # others: docs/how-to/tasks.md
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

observing:
  sketched: true            # the whole federation sees how far this node is from agreement, from sketches of its adapter
  # metrics: 9464           # for Prometheus, on this machine; others need an address: docs/how-to/operations.md

# admin_listen: 0.0.0.0:7444             # for operators on other machines: docs/how-to/operations.md

# Partners: put each one's identity card into peers/ with `conlora peers add CARD`.
"""


# What the unit in deploy/systemd makes for the instance of the directory's name.
SERVICE = """\
# for the service conlora@{instance}, which makes these directories:
state_dir: /var/lib/conlora/{instance}
admin_socket: /run/conlora/{instance}/admin.sock
admin_group: conlora        # its members may use conlora status, pause, stop, ...
"""


def write_node(directory: Path, name: str, listen: str, advertise: str | None, service: bool = False) -> Identity:
    """Makes a node's directory. service: for the systemd unit, whose instance has the directory's name, and whose user has to be
    able to read all but the identity, whatever the umask.

    Raises ConfigError where it holds a node already, or a value does not fit.
    """
    path = directory / "conlora.yaml"
    if path.exists():
        raise ConfigError(f"{path}: exists already; choose another directory")
    line = f"advertise: {advertise}" if advertise else "# advertise: HOST:7443    # where partners can dial this node"
    places = SERVICE.format(instance=directory.resolve().name) if service else ""
    text = TEMPLATE.format(name=name, listen=listen, advertise=line, service=places)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "peers").mkdir(exist_ok=True)
        path.write_text(text)
        if service:
            for place, mode in ((directory, 0o755), (directory / "peers", 0o755), (path, 0o644)):
                place.chmod(mode)
    except OSError as error:
        raise ConfigError(f"{directory}: can't be written ({error}); choose a writable directory") from error
    try:
        load_basics(path)
        return create_identity(directory / "identity")
    except ConfigError:
        path.unlink()
        raise


OPERATOR = """\
# A ConLoRA node on another machine, and who {name} is there. Commands for a running node take this file as they take a
# node's own (-c). For more nodes make copies. Paths are relative to this file.
address: NODE:7444          # the node's admin_listen, as it is reached from here
card: NODE.yaml             # the node's identity card, as `conlora id` prints it there: compare the id by telephone
identity_dir: identity      # the key of {name}
"""


def write_operator(directory: Path, name: str) -> tuple[Identity, Path]:
    """Makes an operator's directory; returns the card for whoever keeps a node, too.

    Raises ConfigError where it holds an identity or such files already, or the name does not fit.
    """
    path, card = directory / "conlora.yaml", directory / f"{Path(name).name}.yaml"
    if card == path:
        raise ConfigError(f"--name: {path.name} is the name of another file there; choose another one")
    for each in (path, card):
        if each.exists():
            raise ConfigError(f"{each}: exists already; choose another directory")
    place = directory / "identity"
    made = not place.exists()
    identity = create_identity(place)
    try:
        card.write_text(identity.card(name, None))
        load_card(card)
        path.write_text(OPERATOR.format(name=name))
    except (ConfigError, OSError) as error:
        for each in (path, card, place / KEY_FILE, place / CERTIFICATE_FILE):  # none of which was there before
            each.unlink(missing_ok=True)
        if made:
            place.rmdir()
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{directory}: can't be written ({error}); choose a writable directory") from error
    return identity, card
