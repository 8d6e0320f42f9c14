"""What real daemons tell of the federation's consensus error, against the exact figures from everything they recorded."""

import itertools
import urllib.request
from typing import Any

import pytest
from pages.metrics import exported
from prometheus_client.parser import text_string_to_metric_families
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.daemons import Daemon, Daemons, free_port, wait_until

from conlora.core.consensus import Consensus, Factors, consensus, factors, measure
from conlora.net.status import ConsensusView, Federation
from conlora.store.recording import Recording

ROUNDS = 6
COMPARED = ("V", "D", "E_A", "E_B")


def path_of(daemons: Daemons, observing: dict[str, dict[str, Any]] | None = None, **federation: Any) -> list[Daemon]:
    """Four started daemons a - b - c - d."""
    nodes = [
        daemons.make(
            name,
            {"rounds": ROUNDS, "record_vectors": True, "learning_rate": 0.02, "evaluate_every": ROUNDS},
            federation={"seed": 1, **federation},
            observing=(observing or {}).get(name, {}),
        )
        for name in "abcd"
    ]
    for one, other in itertools.pairwise(nodes):
        one.knows(other)
        other.knows(one)
    for node in nodes:
        node.start()
    for node in nodes:
        node.wait_for(lambda s: s.state == "finished", "finished")
    return nodes


def known(view: ConsensusView) -> dict[str, int]:
    return {node.name: node.round for node in view.nodes}


def exact(nodes: list[Daemon], moment: int) -> Consensus:
    """Of what the nodes published in the last round (0), or had after its mix (1)."""
    recordings = [Recording(node.state_dir / "recording") for node in nodes]
    all_factors: list[Factors] = [factors(r.schema, r.load(ROUNDS)[moment], r.frozen) for r in recordings]
    return consensus(measure(all_factors))


def agrees(seen: Federation | None, truth: Consensus, where: str) -> None:
    assert seen is not None
    for name in COMPARED:
        guess, bar, value = (getattr(figures, name) for figures in (seen.figures, seen.bars, truth))
        assert abs(guess - value) <= 1.5 * bar, f"{where}: {name} is {value}, seen as {guess} ± {bar}"
        assert guess == pytest.approx(value, rel=0.3), f"{where}: {name}"


@pytest.mark.usefixtures("forks")
@pytest.mark.parametrize("rule", ["lora", "freeze-a"])
def test_every_node_of_a_path_tells_the_federations_error(daemons: Daemons, rule: str) -> None:
    """In lockstep, so that each run trains the same vectors: what is within its bars today is so tomorrow."""
    nodes = path_of(daemons, rule=rule, mode="sync")
    truths = {"before": exact(nodes, 0), "after": exact(nodes, 1)}
    assert truths["before"].V > truths["after"].V > 0.01
    everybody = dict.fromkeys("abcd", ROUNDS)
    for node in nodes:
        wait_until(lambda node=node: known(node.admin.consensus()) == everybody, f"{node.name} knows all final rounds")
        view = node.admin.consensus()
        for moment, truth in truths.items():
            agrees(getattr(view, moment), truth, f"at {node.name} {moment} mixing")
        assert len(view.graph) == 3
        assert view.rho == pytest.approx(0.805, abs=0.001), "Metropolis weights on a path of four"
        if rule == "freeze-a":
            for federation in (view.before, view.after):
                assert federation is not None
                assert (federation.figures.E_A, federation.figures.C) == (0, 0)
                assert (federation.bars.E_A, federation.bars.C) == (0, 0)
            assert all(edge.error.a == 0 for edge in view.edges)
        last = node.admin.history()[-1]
        assert last.edge_error == pytest.approx(sum(edge.error.product for edge in view.edges) / len(view.edges))


@pytest.mark.usefixtures("forks")
def test_the_last_round_is_measured_where_measuring_takes_longer_than_rounds(daemons: Daemons) -> None:
    """With so large a rank, a measurement rests longer than all the rounds take together."""
    pair = daemons.pair({"rounds": ROUNDS, "local_steps": 1}, lora={"rank": 2048, "alpha": 2048})
    for node in pair:
        node.start()
    for node in pair:
        node.wait_for(lambda s: s.state == "finished", "finished")
        rounds = {record.round: record for record in node.admin.history()}
        assert rounds[ROUNDS].edge_error is not None


@pytest.mark.usefixtures("forks")
def test_an_opted_out_node_is_absent_elsewhere_and_carries_others(daemons: Daemons) -> None:
    port = free_port()
    nodes = path_of(daemons, {"b": {"sketched": False}, "a": {"metrics": port, "tensorboard": True}}, rule="lora")
    everybody = dict.fromkeys("abcd", ROUNDS)
    others = {name: round_ for name, round_ in everybody.items() if name != "b"}
    for node in nodes:
        expected = everybody if node.name == "b" else others
        wait_until(lambda node=node, e=expected: known(node.admin.consensus()) == e, f"{node.name} knows {expected}")
    assert [node.admin.consensus().sketched for node in nodes] == [True, False, True, True]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as reply:
        text = reply.read().decode()
    assert "conlora_federation_nodes 3.0" in text
    assert f"conlora_round {ROUNDS}.0" in text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            assert set(sample.labels) == exported()[sample.name], "a real node exports what is declared, and no more"
    events = EventAccumulator(str(nodes[0].state_dir / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("training/loss")] == list(range(1, ROUNDS + 1))
    assert {"edge_error/b", "consensus_before/V", "consensus_after/V", "evaluation/accuracy"} <= set(
        events.Tags()["scalars"]
    )
    sent = sum(peer.sketch_bytes_sent for peer in nodes[1].admin.status().peers)
    assert sent > 0, "b passed on what it had"
