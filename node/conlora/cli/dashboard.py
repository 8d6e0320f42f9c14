"""`conlora dashboard`: a local web page of one or many nodes."""

from pathlib import Path
from typing import Annotated

import typer

from conlora.cli.common import config_path, console


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(dashboard)


def dashboard(
    nodes: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="NODE...",
            envvar="CONLORA_CONFIG",
            help="Nodes' files, directories or admin sockets, or testbeds' directories. Default: ./conlora.yaml, then "
            "/etc/conlora.",
            show_default=False,
        ),
    ] = None,
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where the page is served.")] = "127.0.0.1:8088",
    public: Annotated[
        bool, typer.Option("--public", help="Let other machines see the page. It has no login and no encryption.")
    ] = False,
) -> None:
    """Serve a local web page that shows nodes live: graph, consensus error, loss, accuracy. Until Ctrl-C."""
    # Only now, so that `conlora --help` is quick.
    from conlora.dashboard import server
    from conlora.dashboard.source import Source
    from conlora.dashboard.targets import discoverer

    discover = discoverer(nodes or [config_path(None)])
    listener, url = server.listen(listen, public)
    found = len(discover())
    shown = f"{found} node{'s' if found != 1 else ''}" if found else "no node runs there yet"
    console.print(f"dashboard: {url} ({shown}; Ctrl-C ends it)", soft_wrap=True)
    server.serve(Source(discover), listener, listen.rpartition(":")[0].strip("[]"))
