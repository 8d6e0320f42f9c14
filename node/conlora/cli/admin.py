"""Commands for a running node, over its admin socket or its admin port."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from conlora.cli.common import (
    ConfigOption,
    JsonOption,
    PlaceOption,
    config_path,
    console,
    human_bytes,
    human_seconds,
    print_json,
)
from conlora.net.expiry import warning

if TYPE_CHECKING:
    from conlora.net.admin_client import AdminClient
    from conlora.net.status import NodeStatus, PeerStatus

LINK_STYLES = {"up": "green", "down": "yellow", "refused": "red", "quarantined": "red", "left": "dim"}


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    for command in (status, pause, resume, checkpoint, export, merge, reload, drain, leave, stop):
        app.command()(command)


def status(config: PlaceOption = None, json: JsonOption = False) -> None:
    """Show what the node does, and its neighbours."""
    with admin_client(config) as client:
        reply = client.status()
    if json:
        print_json(asdict(reply))
        return
    console.print(
        Text.assemble(
            (reply.name, "bold"),
            f" · {reply.federation} · {reply.rule}, {reply.mode} · ",
            (reply.state, "bold"),
            *(f" · {part}" for part in _summary(reply)),
        ),
        soft_wrap=True,
    )
    if ending := warning(reply.certificate_expires, time.time(), reply.certificate_warns):
        console.print(
            f"this node's certificate {ending}; run `conlora cert rotate`, or `cert install` for one of your authority",
            style="yellow",
            soft_wrap=True,
        )
    if reply.message:
        console.print(Text(reply.message), style="yellow", soft_wrap=True)
    _print_peers(reply)


def show_peers(config: Path | None, json: bool) -> None:
    """Show the peers and their links."""
    with admin_client(config) as client:
        reply = client.status()
    if json:
        print_json([asdict(peer) for peer in reply.peers])
    else:
        _print_peers(reply)


def pause(config: PlaceOption = None, json: JsonOption = False) -> None:
    """Stand still after this step; links stay up."""
    with admin_client(config) as client:
        round_ = client.pause()
    _say(json, {"state": "paused", "round": round_}, f"paused at round {round_}")


def resume(config: PlaceOption = None, json: JsonOption = False) -> None:
    """Go on training, after `pause` or `drain`."""
    with admin_client(config) as client:
        round_ = client.resume()
    _say(json, {"state": "training", "round": round_}, f"training from round {round_}")


def checkpoint(config: PlaceOption = None, json: JsonOption = False) -> None:
    """Write a checkpoint now."""
    with admin_client(config) as client:
        path, round_ = client.checkpoint()
    _say(json, {"path": str(path), "round": round_}, f"checkpoint of round {round_}: {path}")


def export(
    directory: Annotated[Path, typer.Argument(help="The PEFT directory to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
    hub: Annotated[
        str | None,
        typer.Option(
            "--hub",
            metavar="OWNER/NAME",
            help="Send it to a model hub too, with your own token (HF_TOKEN, or that of `hf auth login`); "
            "a repository that is not there yet becomes a private one.",
        ),
    ] = None,
    config: PlaceOption = None,
    json: JsonOption = False,
) -> None:
    """Write the adapter as a PEFT directory: of now, or of the last checkpoint where no daemon runs."""
    from conlora.config import RemoteNode, load_config, load_place
    from conlora.daemon.export import export_last
    from conlora.daemon.hub import check_name, upload
    from conlora.errors import ConfigError, NodeUnreachable

    remote = isinstance(load_place(config_path(config)), RemoteNode)
    if hub:
        check_name(hub)
        if remote:
            raise ConfigError("--hub: sends what lies on this machine, and the node writes on its own; say this there")
    try:
        with admin_client(config) as client:
            round_ = client.export(directory, overwrite)
    except NodeUnreachable:
        if remote:
            raise
        round_ = export_last(load_config(config_path(config)), directory.absolute(), overwrite)
    address = upload(directory, hub, f"Adapter of round {round_}") if hub else None
    _say(
        json,
        {"path": str(directory.absolute()), "round": round_, **({"hub": address} if hub else {})},
        f"adapter of round {round_}: {directory}" + (f" and {address}" if hub else ""),
    )


def merge(
    directory: Annotated[Path, typer.Argument(help="Where to write the model; must not exist.")],
    adapter: Annotated[
        Path | None, typer.Option("--adapter", help="A PEFT directory.", show_default="the last checkpoint")
    ] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Write the base model with an adapter merged into it: full weights that load without PEFT."""
    from conlora.config import load_config
    from conlora.daemon.export import last_checkpoint
    from conlora.training.merging import merge as merge_into_base

    node = load_config(config_path(config))
    source = adapter or last_checkpoint(node).path
    merge_into_base(node, source, directory.absolute())
    _say(
        json, {"path": str(directory.absolute()), "adapter": str(source)}, f"{source} in {node.model.base}: {directory}"
    )


