"""The report page and its figures: self-contained, complete, and safe with names that peers or data choose."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from matplotlib.image import imread

from conlora.core.consensus import Consensus
from conlora.testbed.findings import caveats, findings
from conlora.testbed.report import FIGURES, write_report

HOSTILE = '<img src="//evil" onerror=x>$\\frac$'
EDGES = [[1, 2], [2, 3], [1, 3]]


def node(name: str, peers: list[str], after: float, directory: str) -> dict[str, Any]:
    return {
        "name": name,
        "rounds": 3,
        "rows": 30,
        "class_counts": {"negative": 10, "positive": 20},
        "before": {"loss": 0.7, "accuracy": 0.4},
        "after": {"loss": 0.3, "accuracy": after},
        "adapter": f"{directory}/{name}/adapter",
        "peers": peers,
        "history": [{"round": r, "loss": None if r == 2 else 1 / r, "seconds": 0.5} for r in (1, 2, 3)],
        "evaluations": [{"round": 3, "accuracy": 0.8, "loss": 0.5}],
    }


def figures(scale: float, relative: float) -> dict[str, float]:
    return Consensus(scale, scale, 0.0, 0.0, scale, 1.0, relative).to_json()


def summary(
    rules: tuple[str, ...] = ("lora", "freeze-a"), names: tuple[str, ...] = ("ada", "ben", "cy")
) -> dict[str, Any]:
    """A complete summary; each further rule has a tenth of the last one's error, and twice its relative error."""
    runs, alone, pooled = [], [], []
    for i, rule in enumerate(rules):
        nodes = [node(name, [n for n in names if n != name], 0.8 + 0.01 * i, rule) for name in names]
        by_round = [
            {"round": r, "before": figures(2 * 10.0**-i, 0.2 * 2**i), "after": figures(10.0**-i, 0.1 * 2**i)}
            for r in (1, 2, 3)
        ]
        runs.append(
            {
                "rule": rule,
                "topology": "ring",
                "mode": "async",
                "seed": 1,
                "rho": 0.5,
                "s": 0.7,
                "edges": EDGES,
                "seconds": 2.5,
                "consensus": by_round[-1]["after"],
                "consensus_by_round": by_round,
                "nodes": nodes,
            }
        )
        alone.append({"rule": rule, "nodes": [node(name, [], 0.6, f"alone/{rule}") for name in names]})
        pooled.append({"rule": rule, "nodes": [node("pooled", [], 0.9, f"pooled/{rule}")]})
    return {
        "name": "trial",
        "created": "2026-01-02T03:04:05+00:00",
        "versions": {"conlora": "0.1.0"},
        "spec": {
            "model": {"base": "/models/minilm"},
            "training": {"rounds": 3, "local_steps": 4},
            "learning_rates": {},
        },
        "test_rows": 500,
        "metric": "accuracy",
        "runs": runs,
        "baselines": {"alone": alone, "pooled": pooled},
    }


class Page(HTMLParser):
    """What a browser would see: elements, text, and everything that an address stands in."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""
        self.links: list[str] = []
        self.sources: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for key, value in attrs:
            assert not key.startswith("on"), f"{tag} has a handler {key}"
            if key == "href":
                self.links.append(value or "")
            elif key in ("src", "srcset"):
                self.sources.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(whole: dict[str, Any], folder: Path) -> Page:
    write_report(whole, folder)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two rules with both baselines."""
    folder = tmp_path_factory.mktemp("report")
    write_report(summary(), folder)
    return folder


def test_report_is_complete_and_asks_for_nothing(folder: Path) -> None:
    html = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert not re.search(r"https?://|url\(|@import", html)
    assert not page.tags & {"script", "link", "iframe", "object"}
    assert len(page.sources) == 2 * len(FIGURES)  # on light and on dark paper
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    for word in ("lora", "freeze-a", "ada", "ben", "cy", "0.800", "0.600", "0.900"):
        assert word in page.text


def test_links_lead_to_adapters(folder: Path) -> None:
    links = Page((folder / "report.html").read_text(encoding="utf-8")).links
    nodes = [f"{rule}/{name}" for rule in ("lora", "freeze-a") for name in ("ada", "ben", "cy")]
    pooled = [f"pooled/{rule}/pooled/adapter/" for rule in ("lora", "freeze-a")]
    assert sorted(links) == sorted([f"{root}{node}/adapter/" for root in ("", "alone/") for node in nodes] + pooled)


def test_nothing_is_written_but_page_and_readable_pngs(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {"report.html", *(f"{name}.png" for name in FIGURES)}
    for name in FIGURES:
        height, width, _ = imread(folder / f"{name}.png").shape
        assert height > 600
        assert width > 1200


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    whole = summary(rules=(HOSTILE,), names=(HOSTILE, "javascript:alert(1)", "漢字"))
    for hostile in whole["runs"][0]["nodes"]:
        hostile["class_counts"] = {HOSTILE: 12, "漢字": 18}
        hostile["adapter"] = f"{hostile['name']}/adapter"
    page = page_of(whole, tmp_path)
    assert page.text.count(HOSTILE) >= 4
    assert all(source.startswith("data:") for source in page.sources)
    assert all("://" not in link and not link.startswith(("javascript:", "/")) for link in page.links)
    assert f"{HOSTILE}/adapter/" in map(unquote, page.links)


def test_report_without_baselines_and_predictor(tmp_path: Path) -> None:
    whole = summary(("freeze-a",))
    whole["baselines"] = {"alone": [], "pooled": []}
    whole["runs"][0] |= {"rho": 1.0, "s": None, "edges": []}
    page = page_of(whole, tmp_path)
    assert "never all agree" in page.text
    assert "neighbours (alone)" not in page.text
    assert len(page.links) == 3


def test_report_of_diverged_training(tmp_path: Path) -> None:
    whole = summary(("lora",))
    run = whole["runs"][0]
    run["consensus"] = dict.fromkeys(run["consensus"])
    for entry in run["consensus_by_round"]:
        entry["after"] = run["consensus"]
    assert "training diverged" in page_of(whole, tmp_path).text


def test_relative_error_is_told_where_it_turns_the_order_round() -> None:
    assert findings(summary())[-1] == (
        "The literature's error D is 10 times as large with lora as with freeze-a. Relative to the size of the update "
        "it is the other way round: freeze-a has the larger spread V."
    )


def test_a_difference_within_sampling_error_is_called_one() -> None:
    assert "differs by 0.010, no more than the choice of test rows may explain" in findings(summary())[2]


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        ({}, "at their own learning rates (lora 0.002 and freeze-a 0.005)"),
        ({"lora": 0.004, "freeze-a": 0.004}, "at the same learning rate"),
    ],
)
def test_learning_rates_are_told(rates: dict[str, float], said: str) -> None:
    whole = summary()
    whole["spec"]["learning_rates"] = rates
    assert said in caveats(whole)[0]
