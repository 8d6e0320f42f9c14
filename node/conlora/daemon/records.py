"""A node's history, table by table in the store, as one record a round for those who draw curves."""

from collections import defaultdict
from typing import Any

import numpy as np

from conlora.core.consensus import FIGURES, Consensus, EdgeError, amplification
from conlora.net.status import RoundRecord
from conlora.store.rows import Rows


def round_records(history: Rows, after_round: int) -> list[RoundRecord]:
    """All rounds after the given one, oldest first."""
    edges: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in history.rows("edges", after_round):
        if row["error"] is not None:
            edges[row["round"]].append(row)
    federation = {(row["round"], row["moment"]): row for row in history.rows("federation", after_round)}
    accuracy = {row["round"]: row["accuracy"] for row in history.rows("evaluations", after_round)}
    return [
        RoundRecord(
            round=row["round"],
            time=row["time"],
            seconds=row["seconds"],
            loss=row["loss"],
            accuracy=accuracy.get(row["round"]),
            edge_error=_mean([edge["error"] for edge in edges[row["round"]]]),
            amplification=_amplification(edges[row["round"]]),
            before=_figures(federation.get((row["round"], "before"))),
            after=_figures(federation.get((row["round"], "after"))),
            nodes=federation[row["round"], "after"]["nodes"] if (row["round"], "after") in federation else 0,
        )
        for row in history.rows("rounds", after_round)
    ]


def _figures(row: dict[str, Any] | None) -> Consensus | None:
    return Consensus(**{name: row[name] for name in FIGURES}) if row else None


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _amplification(edges: list[dict[str, Any]]) -> float | None:
    errors = [EdgeError(edge["error"], edge["error_a"], edge["error_b"]) for edge in edges]
    return amplification(errors) if errors else None
