"""The console command `conlora`."""

import sys

import typer

from conlora import __version__
from conlora.cli import admin, cert, consensus, dashboard, monitoring, node, peers, testbed, top
from conlora.cli.common import quiet_grpc
from conlora.errors import ConLoRAError

app = typer.Typer(
    name="conlora",
    help="Fine-tune large models together, with no server in the middle.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Exit codes: 0 done, 1 failed, 2 configuration or usage, 3 no daemon answers, 4 check found a problem, "
    "5 the daemon declined, 6 training failed, 7 state directory, 8 upload failed, 130 interrupted.",
)
app.add_typer(testbed.app, name="testbed")
app.add_typer(peers.app, name="peers")
app.add_typer(cert.app, name="cert")
node.register(app)
admin.register(app)
consensus.register(app)
top.register(app)
dashboard.register(app)
monitoring.register(app)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"conlora {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def _complain(sentence: str) -> None:
    """On standard error. Where the disk behind it is full the exit code still says what happened."""
    try:
        print(sentence, file=sys.stderr, flush=True)
    except OSError:
        sys.stderr = None  # Python would try again, and end with a code of its own


def main() -> None:
    """Runs the command line; an error raised on purpose is printed as its sentence and ends with its exit code."""
    quiet_grpc()
    try:
        app()
    except ConLoRAError as error:
        _complain(f"conlora: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
