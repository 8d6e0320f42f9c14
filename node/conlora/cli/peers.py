"""`conlora peers`: the partners of a node; `add` and `remove` change the configuration, `lift` a running node, bare `peers` shows
live links.
"""

from pathlib import Path
from typing import Annotated

import typer

from conlora.cli.common import ConfigOption, JsonOption, PlaceOption, config_path, console

app = typer.Typer(help="Partners: show their links, add or remove one, end a quarantine.", invoke_without_command=True)


@app.callback()
def show(context: typer.Context, config: PlaceOption = None, json: JsonOption = False) -> None:
    """Show the peers and their links (of the running daemon)."""
    if context.invoked_subcommand is None:
        from conlora.cli.admin import show_peers

        show_peers(config, json)


@app.command()
def add(
    card: Annotated[Path, typer.Argument(help="The identity card that the partner has mailed.")],
    config: ConfigOption = None,
) -> None:
    """Add a partner by its identity card. A running daemon sees it after `conlora reload`."""
    from conlora.config import load_basics
    from conlora.errors import ConfigError
    from conlora.net.identity import load_card, load_identity, load_peers

    node = load_basics(config_path(config))
    own_id = load_identity(node.identity_dir).node_id
    peer = load_card(card)
    target = node.peers_dir / f"{peer.name}.yaml"
    if target.exists():
        raise ConfigError(f"{target}: a peer of that name is there already; `conlora peers remove {peer.name}` first")
    node.peers_dir.mkdir(parents=True, exist_ok=True)
    target.write_text(card.read_text())
    target.chmod(0o644)  # no secret; the user of a service has to be able to read it, whatever root's umask
    try:
        load_peers(node.peers_dir, own_id)
    except ConfigError:
        target.unlink()
        raise
    console.print(f"added {peer.name}: {peer.node_id}", soft_wrap=True)
    console.print(
        f"address {peer.address or '(none: it dials this node)'}; compare the id by telephone; `conlora reload` tells a running "
        "daemon",
        soft_wrap=True,
    )


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="The peer's name, as `conlora peers` shows it.")],
    config: ConfigOption = None,
) -> None:
    """Remove a partner. A running daemon sees it after `conlora reload`."""
    from conlora.config import load_basics
    from conlora.errors import ConfigError

    target = load_basics(config_path(config)).peers_dir / f"{name}.yaml"
    if Path(name).name != name or not target.exists():
        raise ConfigError(f"{target}: no such peer; `conlora peers` lists them")
    target.unlink()
    console.print(f"removed {name}; `conlora reload` tells a running daemon")


@app.command()
def lift(
    name: Annotated[str, typer.Argument(help="The peer's name, as `conlora peers` shows it.")],
    config: PlaceOption = None,
) -> None:
    """End the quarantine of a partner that has committed too many offences. A restart does not."""
    from conlora.cli.admin import admin_client

    with admin_client(config) as client:
        client.lift(name)
    console.print(f"lifted the quarantine of {name}", markup=False, soft_wrap=True)
