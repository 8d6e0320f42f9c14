"""The image and the compose testbed on a real Docker engine: `make compose-test`.

One federation trains to its end, and is held against the same one in processes; another is disturbed while it trains.
"""

import json
import os
import re
import statistics
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.daemons import wait_until
from tests.e2e.containers import PATIENCE, Bed, conlora, docker, link, peer_of
from tests.e2e.engine import Unavailable, base_image, engine

ROOT = Path(__file__).parents[2]
SPEC = ROOT / "deploy" / "compose" / "demo.yaml"
IMAGE = "conlora:compose-test"
BUILD_ARGUMENTS = ("TORCH", "TORCH_INDEX", "EXTRAS")  # from the environment, where they are set
# No two runs are paced alike, so their accuracies scatter: README.md has .897 .905 .895 .896, and the first run of this test
# .898 and .911. Five percent are more than five standard deviations of a difference; nodes that hear of nobody lose seventeen.
TOLERANCE = 0.05
LARGER_CLASS = 0.68  # of the test rows

pytestmark = [pytest.mark.compose, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    """The image, built on an engine that is there as long as this module's tests."""
    try:
        with engine() as own, base_image():
            chosen = [f"--build-arg={name}" for name in BUILD_ARGUMENTS if name in os.environ]
            subprocess.run(["docker", "build", "--network", "host", *chosen, "-t", IMAGE, ROOT], check=True)
            if own:
                own.isolate()
            try:
                yield IMAGE
            finally:
                docker("image", "rm", IMAGE)
    except Unavailable as why:
        pytest.fail(str(why), pytrace=False)


def test_the_image_says_what_it_is(image: str) -> None:
    (told,) = json.loads(docker("image", "inspect", image))
    config = told["Config"]
    assert (config["User"], config["StopSignal"]) == ("conlora", "SIGTERM")
    assert config["Healthcheck"]["Test"] == ["CMD", "conlora", "status", "--json"]
    assert config["Labels"]["org.opencontainers.image.version"] == conlora("--version").split()[1]
    assert {"title", "description", "licenses"} <= {key.rpartition(".")[2] for key in config["Labels"]}
    assert list(config["Volumes"]) == ["/var/lib/conlora"]


def test_every_package_in_the_image_is_pinned(image: str) -> None:
    tell = (
        "from importlib.metadata import distributions as d; print(*(f'{i.name}=={i.version}' for i in d()), sep='\\n')"
    )
    installed = docker("run", "--rm", "--network", "none", "--entrypoint", "/opt/conlora/bin/python", image, "-c", tell)
    pins = {normal(pin) for pin in (ROOT / "constraints.txt").read_text().split()}
    others = {normal(name) for name in installed.split()} - pins
    assert {name.partition("==")[0] for name in others} == {"conlora"}


def normal(pin: str) -> str:
    """A name and a version, as indexes compare them; of PyTorch's builds the version only."""
    name, _, version = pin.partition("==")
    return f"{re.sub(r'[-_.]+', '-', name).lower()}=={version.partition('+')[0]}"


@pytest.fixture(scope="module")
def finished(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    """A federation that has trained undisturbed, collected."""
    bed = Bed(SPEC, tmp_path_factory.mktemp("beds") / "finished", image)
    with bed.up():
        print(conlora("testbed", "collect", bed.directory))
        yield bed


def test_containers_learn_as_much_as_processes(finished: Bed, tmp_path: Path) -> None:
    print(conlora("testbed", "run", SPEC, "-o", tmp_path / "processes"))
    contained, local = (
        json.loads((directory / "summary.json").read_text())
        for directory in (finished.directory, tmp_path / "processes")
    )
    assert before(contained) == before(local), "the same start, on the same test rows"
    assert rows(contained) == rows(local), "the same shares"
    assert abs(accuracy(contained) - accuracy(local)) < TOLERANCE
    assert accuracy(contained) > LARGER_CLASS + TOLERANCE
    assert contained["runs"][0]["consensus"]["V"] > 0


def before(summary: dict[str, Any]) -> float:
    return float(summary["runs"][0]["nodes"][0]["before"]["accuracy"])


def accuracy(summary: dict[str, Any]) -> float:
    return statistics.fmean(node["after"]["accuracy"] for node in summary["runs"][0]["nodes"])


def rows(summary: dict[str, Any]) -> list[dict[str, int]]:
    return [node["class_counts"] for node in summary["runs"][0]["nodes"]]


def test_finished_nodes_are_healthy_and_stay_linked(finished: Bed) -> None:
    for node in finished.nodes:
        wait_until(lambda n=node: health(finished, n) == "healthy", f"{node} is healthy", PATIENCE)
        status = finished.wait(node, lambda s: s["state"] == "finished", "finished")
        assert status["round"] == status["rounds"]
        assert {peer["name"]: peer["link"] for peer in status["peers"]} == dict.fromkeys(
            finished.neighbours(node), "up"
        )


def test_nothing_but_state_and_temporary_files_can_be_written(finished: Bed) -> None:
    node = finished.nodes[0]
    for path in ("/x", "/opt/conlora/x", "/testbed/node/x", "/testbed/model/x", "/home/x"):
        with pytest.raises(subprocess.CalledProcessError) as refused:
            finished.exec(node, "touch", path)
        assert "Read-only file system" in refused.value.stderr
    finished.exec(node, "touch", "/tmp/x", "/var/lib/conlora/x")
    assert finished.exec(node, "id", "--user").strip() == str((finished.directory / node).stat().st_uid) != "0"
    assert finished.exec(node, "find", "/dev/shm", "-mindepth", "1") == "", "no matter how small it is"


def test_process_one_reaps_what_loses_its_parent(finished: Bed) -> None:
    node = finished.nodes[0]
    finished.exec(node, "sh", "-c", "sleep 0.1 &")
    states = "cat /proc/[0-9]*/stat | grep '(sleep)' || true"
    wait_until(lambda: finished.exec(node, "sh", "-c", states) == "", "no sleeper is left, alive or dead", PATIENCE)


def test_admin_commands_need_no_more_than_the_node(finished: Bed) -> None:
    node = finished.nodes[-1]
    assert node in finished.exec(node, "conlora", "status")
    assert [
        peer["name"] for peer in json.loads(finished.exec(node, "conlora", "peers", "--json"))
    ] == finished.neighbours(node)
    assert json.loads(finished.exec(node, "conlora", "consensus", "--json"))["name"] == node
    finished.exec(node, "conlora", "export", "/var/lib/conlora/mine")
    assert "adapter_config.json" in finished.exec(node, "ls", "/var/lib/conlora/mine")
    assert f"name: {node}" in finished.exec(node, "conlora", "id")


def test_who_has_finished_stops_with_0_and_goes_on_where_it_was(finished: Bed) -> None:
    finished.compose("stop")
    assert {node: exit_code(finished, node) for node in finished.nodes} == dict.fromkeys(finished.nodes, 0)
    finished.compose("start")
    finished.wait(
        finished.nodes[0], lambda s: s["state"] == "finished" and s["round"] == s["rounds"], "finished as before"
    )


@pytest.fixture(scope="module")
def training(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    """The same federation, which trains for as long as it is let; already stopped once, before it had begun."""
    folder = tmp_path_factory.mktemp("beds")
    spec = yaml.safe_load(SPEC.read_text())
    spec["training"] |= {"rounds": 100_000, "record_vectors": False}
    spec["model"]["base"], spec["data"]["path"] = str(ROOT / "assets/minilm"), str(ROOT / "assets/tweets.csv")
    (folder / "endless.yaml").write_text(yaml.safe_dump(spec))
    bed = Bed(folder / "endless.yaml", folder / "training", image)
    with bed.up():
        bed.compose("stop")
        assert {node: exit_code(bed, node) for node in bed.nodes} == dict.fromkeys(bed.nodes, 0), (
            "nobody had to be killed"
        )
        bed.compose("start")
        for node in bed.nodes:
            bed.wait(
                node, lambda s: s["round"] > 0 and {peer["link"] for peer in s["peers"]} == {"up"}, "trains, linked"
            )
        yield bed


def test_a_paused_node_comes_back(training: Bed) -> None:
    """Alive for TCP, and silent: the neighbours go on without it."""
    node = training.nodes[1]
    docker("pause", training.container(node))
    try:
        cut_off(training, node)
    finally:
        docker("unpause", training.container(node))
    back(training, node)


def test_a_killed_node_comes_back(training: Bed) -> None:
    node = training.nodes[2]
    saved = json.loads(training.exec(node, "conlora", "checkpoint", "--json"))["round"]
    docker("kill", training.container(node))
    cut_off(training, node)
    assert exit_code(training, node) == 137
    training.compose("up", "-d")
    assert training.wait(node, lambda s: s["round"] > 0, "has its checkpoint")["round"] >= saved
    back(training, node)


def test_a_node_that_loses_its_network_trains_alone_and_comes_back(training: Bed) -> None:
    node = training.nodes[3]
    (network,) = training.inspect(node)["NetworkSettings"]["Networks"]
    docker("network", "disconnect", network, training.container(node))
    cut_off(training, node)
    alone = training.wait(node, lambda s: {peer["link"] for peer in s["peers"]} == {"down"}, "knows that it is alone")
    training.wait(node, lambda s: s["round"] > alone["round"] + 2, "trains on")
    docker("network", "connect", "--alias", node, network, training.container(node))
    back(training, node)


def cut_off(bed: Bed, node: str) -> None:
    """Waits until the neighbours have lost the node, and train on."""
    for neighbour in bed.neighbours(node):
        lost = bed.wait(neighbour, lambda s: link(s, node) == "down", f"has lost {node}")
        bed.wait(neighbour, lambda s, r=lost["round"]: s["round"] > r + 2, f"trains on without {node}")


def back(bed: Bed, node: str) -> None:
    """Waits until the node is linked, trains, and its neighbours mix what it does now."""
    status = bed.wait(node, lambda s: {peer["link"] for peer in s["peers"]} == {"up"}, "linked again")
    then = bed.wait(node, lambda s: s["round"] > status["round"] + 2, "trains on")
    for neighbour in bed.neighbours(node):
        bed.wait(neighbour, lambda s: (peer_of(s, node)["snapshot_round"] or 0) >= then["round"], f"hears of {node}")


def test_training_is_paused_and_resumed_from_outside(training: Bed) -> None:
    node = training.nodes[4]
    assert json.loads(training.exec(node, "conlora", "pause", "--json"))["state"] == "paused"
    paused = training.wait(node, lambda s: s["state"] == "paused", "stands still")
    training.exec(node, "conlora", "resume")
    training.wait(node, lambda s: s["round"] > paused["round"], "trains")


def test_everybody_is_healthy_after_all_that(training: Bed) -> None:
    for node in training.nodes:
        wait_until(lambda n=node: health(training, n) == "healthy", f"{node} is healthy", PATIENCE)
        assert training.inspect(node)["State"]["OOMKilled"] is False


def test_in_the_middle_of_training_all_stop_with_0_and_nothing_is_left(training: Bed) -> None:
    training.compose("stop")
    assert {node: exit_code(training, node) for node in training.nodes} == dict.fromkeys(training.nodes, 0)
    project = f"label=com.docker.compose.project={training.id}"
    assert docker("ps", "--all", "--quiet", "--filter", project).split()
    training.compose("down", "--volumes")
    for kind in (["ps", "--all"], ["volume", "ls"], ["network", "ls"]):
        assert docker(*kind, "--quiet", "--filter", project) == ""


def health(bed: Bed, node: str) -> str:
    return str(bed.inspect(node)["State"]["Health"]["Status"])


def exit_code(bed: Bed, node: str) -> int:
    """Of a container that has ended."""
    state = bed.inspect(node)["State"]
    assert state["Running"] is False
    return int(state["ExitCode"])
