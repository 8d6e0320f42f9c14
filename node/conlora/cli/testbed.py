"""`conlora testbed`: federations on one machine."""

from pathlib import Path
from typing import Annotated

import typer

INTERRUPTED = 130  # the shells' exit code for a command that was interrupted

app = typer.Typer(no_args_is_help=True, help="Run a whole federation on this machine and compare rules.")


@app.command()
def run(
    spec: Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="What to run: nodes, topology, rules, data.")],
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
