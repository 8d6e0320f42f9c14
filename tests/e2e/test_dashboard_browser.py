"""The dashboard as its user has it: the command, real admin sockets, and a real browser that looks at the page."""

import asyncio
import contextlib
import dataclasses
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page, async_playwright
from tests.fake_nodes import ReadOnlyNode, fake_federation, figures, record

from conlora.net.admin import AdminService
from conlora.net.admin_client import AdminClient
from conlora.net.status import ConsensusView, NodeStatus, RoundRecord

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome is installed")

HOSTILE = '<img src=x onerror="document.title=1">'
SOON = 15_000  # milliseconds, for what comes within a second on an idle machine
SIZES = {"screen": (1280, 900), "phone": (400, 800)}


class Dashboard:
    """A running `conlora dashboard`, its nodes, and what the admin service says of them."""

    def __init__(self, nodes: list[ReadOnlyNode], sockets: list[Path], services: list[AdminService]) -> None:
        self.nodes = nodes
        self.sockets = sockets
        self.services = services
        self.url = ""

    async def told(self, number: int) -> tuple[NodeStatus, ConsensusView, list[RoundRecord]]:
        """What the node tells by its admin service."""

        def ask() -> tuple[NodeStatus, ConsensusView, list[RoundRecord]]:
            with AdminClient(self.sockets[number]) as client:
                return client.status(), client.consensus(), client.history()

        return await asyncio.to_thread(ask)


@pytest.fixture
async def dashboard() -> AsyncIterator[Dashboard]:
    """Three of the five nodes of a ring, one of them with a hostile name; ended by Ctrl-C."""
    nodes = fake_federation(["mercy", HOSTILE, "st-anna", "charité", "node-5"])[:3]
    with tempfile.TemporaryDirectory(prefix="conlora-") as directory:  # a socket's path has to be short
        sockets = [Path(directory) / f"{i}.sock" for i in range(3)]
        services = [AdminService(node, socket) for node, socket in zip(nodes, sockets, strict=True)]
        for service in services:
            await service.start()
        running = Dashboard(nodes, sockets, services)
        command = [sys.executable, "-m", "conlora", "dashboard", *map(str, sockets), "--listen", "127.0.0.1:0"]
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=None
        )
        assert process.stdout
        try:
            line = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
            running.url = re.findall(r"http://127\.0\.0\.1:\d+", line)[0]
            yield running
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
            _, errors = await asyncio.wait_for(process.communicate(), 30)
            for service in running.services:
                await service.close()
        assert (process.returncode, errors) == (130, b"")


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        await started.close()


@contextlib.asynccontextmanager
async def opened(browser: Browser, url: str, size: str = "screen", **options: Any) -> AsyncIterator[Page]:
    """The page, once it shows something; afterwards it must have asked nobody else, and have complained of nothing."""
    width, height = SIZES[size]
    context = await browser.new_context(viewport={"width": width, "height": height}, **options)
    page = await context.new_page()
    requests: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    await page.goto(url)
    await page.wait_for_selector("#figures td", timeout=SOON)
    await page.wait_for_selector("#curve-V .main-svg", timeout=SOON)
    yield page
    await context.close()
    assert complaints == []
    assert [asked for asked in requests if not asked.startswith((f"{url}/", "data:"))] == []
    assert any(asked.endswith("/plotly.js") for asked in requests)


async def value(page: Page, selector: str) -> str | None:
    """The exact value of one cell."""
    return await page.get_attribute(selector, "data-value", timeout=SOON)


async def chart(page: Page, name: str) -> list[dict[str, Any]]:
    """The traces that Plotly has drawn."""
    script = """name => document.getElementById(name).data.map(({x, y, z, name, meta, mode, customdata, error_y}) =>
        ({x, y, z, name, meta, mode, customdata, error: error_y?.array}))"""
    traces: list[dict[str, Any]] = await page.evaluate(script, name)
    return traces


async def shown_within(page: Page, script: str, argument: Any) -> None:
    """Waits until a function of the page is true."""
    await page.wait_for_function(script, arg=argument, timeout=SOON)


VALUE_IS = "([selector, value]) => document.querySelector(selector)?.dataset.value === String(value)"


