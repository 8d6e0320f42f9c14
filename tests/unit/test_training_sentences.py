"""The sentence for each mistake that shows only once data, model or adapter are looked at: provoked, and read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file
from tests.families import make_base, make_data

from conlora.config import DataSection, NodeConfig
from conlora.errors import ConfigError, StateError
from conlora.training import evaluate
from conlora.training.data import load_data
from conlora.training.merging import merge
from conlora.training.model import build_model
from conlora.training.tasks import task_of


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make_base(name, tmp_path_factory.mktemp(name)) for name in ("bert", "clip-matches", "llava")}


def config(base: Path, task: dict[str, Any], **sections: Any) -> NodeConfig:
    whole = {"name": "n", "model": {"base": str(base)}, "task": task, "data": {"hub": "unused"}, **sections}
    return NodeConfig.model_validate(whole)


CLASSES = {"type": "text-classification", "labels": ["+", "-"]}


def test_lora_settings_that_fit_no_layer(bases: dict[str, Path]) -> None:
    made = config(bases["bert"], CLASSES, lora={"target_modules": ["kuery"]})
    with pytest.raises(
        ConfigError,
        match=r"^lora: these settings don't fit the model \(.*No modules were targeted.*\); correct lora\.target_modules$",
    ):
        build_model(made)


# Data.


@pytest.mark.parametrize(("name", "content"), [("rows.csv", "text,label\n"), ("rows.json", "[]")])
def test_a_stream_without_rows(bases: dict[str, Path], tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    section = DataSection(path=path, evaluation_path=path, streaming=True)
    with pytest.raises(ConfigError, match=rf"^data: {path} has no rows; give a file with rows$"):
        load_data(section, task_of(config(bases["bert"], CLASSES)), tmp_path / "cache", seed=1)


def test_a_row_without_an_image(bases: dict[str, Path], tmp_path: Path) -> None:
    rows = make_data("image-text-matching", tmp_path)[1]
    lines = rows.read_text().split("\n")
    path = tmp_path / "rows.parquet"
    _with_images([json.loads(line) for line in lines[:4]], path, tmp_path, missing=2)
    made = config(bases["clip-matches"], {"type": "image-text-matching"})
    data = load_data(DataSection(path=path, evaluation_path=path), task_of(made), tmp_path / "cache", seed=1)
    assert data.train[1]["pixel_values"].shape == (3, 16, 16)
    with pytest.raises(
        ConfigError,
        match=rf"^data: {path}, row 3: no image that the model can take \(.*NoneType.*\); mend or remove the row$",
    ):
        data.train[2]


def _with_images(rows: list[dict[str, Any]], path: Path, folder: Path, missing: int) -> None:
    import datasets

    images = [None if i == missing else str(folder / row["image"]) for i, row in enumerate(rows)]
    table = datasets.Dataset.from_dict({"text": [row["text"] for row in rows], "image": images})
    table.cast_column("image", datasets.Image()).to_parquet(path)


# Bases that a task can't use.


def test_a_base_that_knows_texts_only(bases: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(bases["bert"], tmp_path / "bert")
    shutil.copy(bases["clip-matches"] / "preprocessor_config.json", folder)
    task = task_of(config(folder, {"type": "image-text-matching"}))
    with pytest.raises(
        ConfigError,
        match=rf"^model\.base: {folder} is no dual encoder of images and texts; choose one such as CLIP or SigLIP$",
    ):
        task.base()


def test_a_template_that_has_no_place_for_an_image(bases: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(bases["llava"], tmp_path / "llava")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(
        ConfigError,
        match=rf"^model\.base: {folder} has no chat template, which says where an image goes; choose a vision-language "
        "model that was made for conversations$",
    ):
        task_of(config(folder, {"type": "image-text-to-text"}))


def test_a_template_that_rewrites_prompts(bases: dict[str, Path], tmp_path: Path) -> None:
    """As one that has only the last message would."""
    folder = shutil.copytree(bases["llava"], tmp_path / "llava")
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("in messages", "in messages[-1:]"))
    task, rows = make_data("image-text-to-text", tmp_path)
    made = config(folder, task)
    data = load_data(DataSection(path=rows, evaluation_path=rows), task_of(made), tmp_path / "cache", seed=1)
    sentence = rf"^data: {rows}, row 1: {folder} has a chat template that rewrites prompts; choose another base$"
    with pytest.raises(ConfigError, match=sentence):
        data.train[0]


def test_a_tokenizer_that_does_not_know_words(tmp_path: Path) -> None:
    transformers.ByT5Tokenizer().save_pretrained(tmp_path)
    with pytest.raises(
        ConfigError,
        match=rf"^model\.base: {tmp_path} has a tokenizer that doesn't say which word a token is of; choose a base with a "
        r"fast tokenizer \(tokenizer\.json\)$",
    ):
        task_of(config(tmp_path, {"type": "token-classification", "labels": ["O", "B-A"]}))


# Adapters: merged, and evaluated.


@pytest.fixture(scope="module")
def adapter(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a node with the BERT exports."""
    folder = tmp_path_factory.mktemp("adapter")
    build_model(config(bases["bert"], CLASSES)).model.save_pretrained(folder)
    return folder


