"""Commands of one node that need no running daemon: init, id, check, run."""

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from conlora.cli.common import ConfigArgument, ConfigOption, LogFormat, config_path, console
from conlora.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(init)
    app.command("id")(id_)
    app.command()(check)
    app.command()(run)


def init(
    directory: Annotated[Path, typer.Argument(help="Made if it does not exist.")],
    name: Annotated[str, typer.Option(help="What partners call this node.")] = "node",
    advertise: Annotated[
        str | None, typer.Option(help="host:port where partners can dial it; none: it only dials out.")
    ] = None,
    listen: Annotated[str, typer.Option(help="Address of the peer port.")] = "0.0.0.0:7443",
    service: Annotated[
        bool,
        typer.Option("--service", help="For the systemd service: in /etc/conlora/NODE, with state in /var/lib."),
    ] = False,
    operator: Annotated[
        bool,
        typer.Option("--operator", help="For somebody who administers nodes from another machine, and has none here."),
    ] = False,
) -> None:
    """Make a node's directory: key, certificate, commented configuration."""
    from conlora.cli.template import write_node, write_operator

    if operator:
        if advertise or service:
            raise ConfigError("--operator: nobody dials an operator; leave out --advertise and --service")
        identity, card = write_operator(directory, name)
        console.print(
            f"[bold]{directory}/conlora.yaml[/]   set the node's address there, and put its card beside it",
            soft_wrap=True,
        )
        console.print(f"[bold]{directory}/identity/[/]      the operator's key: show it to nobody", soft_wrap=True)
        console.print(f"id       {identity.node_id}", soft_wrap=True)
        console.print(
            f"next     mail {card} to whoever keeps the node, for its operators_dir: read/ or full/", soft_wrap=True
        )
        return
    identity = write_node(directory, name, listen, advertise, service)
    console.print(f"[bold]{directory}/conlora.yaml[/]   set model, task and data there", soft_wrap=True)
    console.print(f"[bold]{directory}/identity/[/]      this node's key: back it up, show it to nobody", soft_wrap=True)
    console.print(f"node id  {identity.node_id}", soft_wrap=True)
    console.print(
        f"next     conlora id -c {directory}/conlora.yaml > {name}.yaml, and mail {name}.yaml to your partners",
        soft_wrap=True,
    )


def id_(config: ConfigOption = None) -> None:
    """Print this node's identity card: what a partner needs to add it."""
    from conlora.config import load_basics
    from conlora.net.identity import load_identity

    node = load_basics(config_path(config))
    typer.echo(load_identity(node.identity_dir).card(node.name, node.advertise), nl=False)


def check(
    config: ConfigArgument = None,
    seconds: Annotated[float, typer.Option(help="Longest wait for each peer.")] = 10.0,
) -> None:
    """Preflight: configuration, model, data, disk, address, and each peer: reachable, trusted, same federation."""
    from conlora.cli.preflight import preflight

    preflight(config_path(config), seconds)


def run(
    config: ConfigArgument = None,
    paused: Annotated[
        bool, typer.Option("--paused", help="Load and link up, but train only after `conlora resume`.")
    ] = False,
    log_format: Annotated[
        LogFormat,
        typer.Option(envvar="CONLORA_LOG_FORMAT", help="Of the log on standard error: json is an object a line."),
    ] = LogFormat.TEXT,
) -> None:
    """Run the node in the foreground until it is stopped."""
    from conlora.daemon.background import NICER, one_arithmetic_thread, steady_memory

    steady_memory()
    one_arithmetic_thread()  # before what follows imports numpy
    from conlora.cli.logs import ending_in_log, set_up_logging
    from conlora.config import load_basics
    from conlora.net.handshakes import refusals_in_log

    path = config_path(config)
    with refusals_in_log(NICER):
        from conlora.daemon.node import run_node  # imports gRPC

        for_programs, name = log_format is LogFormat.JSON, ""
        with contextlib.suppress(ConfigError):  # which `run_node` meets again
            name = load_basics(path).name if for_programs else ""
        set_up_logging(log_format, name)
        with ending_in_log() if for_programs else contextlib.nullcontext():
            run_node(path, paused=paused)
