"""`conlora top`: sparklines, frames that never leave the terminal, names shown as they are, and a node that goes away."""

import io
import itertools
import math
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from tests.fakes import ALONE, DOWN, REFUSED, UP, FakeNode, rounds, status, view

from conlora.cli.common import one_line
from conlora.cli.top import BLOCKS, Look, bar, frame, sparkline
from conlora.errors import NodeUnreachable
from conlora.net.status import FederationNode, NodeStatus, RoundRecord

any_values = st.lists(st.none() | st.floats(), max_size=60)


@given(any_values, st.integers(-2, 70))
def test_a_sparkline_has_a_block_for_each_of_the_last_values(values: list[float | None], width: int) -> None:
    line = sparkline(values, width)
    shown = values[-width:] if width > 0 else []
    assert len(line) == len(shown)
    for character, value in zip(line, shown, strict=True):
        assert (character in BLOCKS) == (value is not None and math.isfinite(value))
        assert character in BLOCKS or character == " "


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=60))
def test_a_sparkline_rises_where_the_values_do(values: list[float]) -> None:
    heights = [BLOCKS.index(character) for character in sparkline(values, len(values))]
    pairs = sorted(zip(values, heights, strict=True))
    assert all(low[1] <= high[1] for low, high in itertools.pairwise(pairs) if low[0] < high[0])
    if max(values) / 2 > min(values) / 2:
        assert (min(heights), max(heights)) == (0, len(BLOCKS) - 1)
    else:
        assert len(set(heights)) == 1


@given(st.integers(0, 10**7), st.integers(0, 10**6), st.integers(0, 300))
def test_a_bar_is_full_only_when_all_is_done(done: int, whole: int, width: int) -> None:
    drawn = bar(done, whole, width)
    assert len(drawn) == width
    assert drawn == "█" * drawn.count("█") + "░" * drawn.count("░")
    if width:
        assert ("░" not in drawn) == (done >= whole)


def looking(**changes: object) -> Look:
    look = Look(status(peers=[UP, DOWN, REFUSED]), view(), {record.round: record for record in rounds(40)})
    for name, value in changes.items():
        setattr(look, name, value)
    return look


def shown(look: Look, width: int, height: int | None) -> list[str]:
    """The frame's lines on a terminal of that size, which it must fit."""
    console = Console(file=io.StringIO(), width=width, height=height or 100, force_terminal=True, color_system=None)
    console.print(frame(look, width, height))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert len(lines) <= (height or 1000)
    assert all(cell_len(line) <= width for line in lines)
    return lines


def test_everything_is_there_at_200x50() -> None:
    text = "\n".join(shown(looking(), 200, 50))
    for words in (
        "mercy · training · notes · lora, sync · up 1 s",
        "round 3 of 10",
        "connection refused, next try in 2 s",
        "does not fit: rule",
        "1.1 TB / 3 B",
        "federation of 3 nodes seen, oldest part 4 min (far [red]away, round 0)",
        "spread of the updates BA",
        "q leaves",
    ):
        assert words in text
    anna = next(line for line in text.splitlines() if line.startswith("st-anna"))
    assert re.search(r"up +0 s +0\.25 +1 +0\.5 +2 +1\.1 TB", anna)
    assert re.search(r"^loss +0\.025  █", text, re.M)
    assert re.search(r"^federation V +41  .*█$", text, re.M), "the spread before mixing, in the newest round"
    assert re.search(r"^amplification +0  ▄{40}$", text, re.M)
    assert re.search(r"^accuracy +0\.539  .{13}$", text, re.M), "evaluated rounds only, one after the other"
    assert re.search(r"^E_B +14 ± 4\.5 +24 ± 4 ", text, re.M)


def test_80x24_keeps_what_matters() -> None:
    lines = shown(looking(), 80, 24)
    text = "\n".join(lines)
    for words in (
        "mercy",
        "round 3 of 10",
        "st-anna",
        "charité",
        "loss",
        "edge error",
        "federation V",
        "3 nodes",
        "\nV ",
    ):
        assert words in text
    assert len(lines) == 24


def test_many_links_are_folded() -> None:
    peers = [replace(UP if i % 2 else DOWN, name=f"node-{i}", node_id=str(i)) for i in range(60)]
    lines = shown(looking(status=status(peers=peers)), 80, 24)
    assert sum(line.startswith("node-") for line in lines) == 4
    assert "… and 56 more, 28 of them up" in lines
    assert any(line.startswith("V ") for line in lines)
    assert sum(line.startswith("node-") for line in shown(looking(status=status(peers=peers)), 200, None)) == 60


@pytest.mark.parametrize("look", [Look(), Look(trouble="no daemon"), looking(view=ALONE), Look(status(), ALONE)])
@pytest.mark.parametrize("size", [(80, 24), (200, 50), (20, 5), (1, 1)])
def test_whatever_is_known_fits(look: Look, size: tuple[int, int]) -> None:
    shown(look, *size)


HOSTILE = "[red]x[/] [/nope] \x1b[2J\n\r[link=file:///]é漢字"


