"""Nodes that were away for long: whose snapshot they adopt, and what that spares their neighbours."""

import numpy as np
from tests.simulated import Network, optima

from conlora.core.gossip import FAR_BEHIND, Gossip, Mode
from conlora.core.topology import named_graph


def test_who_comes_back_after_long_disturbs_its_neighbours_less_if_it_adopts() -> None:
    """It was away from round 20 to 500 of the others. Either way all settle at the mean of all optima in the end."""
    graph, c = named_graph("T3", 7), optima(7, 5) + 3
    jumps = {}
    for adopts in (False, True):
        network = Network(graph, Mode.ASYNC, [1.0] * 7, c, lambda: 0.1)
        apart: list[float] = []
        network.at(20.0, lambda network=network: network.leave(0))
        network.at(500.0, lambda network=network, adopts=adopts: network.come_back(0, adopts))
        for time in range(490, 520):
            network.at(time + 0.5, lambda network=network, apart=apart: apart.append(network.apart()))
        network.run(1500, rate=0.005)
        jumps[adopts] = max(apart[10:]) / apart[0]
        assert np.linalg.norm(np.mean([node.x for node in network.nodes], axis=0) - c.mean(axis=0)) < 0.02
        assert network.nodes[0].round < network.nodes[1].round - 400, "its rounds are its own"
    assert jumps[True] < 1.5
    assert jumps[False] > 10


def test_a_slow_node_that_was_away_for_a_moment_goes_on_from_its_own() -> None:
    """It has always been far behind in rounds; what counts is what the others did meanwhile."""
    gossip = Gossip(Mode.ASYNC, ["fast", "new"])
    for peer, round_ in (("fast", 1000 + FAR_BEHIND - 1), ("new", 100 + FAR_BEHIND - 1)):
        gossip.link_up(peer)
        gossip.received(peer, round_, 1, gossip.slot_for(peer))
    assert gossip.catch_up(100, {"fast": 1000}) is None


def test_who_was_away_adopts_the_neighbour_that_has_got_farthest_and_its_slot_stays() -> None:
    gossip = Gossip(Mode.ASYNC, ["slow", "fast", "restarted", "gone"])
    rounds = {"slow": 60, "fast": 500, "restarted": 3, "gone": 900}
    for peer, round_ in rounds.items():
        assert not gossip.complete
        gossip.link_up(peer)
        gossip.received(peer, round_, 1, gossip.slot_for(peer))
    assert gossip.complete
    gossip.link_down("gone")
    plan = gossip.catch_up(50, {"slow": 30, "fast": 100, "restarted": 90, "gone": 90})
    assert plan is not None
    assert [(c.peer, c.round, c.weight) for c in plan.contributions] == [("fast", 500, 1.0)]
    slot = plan.contributions[0].slot
    for round_ in range(501, 510):
        assert gossip.slot_for("fast") != slot
        gossip.received("fast", round_, 1, gossip.slot_for("fast"))
    gossip.release(plan)
    assert gossip.slot_for("fast") == slot


def test_a_newcomer_adopts_from_a_federation_that_is_far() -> None:
    gossip = Gossip(Mode.ASYNC, ["p"])
    gossip.link_up("p")
    gossip.received("p", FAR_BEHIND, 1, gossip.slot_for("p"))
    assert gossip.catch_up(0, {}) is not None