def test_a_guests_model_is_its_programs(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"^task\.type: guest: only your program knows the model; merge there, with PEFT's merge_and_unload\(\)$",
    ):
        merge(config(tmp_path, {"type": "guest"}), tmp_path, tmp_path / "merged")


def test_nothing_is_merged_over(bases: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(StateError, match=rf"^{tmp_path}: exists already; choose another directory$"):
        merge(config(bases["bert"], CLASSES), tmp_path, tmp_path)


def test_what_is_merged_has_to_be_an_adapter_of_the_base(bases: dict[str, Path], adapter: Path, tmp_path: Path) -> None:
    bert = bases["bert"]
    wrong = shutil.copytree(adapter, tmp_path / "wrong")
    path = wrong / "adapter_model.safetensors"
    save_file({name: torch.zeros(1, 1) for name in load_file(path)}, path)
    half = shutil.copytree(adapter, tmp_path / "half")
    (half / path.name).unlink()
    for folder, told in (
        (wrong, rf"no adapter for {bert} \(.*size mismatch.*\); give one of this node"),
        (half, "holds no adapter_model.safetensors; give a directory that `conlora export` has written"),
        (tmp_path / "gone", "holds no adapter_config.json; give a directory that `conlora export` has written"),
    ):
        with pytest.raises(ConfigError, match=rf"^{folder}: {told}$"):
            merge(config(bert, CLASSES), folder, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_what_is_merged_has_to_go_somewhere(bases: dict[str, Path], adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    target = tmp_path / "file" / "merged"
    with pytest.raises(
        StateError,
        match=rf"^{target}: can't be written \(.*Not a directory.*\); free space or choose another directory$",
    ):
        merge(config(bases["bert"], CLASSES), adapter, target)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def lose_the_config(folder: Path) -> str:
    (folder / "adapter_config.json").unlink()
    return "OSError: it has no adapter_config.json"


def lose_a_tensor(folder: Path) -> str:
    path = folder / "adapter_model.safetensors"
    stored = load_file(path)
    name = min(stored)
    save_file({key: value for key, value in stored.items() if key != name}, path)
    return f"ValueError: tensor {name!r} is in the model only"


def be_of_more(folder: Path) -> str:
    path = folder / "adapter_model.safetensors"
    name = "base_model.model.a.lora_A.weight"
    save_file(load_file(path) | {name: torch.zeros(2, 2)}, path)
    return f"ValueError: tensor {name!r} is in the file only"


def be_finer(folder: Path) -> str:
    """Than a model in fp32 can hold."""
    path = folder / "adapter_model.safetensors"
    stored = load_file(path)
    name = next(name for name in stored if "lora_A" in name)
    save_file({**stored, name: stored[name].double() + 1e-12}, path)
    return f"ValueError: tensor {name!r} has other values in the model than in the file"


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
@pytest.mark.parametrize("damage", [lose_the_config, lose_a_tensor, be_of_more, be_finer])
def test_an_adapter_that_does_not_fit_its_model(
    bases: dict[str, Path], adapter: Path, tmp_path: Path, damage: Callable[[Path], str]
) -> None:
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    reason = damage(folder)
    base = task_of(config(bases["bert"], CLASSES)).base().model
    with pytest.raises(ConfigError, match=rf"^{folder}: no adapter for this model \({reason}.*\); export it again$"):
        list(evaluate.exported(base, {"a": folder}))


def test_an_evaluation_ends_with_the_sentence(
    bases: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node, request, nothing = tmp_path / "node.yaml", tmp_path / "request.json", tmp_path / "nothing"
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\ngood,+\nbad,-\n")
    settings = config(bases["bert"], CLASSES).model_dump(mode="json", exclude_none=True)
    node.write_text(yaml.safe_dump(settings | {"data": {"path": str(rows)}}))
    asked = {"config": str(node), "test": str(rows), "adapters": {"a": str(nothing)}, "threads": 1}
    request.write_text(json.dumps(asked))
    threads = torch.get_num_threads()
    assert evaluate.main([str(request)]) == 2
    torch.set_num_threads(threads)
    sentence = f"{nothing}: no adapter for this model (OSError: it has no adapter_config.json); export it again"
    assert capsys.readouterr().err.splitlines()[-1] == sentence


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "FileNotFoundError: "), ("{", "ValidationError: "), ("{}", "config")]
)
def test_a_request_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, reason: str
) -> None:
    path = tmp_path / "request.json"
    if content is not None:
        path.write_text(content)
    assert evaluate.main([str(path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"{path}: not a readable request (")
    assert said.endswith("); see this module's description\n")
    assert reason in said
