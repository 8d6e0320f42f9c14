"""A testbed's specification: what is accepted, and the sentence for each mistake."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from pyarrow import parquet

from conlora.config import load_config
from conlora.errors import ConfigError
from conlora.testbed.data import Part, deal
from conlora.testbed.layout import RunPlan, lay_out
from conlora.testbed.spec import Dirichlet, TestbedSpec, load_spec
from conlora.training.sources import class_names, read_file

ROWS = 200


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = [f'"text {i}, with ""quotes""",{"positive" if i % 4 else "negative"}' for i in range(ROWS)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *lines]))
    (tmp_path / "model").mkdir()
    return tmp_path


def spec(**changes: Any) -> dict[str, Any]:
    """A valid specification with changes; None removes a key."""
    whole: dict[str, Any] = {
        "name": "demo",
        "nodes": 5,
        "topology": "ring",
        "rules": ["lora", "freeze-a"],
        "model": {"base": "model"},
        "task": {"labels": ["negative", "positive"]},
        "training": {"rounds": 4, "local_steps": 2},
        "data": {"path": "rows.csv", "partition": {"dirichlet": 0.5}, "test_rows": 50},
        **changes,
    }
    return {key: value for key, value in whole.items() if value is not None}


def load(folder: Path, content: dict[str, Any]) -> TestbedSpec:
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_spec(path)


def test_paths_are_relative_to_the_file(folder: Path) -> None:
    loaded = load(folder, spec())
    assert loaded.data.path == folder / "rows.csv"
    assert loaded.model.base == str(folder / "model")
    assert loaded.data.partition == Dirichlet(dirichlet=0.5)
    assert loaded.graph.number_of_edges() == 5
    assert loaded.names == ["node-1", "node-2", "node-3", "node-4", "node-5"]


@pytest.mark.parametrize("partition", ["iid", "by-label", {"dirichlet": 0.1}])
def test_what_is_written_back_reads_the_same(folder: Path, partition: object) -> None:
    data = {"path": "rows.csv", "partition": partition, "test_rows": 50}
    first = load(
        folder,
        spec(
            topology=None, edges=[[1, 2], [2, 3]], data=data, overrides={"node-3": {"training": {"slowdown": 4}}},
            baselines=["alone"], learning_rates={"lora": 0.001}, mode="sync",
        ),
    )  # fmt: skip
    assert load(folder, first.to_json()) == first
    assert first.to_json()["data"]["partition"] == partition
    assert first.to_json()["overrides"] == {"node-3": {"training": {"slowdown": 4.0}}}


