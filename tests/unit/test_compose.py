"""A federation of containers as it is written: compose file, identities, configurations, what watches it; and each refusal."""

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyarrow import parquet

from conlora.config import NodeConfig, load_config
from conlora.errors import ConfigError, StateError
from conlora.net.identity import load_identity, load_peers
from conlora.testbed import compose
from conlora.testbed.compose import ComposeTestbed, Limits, read_testbed, write_testbed
from conlora.testbed.spec import TestbedSpec, load_spec

NODES = 5
LIMITS = Limits(1.5, "2g")
# What a service may say, so that Compose's first version and its second both take it; each of a kind that they agree on.
SERVICE = {
    "cap_drop": list, "command": list, "cpus": float, "depends_on": list, "environment": dict, "healthcheck": dict,
    "hostname": str, "image": str, "labels": dict, "mem_limit": str, "memswap_limit": str, "networks": list,
    "pids_limit": int, "ports": list, "profiles": list, "read_only": bool, "restart": str, "security_opt": list,
    "stop_grace_period": str, "tmpfs": list,
    "user": str, "volumes": list,
}  # fmt: skip
MOUNT = re.compile(r"(?P<source>\./[\w/-]+|[\w-]+):(?P<target>/[\w/-]+)(:(?P<mode>ro))?")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = [f"text {i},{'positive' if i % 4 else 'negative'}" for i in range(200)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *lines]))
    (tmp_path / "model").mkdir()
    return tmp_path


def spec(folder: Path, **changes: Any) -> TestbedSpec:
    whole = {
        "name": "demo",
        "nodes": NODES,
        "topology": "ring",
        "rules": ["lora"],
        "model": {"base": "model"},
        "task": {"labels": ["negative", "positive"]},
        "data": {"path": "rows.csv", "partition": {"dirichlet": 0.5}, "test_rows": 50},
        **changes,
    }
    (folder / "spec.yaml").write_text(yaml.safe_dump(whole))
    return load_spec(folder / "spec.yaml")


@pytest.fixture
def written(folder: Path) -> ComposeTestbed:
    return write_testbed(spec(folder), None, folder / "bed", LIMITS)


def compose_file(testbed: ComposeTestbed) -> dict[str, Any]:
    content = yaml.safe_load((testbed.directory / "compose.yaml").read_text())
    assert isinstance(content, dict)
    return content


def nodes_of(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: service for name, service in content["services"].items() if name.startswith("node-")}


def configs_of(testbed: ComposeTestbed) -> list[NodeConfig]:
    return [load_config(setup.config) for setup in testbed.setups]


def test_every_version_of_compose_takes_the_file(written: ComposeTestbed) -> None:
    content = compose_file(written)
    assert set(content) == {
        "x-node",
        "services",
        "networks",
        "volumes",
    }  # no `version`, no `name`: one knows it, one not
    for name, service in content["services"].items():
        for key, value in service.items():
            assert isinstance(value, SERVICE[key]), f"{name}.{key}"
        for mount in service["volumes"]:
            parts = MOUNT.fullmatch(mount)
            assert parts, mount
            if parts["source"].startswith("."):
                assert (written.directory / parts["source"]).exists()
                assert parts["mode"] == "ro"
            else:
                assert parts["source"] in content["volumes"]
        assert set(service["networks"]) <= set(content["networks"])


def test_a_node_has_limits_a_volume_of_its_own_and_nothing_else_to_write_to(written: ComposeTestbed) -> None:
    nodes = nodes_of(compose_file(written))
    assert list(nodes) == written.spec.names
    for name, node in nodes.items():
        assert (node["cpus"], node["mem_limit"], node["read_only"], node["tmpfs"]) == (1.5, "2g", True, ["/tmp"])
        assert node["memswap_limit"] == node["mem_limit"], "memory is all that it may take"
        assert node["cap_drop"] == ["ALL"]
        assert node["healthcheck"]["test"] == ["CMD", "conlora", "status", "--json"]
        assert node["volumes"] == [
            f"./{name}:/testbed/node:ro",
            "./model:/testbed/model:ro",
            f"{name}:/var/lib/conlora",
        ]
        assert node["environment"]["CONLORA_CONFIG"] == "/testbed/node/node.yaml"
        assert node["environment"]["HF_HUB_OFFLINE"] == "1"
        assert "ports" not in node
    assert compose_file(written)["networks"]["federation"] == {"internal": True}