async def check_tables(page: Page, status: NodeStatus, view: ConsensusView) -> None:
    for moment in ("before", "after"):
        federation = getattr(view, moment)
        for name, exact in federation.figures.to_json().items():
            cell = f'#figures [data-figure="{name}"][data-moment="{moment}"]'
            assert float(await value(page, cell) or "nan") == exact
            assert float(await page.get_attribute(cell, "data-bar") or "nan") == getattr(federation.bars, name)
    facts = {"rho": "lambda", "s": "s"}
    for field, fact in facts.items():
        assert float(await value(page, f'[data-fact="{fact}"]') or "nan") == getattr(view, field)
    for fact in ("round", "loss", "accuracy"):
        assert float(await value(page, f'[data-fact="{fact}"]') or "nan") == getattr(status, fact)
    assert await page.inner_text("#federation") == status.federation
    rows = await page.eval_on_selector_all(
        "#neighbours [data-peer]",
        "cells => cells.map(cell => [cell.dataset.peer, cell.dataset.field, cell.dataset.value])",
    )
    cells = {(peer, field): text for peer, field, text in rows}
    for peer, edge in zip(status.peers, view.edges, strict=True):
        assert cells[peer.name, "link"] == peer.link
        for field, exact in [
            ("weight", peer.weight),
            ("age", peer.snapshot_age_seconds),
            *dataclasses.asdict(edge.error).items(),
        ]:
            assert float(cells[peer.name, field]) == exact
    members = await page.eval_on_selector_all(
        "#members [data-field=distance]", "cells => cells.map(c => [c.dataset.member, c.dataset.value])"
    )
    assert {name: float(text) for name, text in members} == {node.name: node.distance_after for node in view.nodes}


async def check_charts(page: Page, view: ConsensusView, history: list[RoundRecord], moment: str) -> None:
    federation = getattr(view, moment)
    for curve, names in {
        "D": ["D"],
        "V": ["V"],
        "C": ["C"],
        "E": ["E_A", "E_B"],
        "amplification": ["amplification"],
        "relative": ["relative"],
    }.items():
        traces = {trace["name"]: trace for trace in await chart(page, f"curve-{curve}")}
        for name in names:
            assert traces[name]["x"] == [each.round for each in history]
            assert traces[name]["y"] == [getattr(getattr(each, moment), name) for each in history]
            assert traces[f"{name} now"]["y"] == [getattr(federation.figures, name)]
            assert traces[f"{name} now"]["error"] == [getattr(federation.bars, name)]
    graph = {trace["meta"]: trace for trace in await chart(page, "graph") if trace["meta"]}
    drawn = {(a, b): error for a, b, error in graph["edges"]["customdata"]}
    assert drawn == {(edge.node_id, edge.other_id): getattr(edge, f"error_{moment}") for edge in view.graph}
    layers = {trace["meta"]: trace for trace in await chart(page, "layers")}
    columns = ("D", "V", "C", "E_A", "E_B", "amplification")
    assert layers["figures"]["customdata"] == [
        [getattr(layer, name) for name in columns] for layer in federation.layers
    ]
    own = [list(column) for column in zip(*layers["edges"]["z"], strict=True)][: len(view.edges)]
    assert own == [[layer.product for layer in edge.layers] for edge in view.edges]


@pytest.mark.parametrize("size", SIZES)
async def test_values_are_those_of_the_admin_service(browser: Browser, dashboard: Dashboard, size: str) -> None:
    status, view, history = await dashboard.told(0)
    async with opened(browser, dashboard.url, size) as page:
        await check_tables(page, status, view)
        await check_charts(page, view, history, "after")
        width, inner = await page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert width <= inner
        beyond = "sections => sections.filter(s => s.scrollWidth > s.clientWidth + 1).map(s => s.querySelector('h2').textContent)"
        assert await page.eval_on_selector_all("section", beyond) == []
        told = [await dashboard.told(i) for i in range(3)]
        for name in ("loss", "accuracy", "edge_error"):
            lines = [trace["y"] for trace in await chart(page, f"curve-{name}")]
            expected = [
                [getattr(each, name) for each in records if getattr(each, name) is not None] for _, _, records in told
            ]
            assert lines == [*expected[1:], expected[0]]  # the selected node's lies on top
        accuracy = {trace["meta"]: trace for trace in await chart(page, "graph")}["nodes"]["customdata"]
        own = {status.node_id: status.accuracy for status, _, _ in told}
        assert {node: known for node, known in accuracy if known is not None} == own
        assert len(accuracy) == 5


