"""What a testbed shows while it runs: a live table on a terminal, occasional lines elsewhere."""

import time
from collections.abc import Mapping
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from conlora.net.status import NodeStatus
from conlora.testbed.metric import Metric, usual

LINE_SECONDS = 15.0


class Progress:
    """One display for a whole testbed; `begin` is called for each run, `show` as often as there is news."""

    def __init__(self, console: Console, runs: int, done: int = 0) -> None:
        """done: of the runs, how many an earlier start has finished."""
        self._console = console
        self._runs = runs
        self._run = done
        self._title = self._phase = self._outlook = ""
        self._statuses: Mapping[str, NodeStatus | None] = {}
        self._started = self._printed = time.monotonic()
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live:
            self._live.stop()

    def begin(self, title: str, outlook: str = "") -> None:
        """The next run starts; `outlook` says how much is left."""
        self._run += 1
        self._title = title
        self._outlook = outlook
        if outlook and not self._live:
            self._console.print(f"run {self._run} of {self._runs}, {title}: {outlook}", highlight=False, soft_wrap=True)
        self._started = time.monotonic()
        self._phase = ""
        self._statuses = {}

    def end(self, outcome: str) -> None:
        """The run is over; its outcome stays on the screen."""
        self._console.print(f"{self._heading()}: {outcome}", highlight=False)

    def show(self, phase: str, statuses: Mapping[str, NodeStatus | None] | None = None) -> None:
        """The present state: what is being done, and news of each node (None: it does not answer)."""
        self._statuses = statuses or self._statuses
        if self._live:
            heading = Text(f"{self._heading()}: {phase}", style="bold")
            if self._outlook:
                heading.append(f"  ({self._outlook})", style="dim")
            self._live.update(Group(heading, _table(self._statuses)), refresh=True)
        elif phase != self._phase or time.monotonic() > self._printed + LINE_SECONDS:
            self._console.print(f"{self._heading()}: {phase}{_digest(statuses or {})}", highlight=False, soft_wrap=True)
            self._printed = time.monotonic()
        self._phase = phase

    def _heading(self) -> str:
        seconds = int(time.monotonic() - self._started)
        return f"run {self._run} of {self._runs}, {self._title}, {seconds // 60}:{seconds % 60:02}"


def _table(statuses: Mapping[str, NodeStatus | None]) -> Table:
    """A line for each node, with the metric of its newest evaluation."""
    metric = usual(figure for status in statuses.values() if status for figure in status.evaluation)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("node", "state"):
        table.add_column(heading)
    for heading in ("round", "loss", metric.name, "neighbours", "consensus error"):
        table.add_column(heading, justify="right")
    for name, status in statuses.items():
        table.add_row(*_cells(name, status, metric))
    return table


def _cells(name: str, status: NodeStatus | None, metric: Metric) -> list[str]:
    if status is None:
        return [name, "starting"]
    return [
        name,
        status.state,
        f"{status.round}/{status.rounds}",
        f"{status.loss:.3f}" if status.loss is not None else "-",
        metric.text(status.evaluation[metric.name]) if metric.name in status.evaluation else "-",
        f"{links_up(status)}/{len(status.peers)}",
        f"{status.consensus:.4f}" if status.consensus is not None else "-",
    ]


def _digest(statuses: Mapping[str, NodeStatus | None]) -> str:
    """One line for all nodes."""
    known = [status for status in statuses.values() if status is not None]
    if not known:
        return ""
    rounds = sorted(status.round for status in known)
    losses = [status.loss for status in known if status.loss is not None]
    span = f"{rounds[0]}" if rounds[0] == rounds[-1] else f"{rounds[0]}-{rounds[-1]}"
    loss = f", mean loss {sum(losses) / len(losses):.3f}" if losses else ""
    links = f"{sum(map(links_up, known))}/{sum(len(status.peers) for status in known)}"
    return f": {len(known)}/{len(statuses)} nodes, round {span} of {known[0].rounds}{loss}, neighbours up {links}"


def links_up(status: NodeStatus) -> int:
    """How many of a node's edges live."""
    return sum(peer.link == "up" for peer in status.peers)
