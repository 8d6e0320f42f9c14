"""Metrics for Prometheus, read over HTTP from a node that says what the test sets."""

import ast
import asyncio
import os
import re
import socket
import struct
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs
from tests.daemons import free_port, wait_until
from tests.fakes import ALONE, DOWN, REFUSED, UP, FakeNode, status, view
from tests.meshes import until

import conlora as module
from conlora.core.reasons import REASONS
from conlora.daemon import scrape as scrape_module
from conlora.daemon.metrics import METRICS
from conlora.daemon.progress import State
from conlora.daemon.scrape import NodeCollector, metrics_endpoint
from conlora.errors import Unavailable
from conlora.net.status import LINK_STATES

PARTS = ("product", "a", "b")
FIGURES = ("D", "V", "C", "E_A", "E_B", "amplification", "relative")
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]

# name: (type, samples as labels -> value), for the node below
EXPECTED: dict[str, tuple[str, dict[tuple[str, ...], float]]] = {
    "conlora_node_info": (
        "gauge",
        {("name=mercy", "node_id=XYZ", "version=0.1", "federation=notes", "rule=lora", "mode=sync"): 1},
    ),
    "conlora_node_state": ("gauge", {(f"state={state}",): float(state == "training") for state in State}),
    "conlora_certificate_expires_timestamp_seconds": ("gauge", {(): 5e9}),
    "conlora_peer_certificate_expires_timestamp_seconds": ("gauge", {("peer=st-anna",): 4e9}),
    "conlora_certificate_warns_timestamp_seconds": ("gauge", {(): 4.5e9}),
    "conlora_peer_certificate_warns_timestamp_seconds": ("gauge", {("peer=st-anna",): 3.5e9}),
    "conlora_round": ("gauge", {(): 3}),
    "conlora_round_goal": ("gauge", {(): 10}),
    "conlora_round_seconds_count": ("summary", {(): 3}),
    "conlora_round_seconds_sum": ("summary", {(): 1.5}),
    "conlora_mix_seconds_count": ("summary", {(): 2}),
    "conlora_mix_seconds_sum": ("summary", {(): 0.25}),
    "conlora_optimizer_steps": ("gauge", {(): 24}),
    "conlora_training_loss": ("gauge", {(): 0.5}),
    "conlora_evaluation": ("gauge", {("figure=accuracy",): 0.5, ("figure=loss",): 0.25}),
    "conlora_trainer_restarts_total": ("counter", {(): 1}),
    "conlora_checkpoint_round": ("gauge", {(): 2}),
    "conlora_checkpoint_written_timestamp_seconds": ("gauge", {(): 1e9}),
    "conlora_disk_trouble": ("gauge", {("what=checkpoint",): 0, ("what=history",): 1}),
    "conlora_link_state": (
        "gauge",
        {
            (f"peer={peer}", f"state={state}"): float(state == is_in)
            for peer, is_in in (("st-anna", "up"), ("charité", "down"), ("lakeside", "refused"))
            for state in LINK_STATES
        },
    ),
    "conlora_snapshot_age_seconds": ("gauge", {("peer=st-anna",): 0}),
    "conlora_snapshot_delivery_seconds": ("gauge", {("peer=st-anna",): 0.125}),
    "conlora_link_bytes_total": (
        "counter",
        {
            ("peer=st-anna", "direction=sent"): 2**40,
            ("peer=st-anna", "direction=received"): 3,
            ("peer=charité", "direction=sent"): 0,
            ("peer=charité", "direction=received"): 0,
            ("peer=lakeside", "direction=sent"): 5,
            ("peer=lakeside", "direction=received"): 6,
        },
    ),
    "conlora_refusals_total": (
        "counter",
        {("peer=st-anna", "reason=norm"): 1, ("peer=st-anna", "reason=sketch-key"): 4},
    ),
    "conlora_sketch_sent_bytes_total": (
        "counter",
        {("peer=st-anna",): 77, ("peer=charité",): 0, ("peer=lakeside",): 0},
    ),
    "conlora_edge_error": (
        "gauge",
        {("peer=st-anna", f"part={part}"): value for part, value in zip(PARTS, (1, 0.5, 2), strict=True)}
        | {("peer=charité", f"part={part}"): value for part, value in zip(PARTS, (4, 0, 3), strict=True)},
    ),
    "conlora_edge_weight_ratio": ("gauge", {("peer=st-anna",): 0.25, ("peer=charité",): 0.5}),
    "conlora_edge_amplification_ratio": ("gauge", {(): 1.5}),
    "conlora_federation_error": (
        "gauge",
        {
            (f"figure={figure}", f"moment={moment}"): start + i
            for moment, start in (("before", 10.0), ("after", 20.0))
            for i, figure in enumerate(FIGURES)
        },
    ),
    "conlora_federation_error_bar": (
        "gauge",
        {
            (f"figure={figure}", f"moment={moment}"): start + i
            for moment, start in (("before", 0.5), ("after", 0.0))
            for i, figure in enumerate(FIGURES)
        },
    ),
    "conlora_federation_nodes": ("gauge", {(): 3}),
}


