"""The dashboard without a browser: which nodes it finds, how it follows them, and what it serves to whom."""

import dataclasses
import http.client
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.testclient import TestClient
from tests.fake_nodes import ReadOnlyNode, fake_federation, figures, record

from conlora.dashboard import server
from conlora.dashboard.layout import place
from conlora.dashboard.server import application, listen, plotly_script
from conlora.dashboard.source import Seen, Source, look
from conlora.dashboard.targets import Target, discoverer
from conlora.dashboard.view import News, to_json, view
from conlora.errors import ConfigError, NodeUnreachable
from conlora.net.status import RoundRecord

HOSTILE = "</script><script>alert(1)</script>"


class FakeClient:
    """Answers like a node's admin service; `asked` lists the rounds that a history was asked from."""

    def __init__(self, node: ReadOnlyNode) -> None:
        self.node = node
        self.down = False
        self.asked: list[int] = []

    def __enter__(self) -> "FakeClient":
        return self

    def __exit__(self, *exc: object) -> None: ...

    def status(self) -> Any:
        if self.down:
            raise NodeUnreachable("no daemon runs there")
        return self.node.status()

    def consensus(self) -> Any:
        return self.node.consensus()

    def history(self, after_round: int = 0) -> list[RoundRecord]:
        self.asked.append(after_round)
        return self.node.history(after_round)


@pytest.fixture
def node() -> ReadOnlyNode:
    return fake_federation(["mercy", HOSTILE, "st-anna"], round_=10)[0]


@pytest.fixture
def client(node: ReadOnlyNode) -> FakeClient:
    return FakeClient(node)


