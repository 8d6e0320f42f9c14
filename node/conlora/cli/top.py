"""`conlora top`: one node on a full screen, again and again: its rounds, its links, and the federation's consensus error."""

import contextlib
import math
import os
import select
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Protocol

import typer
from rich.console import Group
from rich.text import Text

from conlora.cli.admin import LINK_STYLES, admin_client
from conlora.cli.common import PlaceOption, console, human_bytes, human_seconds, one_line
from conlora.cli.consensus import FIGURES, with_bar

if TYPE_CHECKING:
    from conlora.net.status import ConsensusView, NodeStatus, PeerStatus, RoundRecord

BLOCKS = "▁▂▃▄▅▆▇█"
REMEMBERED = 512  # rounds: more than any terminal is wide
OVERLAP = 30  # rounds asked for again
LABEL_WIDTH, VALUE_WIDTH = 15, 9
ERROR_COLUMNS = ("‖ΔBA‖", "‖ΔA‖", "‖ΔB‖")
MEANING_FROM = 110  # columns from which the figures' meanings have room


class Client(Protocol):
    """What is asked of `net.admin_client.AdminClient`."""

    def status(self) -> "NodeStatus":
        """The node."""
        ...

    def consensus(self) -> "ConsensusView":
        """Its edges, and the federation."""
        ...

    def history(self, after_round: int) -> "list[RoundRecord]":
        """Later rounds."""
        ...


@dataclass
class Look:
    """What was last heard of the node; `trouble` says why it is not heard now."""

    status: "NodeStatus | None" = None
    view: "ConsensusView | None" = None
    rounds: "dict[int, RoundRecord]" = field(default_factory=dict)
    trouble: str = ""

    def again(self, client: Client) -> None:
        """Asks the node; never raises for one that does not answer."""
        from conlora.errors import NodeUnreachable

        try:
            status = client.status()
            view = client.consensus()
            if self.rounds and status.round < max(self.rounds):
                self.rounds.clear()  # it went back to a checkpoint and counts from there
            # The newest ones once more: evaluations and errors come after their round.
            since = max(max(self.rounds, default=0) - OVERLAP, status.round - REMEMBERED, 0)
            self.rounds |= {record.round: record for record in client.history(since)}
            for old in sorted(self.rounds)[:-REMEMBERED]:
                del self.rounds[old]
            self.status, self.view, self.trouble = status, view, ""
        except NodeUnreachable as error:
            self.trouble = str(error)


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(top)


def top(
    config: PlaceOption = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Between two looks.")] = 1.0,
) -> None:
    """Watch this node on the full screen: rounds, links, consensus error; q leaves."""
    from rich.live import Live

    look = Look()
    with admin_client(config) as client:
        if not console.is_terminal:
            _print_once(look, client)
            return
        with (
            contextlib.suppress(KeyboardInterrupt),
            _keys() as keys,
            Live(console=console, screen=True, auto_refresh=False) as live,
        ):
            while True:
                look.again(client)
                live.update(frame(look, *console.size), refresh=True)
                if keys.pressed("q", seconds):
                    return


def _print_once(look: Look, client: Client) -> None:
    from conlora.errors import NodeUnreachable

    look.again(client)
    if look.trouble:
        raise NodeUnreachable(look.trouble)
    console.print(frame(look, console.width, None))


