"""Where many nodes settle, in both modes, whatever their speeds, delays and losses: against plain numpy."""

import networkx as nx
import numpy as np
import pytest
from tests.simulated import LOCAL_STEPS, SIZE, Network, optima

from conlora.core.gossip import Mode
from conlora.core.topology import metropolis_matrix, named_graph


@pytest.mark.parametrize("name", ["T1", "T2", "T4", "du14"])
@pytest.mark.parametrize("seed", [1, 2])
def test_async_settles_at_the_uniform_objective_whatever_speeds_delays_and_losses(name: str, seed: int) -> None:
    """DESIGN 2.2: no node's speed gives it more say."""
    rng = np.random.default_rng(seed)
    c = optima(7, seed)
    network = Network(
        named_graph(name, 7),
        Mode.ASYNC,
        [1, 1, 1, 4, 1, 2, 8],
        c,
        lambda: float(rng.exponential(1.5)),
        loss=0.3,
        seed=seed,
    )
    network.run(20_000, rate=0.001)
    final = np.mean([node.x for node in network.nodes], axis=0)
    assert np.linalg.norm(final - c.mean(axis=0)) < 0.03
    spread = max(np.linalg.norm(node.x - final) for node in network.nodes)
    assert spread < 0.15, "nodes stay together up to the drift of their local steps"


@pytest.mark.parametrize("name", ["T1", "T2", "complete"])
def test_sync_equals_the_mixing_matrix_applied_to_all_vectors(name: str) -> None:
    """Lockstep over a jittery network is `x = W y` round by round, computed with plain numpy."""
    rng = np.random.default_rng(0)
    graph, c, rate, rounds = named_graph(name, 7), optima(7, 3), 0.1, 12
    network = Network(graph, Mode.SYNC, [1, 1, 5, 1, 2, 1, 1], c, lambda: float(rng.exponential(3)))
    oracle, w = np.zeros((7, SIZE)), metropolis_matrix(graph)
    history = []
    for _ in range(rounds + 40):
        for _ in range(LOCAL_STEPS):
            oracle -= rate * (oracle - c)
        oracle = w @ oracle
        history.append(oracle.copy())
    network.run(60, rate)
    for i, node in enumerate(network.nodes):
        mixed_rounds = node.round - node.waiting
        assert mixed_rounds >= 3
        if not node.waiting:
            np.testing.assert_allclose(node.x, history[mixed_rounds - 1][i], atol=1e-5)
    rounds_seen = [node.round for node in network.nodes]
    assert max(rounds_seen) - min(rounds_seen) <= nx.diameter(graph)
