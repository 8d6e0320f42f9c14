"""Where nodes stand in the picture of the graph: the same nodes and edges always give the same picture."""

import functools
import re
from collections.abc import Iterable, Mapping

import networkx as nx

LARGEST_CIRCLE = 16  # nodes; above, a circle is a tangle
Places = dict[str, tuple[float, float]]


def place(names: Mapping[str, str], edges: Iterable[tuple[str, str]]) -> Places:
    """Coordinates within -1 and 1 of each node id, from the nodes' names by id and their edges.

    A few nodes stand on a circle in the order of their names, clockwise from the top, whatever the edges are, so that
    they stay where they are when a link breaks. More are laid out by their edges.
    """
    ids = sorted(names, key=lambda node: (_natural(names[node]), node))
    joined = {(min(edge), max(edge)) for edge in edges if edge[0] != edge[1]}
    return _placed(tuple(ids), tuple(sorted(edge for edge in joined if edge[0] in names and edge[1] in names)))


def _natural(name: str) -> list[tuple[int, int, str]]:
    """node-2 before node-10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


@functools.lru_cache(maxsize=8)
def _placed(ids: tuple[str, ...], edges: tuple[tuple[str, str], ...]) -> Places:
    if len(ids) == 1:
        return {ids[0]: (0.0, 0.0)}
    graph: nx.Graph[str] = nx.Graph()
    graph.add_nodes_from(ids)
    circle = {node: (float(y), float(x)) for node, (x, y) in nx.circular_layout(graph).items()}  # from the top on
    if len(ids) <= LARGEST_CIRCLE:
        return circle
    graph.add_edges_from(edges)
    places = nx.spring_layout(graph, pos=circle, seed=0, iterations=200)
    return {node: (float(x), float(y)) for node, (x, y) in places.items()}
