"""How figures look: colours on light and dark paper, settings, and names that can be drawn."""

import io
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.typing import RcKeyType

from conlora.core.rules import RULES

Summary = dict[str, Any]
DPI = 160
LONGEST_NAME = 24  # characters


@dataclass(frozen=True, slots=True)
class Style:
    """Colours for one kind of paper: rules have colours of their own, nodes shades of another scheme."""

    paper: str
    ink: str
    faint: str
    rules: tuple[str, ...]
    shades: tuple[float, float]  # the part of the viridis map that stands out from the paper

    @property
    def settings(self) -> dict[RcKeyType, Any]:
        """Matplotlib settings that hold while a figure is drawn and saved."""
        return {
            "figure.facecolor": self.paper,
            "savefig.facecolor": self.paper,
            "axes.facecolor": self.paper,
            "axes.edgecolor": self.ink,
            "axes.labelcolor": self.ink,
            "xtick.color": self.ink,
            "ytick.color": self.ink,
            "text.color": self.ink,
            "grid.color": self.faint,
            "font.size": 11,
            "axes.titlesize": 11.5,
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "legend.frameon": False,
        }

    def rule_colours(self, rules: Iterable[str]) -> dict[str, str]:
        """A colour per rule; the rules that we know come first, so that they look the same in every report."""
        names = dict.fromkeys([*RULES, *rules])
        return {name: self.rules[i % len(self.rules)] for i, name in enumerate(names)}

    def node_shades(self, nodes: int) -> list[str]:
        """A shade per node, from dark to light."""
        return [to_hex(colour) for colour in matplotlib.colormaps["viridis"](np.linspace(*self.shades, nodes))]


# Okabe & Ito's colours for rules, which colour-blind readers can tell apart; lighter ones on dark paper.
LIGHT = Style("#ffffff", "#22262b", "#e3e6ea", ("#D55E00", "#0072B2", "#009E73", "#CC79A7"), (0.0, 0.9))
DARK = Style("#171a1f", "#e4e7eb", "#343a42", ("#F0913A", "#56B4E9", "#1FC99A", "#E39BC6"), (0.3, 1.0))
# Class labels, on either paper: mostly Paul Tol's "light" scheme, without what looks like a rule's colour.
LABELS = ("#6C7A89", "#EEDD88", "#44BB99", "#FFAABB", "#8C6BB1", "#BBCC33", "#99DDFF", "#AAAA00")
OTHER_LABELS = "#C9CED6"


def draw(figure: Callable[[Summary, Style], Figure], summary: Summary, style: Style) -> bytes:
    """A figure as a PNG."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(style.settings), warnings.catch_warnings():
        # Class labels can be in any script; the report's tables show what the figures' font lacks.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        figure(summary, style).savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def plain(text: str) -> str:
    """A name as it is: not taken for a formula, and no longer than a legend bears."""
    short = text if len(text) <= LONGEST_NAME else text[: LONGEST_NAME - 1] + "…"
    return short.replace("$", r"\$")
