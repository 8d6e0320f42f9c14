"""`conlora consensus`: how far this node is from its neighbours, and the federation from agreement."""

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from conlora.cli.admin import admin_client
from conlora.cli.common import JsonOption, PlaceOption, console, human_seconds, print_json

if TYPE_CHECKING:
    from conlora.core.figures import Consensus, EdgeError
    from conlora.net.status import ConsensusView, Federation

FIGURES = {  # what each figure says, for people who have not the paper at hand
    "D": "mean distance of the nodes' updates BA from the product of the mean factors",
    "V": "spread of the updates BA",
    "C": "cross term: what averaging A and B apart adds",
    "E_A": "spread of A",
    "E_B": "spread of B",
    "amplification": "spread of BA for each unit of spread in A and B",
    "relative": "V beside the update itself",
}
FRESH_SECONDS = 60.0
NARROWEST, WIDEST = 80, 2000  # characters


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(consensus)


def consensus(
    config: PlaceOption = None,
    json: JsonOption = False,
    layers: Annotated[bool, typer.Option("--layers", help="Also for each adapted module.")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it again and again, until Ctrl-C.")] = False,
    seconds: Annotated[float, typer.Option(min=0.1, help="Between two looks, with --watch.")] = 2.0,
) -> None:
    """Show the consensus error: exactly at this node's edges, estimated from sketches for the whole federation."""
    with admin_client(config) as client:
        if watch and not json:
            _watch(lambda: render(client.consensus(), layers), seconds)
            return
        while True:
            view = client.consensus()
            if json:
                print_json(asdict(view))
            else:
                Console(highlight=False, width=_width(view, layers)).print(render(view, layers))
            if not watch:
                return
            time.sleep(seconds)


def _width(view: "ConsensusView", layers: bool) -> int:
    """The terminal's width, or as much as the tables need: a figure that is cut off says something else."""
    needed = NARROWEST
    if layers and view.after:
        options = console.options.update(max_width=WIDEST)
        needed = max(needed, Measurement.get(console, options, _layers(view, view.after)).maximum)
    return max(console.width, needed)


def _watch(look: Callable[[], RenderableType], seconds: float) -> None:
    from rich.live import Live

    with Live(look(), console=console, screen=console.is_terminal, auto_refresh=False) as live:
        while True:
            time.sleep(seconds)
            live.update(look(), refresh=True)


def render(view: "ConsensusView", layers: bool) -> RenderableType:
    """The whole answer."""
    parts: list[RenderableType] = [_heading(view), Text(), _edges(view)]
    if view.after and view.before:
        parts += [Text(), _federation(view, view.before, view.after)]
        parts += [Text(_nodes(view), style="dim")]
    else:
        parts.append(Text("no sketches yet: the federation's figures come with the first mix", style="dim"))
    if layers and view.after:
        parts += [Text(), _layers(view, view.after)]
    return Group(*parts)


def _heading(view: "ConsensusView") -> Text:
    told = "" if view.sketched else " · this node keeps its own sketch to itself (observing.sketched)"
    return Text.assemble((view.name, "bold"), f" · {view.rule} · round {view.round}{told}")


def _edges(view: "ConsensusView") -> RenderableType:
    if not view.edges:
        return Text("no neighbour took part in the last mix", style="dim")
    table = _table("neighbour", "snapshot", "weight", "‖Pi − Pj‖", "‖Ai − Aj‖", "‖Bi − Bj‖", "amplification")
    for edge in view.edges:
        table.add_row(
            Text(edge.name),
            f"round {edge.snapshot_round}",
            f"{edge.weight:.2f}",
            *_norms(edge.error),
            _amplified(edge.error),
        )
    if len(view.edges) > 1 and view.amplification is not None:
        table.add_row("all edges", "", "", "", "", "", f"{view.amplification:.2f}", style="bold")
    return table


def _federation(view: "ConsensusView", before: "Federation", after: "Federation") -> RenderableType:
    table = _table("federation", "before mixing", "after mixing", "")
    for name, meaning in FIGURES.items():
        table.add_row(name, with_bar(before, name), with_bar(after, name), Text(meaning, style="dim"))
    return table


def _nodes(view: "ConsensusView") -> str:
    fresh = sum(node.age_seconds < FRESH_SECONDS for node in view.nodes)
    oldest = max((node.age_seconds for node in view.nodes), default=0.0)
    text = f"{len(view.nodes)} nodes seen, {fresh} fresh, oldest part {human_seconds(oldest)} old"
    if view.rho is not None and len(view.nodes) > 1:
        text += f" · graph: λ {view.rho:.3f}, s " + (f"{view.s:.3f}" if view.s is not None else "∞ (not connected)")
    return text + " · ± two standard errors of the sketches"


def _layers(view: "ConsensusView", after: "Federation") -> RenderableType:
    table = _table("module", "D", "V", "C", "E_A", "E_B", "amplification", *(escape(edge.name) for edge in view.edges))
    for i, module in enumerate(view.modules):
        figures = after.layers[i]
        cells = [f"{getattr(figures, name):.3g}" for name in ("D", "V", "C", "E_A", "E_B", "amplification")]
        table.add_row(Text(short_module(module)), *cells, *(f"{edge.layers[i].product:.3g}" for edge in view.edges))
    return table


def short_module(name: str) -> str:
    """A module's name without what all names begin with."""
    return name.removeprefix("base_model.model.").replace(".encoder.layer.", ".").replace(".attention.self", "")


def with_bar(federation: "Federation", name: str) -> str:
    """A figure and the half-width of its error bar."""
    value, bar = _figure(federation.figures, name), _figure(federation.bars, name)
    if name == "relative":
        return f"{value:.1%} ± {bar:.1%}"
    return f"{value:.3g} ± {bar:.2g}" if bar else f"{value:.3g}"


def _figure(figures: "Consensus", name: str) -> float:
    return float(getattr(figures, name))


def _norms(error: "EdgeError") -> list[str]:
    return [f"{norm:.3g}" for norm in (error.product, error.a, error.b)]


def _amplified(error: "EdgeError") -> str:
    from conlora.core.figures import amplification

    return f"{amplification([error]):.2f}"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 or not column else "right", no_wrap=bool(column))
    return table