@pytest.mark.parametrize(
    ("changes", "sentences"),
    [
        ({"topology": "T2"}, ["topology: topology T2 has 7 nodes, not 5"]),
        ({"topology": "rnig"}, ["topology: unknown topology 'rnig'; known: ring"]),
        ({"topology": None}, ["give exactly one of topology"]),
        ({"edges": [[1, 2]]}, ["give exactly one of topology"]),
        ({"topology": None, "edges": [[1, 6]]}, ["edges: edge [1, 6] does not join two different nodes of 1..5"]),
        ({"rules": ["lora", "freeze-c"]}, ["rules: unknown rule 'freeze-c'; choose from lora, freeze-a"]),
        ({"rules": ["lora", "lora"]}, ["rules: rule 'lora' is named twice; name each rule once"]),
        ({"rules": []}, ["rules:"]),
        ({"overrides": {"node-6": {"training": {"slowdown": 2}}}}, ["no node 'node-6'; nodes are named node-1 to node-5"]),
        (
            {"overrides": {"node-1": {"training": {"rounds": 9}}}},
            ["overrides.node-1.training: rounds has to be equal on all nodes (rounds are compared across nodes); remove it"],
        ),
        ({"overrides": {"node-1": {"lora": {"rank": 9}}}}, ["overrides.node-1.lora: unknown key"]),
        ({"learning_rates": {"full": 1e-3}}, ["learning_rates: 'full' is not among this testbed's rules; add it to rules or"]),
        ({"learning_rates": {"lora": 0}}, ["learning_rates.lora:"]),
        ({"baselines": ["lonely"]}, ["baselines.0:", "'lonely'"]),
        ({"nodes": 0}, ["nodes:"]),
        ({"node": 3}, ["node: unknown key; did you mean 'nodes'?"]),
        ({"name": "a/b"}, ["name:"]),
        ({"mode": "lockstep"}, ["mode:", "'async' or 'sync'"]),
        ({"model": {"base": "./nowhere"}}, ["nowhere does not exist"]),
        ({"data": {"path": "none.csv"}}, ["none.csv does not exist"]),
        ({"data": {"path": "rows.csv", "hub": "ag_news"}}, ["data: give one of path and hub"]),
        ({"task": {"type": "guest"}}, ["task.type: a testbed trains by itself"]),
        ({"task": {"type": "causal-lm"}}, ["data.partition: rows of the task causal-lm have no labels", "partition_by"]),
        ({"data": {"path": "spec.yaml"}}, ["data: ", "unknown format '.yaml'"]),
        ({"data": {"path": "rows.csv", "partition": "random"}}, ["'random' is no partition; write iid, by-label or"]),
        ({"data": {"path": "rows.csv", "partition": {"dirichlet": 0}}}, ["data.partition", "dirichlet"]),
        ({"data": {"path": "rows.csv", "rows": 3}}, ["data.rows: unknown key"]),
    ],
)  # fmt: skip
def test_mistakes_are_sentences(folder: Path, changes: dict[str, Any], sentences: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(folder, spec(**changes))
    assert str(caught.value).startswith(str(folder / "spec.yaml"))
    for sentence in sentences:
        assert sentence in str(caught.value)


def test_a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file; give a testbed's specification"):
        load_spec(tmp_path / "none.yaml")


def test_shares_default_to_all_that_the_data_allows(folder: Path) -> None:
    dealt = deal(load(folder, spec()), folder / "cache")
    assert [len(share) for share in dealt.shares] == [30] * 5
    assert len(set(np.concatenate([part.numbers for part in (dealt.test, *dealt.shares)]))) == ROWS
    assert dealt.test.class_counts == {"positive": 37, "negative": 13}


def test_more_rows_than_there_are_is_a_mistake(folder: Path) -> None:
    data = {"path": "rows.csv", "rows_per_node": 31, "test_rows": 50}
    with pytest.raises(ConfigError, match=r"200 rows are too few for 50 test rows and 5 nodes with 31 each; lower"):
        deal(load(folder, spec(data=data)), folder / "cache")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            "rows.csv",
            "text,label\nfine,positive\nodd,happy\n",
            "row 2 has the label 'happy'; add it to task.labels or mend",
        ),
        (
            "rows.csv",
            "tweet,label\nfine,positive\n",
            "has no column 'text' (it has tweet, label); name the right one under task, or in data.partition_by",
        ),
        (
            "rows.jsonl",
            '{"text": "fine", "label": "positive"}\n{"text": "x"}\n',
            "row 2 has no 'label'; mend or remove the row",
        ),
        ("rows.jsonl", '{"text": ', "can't be read"),
        ("rows.json", '["positive"]', "has no column 'label' (it has text)"),
        ("rows.parquet", "not parquet", "can't be read"),
    ],
)
def test_unfit_data_is_a_sentence(folder: Path, name: str, content: str, sentence: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(ConfigError) as caught:
        deal(load(folder, spec(data={"path": name})), folder / "cache")
    assert str(folder / name) in str(caught.value)
    assert sentence in str(caught.value)


RECORDS = [
    {"text": "two\nlines, really", "label": "positive"},
    {"text": "NA", "label": "negative"},
    {"text": "true", "label": "positive"},
]


def written(part: Part, folder: Path) -> list[tuple[str, str]]:
    """Texts and labels as a node finds them."""
    part.write(folder / "part.parquet")
    return [(row["text"], row["label"]) for row in parquet.read_table(folder / "part.parquet").to_pylist()]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'text,label\n"two\nlines, really",positive\nNA,negative\ntrue,positive\n'),
        ("a.jsonl", "\n".join(map(json.dumps, RECORDS)) + "\n"),
        ("a.json", json.dumps(RECORDS)),
    ],
)
def test_formats_agree(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    dealt = deal(
        load(folder, spec(data={"path": name, "test_rows": 1}, nodes=1, topology="isolated")), folder / "cache"
    )
    rows = written(dealt.test, folder) + written(dealt.shares[0], folder)
    assert sorted(rows) == [("NA", "negative"), ("true", "positive"), ("two\nlines, really", "positive")]


def test_laid_out_nodes_know_their_neighbours_only(folder: Path) -> None:
    loaded = load(
        folder,
        spec(learning_rates={"lora": 1e-3}, overrides={"node-3": {"training": {"slowdown": 4, "learning_rate": 0.01}}}),
    )
    shares = dict(zip(loaded.names, deal(loaded, folder / "cache").shares, strict=True))
    plan = RunPlan("federated", "lora", "lora", folder / "out" / "lora", shares, loaded.graph)
    setups = lay_out(loaded, plan, folder)
    configs = [load_config(setup.config) for setup in setups]

    assert [setup.peers for setup in setups[:2]] == [["node-2", "node-5"], ["node-1", "node-3"]]
    for setup, config in zip(setups, configs, strict=True):
        assert sorted(path.stem for path in config.peers_dir.iterdir()) == setup.peers
        assert sum(setup.class_counts.values()) == setup.rows == 30
        assert config.data.path is not None
        assert (
            parquet.read_table(config.data.path).to_pylist()
            == shares[setup.name].rows.table.select(shares[setup.name].numbers).to_list()
        )
        assert config.federation.rule == "lora"
        assert config.training.record_vectors
    assert len({config.listen for config in configs}) == 5
    assert [config.learning_rate for config in configs] == [0.001, 0.001, 0.01, 0.001, 0.001]
    assert [config.training.slowdown for config in configs] == [1, 1, 4, 1, 1]


def test_a_pooled_node_sees_as_many_rows_as_the_federation(folder: Path) -> None:
    loaded = load(folder, spec(training={"batch_size": 6}))
    one = load(folder, spec(nodes=1, topology="isolated")).graph
    plan = RunPlan("pooled", "pooled", "lora", folder / "out", {"pooled": deal(loaded, folder / "cache").pool}, one)
    (setup,) = lay_out(loaded, plan, folder)
    config = load_config(setup.config)
    assert (setup.peers, setup.rows, config.training.batch_size) == ([], 150, 30)
    assert not config.training.record_vectors


def test_any_column_can_stand_for_classes(folder: Path) -> None:
    rows = [{"text": f"text {i}", "ward": i % 3} for i in range(60)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {"path": "rows.jsonl", "test_rows": 15, "partition": "by-label", "partition_by": "ward"}
    dealt = deal(load(folder, spec(task={"type": "causal-lm"}, data=data, nodes=3)), folder / "cache")
    assert dealt.test.class_counts == {"0": 5, "1": 5, "2": 5}
    assert [sorted(share.class_counts.values()) for share in dealt.shares] == [[0, 0, 15]] * 3

    free = {"path": "rows.jsonl", "test_rows": 15}
    dealt = deal(load(folder, spec(task={"type": "causal-lm"}, data=free, nodes=3)), folder / "cache")
    assert [(len(share), share.class_counts) for share in dealt.shares] == [(15, {})] * 3


def test_images_and_the_names_of_their_classes_reach_the_nodes(folder: Path) -> None:
    """From a folder of images: what a node reads of its share is what lay in the folder."""
    for label, shade in (("dark", 10), ("light", 240)):
        (folder / "images" / label).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (4, 4), (shade, i, 0)).save(folder / "images" / label / f"{i}.png")
    task = {"type": "image-classification", "labels": ["light", "dark"]}
    data = {"path": "images", "test_rows": 4, "partition": "by-label"}
    dealt = deal(load(folder, spec(task=task, data=data, nodes=2)), folder / "cache")
    assert dealt.test.class_counts == {"light": 2, "dark": 2}
    for share, (label, shade) in zip(dealt.shares, (("light", 240), ("dark", 10)), strict=True):
        share.write(folder / "share.parquet")
        rows = read_file(folder / "share.parquet", ["label"], ["image"], folder / f"cache-{label}", streaming=False)
        names = class_names(rows)["label"]
        assert {names.int2str(row["label"]) for row in rows} == {label}
        assert {row["image"].getpixel((0, 0))[0] for row in rows} == {shade}
