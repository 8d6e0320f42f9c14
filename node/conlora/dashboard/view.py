"""What the page gets: the nodes as they were last seen as JSON, and histories as what is new in them."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from conlora.dashboard.layout import Places, place
from conlora.dashboard.source import Seen
from conlora.net.status import RoundRecord


def view(nodes: Sequence[Seen]) -> dict[str, Any]:
    """All nodes as they are now, and where each known node of their graphs stands."""
    now = time.monotonic()
    return {
        "nodes": [
            {
                "key": seen.target.key,
                "name": seen.status.name if seen.status else seen.target.name,
                "error": seen.error,
                "seen_seconds": None if seen.answered is None else now - seen.answered,
                "status": _plain(seen.status),
                "consensus": _plain(seen.consensus),
            }
            for seen in nodes
        ],
        "places": _places(nodes),
    }


class News:
    """What one page has of the histories, and so what it still has to get."""

    def __init__(self) -> None:
        self._sent: dict[str, tuple[RoundRecord, ...]] = {}

    def of(self, nodes: Sequence[Seen]) -> Iterator[dict[str, Any]]:
        """For each node whose history has changed: the page has to drop all rounds from `from` on, and add `rounds`."""
        for seen in nodes:
            key = seen.target.key
            old, new = self._sent.get(key), seen.history
            if old is not None and old == new:
                continue
            same = next((i for i, (a, b) in enumerate(zip(old or (), new, strict=False)) if a != b), None)
            same = min(len(old or ()), len(new)) if same is None else same
            self._sent[key] = new
            rest = [*new[same:], *(old or ())[same:]]
            if rest:
                first = min(record.round for record in rest)
                yield {"key": key, "from": first, "rounds": [_plain(record) for record in new[same:]]}
        for key in self._sent.keys() - {seen.target.key for seen in nodes}:
            del self._sent[key]


def to_json(body: Any) -> str:
    """JSON that browsers can read: they know neither NaN nor infinity, which become null."""
    return json.dumps(_finite(body), allow_nan=False, separators=(",", ":"))


def _plain(value: Any) -> Any:
    return None if value is None else asdict(value)


def _finite(body: Any) -> Any:
    match body:
        case float():
            return body if math.isfinite(body) else None
        case dict():
            return {key: _finite(value) for key, value in body.items()}
        case list() | tuple():
            return [_finite(value) for value in body]
    return body


def _places(nodes: Sequence[Seen]) -> Places:
    names: dict[str, str] = {}
    edges: list[tuple[str, str]] = []
    for seen in nodes:
        if seen.status:
            names[seen.status.node_id] = seen.status.name
            for peer in seen.status.peers:
                names.setdefault(peer.node_id, peer.name)
                edges.append((seen.status.node_id, peer.node_id))
        if seen.consensus:
            for node in seen.consensus.nodes:
                names.setdefault(node.node_id, node.name)
            edges += [(edge.node_id, edge.other_id) for edge in seen.consensus.graph]
    return place(names, edges) if names else {}
