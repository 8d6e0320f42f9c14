"""A node's configuration: what is accepted, and the one sentence for each mistake: file, key, remedy."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from conlora.config import NodeConfig, load_config
from conlora.core.gossip import Mode
from conlora.core.robustness import TrimmedMean, Trust
from conlora.core.rules import RULES
from conlora.core.schema import Role, Schema, TensorSpec
from conlora.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rows.csv").write_text("text,label\nfine,positive\n")
    (tmp_path / "rows.xlsx").write_text("no")
    (tmp_path / "model").mkdir()
    return tmp_path


def config(changes: dict[str, Any]) -> dict[str, Any]:
    """A valid configuration with changes by dotted key; `...` removes a key."""
    whole: dict[str, Any] = {
        "name": "mercy",
        "model": {"base": "model"},
        "task": {"labels": ["negative", "positive"]},
        "data": {"path": "rows.csv"},
    }
    for dotted, value in changes.items():
        *parents, key = dotted.split(".")
        section = whole
        for parent in parents:
            section = section.setdefault(parent, {})
        if value is ...:
            del section[key]
        else:
            section[key] = value
    return whole


def load(folder: Path, changes: dict[str, Any] | None = None) -> NodeConfig:
    path = folder / "conlora.yaml"
    path.write_text(yaml.safe_dump(config(changes or {})))
    return load_config(path)


def sentences(folder: Path, changes: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(folder, changes)
    assert caught.value.exit_code == 2
    return str(caught.value).splitlines()


NOBODY = ": there is no such user's home directory; correct the path"

MISTAKES = {
    "unknown key, near": ({"training.local_step": 4}, "training.local_step", "did you mean 'local_steps'?"),
    "unknown key at the top": ({"advertize": "a:1"}, "advertize", "did you mean 'advertise'?"),
    "unknown key, far": ({"lora.zzzzz": 4}, "lora.zzzzz", "remove it, or look it up in docs/reference/"),
    "wrong type": ({"lora.rank": "eight"}, "lora.rank", "'eight'; correct the value"),
    "a section that is no mapping": ({"training": [1]}, "training", "correct the value"),
    "out of range": ({"lora.rank": 0}, "lora.rank", "greater than or equal to 1, got 0"),
    "too few labels": ({"task.labels": ["one"]}, "task.labels", "at least 2 items"),
    "missing key": ({"name": ...}, "name", "missing; add this key"),
    "missing section": ({"task": ...}, "task", "missing; add this key"),
    "missing data file": ({"data.path": "gone.csv"}, "data", "gone.csv does not exist; correct the path"),
    "missing held-out file": ({"data.evaluation_path": "gone.csv"}, "data", "gone.csv does not exist; correct"),
    "unknown data format": (
        {"data.path": "rows.xlsx"},
        "data",
        "rows.xlsx: unknown format '.xlsx'; use one of .csv, .jsonl, ",
    ),
    "two data sources": ({"data.hub": "imdb"}, "data", "give one of path and hub, not both"),
    "no data source": ({"data": {}}, "data", "names no rows; give path or hub"),
    "held out of a file": (
        {"data.evaluation_split": "test"},
        "data",
        "evaluation_split is of a hub data set; give evaluation_path instead",
    ),
    "missing model folder": ({"model.base": "./gone"}, "model", "gone does not exist; give the base model's folder"),
    "unknown rule": (
        {"federation.rule": "loraa"},
        "federation",
        "rule: unknown rule 'loraa'; choose one of lora, freeze-a",
    ),
    "unknown mode": ({"federation.mode": "lockstep"}, "federation.mode", "'async' or 'sync', got 'lockstep'"),
    "unknown scheduler": (
        {"training.lr_scheduler": "fast"},
        "training",
        "lr_scheduler: 'fast' is not one of constant, ",
    ),
    "unknown task": ({"task.type": "chess"}, "task.type", "unknown type 'chess'; choose one of text-classification, "),
    "unknown key of a task": ({"task.max_lenght": 3}, "task.max_lenght", "did you mean 'max_length'?"),
    "too fine for its weights": (
        {"model.dtype": "bfloat16", "training.precision": "float32"},
        "training.precision",
        "set model.dtype to float32",
    ),
    "spread over no GPUs": (
        {"model.device_map": "auto", "training.device": "cpu"},
        "model.device_map",
        "spreads the base over GPUs, but training.device is cpu; leave out one",
    ),
    "spread, and whole on each": (
        {"model.device_map": "auto", "training.processes": 2},
        "model.device_map",
        "spreads one model over GPUs, but training.processes puts a whole one on each; leave out one",
    ),
    "half a byte": ({"model.quantization": "2bit"}, "model.quantization", "'4bit' or '8bit'"),
    "unsound start": (
        {"lora.init": "pissa"},
        "lora.init",
        "nodes would no longer share one base; use kaiming or orthonormal",
    ),
    "dropout of experts": (
        {"lora.target_parameters": ["mlp.experts.down_proj"], "lora.dropout": 0.1},
        "lora",
        "dropout: PEFT has none for target_parameters; leave out one of the two",
    ),
    "a radius of nothing": ({"mixing.radius": 2.0}, "mixing", "radius: goes with robust: clipping; leave it out"),
    "trust in nobody and in one": (
        {"mixing.robust": "clipping", "mixing.rejoin": "adopt"},
        "mixing",
        "rejoin: adopt trusts one neighbour wholly, which robust: clipping is there to prevent; leave one out",
    ),
    "behind in lockstep": (
        {"mixing.rejoin": "adopt", "federation.mode": "sync"},
        "mixing.rejoin",
        "in sync mode neighbours wait for a node that is away, so there is nothing to adopt; leave it out",
    ),
    "no such way back": ({"mixing.rejoin": "ask"}, "mixing.rejoin", "'mix' or 'adopt', got 'ask'"),
    "no such defence": ({"mixing.robust": "krum"}, "mixing.robust", "'clipping' or 'trimmed-mean', got 'krum'"),
    "unknown start": ({"lora.init": "zeros"}, "lora.init", "unknown init 'zeros'; choose one of kaiming, orthonormal"),
    "address without port": ({"advertise": "mercy.example"}, "advertise", "write host:port, such as 0.0.0.0:7443"),
    "address with a scheme": ({"listen": "https://a:1"}, "listen", "write host:port, such as 0.0.0.0:7443"),
    "an admin port without address": (
        {"admin_listen": "7444"},
        "admin_listen",
        "write host:port, such as 0.0.0.0:7443",
    ),
    "a port that is none": ({"advertise": "mercy.example:77443"}, "advertise", "has to be at most 65535"),
    "name with a slash": ({"name": "../mercy"}, "name", "correct the value"),
    "home of nobody": (
        {"state_dir": "~no-such-user/x"},
        "state_dir",
        NOBODY,
    ),
    "model in the home of nobody": (
        {"model.base": "~no-such-user/x"},
        "model",
        NOBODY,
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_with_file_key_and_remedy(folder: Path, mistake: str) -> None:
    changes, key, remedy = MISTAKES[mistake]
    (sentence,) = sentences(folder, changes)
    assert sentence.startswith(f"{folder / 'conlora.yaml'}: {key}: ")
    assert remedy in sentence


def test_each_of_several_mistakes_has_its_own_line(folder: Path) -> None:
    lines = sentences(folder, {"lora.rnk": 1, "training.rounds": "many", "task.labels": ...})
    assert [line.split(": ")[1] for line in lines] == ["lora.rnk", "task.labels", "training.rounds"]


@pytest.mark.parametrize(
    ("content", "remedy"),
    [
        (
            b"name: mercy\nlora: [8\ntask: {}\n",
            ": not valid YAML in line 3 (expected ',' or ']', but got ':'); mend that line",
        ),
        (b"name: mercy\n\tlora: 1\n", "not valid YAML in line 2 "),
        (b"- a\n- b\n", "has to be a YAML mapping of keys to values, not list"),
        (b"", "has to be a YAML mapping of keys to values, not NoneType"),
        (b"just words", "has to be a YAML mapping of keys to values, not str"),
        (b"name: m\xe9rcy\n", "has to be a readable UTF-8 text file"),
        (b"name: mer\x00cy\n", "not valid YAML"),
        (b"name: 2001-13-01\n", "not valid YAML (month must be in 1..12); mend that value, or quote it"),
    ],
)
def test_a_file_that_is_no_yaml_mapping(tmp_path: Path, content: bytes, remedy: str) -> None:
    path = tmp_path / "conlora.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_tells_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: no such file; `conlora init DIR`"):
        load_config(tmp_path / "gone.yaml")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has to be a readable UTF-8 text file"):
        load_config(tmp_path)


@given(content=st.text(alphabet="name: [{lora}]-&*!#|>'\"\t\n12") | st.binary(max_size=60))
def test_whatever_is_in_the_file_the_error_is_ours(tmp_path_factory: pytest.TempPathFactory, content: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with contextlib.suppress(ConfigError):
        load_config(path)


def test_relative_paths_are_relative_to_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    path = folder / "conlora.yaml"
    path.write_text(yaml.safe_dump(config({"state_dir": "s/t", "admin_socket": "a.sock"})))
    monkeypatch.chdir(elsewhere)
    loaded = load_config(Path("../conlora.yaml"))
    assert loaded.state_dir == folder / "s" / "t"
    assert loaded.admin_path == folder / "a.sock"
    assert loaded.data.path == folder / "rows.csv"
    assert loaded.model.base == str(folder / "model")
    assert loaded.identity_dir == folder / "identity"  # defaults too
    assert loaded.peers_dir == folder / "peers"


def test_absolute_and_home_paths_stay(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/mercy")
    loaded = load(folder, {"state_dir": "/var/lib/conlora", "peers_dir": "~/peers"})
    assert loaded.state_dir == Path("/var/lib/conlora")
    assert loaded.admin_path == Path("/var/lib/conlora/admin.sock")
    assert loaded.peers_dir == Path("/home/mercy/peers")


def test_a_hub_id_is_left_alone(folder: Path) -> None:
    assert load(folder, {"model.base": "microsoft/MiniLM-L12"}).model.base == "microsoft/MiniLM-L12"


@pytest.mark.parametrize("address", ["0.0.0.0:7443", "mercy.example.org:1", "[::1]:7443"])
def test_addresses(folder: Path, address: str) -> None:
    assert load(folder, {"listen": address, "advertise": address}).advertise == address


@pytest.mark.parametrize(
    ("given", "meant"),
    [(9464, "127.0.0.1:9464"), ("9464", "127.0.0.1:9464"), ("0.0.0.0:9464", "0.0.0.0:9464"), ("[::]:1", "[::]:1")],
)
def test_metrics_stay_on_this_machine_unless_a_host_is_given(folder: Path, given: Any, meant: str) -> None:
    assert load(folder, {"observing.metrics": given}).observing.metrics == meant


@pytest.mark.parametrize("given", [True, 65536, -1, "", ":9464", "host", 1.5])
def test_other_addresses_of_metrics(folder: Path, given: Any) -> None:
    (sentence,) = sentences(folder, {"observing.metrics": given})
    assert "observing.metrics" in sentence


@pytest.mark.parametrize("rule", RULES)
def test_the_learning_rate_is_the_rules_unless_given(folder: Path, rule: str) -> None:
    assert load(folder, {"federation.rule": rule}).learning_rate == RULES[rule].default_learning_rate
    assert load(folder, {"federation.rule": rule, "training.learning_rate": 0.125}).learning_rate == 0.125


def test_the_defence_is_the_one_that_is_named(folder: Path) -> None:
    assert isinstance(load(folder).mixing.screen(), Trust)
    assert isinstance(load(folder, {"mixing.robust": "trimmed-mean"}).mixing.screen(), TrimmedMean)
    assert load(folder, {"mixing.robust": "clipping"}).mixing.screen().radius is None
    assert load(folder, {"mixing.robust": "clipping", "mixing.radius": 2.5}).mixing.screen().radius == 2.5


def test_rules_differ_in_their_learning_rate() -> None:
    assert RULES["freeze-a"].default_learning_rate > RULES["lora"].default_learning_rate


def test_what_is_written_back_reads_the_same(folder: Path) -> None:
    """The daemon hands its configuration to the trainer this way."""
    loaded = load(folder, {"federation.mode": "sync", "lora.target_modules": ["query"]})
    assert NodeConfig.model_validate(loaded.model_dump(mode="json")) == loaded


def test_settings_that_peers_compare(folder: Path) -> None:
    schema = Schema((TensorSpec("q.lora_B.weight", "q", Role.B, (2, 1)),))
    changes = {"federation.name": "f", "federation.seed": 7, "federation.mode": "sync", "training.local_steps": 3}
    settings = load(folder, changes).settings("print", "peft", schema)
    assert settings.federation == "f"
    assert settings.base_model_fingerprint == "print"
    assert settings.peft == "peft"
    assert settings.seed == 7
    assert settings.rule == "freeze-a"
    assert settings.mode == Mode.SYNC
    assert settings.local_steps == 3
    assert settings.task == '{"labels": ["negative", "positive"], "type": "text-classification"}'
    assert settings.schema == schema.digest
