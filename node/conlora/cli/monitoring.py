"""Command `conlora monitoring`: the files that make a node's metrics seen: dashboard, alert rules, an example of scraping."""

from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from conlora.cli.common import console
from conlora.errors import ConfigError

FILES = {
    "grafana.json": "a dashboard: import it into Grafana",
    "alerts.yaml": "alert rules for Prometheus",
    "prometheus.yaml": "an example of how Prometheus reads nodes and rules",
}


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(monitoring)


def monitoring(
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory; made if it does not exist.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
) -> None:
    """Write dashboard and alert rules for Grafana and Prometheus."""
    if taken := [name for name in FILES if (output / name).exists() and not overwrite]:
        raise ConfigError(f"{output / taken[0]}: exists already; choose another directory or pass --overwrite")
    source = resources.files("conlora") / "monitoring"
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (output / name).write_bytes((source / name).read_bytes())
    except OSError as error:
        raise ConfigError(f"{output}: can't be written ({error}); choose a writable directory") from error
    for name, what in FILES.items():
        console.print(f"[bold]{output / name}[/]  {what}", soft_wrap=True)