@pytest.mark.parametrize("size", [(80, 24), (300, 50), (30, 10)])
def test_hostile_words_are_shown_as_they_are(size: tuple[int, int]) -> None:
    peers = [replace(UP, name=HOSTILE), replace(DOWN, last_error=HOSTILE * 9)]
    node = FederationNode("QQQ", HOSTILE, 0, 999.0, 2.0, 0.0)
    look = looking(
        status=status(peers=peers, message=HOSTILE * 3, federation=HOSTILE), view=view(nodes=[node]), trouble=HOSTILE
    )
    text = "\n".join(shown(look, *size))
    assert "\x1b" not in text
    assert "[red]x[/]" in text
    if size[0] == 300:
        assert text.count(one_line(HOSTILE)) >= 6
    assert one_line(HOSTILE) == "[red]x[/] [/nope]  [2J  [link=file:///]é漢字"


@given(st.text(max_size=200), st.integers(1, 120), st.integers(1, 40))
def test_no_text_leaves_the_terminal(text: str, width: int, height: int) -> None:
    peers = [replace(UP, name=text or "x"), replace(DOWN, last_error=text)]
    shown(looking(status=status(peers=peers, message=text), trouble=text), width, height)


class Fading(FakeNode):
    """A node that can go away; remembers from which round on it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.gone = False
        self.since: list[int] = []

    def status(self) -> NodeStatus:
        if self.gone:
            raise NodeUnreachable("no daemon runs")
        return super().status()

    def history(self, after_round: int) -> list[RoundRecord]:
        self.since.append(after_round)
        return super().history(after_round)


def test_a_node_that_goes_away_is_still_shown_and_comes_back() -> None:
    look, node = Look(), Fading()
    node.gone = True
    look.again(node)
    assert shown(look, 80, 24) == ["no daemon runs; trying again", "q leaves"]
    node.gone = False
    look.again(node)
    assert not look.trouble
    node.gone = True
    look.again(node)
    lines = shown(look, 80, 24)
    assert lines[0] == "no daemon runs; trying again"
    assert lines[1].startswith("mercy")


def test_only_new_rounds_are_asked_for_and_a_step_back_starts_anew() -> None:
    look, node = Look(), Fading()
    node.reply, node.records = status(round=1000), rounds(1000)
    look.again(node)
    node.reply, node.records = status(round=1003), rounds(1003)
    look.again(node)
    assert node.since == [488, 970]
    assert sorted(look.rounds) == list(range(492, 1004))
    node.reply, node.records = status(round=900), rounds(900)  # from a checkpoint
    look.again(node)
    assert sorted(look.rounds) == list(range(389, 901))


CHILD = """
import sys
from tests.fakes import FakeNode
from conlora.cli import top
import contextlib
top.admin_client = lambda config: contextlib.nullcontext(FakeNode())
from conlora.cli.main import main
sys.argv = ["conlora", "top", "--seconds", "0.2"]
main()
"""


def play(key: bytes | None) -> tuple[int, bytes, bool]:
    """Runs the command on a terminal of its own until `key` (none: Ctrl-C) ends it.

    Returns the exit code, all output, and whether the terminal's settings are as they were before.
    """
    import termios

    ours, theirs = pty.openpty()
    try:
        before = termios.tcgetattr(theirs)
        env = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24", "PYTHONPATH": os.pathsep.join(sys.path)}
        with subprocess.Popen(
            [sys.executable, "-c", CHILD], stdin=theirs, stdout=theirs, stderr=theirs, env=env
        ) as child:
            output, deadline = b"", time.monotonic() + 60
            pressed = False
            while time.monotonic() < deadline and (child.poll() is None or select.select([ours], [], [], 0)[0]):
                if select.select([ours], [], [], 0.05)[0]:
                    output += os.read(ours, 65536)
                if b"q leaves" in output and not pressed:
                    pressed = True
                    if key is None:
                        child.send_signal(signal.SIGINT)
                    else:
                        os.write(ours, key)
            if child.poll() is None:
                child.kill()
        return child.returncode, output, termios.tcgetattr(theirs) == before
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize("key", [b"xq", None])
def test_q_and_ctrl_c_leave_a_terminal_as_it_was(key: bytes | None) -> None:
    code, output, restored = play(key)
    assert code == 0, output
    assert restored
    assert b"mercy" in output
    assert output.index(b"\x1b[?1049h") < output.index(b"mercy") < output.rindex(b"\x1b[?1049l"), "the other screen"
    assert output.count(b"\x1b[?25l") == output.count(b"\x1b[?25h"), "the cursor"
    assert b"Traceback" not in output


def test_without_a_terminal_one_frame_is_printed(tmp_path: Path) -> None:
    env = {**os.environ, "COLUMNS": "120", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", CHILD], capture_output=True, text=True, env=env, check=True, timeout=60
    )
    assert done.stdout.startswith("mercy · training · notes")
    assert "q leaves" not in done.stdout
    assert "\x1b" not in done.stdout
    assert done.stderr == ""