@pytest.fixture
def node() -> FakeNode:
    return FakeNode(status(peers=[UP, DOWN, REFUSED]), view())


async def fetch(port: int) -> str:
    """What a scrape gets."""

    def read() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as reply:
            return str(reply.read().decode())

    return await asyncio.to_thread(read)


async def scrape(node: FakeNode) -> tuple[Samples, dict[str, str]]:
    """All samples, and each family's type, from an endpoint that lives just for that."""
    port = free_port()
    with metrics_endpoint(f"127.0.0.1:{port}", node):
        families = list(text_string_to_metric_families(await fetch(port)))
    families = [family for family in families if "process_" not in family.name]
    samples = {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}
    return samples, {family.name: family.type for family in families}


async def test_every_name_label_and_value(node: FakeNode) -> None:
    samples, types = await scrape(node)
    expected = {
        (name, frozenset(tuple(label.split("=")) for label in labels)): value
        for name, (_, values) in EXPECTED.items()
        for labels, value in values.items()
    }
    assert samples == expected
    assert types == {re.sub("_(total|count|sum)$", "", name): kind for name, (kind, _) in EXPECTED.items()}


async def test_names_follow_prometheus_customs(node: FakeNode) -> None:
    """A noun, then the unit where there is one: norms, loss and counts of rounds have none."""
    port = free_port()
    with metrics_endpoint(f"127.0.0.1:{port}", node):
        text = await fetch(port)
    types = dict(re.findall(r"^# TYPE (conlora_\S+) (\S+)$", text, re.M))
    helps = dict(re.findall(r"^# HELP (conlora_\S+) (.*)$", text, re.M))
    assert set(types) == set(helps) == {metric.name for metric in METRICS}
    for name, kind in types.items():
        assert re.fullmatch(r"conlora(_[a-z]+)+", name)
        assert name.endswith("_total") == (kind == "counter"), name
        assert not re.search(r"_(s|ms|sec|kb|mb|percent|count)(_|$)", name), name
        assert helps[name].strip(), name


async def test_what_is_not_known_is_left_out(node: FakeNode) -> None:
    nothing = {
        "loss": None,
        "certificate_expires": None,
        "certificate_warns": None,
        "checkpoint_round": None,
        "checkpoint_written": None,
    }
    node.reply, node.seen = status(evaluation={}, **nothing), ALONE
    samples, _ = await scrape(node)
    names = {name for name, _ in samples}
    assert names == {
        "conlora_node_info",
        "conlora_node_state",
        "conlora_round",
        "conlora_round_goal",
        "conlora_round_seconds_count",
        "conlora_round_seconds_sum",
        "conlora_mix_seconds_count",
        "conlora_mix_seconds_sum",
        "conlora_optimizer_steps",
        "conlora_trainer_restarts_total",
        "conlora_disk_trouble",
        "conlora_federation_nodes",
    }


async def test_each_scrape_asks_anew(node: FakeNode) -> None:
    port = free_port()
    with metrics_endpoint(f"127.0.0.1:{port}", node):
        assert "conlora_round 3.0" in await fetch(port)
        node.reply = status(round=4)
        assert "conlora_round 4.0" in await fetch(port)


async def test_an_address_in_use_is_named(node: FakeNode) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        sentence = rf"^observing\.metrics: {address} can't be used \(.*in use.*\); choose another address or port$"
        with pytest.raises(Unavailable, match=sentence), metrics_endpoint(address, node):
            pass


@pytest.mark.parametrize("address", ["nowhere.invalid:9000", "192.0.2.1:9000"])
async def test_an_address_that_is_not_ours(node: FakeNode, address: str) -> None:
    with pytest.raises(Unavailable, match="choose another address or port"), metrics_endpoint(address, node):
        pass


async def test_ipv6(node: FakeNode) -> None:
    port = free_port()
    with metrics_endpoint(f"[::1]:{port}", node):

        def read() -> bytes:
            with urllib.request.urlopen(f"http://[::1]:{port}/metrics", timeout=20) as reply:
                return bytes(reply.read())

        assert b"conlora_round 3.0" in await asyncio.to_thread(read)


async def test_nothing_is_left_behind(node: FakeNode) -> None:
    before, port = set(threading.enumerate()), free_port()
    with metrics_endpoint(f"127.0.0.1:{port}", node):
        await fetch(port)
    left = {thread for thread in set(threading.enumerate()) - before if "asyncio" not in thread.name}
    assert not {thread for thread in left if thread.join(20) or thread.is_alive()}
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    with metrics_endpoint(f"127.0.0.1:{port}", node):
        pass  # the address is free again


