"""`conlora testbed`: federations on one machine."""

from pathlib import Path
from typing import Annotated

import typer

INTERRUPTED = 130  # the shells' exit code for a command that was interrupted

app = typer.Typer(no_args_is_help=True, help="Run a whole federation on this machine and compare rules.")

SpecArgument = Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="What to run: nodes, topology, rules, data.")]


@app.command()
def run(
    spec: SpecArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Where results go. Default: runs/NAME.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove an earlier testbed's results in DIR.")] = False,
) -> None:
    """Run a federation once for each rule, and its baselines; write summary.json, plots and report.html."""
    # Only now, so that `conlora --help` is quick.
    from rich.console import Console

    from conlora.testbed.run import run_testbed
    from conlora.testbed.spec import load_spec

    console = Console()
    loaded = load_spec(spec)
    output = (output or Path("runs") / loaded.name).absolute()
    keep = [spec, Path(loaded.data.source), Path(loaded.model.base), Path.cwd()]
    try:
        run_testbed(loaded, output, overwrite, keep, console)
    except KeyboardInterrupt:
        console.print(
            f"interrupted; all nodes are stopped, and what was finished is in {output}", highlight=False, soft_wrap=True
        )
        raise typer.Exit(INTERRUPTED) from None


@app.command()
def compare(
    grid: Annotated[
        Path, typer.Argument(metavar="GRID.yaml", help="Rules, topologies, partitions, ranks, modes, seeds.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Where results go. Default: runs/NAME.")
    ] = None,
) -> None:
    """Run a grid of federations and draw consensus error against topology, round and rule.

    Interrupted, the same command goes on with the first cell that is not finished.
    """
    from rich.console import Console

    from conlora.testbed import compare as comparing
    from conlora.testbed.grid import load_grid

    console = Console()
    loaded, cells = load_grid(grid)
    output = (output or Path("runs") / loaded.name).absolute()
    try:
        study = comparing.compare(loaded, cells, output, console)
    except KeyboardInterrupt:
        console.print(
            f"interrupted; finished cells are in {output}, and the same command goes on from there",
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(INTERRUPTED) from None
    console.print(study.text(), markup=False, highlight=False, soft_wrap=True)
    console.print(f"figures and tables: {output}", highlight=False, soft_wrap=True)


@app.command()
def compose(
    spec: SpecArgument,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Where it all goes. Default: runs/NAME-compose."),
    ] = None,
    rule: Annotated[
        str | None, typer.Option(help="Which of the specification's rules to run.", show_default="the only one")
    ] = None,
    cpus: Annotated[float, typer.Option(min=0.1, help="Cores that a node may take.")] = 1.0,
    memory: Annotated[
        str, typer.Option(metavar="SIZE", help="Memory that a node may take, such as 512m or 2g.")
    ] = "2g",
) -> None:
    """Write a federation of containers: a compose file, and each node's identity, configuration and data."""
    from conlora.testbed.compose import Limits, write_testbed
    from conlora.testbed.spec import load_spec

    loaded = load_spec(spec)
    directory = (output or Path("runs") / f"{loaded.name}-compose").absolute()
    written = write_testbed(loaded, rule, directory, Limits(cpus, memory))
    typer.echo(f"{len(written.setups)} nodes, rule {written.rule}: {directory}")
    typer.echo(f"next: cd {directory} && docker-compose up -d")
    typer.echo(f"then: conlora testbed collect {directory}")


@app.command()
def collect(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="What `testbed compose` has filled.")],
) -> None:
    """Wait until a federation of containers has trained; fetch its adapters, evaluate them, write the report of `testbed run`.

    The containers go on as they are, also where this command is interrupted.
    """
    from rich.console import Console

    from conlora.testbed.collect import collect as take_home
    from conlora.testbed.compose import read_testbed

    console = Console()
    try:
        take_home(read_testbed(directory.absolute()), console)
    except KeyboardInterrupt:
        console.print("interrupted; the containers go on, and the same command goes on waiting", highlight=False)
        raise typer.Exit(INTERRUPTED) from None