def test_nodes_of_a_model_from_a_hub_can_reach_it(folder: Path) -> None:
    testbed = write_testbed(spec(folder, model={"base": "owner/name"}), None, folder / "bed", LIMITS)
    content = compose_file(testbed)
    assert content["networks"]["federation"] == {"internal": False}
    for name, node in nodes_of(content).items():
        assert node["volumes"] == [f"./{name}:/testbed/node:ro", f"{name}:/var/lib/conlora"]
        assert "HF_HUB_OFFLINE" not in node["environment"]
    assert not (testbed.directory / "model").exists()
    assert configs_of(testbed)[0].model.base == "owner/name"


def test_configurations_are_good_on_both_sides_of_the_mount(written: ComposeTestbed) -> None:
    """Here, where the model's folder is a link, and in a container, where everything relative lies at the same places."""
    for setup, config in zip(written.setups, configs_of(written), strict=True):
        assert Path(config.model.base).resolve() == Path(written.spec.model.base)
        assert yaml.safe_load(setup.config.read_text())["model"]["base"] == "../model"
        assert config.name == setup.name
        assert config.state_dir == Path("/var/lib/conlora/state")
        assert config.admin_path.parent == config.state_dir
        assert (config.listen, config.advertise) == ("0.0.0.0:7443", f"{setup.name}:7443")
        assert config.observing.metrics == "0.0.0.0:9464"
        assert (config.training.threads, config.training.record_vectors) == (1, True)
        assert config.data.path is not None
        assert parquet.read_table(config.data.path).num_rows == setup.rows == 30


def test_identities_are_pinned_both_ways(written: ComposeTestbed) -> None:
    ids = {setup.name: load_identity(setup.directory / "identity").node_id for setup in written.setups}
    pinned = {
        (setup.name, peer.name)
        for setup in written.setups
        for peer in load_peers(setup.directory / "peers", ids[setup.name])
        if peer.node_id == ids[peer.name] and peer.address == f"{peer.name}:7443"
    }
    names = written.spec.names
    ring = {(names[i], names[j]) for edge in written.spec.graph.edges for i, j in (edge, edge[::-1])}
    assert pinned == ring
    assert len(set(ids.values())) == NODES


def test_keys_belong_to_who_the_containers_run_as(written: ComposeTestbed) -> None:
    for name, node in nodes_of(compose_file(written)).items():
        status = (written.directory / name / "identity" / "node.key").stat()
        assert node["user"] == f"{status.st_uid}:{status.st_gid}"
        assert status.st_uid == (os.getuid() or 7443)
        assert stat.S_IMODE(status.st_mode) == 0o600


def test_who_is_not_root_keeps_the_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compose.os, "getuid", lambda: 1000)
    monkeypatch.setattr(compose.os, "getgid", lambda: 1001)
    testbed = write_testbed(spec(folder), None, folder / "bed", LIMITS)
    assert {node["user"] for node in nodes_of(compose_file(testbed)).values()} == {"1000:1001"}


def test_the_shares_are_those_of_a_run_on_this_machine(written: ComposeTestbed, folder: Path) -> None:
    again = write_testbed(written.spec, "lora", folder / "again", LIMITS)
    for one, other in zip(written.setups, again.setups, strict=True):
        assert (one.directory / "data.parquet").read_bytes() == (other.directory / "data.parquet").read_bytes()
    assert parquet.read_table(written.directory / "test.parquet").num_rows == 50
    assert written.id != again.id
    for testbed in (written, again):
        assert (testbed.directory / ".env").read_text() == f"COMPOSE_PROJECT_NAME={testbed.id}\n"


def test_compose_takes_the_name_of_any_testbed(folder: Path) -> None:
    testbed = write_testbed(spec(folder, name="My.Ring_7"), None, folder / "bed", LIMITS)
    assert re.fullmatch(r"my-ring-7-[0-9a-f]{8}", testbed.id)


def test_what_was_written_is_read_again(written: ComposeTestbed) -> None:
    assert read_testbed(written.directory) == written
    assert {node["labels"]["org.conlora.testbed"] for node in nodes_of(compose_file(written)).values()} == {written.id}