async def refused(port: int) -> str:
    """The answer to a scrape where it is 503."""
    with pytest.raises(urllib.error.HTTPError, match="503") as caught:
        await fetch(port)
    with caught.value as reply:
        return str(reply.read().decode())


async def test_a_node_that_fails_to_answer_costs_the_scrape_only(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    port = free_port()

    def broken() -> None:
        raise RuntimeError("a peer's words")

    with metrics_endpoint(f"127.0.0.1:{port}", node):
        with monkeypatch.context() as patch, capture_logs() as logs:
            patch.setattr(node, "consensus", broken)
            assert await refused(port) == "the node could not tell its metrics; its log says why\n"
        assert "conlora_round" in await fetch(port)
    assert [(line["log_level"], line["event"]) for line in logs] == [("error", "no metrics, by a defect")]
    assert capfd.readouterr() == ("", ""), "no traceback between the log's lines"


async def test_a_node_that_is_too_busy_costs_the_scrape_only(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    monkeypatch.setattr(scrape_module, "ANSWER_SECONDS", 0.01)
    with metrics_endpoint(f"127.0.0.1:{port}", node), capture_logs() as logs:
        asking = asyncio.create_task(refused(port))
        await asyncio.sleep(0)
        wait_until(lambda: bool(logs), "it is in the log")  # busy: its loop does not turn meanwhile
        await asking
    assert logs == [
        {"event": "no metrics: the node was too busy to tell them", "log_level": "warning", "seconds": 0.01}
    ]
    assert capfd.readouterr() == ("", "")


async def test_who_hangs_up_is_no_event(node: FakeNode, capfd: pytest.CaptureFixture[str]) -> None:
    port, before = free_port(), set(threading.enumerate())
    with metrics_endpoint(f"127.0.0.1:{port}", node), capture_logs() as logs:
        with socket.create_connection(("127.0.0.1", port)) as caller:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, no good-bye
            caller.send(b"GET /metrics")
        await fetch(port)
        for thread in set(threading.enumerate()) - before:
            if "process_request" in thread.name:
                thread.join(20)
    assert logs == []
    assert capfd.readouterr() == ("", "")


async def test_a_defect_of_the_endpoint_is_in_the_log(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    monkeypatch.setattr(scrape_module._Silent, "handle", lambda self: 1 / 0)
    with metrics_endpoint(f"127.0.0.1:{port}", node), capture_logs() as logs:
        with pytest.raises(OSError, match="without response"):
            await fetch(port)
        await until(lambda: logs, "it is in the log")
    assert logs[0]["event"] == "no answer to who asks for metrics, by a defect"
    assert capfd.readouterr() == ("", "")


def test_a_scrape_of_a_node_that_has_ended_is_empty(node: FakeNode) -> None:
    loop = asyncio.new_event_loop()
    collector = NodeCollector(node, loop)
    loop.close()
    assert list(collector.collect()) == []


async def test_processes_are_told_of_as_long_as_they_are_there(node: FakeNode) -> None:
    port = free_port()
    with metrics_endpoint(f"127.0.0.1:{port}", node):
        text = await fetch(port)
        assert "\nprocess_resident_memory_bytes " in text
        assert "conlora_trainer_process_" not in text, "there is no trainer yet"
        node.reply = status(trainer_pid=os.getpid())
        text = await fetch(port)
    assert "\nconlora_trainer_process_open_fds " in text


def test_reasons_are_no_words_of_a_peer() -> None:
    """Each place that refuses something says why in a literal, and REASONS has them all, so labels are bounded."""
    assert {reason for _, reason in literal_reasons()} == set(REASONS)
    assert len(REASONS) == len(set(REASONS))


def literal_reasons() -> Iterator[tuple[str, str]]:
    """What the code gives as a reason, by the class that carries it. Fails for one that is no literal."""
    source = Path(module.__file__).parent
    for path in [path for folder in ("core", "net", "daemon") for path in (source / folder).glob("*.py")]:
        for call in ast.walk(ast.parse(path.read_text())):
            match call:
                case ast.Call(
                    func=ast.Name(id="SnapshotRejected" | "ProtocolError" | "Overdue" as name), args=[why, *_]
                ):
                    yield from ((name, reason) for reason in literals(why, path))
                case ast.Call(func=ast.Name(id="SketchRejected" as name), args=[why, *_]):
                    yield from ((name, f"sketch-{reason}") for reason in literals(why, path))
                case ast.Call(func=ast.Attribute(attr="fail", value=ast.Attribute(attr="conduct")), args=[why]):
                    if ast.unparse(why) != "error.reason":  # of an Overdue
                        yield from (("fail", reason) for reason in literals(why, path))


def literals(why: ast.expr, path: Path) -> list[str]:
    if ast.unparse(why) == "reason" and path.name == "validation.py":
        return ["dtype", "shape", "format"]  # of a loop over these
    assert isinstance(why, ast.Constant), f"{path}:{why.lineno}: {ast.unparse(why)}"
    return [str(why.value)]
