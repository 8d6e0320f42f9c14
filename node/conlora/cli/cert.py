"""`conlora cert`: when certificates expire; `cert rotate` replaces this node's without a break.

`cert install` puts one in place that an authority has issued for what `cert request` prints.
"""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from conlora.cli.common import ConfigOption, JsonOption, PlaceOption, config_path, console, print_json

app = typer.Typer(
    help="Certificates: show when they expire, replace this node's, have it issued by an authority.",
    invoke_without_command=True,
)


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
    rows = [(reply.name, reply.certificate_expires or 0.0, reply.certificate_warns, note)]
    for peer in reply.peers:
        known = f"knows the {'next' if rotating else 'present'} one" if peer.knows_next_certificate else ""
        if rotating and not known:
            known = "does not know the next one yet"
        rows.append((peer.name, peer.certificate_expires or 0.0, peer.certificate_warns, known))
    for name, moment, since, note in rows:
        style = "yellow" if warning(moment, time.time(), since) else ""
        table.add_row(Text(name), Text(day(moment), style=style), note)
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
    from conlora.config import load_basics
    from conlora.net.certificates import expires
    from conlora.net.expiry import day
    from conlora.net.issued import with_issued
    from conlora.net.rotation import rotate as make_next

    basics = load_basics(config_path(config))
    identity = with_issued(make_next(basics.identity_dir, overlap_days * 86400), basics.state_dir)
    newest = identity.next or identity
    told = _told(config, "neighbours are told now, others when a link comes up; `conlora cert` shows who knows it")
    if json:
        print_json({"takes_over_at": newest.takes_over_at, "expires": expires(newest.certificate)})
        return
    console.print(f"the next certificate takes over on {day(newest.takes_over_at)}; {told}", soft_wrap=True)
    if identity.issued:
        console.print("before that, have one issued for the next key: `conlora cert request`", soft_wrap=True)
    console.print("back up the identity directory again, and after the takeover once more", soft_wrap=True)


@app.command()
def request(config: ConfigOption = None) -> None:
    """Print a certificate signing request for this node's key; during a rotation, for the next key first."""
    from conlora.config import load_basics
    from conlora.net.identity import load_identity
    from conlora.net.issued import request as make_request
    from conlora.net.issued import with_issued

    basics = load_basics(config_path(config))
    typer.echo(make_request(with_issued(load_identity(basics.identity_dir), basics.state_dir), time.time()), nl=False)


@app.command()
def install(
    file: Annotated[Path, typer.Argument(help="PEM: this node's certificate, then authorities in between, if any.")],
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Check a certificate that an authority has issued for this node, and show it to peers from now on."""
    from conlora.config import load_basics
    from conlora.net.authorities import load_authorities
    from conlora.net.expiry import day
    from conlora.net.identity import load_identity
    from conlora.net.issued import install as put
    from conlora.net.issued import with_issued

    basics = load_basics(config_path(config))
    authorities = load_authorities(basics.ca_file) if basics.ca_file else None
    identity = with_issued(load_identity(basics.identity_dir), basics.state_dir)
    end = put(identity, basics.state_dir, file, authorities, time.time())
    told = _told(config, "peers see it from now on, and no link was ended", end)
    if json:
        print_json({"expires": end})
        return
    console.print(f"installed; expires on {day(end)}; {told}", soft_wrap=True)


def _told(config: Path | None, done: str, end: float | None = None) -> str:
    """What has come of telling the daemon that something is new. end: of a certificate that it may have found by itself."""
    from conlora.cli.admin import admin_client
    from conlora.errors import NodeSlow, NodeUnreachable, Refused

    try:
        with admin_client(config) as client:
            try:
                client.read_identity()
            except Refused:
                if end is None or client.status().certificate_expires != end:
                    raise
    except NodeSlow:
        return "the daemon is busy, and looks once a minute; then it tells peers, and `conlora cert` shows who knows it"
    except NodeUnreachable:
        return "no daemon runs; peers are told once it does"
    except Refused as error:
        return str(error)
    return done
