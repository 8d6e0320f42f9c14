"""`conlora cert`: when this node's certificate and its peers' expire; `cert rotate` replaces the own one without a break."""

import time
from typing import Annotated

import typer
from rich.text import Text

from conlora.cli.common import ConfigOption, JsonOption, PlaceOption, config_path, console, print_json

app = typer.Typer(help="Certificates: show when they expire, replace this node's.", invoke_without_command=True)


@app.callback()
def show(context: typer.Context, config: PlaceOption = None, json: JsonOption = False) -> None:
    """Show the certificates of this node and its peers, and how far a rotation has come (of the running daemon)."""
    if context.invoked_subcommand is not None:
        return
    from rich.table import Table

    from conlora.cli.admin import admin_client
    from conlora.net.expiry import day, warning

    with admin_client(config) as client:
        reply = client.status()
    if json:
        body = {"expires": reply.certificate_expires, "next_takes_over_at": reply.next_certificate_at}
        keys = {"name": "name", "expires": "certificate_expires", "knows_next": "knows_next_certificate"}
        print_json(body | {"peers": [{key: getattr(peer, name) for key, name in keys.items()} for peer in reply.peers]})
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("node", "expires", ""):
        table.add_column(column)
    rotating = reply.next_certificate_at is not None
    note = (
        f"the next one takes over on {day(reply.next_certificate_at)}" if reply.next_certificate_at is not None else ""
    )
    rows = [(reply.name, reply.certificate_expires or 0.0, note)]
    for peer in reply.peers:
        known = f"knows the {'next' if rotating else 'present'} one" if peer.knows_next_certificate else ""
        if rotating and not known:
            known = "does not know the next one yet"
        rows.append((peer.name, peer.certificate_expires or 0.0, known))
    for name, moment, note in rows:
        table.add_row(Text(name), Text(day(moment), style="yellow" if warning(moment, time.time()) else ""), note)
    console.print(table)


@app.command()
def rotate(
    overlap_days: Annotated[
        float,
        typer.Option(min=0, max=365, help="How long peers accept both, so that all of them can learn the new one."),
    ] = 14,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Replace this node's key and certificate without a break: peers learn them over their links, and take both for a while."""
    from conlora.cli.admin import admin_client
    from conlora.config import load_basics
    from conlora.errors import NodeSlow, NodeUnreachable, Refused
    from conlora.net.certificates import expires
    from conlora.net.expiry import day
    from conlora.net.rotation import rotate as make_next

    identity = make_next(load_basics(config_path(config)).identity_dir, overlap_days * 86400)
    newest = identity.next or identity
    try:
        with admin_client(config) as client:
            client.read_identity()
        told = "neighbours are told now, others when a link comes up; `conlora cert` shows who knows it"
    except NodeSlow:
        told = "the daemon is busy, and looks once a minute; then it tells peers, and `conlora cert` shows who knows it"
    except NodeUnreachable:
        told = "no daemon runs; peers are told once it does"
    except Refused as error:
        told = str(error)
    if json:
        print_json({"takes_over_at": newest.takes_over_at, "expires": expires(newest.certificate)})
        return
    console.print(f"the next certificate takes over on {day(newest.takes_over_at)}; {told}", soft_wrap=True)
    console.print("back up the identity directory again, and after the takeover once more", soft_wrap=True)