class _Keys:
    """Keys pressed on standard input, where that is a terminal."""

    def __init__(self, listening: bool) -> None:
        self._listening = listening

    def pressed(self, key: str, seconds: float) -> bool:
        """Waits so long for that key."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if not self._listening:
                time.sleep(left)
            elif select.select([sys.stdin], [], [], left)[0]:
                typed = os.read(sys.stdin.fileno(), 64)  # not through sys.stdin, whose buffer `select` can't see
                if key.encode() in typed:
                    return True
                self._listening = bool(typed)  # nothing: the terminal is gone
        return False


@contextlib.contextmanager
def _keys() -> Iterator[_Keys]:
    """Keys come at once and are not shown, until the context ends."""
    if not sys.stdin.isatty():
        yield _Keys(False)
        return
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield _Keys(True)
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def sparkline(values: Sequence[float | None], width: int) -> str:
    """The last `width` values as blocks between the least and the greatest of them; a space where there is none."""
    shown = [v if v is not None and math.isfinite(v) else None for v in values[-width:]] if width > 0 else []
    known = [v for v in shown if v is not None]
    if not known:
        return " " * len(shown)
    # Halves, since the difference of two floats may be none.
    low, span = min(known) / 2, max(known) / 2 - min(known) / 2
    top = len(BLOCKS) - 1
    return "".join(" " if v is None else BLOCKS[round((v / 2 - low) / span * top) if span else top // 2] for v in shown)


def bar(done: int, whole: int, width: int) -> str:
    """Progress; full only when all is done."""
    filled = min(width, width * done // whole) if whole > 0 else width
    return "█" * filled + "░" * (width - filled)


@dataclass(frozen=True, slots=True)
class _Row:
    text: Text
    weight: int  # the least go first where the terminal is too small


def frame(look: Look, width: int, height: int | None) -> Group:
    """One picture, never larger than the terminal. height: lines; None: as many as it takes."""
    rows = [_Row(Text(one_line(look.trouble) + "; trying again", "bold red"), 99)] if look.trouble else []
    if look.status:
        links = len(look.status.peers) if height is None else max(1, height - 19)
        rows += _header(look.status, width)
        rows += _links(look.status.peers, look.view, width, links)
        rows += _series(look, width)
    if look.view:
        rows += _federation(look.view, width)
    rows += [_Row(Text("q leaves", "dim"), 2)] if height is not None else []
    if height is not None:
        by_weight = sorted(range(len(rows)), key=lambda i: (-rows[i].weight, i))
        rows = [rows[i] for i in sorted(by_weight[:height])]
    for row in rows:
        row.text.no_wrap = True
        row.text.truncate(width, overflow="ellipsis")
    return Group(*(row.text for row in rows))


def _header(status: "NodeStatus", width: int) -> list[_Row]:
    parts = [status.federation, f"{status.rule}, {status.mode}", f"up {human_seconds(status.uptime_seconds)}"]
    first = Text.assemble(
        (one_line(status.name), "bold"), " · ", (status.state, "bold"), *(f" · {one_line(part)}" for part in parts)
    )
    words = f" round {status.round} of {status.rounds}"
    progress = Text.assemble((bar(status.round, status.rounds, max(10, width - len(words))), "cyan"), words)
    rows = [_Row(first, 98), _Row(progress, 97)]
    if status.message:
        rows.append(_Row(Text(one_line(status.message), "yellow"), 96))
    return rows


def _links(peers: "Sequence[PeerStatus]", view: "ConsensusView | None", width: int, most: int) -> list[_Row]:
    if not peers:
        return [_Row(Text(), 1), _Row(Text("no peers: this node trains alone", "dim"), 50)]
    errors = {edge.node_id: edge.error for edge in view.edges} if view else {}
    heading = ("neighbour", "link", "snapshot", "weight", *ERROR_COLUMNS, "sent / received")
    shown = peers if len(peers) <= most else peers[: most - 1]
    cells: list[tuple[str, ...]] = [heading]
    for peer in shown:
        error = errors.get(peer.node_id) if peer.link == "up" else None
        norms = (error.product, error.a, error.b) if error else (None, None, None)
        cells.append(
            (
                one_line(peer.name),
                peer.link,
                human_seconds(peer.snapshot_age_seconds) if peer.snapshot_age_seconds is not None else "-",
                f"{peer.weight:.2f}" if peer.weight is not None else "-",
                *(f"{norm:.3g}" if norm is not None else "-" for norm in norms),
                f"{human_bytes(peer.bytes_sent)} / {human_bytes(peer.bytes_received)}",
            )
        )
    widths = [max(Text(row[i]).cell_len for row in cells) for i in range(len(heading))]
    widths[0] = max(4, min(widths[0], width - sum(widths[1:]) - 2 * (len(widths) - 1)))
    rows = [_Row(Text(), 1), _Row(_line([Text(cell, "dim") for cell in heading], widths), 60)]
    for peer, row in zip(shown, cells[1:], strict=True):
        texts = [Text(row[0]), Text(row[1], LINK_STYLES.get(row[1], "")), *(Text(cell) for cell in row[2:])]
        if peer.link != "up":  # why is of more interest than figures of the past
            retry = f", next try in {human_seconds(peer.retry_in_seconds)}" if peer.retry_in_seconds else ""
            texts = [*texts[:2], Text(f"{one_line(peer.last_error) or '-'}{retry}", "dim")]
        rows.append(_Row(_line(texts, widths), 70))
    if hidden := peers[len(shown) :]:
        up = sum(peer.link == "up" for peer in hidden)
        rows.append(_Row(Text(f"… and {len(hidden)} more, {up} of them up", "dim"), 70))
    return rows


def _line(cells: Sequence[Text], widths: Sequence[int]) -> Text:
    """Cells in columns, the first two to the left and figures to the right; a last cell before its column goes on."""
    line = Text()
    for i, (cell, width) in enumerate(zip(cells, widths, strict=False)):
        if i:
            line.append("  ")
        if i == len(cells) - 1 < len(widths) - 1:
            line.append_text(cell)
        elif i < 2:
            cell.truncate(width, overflow="ellipsis", pad=True)
            line.append_text(cell)
        else:
            line.append(" " * (width - cell.cell_len))
            line.append_text(cell)
    return line


def _series(look: Look, width: int) -> list[_Row]:
    records = [look.rounds[number] for number in sorted(look.rounds)]
    series: list[tuple[str, list[float | None], int]] = [
        ("loss", [record.loss for record in records], 59),
        # only some rounds are evaluated, or measured where rounds are short: those follow each other here
        ("accuracy", [record.accuracy for record in records if record.accuracy is not None], 55),
        ("edge error", [record.edge_error for record in records if record.edge_error is not None], 58),
        ("federation V", [record.before.V for record in records if record.before], 57),
        ("amplification", [record.amplification for record in records if record.amplification is not None], 54),
    ]
    rows = [_Row(Text(), 1)]
    for label, values, weight in series:
        newest = next((value for value in reversed(values) if value is not None), None)
        figure = f"{newest:.4g}" if newest is not None else "-"
        line = sparkline(values, width - LABEL_WIDTH - VALUE_WIDTH - 2)
        rows.append(_Row(Text.assemble(f"{label:<{LABEL_WIDTH}}{figure:>{VALUE_WIDTH}}  ", (line, "cyan")), weight))
    return rows


def _federation(view: "ConsensusView", width: int) -> list[_Row]:
    if not view.before or not view.after:
        return [_Row(Text(), 1), _Row(Text("federation: no sketches yet", "dim"), 40)]
    oldest = max(view.nodes, key=lambda node: node.age_seconds, default=None)
    words = f"federation of {len(view.nodes)} nodes seen"
    if oldest:
        words += f", oldest part {human_seconds(oldest.age_seconds)} ({one_line(oldest.name)}, round {oldest.round})"
    rows = [_Row(Text(), 1), _Row(Text(words), 53)]
    cells = [("", "before mixing", "after mixing", "")]
    cells += [(name, with_bar(view.before, name), with_bar(view.after, name), FIGURES[name]) for name in FIGURES]
    widths = [max(len(row[i]) for row in cells) for i in range(3)]
    weights = {"V": 52, "D": 51, "amplification": 49, "E_A": 46, "E_B": 46, "relative": 48, "C": 45}
    for name, before, after, meaning in cells:
        text = Text(f"{name:<{widths[0]}}  {before:>{widths[1]}}  {after:>{widths[2]}}", "" if name else "dim")
        if width >= MEANING_FROM:
            text.append(f"  {meaning}", "dim")
        rows.append(_Row(text, weights.get(name, 44)))
    return rows
