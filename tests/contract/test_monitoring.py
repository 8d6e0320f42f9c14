"""Dashboard and alert rules ask for what a node exports, and say in words what the documentation explains."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from pages.metrics import exported, metrics
from tests.contract.test_docs import ROOT, anchors
from typer.testing import CliRunner

from conlora.cli.main import app
from conlora.cli.monitoring import FILES
from conlora.core.figures import FIGURES
from conlora.core.reasons import REASONS
from conlora.daemon.metrics import METRICS, MOMENTS
from conlora.daemon.progress import State
from conlora.daemon.troubles import KINDS
from conlora.errors import ConfigError
from conlora.net.status import LINK_STATES

SHIPPED = resources.files("conlora") / "monitoring"
BOARD: dict[str, Any] = json.loads((SHIPPED / "grafana.json").read_text())
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((SHIPPED / "alerts.yaml").read_text())["groups"] for rule in group["rules"]
]
ALERT_CASES = Path(__file__).with_name("alerts_test.yaml")
PROMETHEUS_ADDS = {"instance", "job"}
KNOWN = exported() | {"up": set()}
VALUES = {
    "state": {*State, *LINK_STATES}, "figure": {*FIGURES, "accuracy", "loss"}, "moment": set(MOMENTS), "what": set(KINDS),
    "part": {"product", "a", "b"}, "direction": {"sent", "received"}, "reason": set(REASONS),
}  # fmt: skip


def mistakes(query: str, shown: str = "") -> list[str]:
    """Names, labels and values in a PromQL query, and labels in a text made from its results, that no node exports."""
    found: list[str] = []
    labels: set[str] = set(PROMETHEUS_ADDS)
    asked: set[str] = set(re.findall(r"\{\{ *(?:\$labels\.)?([a-z_]+)[ |}]", shown))

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            if node.name not in KNOWN:
                found.append(f"no metric {node.name}")
            own = KNOWN.get(str(node.name), set()) | PROMETHEUS_ADDS
            labels.update(own)
            for matcher in node.matchers.matchers:
                values = set(matcher.value.split("|"))
                if matcher.name not in own:
                    found.append(f"no label {matcher.name} at {node.name}")
                elif not matcher.value.startswith("$") and not values <= VALUES.get(matcher.name, values):
                    found.append(f"no value {matcher.value} of {matcher.name}")
        elif isinstance(node, promql_parser.AggregateExpr) and node.modifier:
            asked.update(node.modifier.labels)
        elif isinstance(node, promql_parser.BinaryExpr) and node.modifier:
            asked.update(node.modifier.matching.labels if node.modifier.matching else [])
            asked.update(node.modifier.group_labels or [])

    try:
        promql_parser.walk(promql_parser.parse(query), pre_visit=visit)
    except ValueError as error:
        return [f"not PromQL: {error}"]
    return found + [f"no label {label}" for label in sorted(asked - labels)]


def panels() -> list[dict[str, Any]]:
    return [panel for panel in BOARD["panels"] if panel["type"] != "row"]


def targets() -> Iterator[tuple[str, dict[str, Any]]]:
    for panel in panels():
        for target in panel["targets"]:
            yield f"{panel['title']} {target['refId']}", target


@pytest.mark.parametrize(
    ("title", "target"), list(targets()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_panel_asks_for_what_there_is(title: str, target: dict[str, Any]) -> None:
    assert mistakes(target["expr"], target["legendFormat"]) == []
    assert '{name=~"$node"}' in target["expr"], "the choice of nodes has to count"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_a_rule_asks_for_what_there_is_and_says_what_to_do(rule: dict[str, Any]) -> None:
    texts = rule["annotations"]
    assert mistakes(rule["expr"], " ".join(texts.values())) == []
    assert set(texts) == {"summary", "description", "runbook"}
    assert rule["labels"]["severity"] in ("warning", "critical")
    page, _, section = texts["runbook"].partition("#")
    assert section in anchors(ROOT / page)


@pytest.mark.parametrize(
    ("query", "shown", "mistake"),
    [
        ("conlora_rounds", "", "no metric conlora_rounds"),
        ('conlora_link_state{peers="x"}', "", "no label peers at conlora_link_state"),
        ('conlora_link_state{state="gone"}', "", "no value gone of state"),
        ('conlora_link_state{state=~"up|gone"}', "", "no value up|gone of state"),
        ("sum by (colour) (conlora_round)", "", "no label colour"),
        ("conlora_round * on (place) group_left (name) conlora_node_info", "", "no label place"),
        ("conlora_round * on (instance) group_left (nam) conlora_node_info", "", "no label nam"),
        ("conlora_round", "{{ $labels.peer }}", "no label peer"),
        ("conlora_round", "{{peer}}", "no label peer"),
        ("rate(conlora_round_seconds[5m])", "", "no metric conlora_round_seconds"),
    ],
)
def test_mistakes_are_found(query: str, shown: str, mistake: str) -> None:
    assert mistakes(query, shown) == [mistake]


def test_what_is_no_promql_is_found() -> None:
    assert "not PromQL" in mistakes("sum(conlora_round")[0]


def test_every_metric_is_documented() -> None:
    page = metrics()
    for metric in METRICS:
        assert f"| `{metric.name}` | {metric.kind} |" in page
        assert metric.text in page
    assert [name for name in re.findall(r"`(conlora_[a-z_]+)`", page) if name not in (m.name for m in METRICS)] == [
        name for name in exported() if name.startswith("conlora_trainer_process")
    ]


def test_metrics_that_pages_name_exist() -> None:
    names = {metric.name for metric in METRICS} | exported().keys()
    for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")]:  # changes name old ones
        for name in re.findall(r"`(conlora_[a-z_]+)`", page.read_text()):
            assert name in names, f"{page}: {name}"


def test_the_dashboard_is_whole() -> None:
    """What Grafana 10 and later take (schema 39): no data source of one's own, ids once, nothing upon each other."""
    assert (BOARD["uid"], BOARD["schemaVersion"]) == ("conlora-nodes", 39)
    variables = {variable["name"]: variable for variable in BOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    found = re.fullmatch(r"label_values\((\w+), (\w+)\)", variables["node"]["query"]["query"])
    assert found
    assert found[2] in exported()[found[1]]
    sources = re.findall(r'"uid": "([^"]+)"', json.dumps(BOARD["panels"] + BOARD["templating"]["list"]))
    assert set(sources) == {"${datasource}"}
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    cells = [
        (x, y)
        for at in (panel["gridPos"] for panel in BOARD["panels"])
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    assert all(panel["title"] and panel["description"] for panel in panels())


def test_the_command_writes_what_is_shipped(tmp_path: Path) -> None:
    target = tmp_path / "monitoring"
    assert CliRunner().invoke(app, ["monitoring", "-o", str(target)], catch_exceptions=False).exit_code == 0
    assert {path.name for path in target.iterdir()} == set(FILES)
    for name in FILES:
        assert (target / name).read_bytes() == (SHIPPED / name).read_bytes()
    with pytest.raises(
        ConfigError, match=r"grafana\.json: exists already; choose another directory or pass --overwrite"
    ):
        CliRunner().invoke(app, ["monitoring", "-o", str(target)], catch_exceptions=False)
    again = CliRunner().invoke(app, ["monitoring", "-o", str(target), "--overwrite"], catch_exceptions=False)
    assert again.exit_code == 0
    with pytest.raises(ConfigError, match=r"can't be written \(.*\); choose a writable directory"):
        CliRunner().invoke(app, ["monitoring", "-o", str(target / "alerts.yaml" / "x")], catch_exceptions=False)


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_prometheus_takes_the_rules_and_they_fire_when_they_should(tmp_path: Path) -> None:
    CliRunner().invoke(app, ["monitoring", "-o", str(tmp_path)], catch_exceptions=False)
    shutil.copy(ALERT_CASES, tmp_path)
    for arguments in (["check", "config", "prometheus.yaml"], ["test", "rules", ALERT_CASES.name]):
        done = subprocess.run(["promtool", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_rule_has_a_case_in_which_it_fires() -> None:
    cases = yaml.safe_load(ALERT_CASES.read_text())["tests"]
    fired = {check["alertname"] for case in cases for check in case["alert_rule_test"] if check["exp_alerts"]}
    assert fired == {rule["alert"] for rule in RULES}
