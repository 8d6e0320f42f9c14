"""docs/reference/metrics.md: every figure that a node exports to Prometheus, from their declaration."""

import os
from collections.abc import Iterator

from pages.markdown import GENERATED, prose, table

from conlora.daemon.metrics import METRICS, Declared
from conlora.daemon.scrape import process_collectors

GROUPS = {  # by what names begin with; the first that fits
    "The node and its training": (
        "node",
        "certificate",
        "round",
        "mix",
        "optimizer",
        "training",
        "evaluation",
        "trainer",
    ),
    "What is kept": ("checkpoint", "disk"),
    "Links and peers": ("link", "peer", "snapshot", "sketch", "refusals"),
    "Consensus error": ("edge", "federation"),
}

SERVED = (
    "What `observing.metrics` serves to Prometheus over HTTP. A port alone, such as `9464`, listens on loopback; to be reached "
    "from elsewhere it takes a host too, and whoever reaches it may read: there is no TLS and no password. "
    "[Operations](../how-to/operations.md#metrics-and-alerts) shows how to scrape it; `conlora monitoring` writes a dashboard "
    "and alert rules made of these."
)
TOLD = (
    "A gauge without a value yet is left out. Counters and summaries begin at 0 with each start of the daemon. A summary's "
    "samples are its name with `_count` and `_sum`. Labels are bounded: `peer` is a name among this node's configured peers, "
    "`reason` one of [the names of refusals](protocol.md#refusals-and-quarantine), `figure` one of those below or of the "
    "task's. What peers send makes no label."
)


def metrics() -> str:
    """Every metric with its kind and labels."""
    return "\n".join(
        [
            GENERATED,
            "# Metrics\n",
            prose(SERVED),
            prose(TOLD),
            *_tables(),
            "## The processes\n",
            prose(
                "As prometheus-client tells them on Linux: `process_...` of the daemon, and `conlora_trainer_process_...` of the "
                "trainer while it runs (of its first process, where `training.processes` has several)."
            ),
            table(("metric", "kind", ""), list(_of_processes())),
        ]
    )


def exported() -> dict[str, set[str]]:
    """The names of all samples that a node exports, with their labels."""
    ours = {name: set(metric.labels) for metric in METRICS for name in metric.samples}
    return ours | {_plain(name): set() for name, _, _ in _of_processes()}


def _tables() -> Iterator[str]:
    for heading, beginnings in GROUPS.items():
        mine = [m for m in METRICS if m.name.split("_")[1] in beginnings]
        yield f"## {heading}\n"
        yield table(("metric", "kind", "labels", ""), [_row(metric) for metric in mine])


def _row(metric: Declared) -> tuple[str, ...]:
    return f"`{metric.name}`", metric.kind, ", ".join(f"`{label}`" for label in metric.labels), metric.text


def _of_processes() -> Iterator[tuple[str, str, str]]:
    for collector in process_collectors(os.getpid):
        for family in collector.collect():
            suffix = "_total" if family.type == "counter" else ""
            yield f"`{family.name}{suffix}`", family.type, family.documentation


def _plain(name: str) -> str:
    return name.strip("`")