def target(name: str = "mercy") -> Target:
    return Target(name, Path(f"/nowhere/{name}.sock"))


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 20
    while not (result := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return result


# --- following nodes -------------------------------------------------------------------------------------------------


def test_a_look_takes_everything(client: FakeClient, node: ReadOnlyNode) -> None:
    seen = look(Seen(target(), error="was down"), client)
    assert (seen.error, seen.status, seen.consensus) == ("", node.reply, node.seen)
    assert list(seen.history) == node.records


def test_the_next_look_asks_for_what_can_be_new(
    client: FakeClient, node: ReadOnlyNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conlora.dashboard.source.OVERLAP", 3)
    seen = look(Seen(target()), client)
    node.records[-1] = dataclasses.replace(node.records[-1], accuracy=0.123)  # evaluated after the round was told
    node.records.append(record(11))
    node.reply = dataclasses.replace(node.reply, round=11)
    seen = look(seen, client)
    assert client.asked == [0, 7]
    assert list(seen.history) == node.records


@pytest.mark.parametrize(
    ("restarted", "far"),
    [
        ({}, 5),
        *((change, far) for change in ({"trainer_restarts": 1}, {"pid": 9}, {"trainer_pid": 9}) for far in (5, 12)),
    ],
)
def test_a_node_that_begins_again_from_an_earlier_round(
    client: FakeClient, node: ReadOnlyNode, restarted: dict[str, Any], far: int
) -> None:
    seen = look(Seen(target()), client)
    node.records[4:] = [dataclasses.replace(record(number), loss=9.0) for number in range(5, far + 1)]
    node.reply = dataclasses.replace(node.reply, round=far, **restarted)
    assert list(look(seen, client).history) == node.records


def test_a_source_follows_a_node_through_its_death(client: FakeClient, node: ReadOnlyNode) -> None:
    before = threading.active_count()
    source = Source(lambda: [target()], period=0.01, connect=lambda path: client)
    with source:
        until(lambda: source.nodes()[0].status == node.reply)
        client.down = True
        seen = until(lambda: source.nodes()[0] if source.nodes()[0].error else None)
        assert seen.error == "no daemon runs there"
        assert seen.status == node.reply  # the last that is known
        node.reply = dataclasses.replace(node.reply, round=11)
        client.down = False
        until(lambda: source.nodes()[0].status == node.reply and not source.nodes()[0].error)
    assert threading.active_count() == before


def test_one_node_that_is_down_is_no_matter_to_others(node: ReadOnlyNode) -> None:
    clients = {"mercy": FakeClient(node), "gone": FakeClient(node)}
    clients["gone"].down = True
    source = Source(lambda: [target("gone"), target("mercy")], 0.01, lambda path: clients[path.stem])
    with source:
        until(lambda: source.nodes()[0].error and source.nodes()[1].status)
        assert view(source.nodes())["nodes"][0] | {"key": ""} == {
            "key": "", "name": "gone", "error": "no daemon runs there", "seen_seconds": None, "status": None, "consensus": None,
        }  # fmt: skip


def test_nodes_come_and_go_and_the_last_ones_stay(node: ReadOnlyNode) -> None:
    found, before = [target("a")], threading.active_count()
    looks: list[int] = []

    def discover() -> list[Target]:
        looks.append(len(found))
        return list(found)

    source = Source(discover, 0.01, lambda path: FakeClient(node))
    with source:
        found[:] = [target("b"), target("c")]
        until(lambda: [seen.target.name for seen in source.nodes() if seen.status] == ["b", "c"])
        until(lambda: threading.active_count() <= before + 3)  # a's thread has ended
        found.clear()
        until(lambda: looks[-3:] == [0, 0, 0])
        assert [seen.target.name for seen in source.nodes()] == ["b", "c"]


# --- finding nodes ---------------------------------------------------------------------------------------------------


def configured(directory: Path, name: str, file: str = "conlora.yaml") -> Path:
    directory.mkdir(parents=True)
    (directory / file).write_text(yaml.safe_dump({"name": name}))
    return directory


def test_places_that_hold_a_node(tmp_path: Path) -> None:
    mercy = configured(tmp_path / "mercy", "mercy")
    inside = configured(tmp_path / "lora" / "node-1", "node-1", "node.yaml")
    places = [mercy, mercy / "conlora.yaml", inside, tmp_path / "anna.sock"]
    assert discoverer(places)() == [
        Target("mercy", mercy / "state" / "admin.sock"),  # named twice, shown once
        Target("node-1", inside / "state" / "admin.sock"),
        Target("anna", tmp_path / "anna.sock"),
    ]


def test_a_testbeds_running_nodes(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("")
    discover = discoverer([tmp_path])
    assert discover() == []
    with socket.socket(socket.AF_UNIX) as listening:
        for name in ("node-1", "node-2"):
            configured(tmp_path / "lora" / name, name, "node.yaml")
            (tmp_path / "lora" / name / "state").mkdir()
        (tmp_path / "lora" / "node-1" / "node.yaml").write_text("name: node-1\nadmin_socket: a.sock\n")
        os.chdir(tmp_path / "lora" / "node-1")
        listening.bind("a.sock")
        (tmp_path / "lora" / "node-3").mkdir()
        (tmp_path / "lora" / "node-3" / "node.yaml").write_text("name: [")  # as it is being written
        assert discover() == [Target("node-1", tmp_path / "lora" / "node-1" / "a.sock")]


@pytest.fixture(autouse=True)
def back(tmp_path: Path) -> Iterator[None]:
    here = Path.cwd()
    yield
    os.chdir(here)


def test_places_that_hold_no_node(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds neither a node's configuration nor a testbed; name"):
        discoverer([tmp_path])
    with pytest.raises(ConfigError, match="no such file"):
        discoverer([tmp_path / "gone.yaml"])


# --- what the page gets ----------------------------------------------------------------------------------------------


def test_json_has_neither_nan_nor_infinity() -> None:
    odd = RoundRecord(1, 0.0, 0.0, loss=math.nan, edge_error=math.inf, after=figures(math.inf))
    piece = next(News().of([Seen(target(), history=(odd,))]))
    told = json.loads(to_json(piece), parse_constant=pytest.fail)["rounds"][0]
    assert (told["loss"], told["edge_error"], told["after"]["V"]) == (None, None, None)


def test_news_of_a_history() -> None:
    news, first = News(), [record(1), record(2), record(3)]

    def told(*records: RoundRecord) -> list[tuple[int, list[int]]]:
        pieces = news.of([Seen(target(), history=records)])
        return [(piece["from"], [each["round"] for each in piece["rounds"]]) for piece in pieces]

    assert told() == []
    assert told(*first) == [(1, [1, 2, 3])]
    assert told(*first) == []
    assert told(*first, record(4)) == [(4, [4])]
    assert told(*first[:2], dataclasses.replace(record(3), loss=9.0)) == [(3, [3])]  # 3 is another one, 4 is gone
    assert told(*first[:1]) == [(2, [])]
    assert list(news.of([])) == []
    assert told(*first) == [(1, [1, 2, 3])]


@pytest.mark.parametrize("count", [1, 2, 7, 30])
def test_places_are_stable_and_apart(count: int) -> None:
    names = {f"id-{i}": f"node-{i}" for i in range(count)}
    edges = [(f"id-{i}", f"id-{(i + 1) % count}") for i in range(count)]
    places = place(names, edges)
    assert places == place(dict(reversed(names.items())), [(b, a) for a, b in reversed(edges)])
    assert len({(round(x, 2), round(y, 2)) for x, y in places.values()}) == count
    assert all(abs(x) <= 1.001 and abs(y) <= 1.001 for x, y in places.values())
    if 1 < count <= 16:
        assert places == place(names, edges[1:])
        assert places["id-0"] == pytest.approx((0, 1), abs=1e-6)


# --- serving ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def source(client: FakeClient) -> Iterator[Source]:
    with Source(lambda: [target(), target("gone")], 0.01, lambda path: client) as source:
        until(lambda: all(seen.status for seen in source.nodes()))
        yield source


def asking(source: Source, host: str = "127.0.0.1", listening: str = "127.0.0.1") -> TestClient:
    return TestClient(application(source, listening), base_url=f"http://{host}:8088", raise_server_exceptions=False)


def test_the_view_is_what_the_node_told(source: Source, node: ReadOnlyNode) -> None:
    body = asking(source).get("/api/view").json()["nodes"][0]
    assert body["name"] == "mercy"
    assert body["status"] == dataclasses.asdict(node.reply)
    assert body["consensus"] == dataclasses.asdict(node.seen)
    assert body["consensus"]["nodes"][1]["name"] == HOSTILE
    assert "/nowhere" not in json.dumps(body)


@pytest.mark.parametrize(
    "path", ["/", "/dashboard.js", "/charts.js", "/dashboard.css", "/api/view", "/plotly.js", "/gone"]
)
def test_every_answer_forbids_what_is_not_ours(source: Source, path: str) -> None:
    answer = asking(source).get(path)
    assert answer.status_code == (404 if path == "/gone" else 200)
    assert answer.headers["content-security-policy"].startswith("default-src 'self';")
    assert "unsafe-eval" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in answer.headers


def test_nothing_can_be_sent(source: Source) -> None:
    for path in ("/", "/api/view", "/api/stream", "/plotly.js"):
        assert asking(source).post(path).status_code == 405
    assert asking(source).get("/../server.py").status_code == 404
    assert asking(source).get("/%2e%2e/server.py").status_code == 404


@pytest.mark.parametrize(
    ("host", "listening", "status"),
    [
        ("127.0.0.1", "127.0.0.1", 200), ("localhost", "127.0.0.1", 200), ("[::1]", "127.0.0.1", 200), ("LOCALHOST", "::1", 200),
        ("evil.example", "127.0.0.1", 400), ("localhost.evil.example", "127.0.0.1", 400), ("10.0.0.1", "127.0.0.1", 400),
        ("10.0.0.1", "0.0.0.0", 200), ("evil.example", "0.0.0.0", 400), ("box.lan", "box.lan", 200), ("[fe80::1]", "::", 200),
    ],
)  # fmt: skip
def test_only_our_own_host_names(source: Source, host: str, listening: str, status: int) -> None:
    for path in ("/api/view", "/", "/plotly.js"):
        assert asking(source, host, listening).get(path).status_code == status


def test_a_host_that_is_none(source: Source) -> None:
    for header in ("", "[", "a b", "evil.example@127.0.0.1", "127.0.0.1/x", "127.0.0.1:x"):
        assert asking(source).get("/api/view", headers={"host": header}).status_code == 400


def test_the_chart_script_is_the_packages() -> None:
    assert plotly_script().read_text(encoding="utf-8").lstrip().startswith("/**\n* plotly.js")


@pytest.mark.parametrize(
    "address", ["8088", "localhost", "127.0.0.1:", "127.0.0.1:99999", "http://127.0.0.1:80", "a@127.0.0.1:1", ":80"]
)
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(ConfigError, match="is not an address; write host:port"):
        listen(address, public=False)


@pytest.mark.parametrize(
    ("address", "host"),
    [("0.0.0.0:0", "0.0.0.0"), ("[::]:0", "::"), ("192.0.2.1:0", "192.0.2.1"), ("example.org:0", "example.org")],
)
def test_the_network_is_not_let_in_by_mistake(address: str, host: str) -> None:
    with pytest.raises(ConfigError) as caught:
        listen(address, public=False)
    assert str(caught.value) == (
        f"--listen: {host} can be reached from other machines, and the page has no login; listen on 127.0.0.1 and look "
        "at it through an SSH tunnel, or add --public"
    )


def test_listening(tmp_path: Path) -> None:
    listener, url = listen("127.0.0.1:0", public=False)
    with listener:
        port = listener.getsockname()[1]
        assert url == f"http://127.0.0.1:{port}"
        with pytest.raises(
            ConfigError,
            match=rf"^--listen: can't listen on 127\.0\.0\.1:{port} \(.*in use.*\); choose another address$",
        ):
            listen(f"127.0.0.1:{port}", public=False)
    listener, _ = listen("0.0.0.0:0", public=True)
    listener.close()


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interrupt", [signal.SIGINT, signal.SIGTERM])
def test_the_command_streams_and_ends(tmp_path: Path, interrupt: signal.Signals) -> None:
    configured(tmp_path / "mercy", "mercy")
    command = [sys.executable, "-m", "conlora", "dashboard", "mercy", "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        line = process.stdout.readline()
        assert line.startswith("dashboard: http://127.0.0.1:")
        assert "(1 node; Ctrl-C ends it)" in line
        port = int(line.split()[1].rpartition(":")[2])
        stream = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        stream.request("GET", "/api/stream")
        answer = stream.getresponse()
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [answer.readline().decode().strip() for _ in range(5)]
        assert events[0] == "event: begin"
        assert events[3] == "event: view"
        told = json.loads(events[4].removeprefix("data: "))
        assert told["nodes"][0]["name"] == "mercy"
        process.send_signal(interrupt)  # while a page is open
        _, errors = process.communicate(timeout=20)
        stream.close()
    finally:
        process.kill()
        process.communicate()
    assert errors == ""
    assert process.returncode == (130 if interrupt is signal.SIGINT else -signal.SIGTERM)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_the_command_needs_no_training_stack(tmp_path: Path) -> None:
    code = (
        "import sys; from conlora.dashboard import server, source, targets, view;"
        "print([name for name in ('torch', 'transformers', 'peft', 'datasets', 'plotly') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_stream_ends_with_its_source(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CALM_SECONDS", 0.0)
    threading.Timer(0.2, source.end).start()
    with asking(source).stream("GET", "/api/stream") as answer:
        lines = [line for line in answer.iter_lines() if line.startswith("event: ")]
    assert lines[0] == "event: begin"
    assert {"event: history", "event: view"} <= set(lines)