async def test_another_nodes_view(browser: Browser, dashboard: Dashboard) -> None:
    status, view, history = await dashboard.told(2)
    async with opened(browser, dashboard.url) as page:
        await page.click('#nodes [data-node="st-anna"]')
        await check_tables(page, status, view)
        await check_charts(page, view, history, "after")


async def test_the_page_lives_without_reload(browser: Browser, dashboard: Dashboard) -> None:
    node = dashboard.nodes[0]
    async with opened(browser, dashboard.url) as page:
        await page.evaluate("window.untouched = true")
        assert node.seen.after
        node.seen = dataclasses.replace(
            node.seen, after=dataclasses.replace(node.seen.after, figures=figures(0.123456789)), round=6
        )
        node.reply = dataclasses.replace(node.reply, round=6, loss=0.25)
        node.records.append(record(6))
        await shown_within(page, VALUE_IS, ['#figures [data-figure="V"][data-moment="after"]', figures(0.123456789).V])
        await shown_within(page, "rounds => document.getElementById('curve-V').data[0].x.length === rounds", 6)
        await shown_within(page, VALUE_IS, ['[data-fact="round"]', 6])  # status and figures come one after the other
        await check_tables(page, node.reply, node.seen)
        await check_charts(page, node.seen, node.records, "after")
        # It starts again from an earlier round, and other things happen from there on.
        node.records[3:] = [dataclasses.replace(record(4), after=figures(9.0))]
        node.reply = dataclasses.replace(node.reply, round=4, trainer_restarts=1)
        await shown_within(page, "rounds => document.getElementById('curve-V').data[0].x.length === rounds", 4)
        await check_charts(page, node.seen, node.records, "after")
        assert await page.evaluate("window.untouched")


async def test_before_and_after_the_mix(browser: Browser, dashboard: Dashboard) -> None:
    _, view, history = await dashboard.told(0)
    async with opened(browser, dashboard.url) as page:
        pressed = "#moment [aria-pressed=true]"
        assert await page.inner_text(pressed) == "after mix"
        await page.click("#moment [data-moment=before]")
        assert await page.inner_text(pressed) == "before mix"
        await check_charts(page, view, history, "before")
        assert await page.get_attribute('[data-figure="V"].shown', "data-moment") == "before"
        await page.click("#moment [data-moment=after]")
        await check_charts(page, view, history, "after")


async def test_light_and_dark(browser: Browser, dashboard: Dashboard) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    async with opened(browser, dashboard.url, color_scheme="light") as page:
        light = await page.evaluate(paper)
        await page.click("#theme")
        dark = await page.evaluate(paper)
        assert light != dark
        await page.reload()
        await page.wait_for_selector("#figures td", timeout=SOON)
        assert await page.evaluate(paper) == dark
    async with opened(browser, dashboard.url, color_scheme="dark") as page:
        assert await page.evaluate(paper) == dark


async def test_names_are_only_text(browser: Browser, dashboard: Dashboard) -> None:
    async with opened(browser, dashboard.url) as page:
        assert await page.query_selector_all("img") == []
        assert HOSTILE in await page.inner_text("#members")
        title = await page.title()
        await page.click("#nodes button:nth-child(2)")
        await page.wait_for_function("document.getElementById('setup').textContent.includes('<img')", timeout=SOON)
        assert await page.query_selector_all("img") == []
        assert await page.title() == title


async def test_a_node_that_goes_away_and_comes_back(browser: Browser, dashboard: Dashboard) -> None:
    async with opened(browser, dashboard.url) as page:
        await dashboard.services[0].close()
        await shown_within(
            page, "text => document.getElementById('notice').textContent.includes(text)", "mercy: no daemon"
        )
        assert await page.inner_text('#nodes [data-node="mercy"] small') == "down"
        again = dashboard.services[0] = AdminService(dashboard.nodes[0], dashboard.sockets[0])
        await again.start()
        await page.wait_for_selector("#notice", state="hidden", timeout=SOON)
        assert await page.inner_text('#nodes [data-node="mercy"] small') == "round 5"


async def test_a_federation_of_one_has_no_curve(browser: Browser, dashboard: Dashboard) -> None:
    records = dashboard.nodes[0].records
    records[0] = dataclasses.replace(records[0], nodes=1)
    async with opened(browser, dashboard.url) as page:
        curve = (await chart(page, "curve-V"))[0]
        assert curve["x"] == [2, 3, 4, 5]
        assert (await chart(page, "curve-loss"))[-1]["x"] == [1, 2, 3, 4, 5]
