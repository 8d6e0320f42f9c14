"""Prometheus and Grafana beside a federation of containers: what they read at their start, with our dashboard and alerts."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

METRICS_PORT = 9464  # of every node, on the federation's network
SCRAPE_SECONDS = 5

DATASOURCE = {
    "apiVersion": 1,
    "datasources": [
        {
            "name": "Prometheus",
            "uid": "prometheus",
            "type": "prometheus",
            "access": "proxy",
            "url": "http://prometheus:9090",
            "isDefault": True,
            "editable": False,
        }
    ],
}
DASHBOARDS = {
    "apiVersion": 1,
    "providers": [{"name": "ConLoRA", "type": "file", "options": {"path": "/var/lib/grafana/dashboards"}}],
}


def write_watch(directory: Path, nodes: Sequence[str]) -> None:
    """Fills a directory for the compose file's profile `watch`. Raises OSError."""
    monitoring = resources.files("conlora") / "monitoring"
    texts = {
        "prometheus/prometheus.yml": _yaml(_prometheus(nodes)),
        "prometheus/alerts.yaml": (monitoring / "alerts.yaml").read_text(encoding="utf-8"),
        "grafana/provisioning/datasources/prometheus.yaml": _yaml(DATASOURCE),
        "grafana/provisioning/dashboards/conlora.yaml": _yaml(DASHBOARDS),
        "grafana/dashboards/conlora.json": (monitoring / "grafana.json").read_text(encoding="utf-8"),
    }
    for name, text in texts.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for path in (directory, *directory.rglob("*")):  # the two run as users of their own
        path.chmod(0o755 if path.is_dir() else 0o644)


def _prometheus(nodes: Sequence[str]) -> dict[str, Any]:
    return {
        "global": {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": f"{SCRAPE_SECONDS}s"},
        "rule_files": ["alerts.yaml"],
        "scrape_configs": [
            {
                "job_name": "conlora",  # by which alerts.yaml goes
                "static_configs": [{"targets": [f"{name}:{METRICS_PORT}" for name in nodes]}],
            }
        ],
    }


def _yaml(content: dict[str, Any]) -> str:
    return yaml.safe_dump(content, sort_keys=False)
