"""Named topologies, their Metropolis mixing matrices and what the matrices' spectra predict."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from conlora.core.mixing import metropolis_weight

Edge = tuple[int, int]

# The 7-node reference topologies, 1-based edges written as two digits (DESIGN 2.9).
REFERENCE_GRAPHS = {
    "T1": "12 23 34 45 56 67 17",
    "T2": "12 13 17 23 24 34 45 56 57 67",
    "T3": "12 13 16 17 23 24 27 34 35 45 46 56 57 67",
    "T4": "12 13 14 16 17 23 24 25 26 34 35 36 45 46 56 57 67",
    "du14": "12 13 23 34 45 56 67",
}


def _exponential(n: int, seed: int) -> "nx.Graph[int]":
    """Node i is joined to i + 1, i + 2, i + 4, ... modulo n."""
    return nx.circulant_graph(n, [2**k for k in range(n.bit_length()) if 2**k < n])


def _torus(n: int, seed: int) -> "nx.Graph[int]":
    rows = next(r for r in range(int(n**0.5), 0, -1) if n % r == 0)
    if rows < 2:
        raise ValueError(f"a torus needs a number of nodes that is a product of two factors above 1, not {n}")
    return nx.convert_node_labels_to_integers(nx.grid_2d_graph(rows, n // rows, periodic=True), ordering="sorted")


def _random_regular(n: int, seed: int) -> "nx.Graph[int]":
    degree = 3 if n % 2 == 0 else 4
    return _first_connected(lambda s: nx.random_regular_graph(min(degree, n - 1), n, seed=s), seed)


def _erdos_renyi(n: int, seed: int) -> "nx.Graph[int]":
    # twice the connectivity threshold ln(n)/n, so that a connected graph comes within a few draws
    probability = min(1.0, 2 * float(np.log(max(n, 2))) / n)
    return _first_connected(lambda s: nx.gnp_random_graph(n, probability, seed=s), seed)


def _first_connected(draw: Callable[[int], "nx.Graph[int]"], seed: int) -> "nx.Graph[int]":
    return next(graph for graph in map(draw, range(seed, seed + 10_000)) if nx.is_connected(graph))


NAMED: dict[str, Callable[[int, int], "nx.Graph[int]"]] = {
    "ring": lambda n, seed: nx.cycle_graph(n) if n > 2 else nx.path_graph(n),
    "torus": _torus,
    "star": lambda n, seed: nx.star_graph(n - 1),
    "complete": lambda n, seed: nx.complete_graph(n),
    "exponential": _exponential,
    "random-regular": _random_regular,
    "erdos-renyi": _erdos_renyi,
    "isolated": lambda n, seed: nx.empty_graph(n),
}


def named_graph(name: str, n: int, seed: int = 0) -> "nx.Graph[int]":
    """The topology of that name over nodes 0..n-1.

    Raises ValueError for an unknown name, or a number of nodes that the topology can't have.
    """
    if name in REFERENCE_GRAPHS:
        if n != 7:
            raise ValueError(f"topology {name} has 7 nodes, not {n}")
        return graph_of([(int(e[0]), int(e[1])) for e in REFERENCE_GRAPHS[name].split()], n)
    if name not in NAMED:
        raise ValueError(f"unknown topology {name!r}; known: {', '.join([*NAMED, *REFERENCE_GRAPHS])}")
    return NAMED[name](n, seed)


def graph_of(edges: Sequence[Edge], n: int) -> "nx.Graph[int]":
    """A graph over nodes 0..n-1 from 1-based edges. Raises ValueError for an edge outside 1..n or from a node to itself."""
    graph: nx.Graph[int] = nx.empty_graph(n)
    for i, j in edges:
        if not (1 <= i <= n and 1 <= j <= n) or i == j:
            raise ValueError(f"edge [{i}, {j}] does not join two different nodes of 1..{n}")
        graph.add_edge(i - 1, j - 1)
    return graph


def from_neighbours(neighbours: Mapping[str, Sequence[str]]) -> "nx.Graph[str]":
    """The graph of the given nodes, each of which names its neighbours; an edge counts when either of its ends names it."""
    graph: nx.Graph[str] = nx.Graph()
    graph.add_nodes_from(neighbours)
    for node, others in neighbours.items():
        graph.add_edges_from((node, other) for other in others if other in neighbours and other != node)
    return graph


def metropolis_matrix(graph: "nx.Graph[Any]") -> NDArray[np.float64]:
    """The mixing matrix W, shape (n, n), symmetric with rows that sum to 1 (Xiao & Boyd 2004, eq. 19)."""
    graph = nx.convert_node_labels_to_integers(graph)
    n = graph.number_of_nodes()
    w = np.zeros((n, n))
    for i, j in graph.edges:
        w[i, j] = w[j, i] = metropolis_weight(graph.degree[i], graph.degree[j])
    return w + np.diag(1 - w.sum(axis=1))


def spectrum(graph: "nx.Graph[Any]") -> tuple[float, float]:
    """`(rho, s)`: the second largest eigenvalue modulus of W, and `s = sqrt(mean_{k>=2} l_k^2 / (1 - l_k^2))` (DESIGN 2.9).

    Both are infinite-horizon figures of a connected graph; for a disconnected one rho is 1 and s is infinite.
    """
    moduli = np.sort(np.abs(np.linalg.eigvalsh(metropolis_matrix(graph))))[::-1]
    rest = moduli[1:]
    if rest.size == 0:
        return 0.0, 0.0
    if rest[0] > 1 - 1e-12:
        return 1.0, float("inf")
    return float(rest[0]), float(np.sqrt(np.mean(rest**2 / (1 - rest**2))))