def reload(config: PlaceOption = None, json: JsonOption = False) -> None:
    """Read the peers' cards and the configuration again, without a break in training.

    What can change in a running node: peers (not in sync mode), their addresses, encodings, sync_deadline_seconds, operators.
    Where anything else differs, nothing changes. SIGHUP does the same to a daemon without a terminal.
    """
    with admin_client(config) as client:
        reply = asdict(client.reload())
    changes = "; ".join(f"{what} {', '.join(names)}" for what, names in reply.items() if names)
    _say(json, reply, f"reloaded: {changes or 'nothing differs'}")


ExportOption = Annotated[
    Path | None, typer.Option("--export", metavar="DIRECTORY", help="Write the adapter as a PEFT directory, too.")
]


def drain(export: ExportOption = None, config: PlaceOption = None, json: JsonOption = False) -> None:
    """Finish the round, write a checkpoint, and leave the federation; the daemon stays up, and `resume` comes back.

    Neighbours mix without this node at once, and show it as left. Not in sync mode, where they would wait.
    """
    _part(export, config, json, end=False)


def leave(export: ExportOption = None, config: PlaceOption = None, json: JsonOption = False) -> None:
    """Do as `drain` does, and end the daemon; `run` comes back."""
    _part(export, config, json, end=True)


def _part(target: Path | None, config: Path | None, json: bool, end: bool) -> None:
    """The export comes last but one: what it fails with is no reason to be in the federation still, but to stay up."""
    with admin_client(config) as client:
        if target:
            client.path_there(target)  # before the node has left
        path, round_ = client.drain() if target or not end else client.leave()
        if target:
            client.export(target)
            path, round_ = client.leave() if end else (path, round_)
    where = f"checkpoint {path}" if path else "nothing was trained yet, so no checkpoint"
    _say(
        json,
        {"round": round_, "checkpoint": str(path) if path else None}
        | ({"export": str(target.absolute())} if target else {}),
        f"{'left' if end else 'drained'} after round {round_}; {where}" + (f"; adapter {target}" if target else ""),
    )


def stop(config: PlaceOption = None, json: JsonOption = False) -> None:
    """Finish the step, write a checkpoint, say good-bye to the peers, and end the daemon."""
    with admin_client(config) as client:
        path, round_ = client.stop()
    where = f"; checkpoint {path}" if path else "; nothing was trained yet, so no checkpoint"
    _say(json, {"round": round_, "checkpoint": str(path) if path else None}, f"stopped at round {round_}{where}")


def admin_client(config: Path | None) -> "AdminClient":
    """Speaks to the daemon of this configuration, whatever else is wrong in the file, or to the one of an operator's file."""
    from conlora.config import RemoteNode, load_place

    place = load_place(config_path(config))
    from conlora.net.admin_client import AdminClient  # gRPC, for which a mistake in the file need not wait

    if not isinstance(place, RemoteNode):
        return AdminClient(place.admin_path)
    from conlora.net.remote import RemoteWay

    return AdminClient(RemoteWay(place))


def _say(json: bool, body: dict[str, Any], sentence: str) -> None:
    if json:
        print_json(body)
    else:
        console.print(sentence, soft_wrap=True, markup=False)


def _summary(reply: "NodeStatus") -> list[str]:
    parts = [f"round {reply.round} of {reply.rounds}"]
    if reply.loss is not None:
        parts.append(f"loss {reply.loss:.3f}")
    figures = [f"{name} {value:.3f}" for name, value in reply.evaluation.items() if name != "loss"]
    if figures:
        parts.append(f"{', '.join(figures)} on its own held-out rows")
    if reply.consensus is not None:
        parts.append(f"mean edge error {reply.consensus:.3g}")
    if reply.trainer_restarts:
        parts.append(f"trainer restarted {reply.trainer_restarts} times")
    return parts


def _print_peers(reply: "NodeStatus") -> None:
    from rich.table import Table

    if not reply.peers:
        console.print("no peers: this node trains alone; `conlora peers add CARD` adds a partner")
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("neighbour", "link", "snapshot", "weight", "edge error", "sent / received", ""):
        table.add_column(column)
    for peer in reply.peers:
        table.add_row(*_row(peer))
    console.print(table)


def _row(peer: "PeerStatus") -> "tuple[str | Text, ...]":
    """Cells; what peers or errors have worded is a Text, in which square brackets mean nothing."""
    snapshot = "-"
    if peer.snapshot_round is not None and peer.snapshot_age_seconds is not None:
        snapshot = f"{human_seconds(peer.snapshot_age_seconds)}, round {peer.snapshot_round}"
    note = peer.last_error
    if peer.retry_in_seconds:
        note += f", next try in {human_seconds(peer.retry_in_seconds)}"
    if peer.refused:
        note += f" (refused: {', '.join(f'{reason} {n}' for reason, n in sorted(peer.refused.items()))})"
    if ending := warning(peer.certificate_expires, time.time(), peer.certificate_warns):
        note += f" (its certificate {ending})"
    return (
        Text(peer.name),
        Text(peer.link, style=LINK_STYLES[peer.link]),
        snapshot,
        f"{peer.weight:.2f}" if peer.weight is not None else "-",
        f"{peer.edge_error:.3g}" if peer.edge_error is not None else "-",
        f"{human_bytes(peer.bytes_sent)} / {human_bytes(peer.bytes_received)}",
        Text(note),
    )
