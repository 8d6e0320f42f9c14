"""Metrics for Prometheus, read over HTTP from a node that says what the test sets."""

import asyncio
import re
import socket
import threading
import urllib.error
import urllib.request
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.daemons import free_port
from tests.fakes import ALONE, DOWN, REFUSED, UP, FakeNode, status, view

from conlora.daemon import metrics as module
from conlora.daemon.metrics import metrics_endpoint
from conlora.errors import ConfigError

PARTS = ("product", "a", "b")
FIGURES = ("D", "V", "C", "E_A", "E_B", "amplification", "relative")
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]

# name: (type, samples as labels -> value), for the node below
EXPECTED: dict[str, tuple[str, dict[tuple[str, ...], float]]] = {
    "conlora_node_info": ("gauge", {("name=mercy", "node_id=XYZ", "version=0.1", "rule=lora", "mode=sync"): 1}),
    "conlora_node_state": ("gauge", {("state=training",): 1}),
    "conlora_certificate_expires_timestamp_seconds": ("gauge", {(): 5e9}),
    "conlora_peer_certificate_expires_timestamp_seconds": ("gauge", {("peer=st-anna",): 4e9}),
    "conlora_round": ("gauge", {(): 3}),
    "conlora_round_goal": ("gauge", {(): 10}),
    "conlora_step": ("gauge", {(): 24}),
    "conlora_loss": ("gauge", {(): 0.5}),
    "conlora_accuracy_ratio": ("gauge", {(): 0.0}),
    "conlora_evaluation": ("gauge", {("figure=accuracy",): 0.5, ("figure=loss",): 0.25}),
    "conlora_trainer_restarts_total": ("counter", {(): 1}),
    "conlora_link_up": ("gauge", {("peer=st-anna",): 1, ("peer=charité",): 0, ("peer=lakeside",): 0}),
    "conlora_peer_quarantined": ("gauge", {("peer=st-anna",): 0, ("peer=charité",): 0, ("peer=lakeside",): 1}),
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
    "conlora_rejections_total": (
        "counter",
        {
            ("peer=st-anna", "kind=snapshot"): 1,
            ("peer=st-anna", "kind=sketch"): 4,
            ("peer=charité", "kind=snapshot"): 0,
            ("peer=charité", "kind=sketch"): 0,
            ("peer=lakeside", "kind=snapshot"): 7,
            ("peer=lakeside", "kind=sketch"): 0,
        },
    ),
    "conlora_refusals_total": (
        "counter",
        {("peer=st-anna", "reason=norm"): 1, ("peer=st-anna", "reason=sketch-key"): 4},
    ),
    "conlora_sketch_bytes_total": (
        "counter",
        {("peer=st-anna",): 77, ("peer=charité",): 0, ("peer=lakeside",): 0},
    ),
    "conlora_edge_error": (
        "gauge",
        {("peer=st-anna", f"part={part}"): value for part, value in zip(PARTS, (1, 0.5, 2), strict=True)}
        | {("peer=charité", f"part={part}"): value for part, value in zip(PARTS, (4, 0, 3), strict=True)},
    ),
    "conlora_edge_weight_ratio": ("gauge", {("peer=st-anna",): 0.25, ("peer=charité",): 0.5}),
    "conlora_amplification_ratio": ("gauge", {(): 1.5}),
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
    return FakeNode(status(peers=[UP, DOWN, replace(REFUSED, quarantine="norm 5")]), view())


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
    assert types == {name.removesuffix("_total"): kind for name, (kind, _) in EXPECTED.items()}


async def test_names_follow_prometheus_customs(node: FakeNode) -> None:
    """A noun, then the unit where there is one: norms, loss and counts of rounds have none."""
    port = free_port()
    with metrics_endpoint(f"127.0.0.1:{port}", node):
        text = await fetch(port)
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))
    helps = dict(re.findall(r"^# HELP (\S+) (.*)$", text, re.M))
    assert set(types) == set(helps) == set(EXPECTED)
    for name, kind in types.items():
        assert re.fullmatch(r"conlora(_[a-z]+)+", name)
        assert name.endswith("_total") == (kind == "counter"), name
        assert not re.search(r"_(s|ms|sec|kb|mb|percent|count)(_|$)", name), name
        assert helps[name].strip(), name


async def test_what_is_not_known_is_left_out(node: FakeNode) -> None:
    node.reply, node.seen = status(loss=None, accuracy=None, evaluation={}, certificate_expires=None), ALONE
    samples, _ = await scrape(node)
    names = {name for name, _ in samples}
    assert names == {
        "conlora_node_info",
        "conlora_node_state",
        "conlora_round",
        "conlora_round_goal",
        "conlora_step",
        "conlora_trainer_restarts_total",
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
        with pytest.raises(ConfigError, match=sentence), metrics_endpoint(address, node):
            pass


@pytest.mark.parametrize("address", ["nowhere.invalid:9000", "192.0.2.1:9000"])
async def test_an_address_that_is_not_ours(node: FakeNode, address: str) -> None:
    with pytest.raises(ConfigError, match="choose another address or port"), metrics_endpoint(address, node):
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


async def test_a_node_that_fails_to_answer_costs_the_scrape_only(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    port = free_port()

    def broken() -> None:
        raise RuntimeError("no")

    with metrics_endpoint(f"127.0.0.1:{port}", node):
        with monkeypatch.context() as patch:
            patch.setattr(node, "consensus", broken)
            with pytest.raises(urllib.error.HTTPError, match="500") as caught:
                await fetch(port)
            caught.value.close()
        assert "conlora_round" in await fetch(port)
    capfd.readouterr()  # the library prints a traceback


def test_a_scrape_of_a_node_that_has_ended_is_empty(node: FakeNode) -> None:
    loop = asyncio.new_event_loop()
    collector = module.NodeCollector(node, loop)
    loop.close()
    assert list(collector.collect()) == []
