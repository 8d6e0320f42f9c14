"""`conlora consensus` and `conlora status` against a real admin service whose node says what the test sets."""

import asyncio
import json
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml
from tests.fakes import ALONE, DOWN, UP, FakeNode, figures, status, view

from conlora.cli import main as cli
from conlora.core.consensus import EdgeError
from conlora.net.admin import AdminService
from conlora.net.status import EdgeConsensus, Federation, FederationNode

Conlora = Callable[..., tuple[int, str, str]]


@pytest.fixture
def node() -> FakeNode:
    return FakeNode()


@pytest.fixture
def served(node: FakeNode, tmp_path: Path) -> Iterator[Path]:
    """The configuration of a node whose admin service runs in another thread."""
    socket = tmp_path / "admin.sock"
    config = tmp_path / "conlora.yaml"
    config.write_text(yaml.safe_dump({"name": "mercy", "admin_socket": str(socket)}))
    up, down = threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        service = AdminService(node, socket)
        await service.start()
        loops.append(asyncio.get_running_loop())
        up.set()
        await down.wait()
        await service.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert up.wait(20)
    yield config
    loops[0].call_soon_threadsafe(down.set)
    thread.join()


@pytest.fixture
def conlora(served: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Conlora:
    """Runs a command for that node; returns exit code, standard output, standard error."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["conlora", *arguments, "-c", str(served)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        output = capsys.readouterr()
        code = caught.value.code or 0
        assert isinstance(code, int)
        return code, output.out, output.err

    return run


def rows(text: str) -> dict[str, list[str]]:
    """A table's rows by their first word."""
    return {words[0]: words[1:] for line in text.splitlines() if (words := line.split())}


def test_the_table(conlora: Conlora) -> None:
    code, out, err = conlora("consensus")
    assert (code, err) == (0, "")
    assert out.startswith("mercy · lora · round 3\n")
    table = rows(out)
    assert table["st-anna"] == ["round", "3", "0.25", "1", "0.5", "2", "0.49"]
    assert table["charité"] == ["round", "2", "0.50", "4", "0", "3", "1.33"]
    assert table["all"] == ["edges", "1.50"]
    assert table["D"][:4] == ["10", "±", "0.5", "20"], "a figure without an error bar has no ±"
    assert table["E_B"][:6] == ["14", "±", "4.5", "24", "±", "4"]
    assert table["relative"][:6] == ["1600.0%", "±", "650.0%", "2600.0%", "±", "600.0%"]
    assert "3 nodes seen, 2 fresh, oldest part 4 min old · graph: λ 0.500, s 0.750" in out
    assert "module" not in table


@pytest.mark.parametrize("width", [80, 40])
def test_no_figure_is_cut_off_on_a_narrow_terminal(
    conlora: Conlora, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    _, wide, _ = conlora("consensus", "--layers")
    monkeypatch.setenv("COLUMNS", str(width))
    _, narrow, _ = conlora("consensus", "--layers")
    assert "…" not in narrow
    assert [word for word in wide.split() if word[0].isdigit()] == [
        word for word in narrow.split() if word[0].isdigit()
    ]


def test_json_is_what_the_api_says(conlora: Conlora, node: FakeNode) -> None:
    for reply in (view(), ALONE, view(s=None)):
        node.seen = reply
        code, out, _ = conlora("consensus", "--json")
        assert code == 0
        assert json.loads(out) == asdict(reply)


def test_layers(conlora: Conlora) -> None:
    _, out, _ = conlora("consensus", "--layers")
    table = rows(out)
    assert table["bert.0.query"] == ["3", "4", "5", "6", "7", "8", "0.5", "0.5"], "after mixing, then edges before it"
    assert table["m.value"] == ["4", "5", "6", "7", "8", "9", "1.5", "1.5"]


def test_without_sketches(conlora: Conlora, node: FakeNode) -> None:
    node.seen = view(before=None, after=None, nodes=[], graph=[], rho=None, s=None)
    code, out, _ = conlora("consensus", "--layers")
    assert code == 0
    assert "no sketches yet" in out
    assert "st-anna" in out
    assert "nodes seen" not in out
    node.seen = ALONE
    _, out, _ = conlora("consensus")
    assert out.startswith("mercy · freeze-a · round 0 · this node keeps its own sketch to itself")
    assert "no neighbour took part in the last mix" in out


def test_one_node_and_a_graph_in_pieces(conlora: Conlora, node: FakeNode) -> None:
    alone = Federation(figures(0.0), figures(0.0), [figures(0.0), figures(0.0)])
    node.seen = view(
        edges=[], amplification=None, before=alone, after=alone, graph=[], rho=0.0, s=0.0,
        nodes=[FederationNode("XYZ", "mercy", 3, 0.5, 0.0, 0.0)],
    )  # fmt: skip
    code, out, _ = conlora("consensus", "--layers")
    assert code == 0
    assert "1 nodes seen, 1 fresh, oldest part 0 s old · ±" in out, "no graph of one node"
    node.seen = view(rho=1.0, s=None)
    assert "λ 1.000, s ∞ (not connected)" in conlora("consensus")[1]


def test_top_without_a_terminal_asks_the_same_service(conlora: Conlora) -> None:
    code, out, err = conlora("top")
    assert (code, err) == (0, "")
    assert out.startswith("mercy · training · notes")
    assert rows(out)["loss"][0] == "0.25", "of the fourth round"
    assert "federation of 3 nodes seen" in out


def test_top_without_a_terminal_or_a_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "conlora.yaml").write_text("name: mercy\n")
    monkeypatch.setattr(sys, "argv", ["conlora", "top", "-c", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 3
    assert "start it with `conlora run`" in capsys.readouterr().err


def test_names_and_reasons_are_shown_as_they_are(conlora: Conlora, node: FakeNode) -> None:
    """Square brackets are no markup, whoever chose them."""
    hostile = "[red]x[/] [/nope]"
    layers = [EdgeError(0.5, 0.25, 0.125)] * 2
    node.seen = view(
        name=hostile, modules=[hostile, "m"], edges=[EdgeConsensus(hostile, "ABC", 3, 0.25, layers[0], layers)]
    )
    code, out, err = conlora("consensus", "--layers")
    assert (code, err) == (0, "")
    assert out.count(hostile) == 4
    peers = [replace(UP, name=hostile, last_error=hostile), replace(DOWN, last_error=hostile)]
    node.reply = status(name=hostile, federation=hostile, message=hostile, peers=peers)
    code, out, err = conlora("status")
    assert (code, err) == (0, "")
    assert out.count(hostile) == 6
    assert conlora("peers")[1].count(hostile) == 3


def test_a_path_with_brackets_is_shown_as_it_is(conlora: Conlora, node: FakeNode) -> None:
    node.last_checkpoint = Path("/state/[red]/step-8")
    assert "checkpoint /state/[red]/step-8" in conlora("stop")[1]
