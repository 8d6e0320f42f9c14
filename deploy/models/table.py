"""Prints the table of docs/models.md from finished testbeds: `table.py runs/models`."""

import json
import statistics
import sys
from pathlib import Path

from conlora.testbed.metric import metric_of
from conlora.testbed.plots import groups

HEADINGS = ("", "metric", "rule", "before", "alone", "federated", "pooled", "D", "relative V", "time")


def main(directory: Path) -> None:
    """One line for each testbed and rule; means over nodes, with the worst node in brackets."""
    print(f"| {' | '.join(HEADINGS)} |\n|{'---|' * len(HEADINGS)}")
    for path in sorted(directory.glob("*/summary.json")):
        summary = json.loads(path.read_text("utf-8"))
        metric = metric_of(summary)
        for run in summary["runs"]:
            cells = {
                name: metric.text(statistics.fmean(values))
                + (f" ({metric.text(metric.worst(values))})" if len(values) > 1 else "")
                for name, values in groups(summary, run).items()
            }
            error = run["consensus"]
            print(
                f"| {summary['name']} | {metric.name} | {run['rule']} | {metric.text(metric.before(run['nodes'][0]))} "
                f"| {cells['alone']} | {cells['federated']} | {cells['pooled']} | {error['D']:.2f} "
                f"| {100 * error['relative']:.1f} % | {run['seconds']:.0f} s |"
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