def test_prometheus_and_grafana_find_what_they_need(written: ComposeTestbed) -> None:
    watch, services = written.directory / "watch", compose_file(written)["services"]
    assert {name for name, service in services.items() if service.get("profiles") == ["watch"]} == {
        "prometheus",
        "grafana",
    }
    for name in ("prometheus", "grafana"):
        assert re.search(r":-[a-z/]+:v?\d+\.\d+\.\d+}$", services[name]["image"]), "a version is named"
        assert all(port.startswith("127.0.0.1:") for port in services[name]["ports"])

    prometheus = yaml.safe_load((watch / "prometheus/prometheus.yml").read_text())
    (job,) = prometheus["scrape_configs"]
    assert job["job_name"] == "conlora"
    assert job["static_configs"] == [{"targets": [f"{name}:9464" for name in written.spec.names]}]
    for rules in prometheus["rule_files"]:
        assert yaml.safe_load((watch / "prometheus" / rules).read_text())["groups"]

    (source,) = yaml.safe_load((watch / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((watch / "grafana/provisioning/dashboards/conlora.yaml").read_text())["providers"]
    assert f"./watch/grafana/dashboards:{provider['options']['path']}:ro" in services["grafana"]["volumes"]
    assert json.loads((watch / "grafana/dashboards/conlora.json").read_text())["panels"]
    assert all(path.stat().st_mode & 0o004 for path in watch.rglob("*")), "they run as users of their own"


def test_a_rule_is_chosen_where_there_are_several(folder: Path) -> None:
    several = spec(folder, rules=["lora", "freeze-a"])
    with pytest.raises(ConfigError, match="runs one rule, and demo names lora, freeze-a; choose one with --rule"):
        write_testbed(several, None, folder / "bed", LIMITS)
    with pytest.raises(ConfigError, match=r"'ffa' is not among the rules of demo .lora, freeze-a.; choose one of them"):
        write_testbed(several, "ffa", folder / "bed", LIMITS)
    testbed = write_testbed(several, "freeze-a", folder / "bed", LIMITS)
    assert {config.federation.rule for config in configs_of(testbed)} == {"freeze-a"}


@pytest.mark.parametrize("memory", ["lots", "2", "1.5g", "2gb"])
def test_memory_is_a_size(folder: Path, memory: str) -> None:
    with pytest.raises(ConfigError, match="is no size; write a number with k, m or g, such as 2g"):
        write_testbed(spec(folder), None, folder / "bed", Limits(1.0, memory))
    assert not (folder / "bed").exists()


def test_a_directory_that_holds_something_is_left_alone(folder: Path) -> None:
    (folder / "bed").mkdir()
    (folder / "bed" / "thesis.txt").write_text("three years")
    with pytest.raises(
        ConfigError, match="is there already and not empty; choose another directory with -o, or remove it"
    ):
        write_testbed(spec(folder), None, folder / "bed", LIMITS)
    assert [path.name for path in (folder / "bed").iterdir()] == ["thesis.txt"]


def test_containers_have_to_be_able_to_read_the_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where root writes the testbed, whose files are then another user's."""
    (folder / "model" / "weights").touch(mode=0o600)
    monkeypatch.setattr(compose.os, "getuid", lambda: 0)
    monkeypatch.setattr(compose.os, "chown", lambda *_: None)
    with pytest.raises(ConfigError, match=r"weights can be read by its owner only, .*; say `chmod -R a.rX "):
        write_testbed(spec(folder), None, folder / "bed", LIMITS)
    (folder / "model" / "weights").chmod(0o644)
    write_testbed(spec(folder), None, folder / "bed", LIMITS)


def test_a_model_from_a_hubs_cache_is_no_whole_folder(folder: Path) -> None:
    """Its files are links to where the cache keeps them all, and only the model's folder is mounted."""
    (folder / "blobs").mkdir()
    (folder / "blobs" / "abc").write_text("{}")
    link = folder / "model" / "onnx" / "config.json"
    link.parent.mkdir()
    for target in (Path("../../blobs/abc"), folder / "model" / "whole.json", Path("gone.json")):
        (folder / "model" / "whole.json").touch()
        link.symlink_to(target)
        with pytest.raises(ConfigError) as caught:
            write_testbed(spec(folder), None, folder / "bed", LIMITS)
        assert str(caught.value) == (
            f"model.base: {link} is a link out of the folder, as in a hub's cache, and containers see that folder only; "
            f"copy it with `cp -rL {folder}/model ...` and name the copy"
        )
        link.unlink()
    link.symlink_to("../whole.json")
    (folder / "named").symlink_to("model")
    write_testbed(spec(folder, model={"base": "named"}), None, folder / "bed", LIMITS)


def test_a_file_is_no_directory(folder: Path) -> None:
    with pytest.raises(StateError, match=r"can't be written .*; choose a writable directory with -o"):
        write_testbed(spec(folder), None, folder / "rows.csv", LIMITS)


def test_another_directory_is_no_testbed(folder: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"no compose testbed .*; give a directory that `conlora testbed compose` has filled"
    ):
        read_testbed(folder)
