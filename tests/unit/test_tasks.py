"""What each task makes of rows: which tokens are learnt, how texts are packed, what metrics count."""

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.families import FAMILIES, WORDS, make_base, make_data
from transformers import EvalPrediction
from transformers.trainer_pt_utils import nested_concat, nested_numpify

from conlora.config import NodeConfig
from conlora.errors import ConfigError
from conlora.training.data import load_data
from conlora.training.tasks import Task, task_of
from conlora.training.tasks.base import IGNORED

CHAT = (
    "{% for message in messages %}{{ message['role'] + ' ' + message['content'] + ' [SEP] ' }}{% endfor %}"
    "{{ 'assistant ' if add_generation_prompt else '' }}"
)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {
        name: make_base(name, tmp_path_factory.mktemp(name)) for name in ("llama", "bert", "vit", "t5", "clip-matches")
    }
    path = made["llama"] / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": CHAT}))
    return made


def config(base: Path, task: dict[str, Any], **data: Any) -> NodeConfig:
    return NodeConfig.model_validate(
        {"name": "n", "model": {"base": str(base)}, "task": task, "data": data or {"hub": "unused"}}
    )


def words(row: dict[str, Any], learnt: bool = False) -> str:
    ids = [t for t in row["labels"] if t != IGNORED] if learnt else row["input_ids"]
    return " ".join(WORDS[i] for i in ids)


def test_a_plain_text_is_learnt_whole_with_its_end(bases: dict[str, Path]) -> None:
    task = task_of(config(bases["llama"], {"type": "causal-lm"}))
    row = task.encode({"text": "the film was good"})
    assert words(row) == "[CLS] the film was good [SEP]"
    assert words(row, learnt=True) == "the film was good [SEP]"
    cut = task_of(config(bases["llama"], {"type": "causal-lm", "max_length": 3})).encode({"text": "the film was good"})
    assert words(cut) == "[CLS] the film"


def test_a_prompt_is_read_and_what_follows_is_learnt(bases: dict[str, Path]) -> None:
    task = task_of(config(bases["llama"], {"type": "causal-lm", "prompt_column": "ask", "text_column": "say"}))
    assert task.columns() == ["say", "ask"]
    row = task.encode({"ask": "the film was", "say": "good"})
    assert words(row) == "[CLS] the film was good [SEP]"
    assert words(row, learnt=True) == "good [SEP]"
    short = {"type": "causal-lm", "prompt_column": "ask", "text_column": "say", "max_length": 4}
    with pytest.raises(ConfigError, match=r"its first 4 tokens hold nothing to learn; raise task\.max_length"):
        task_of(config(bases["llama"], short)).encode({"ask": "the film was", "say": "good"})


def test_of_a_conversation_what_the_assistant_says_is_learnt(bases: dict[str, Path]) -> None:
    task = task_of(config(bases["llama"], {"type": "causal-lm", "messages_column": "talk"}))
    talk = [("user", "the film"), ("assistant", "was good"), ("user", "the day"), ("assistant", "was bad")]
    row = task.encode({"talk": [{"role": role, "content": content} for role, content in talk]})
    assert words(row, learnt=True).replace("[CLS] ", "") == "was good [SEP] was bad [SEP]"
    for wrong in ("the film", [{"role": "user"}], None):
        with pytest.raises(ConfigError, match="messages have to be a list"):
            task.encode({"talk": wrong})


def test_conversations_need_a_template(bases: dict[str, Path]) -> None:
    with pytest.raises(
        ConfigError, match="has no chat template; choose a base that was made for conversations, or use text"
    ):
        task_of(config(bases["bert"], {"type": "causal-lm", "messages_column": "talk"}))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(2, 7))
def test_packing_loses_less_than_a_block_and_keeps_the_order(lengths: list[int], block: int) -> None:
    task = packing(block)
    rows = [{key: list(range(n)) for key in ("input_ids", "attention_mask", "labels")} for n in lengths]
    joined = [i for row in rows for i in row["input_ids"]]
    if len(joined) < block:
        with pytest.raises(ConfigError, match=r"fewer than task\.max_length"):
            task.arrange(rows)
        return
    packed = task.arrange(rows)
    assert all(len(row[key]) == block for row in packed for key in row)
    flat = [i for row in packed for i in row["input_ids"]]
    assert flat == joined[: len(flat)]
    assert len(joined) - len(flat) < block


LLAMA: list[Path] = []


@cache
def packing(block: int) -> Task:
    return task_of(config(LLAMA[0], {"type": "causal-lm", "packing": True, "max_length": block}))


@pytest.fixture(scope="module", autouse=True)
def _llama_for_hypothesis(bases: dict[str, Path]) -> None:
    LLAMA[:] = [bases["llama"]]


def test_a_words_tag_is_that_of_its_first_token_and_f1_counts_whole_entities(bases: dict[str, Path]) -> None:
    labels = ["O", "B-A", "I-A", "B-B", "I-B"]
    task = task_of(config(bases["bert"], {"type": "token-classification", "labels": labels}))
    row = task.encode({"words": "the film was good", "tags": ["O", "B-A", "O", "O"]})
    assert row["labels"] == [IGNORED, 0, 1, 0, 0, IGNORED]
    row = task.encode({"words": ["film-day", "was"], "tags": ["B-A", "O"]})
    assert row["labels"] == [IGNORED, 1, IGNORED, IGNORED, 0, IGNORED], "film, -, day and was"
    with pytest.raises(ConfigError, match="3 words have 2 tags"):
        task.encode({"words": ["the", "film", "was"], "tags": "O O"})
    truth = np.array([[1, 2, 0, 3, 4, IGNORED], [1, 1, 2, 0, 0, 0]])
    told = np.array([[1, 2, 0, 3, 0, 4], [1, 1, 2, 2, 0, 0]])
    figures = task.metrics(EvalPrediction(predictions=told, label_ids=truth))
    assert figures["accuracy"] == pytest.approx(9 / 11)
    # truth: A, B | A, A; told: A, shorter B | A, longer A: two of four right
    assert figures["f1"] == pytest.approx(0.5)


@pytest.mark.parametrize(("base", "kind", "shift"), [("llama", "causal-lm", 1), ("t5", "seq2seq", 0)])
def test_perplexity_and_accuracy_are_of_all_tokens_that_are_learnt(
    base: str, kind: str, shift: int, bases: dict[str, Path]
) -> None:
    """Against a loop over tokens, from two batches of different lengths as the Trainer joins them."""
    task = task_of(config(bases[base], {"type": kind}))
    generator = torch.Generator().manual_seed(3)
    told, truth, surprise, right = [], [], [], []
    for rows, length in ((3, 5), (2, 7)):
        logits = torch.randn(rows, length, 11, generator=generator)
        labels = torch.randint(0, 11, (rows, length), generator=generator)
        labels[:, :2] = IGNORED
        labels[0, -2:] = IGNORED
        told.append(task.reduce(logits, labels))
        truth.append(labels)
        for row, place in (labels != IGNORED).nonzero():
            guess = logits[row, place - shift]
            surprise.append(-float(torch.log_softmax(guess, 0)[labels[row, place]]))
            right.append(int(guess.argmax()) == labels[row, place])
    joined = tuple(nested_numpify(nested_concat(*parts)) for parts in zip(*told, strict=True))
    prediction = EvalPrediction(predictions=joined, label_ids=nested_numpify(nested_concat(*truth)))
    assert task.metrics(prediction) == {
        "perplexity": pytest.approx(np.exp(np.mean(surprise)), rel=1e-5),
        "accuracy": pytest.approx(np.mean(right)),
    }
    nothing = np.full_like(prediction.label_ids, IGNORED)
    assert task.metrics(EvalPrediction(predictions=joined, label_ids=nothing)) == {}


def test_equal_texts_of_a_batch_count_as_one(bases: dict[str, Path]) -> None:
    task = task_of(config(bases["clip-matches"], {"type": "image-text-matching"}))
    pixels = np.zeros((3, 16, 16), np.float32)
    rows = [
        {"input_ids": ids, "attention_mask": [1] * len(ids), "pixel_values": pixels} for ids in ([1, 2], [3], [1, 2])
    ]
    labels = task.collator()(rows)["labels"]
    assert labels.tolist() == [0, 1, 0]
    logits = torch.tensor([[0.0, 1.0, 2.0], [0.0, 2.0, 1.0], [0.0, 2.0, 1.0]])  # the third image gets the second's text
    told = task.reduce((logits, None), labels)
    metrics = task.metrics(EvalPrediction(predictions=told.numpy(), label_ids=labels.numpy()))
    assert metrics == {"accuracy": pytest.approx(2 / 3)}


@pytest.mark.parametrize("kind", ["folder", "jsonl", "csv", "parquet"])
def test_images_come_from_folders_paths_and_tables(kind: str, bases: dict[str, Path], tmp_path: Path) -> None:
    import datasets

    task, folder = make_data("image-classification", tmp_path)
    source = folder
    if kind == "jsonl":
        source = tmp_path / "rows.jsonl"
        paths = sorted(folder.glob("*/*.png"))
        rows = [{"image": str(p.relative_to(tmp_path)), "label": p.parent.name} for p in paths]
        source.write_text("\n".join(map(json.dumps, rows)))
    elif kind == "csv":
        source = tmp_path / "rows.csv"
        names = [f"{p.relative_to(tmp_path)},{p.parent.name}" for p in sorted(folder.glob("*/*.png"))]
        source.write_text("\n".join(["image,label", *names]))
    elif kind == "parquet":
        source = tmp_path / "rows.parquet"
        datasets.load_dataset(
            "imagefolder", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "c")
        ).to_parquet(source)
    made = config(bases["vit"], task, path=str(source))
    data = load_data(made.data, task_of(made), tmp_path / "cache", seed=1)
    assert (len(data.train), len(data.evaluation)) == (22, 2)
    rows = [data.train[i] for i in range(22)]
    assert {row["pixel_values"].shape for row in rows} == {(3, 16, 16)}
    shades = {
        label: np.mean([row["pixel_values"].mean() for row in rows if row["labels"] == label]) for label in (0, 1)
    }
    assert shades[0] < 0 < shades[1], "dark is the first label, light the second"


def test_an_image_that_is_gone_is_named_by_its_row(bases: dict[str, Path], tmp_path: Path) -> None:
    task, folder = make_data("image-classification", tmp_path)
    paths = sorted(path.relative_to(tmp_path) for path in folder.glob("*/*.png"))
    (tmp_path / "rows.jsonl").write_text(
        "\n".join(json.dumps({"image": str(path), "label": path.parent.name}) for path in paths)
    )
    made = config(bases["vit"], task, path=str(tmp_path / "rows.jsonl"), evaluation_path=str(tmp_path / "rows.jsonl"))
    data = load_data(made.data, task_of(made), tmp_path / "cache", seed=1)
    (tmp_path / paths[4]).unlink()
    (tmp_path / paths[5]).write_text("no image")
    for number in (4, 5):
        with pytest.raises(ConfigError, match=rf"rows.jsonl, row {number + 1}: .*; mend or remove the row"):
            [data.train[i] for i in range(number, number + 1)]


def test_a_stream_is_read_as_it_is_needed(bases: dict[str, Path], tmp_path: Path) -> None:
    task, rows = make_data("text-classification", tmp_path)
    made = config(bases["bert"], task, path=str(rows), evaluation_path=str(rows), streaming=True)
    data = load_data(made.data, task_of(made), tmp_path / "cache", seed=1)
    seen = list(data.train)
    assert len(seen) == 24
    assert set(seen[0]) == {"input_ids", "attention_mask", "labels"}
    assert [row["input_ids"] for row in seen] != [row["input_ids"] for row in data.evaluation], "shuffled"
    with pytest.raises(ValueError, match="streaming can't hold out"):
        config(bases["bert"], task, path=str(rows), streaming=True)


def test_a_bad_row_is_named_by_its_number_in_the_file(bases: dict[str, Path], tmp_path: Path) -> None:
    task, rows = make_data("text-classification", tmp_path)
    lines = rows.read_text().split("\n")
    lines[16] = json.dumps({"text": "the film", "label": "meh"})
    rows.write_text("\n".join(lines))
    made = config(bases["bert"], task, path=str(rows))
    for seed in range(3):  # however rows are held out
        with pytest.raises(ConfigError, match=r"rows.jsonl, row 17: label 'meh' is not one of task.labels"):
            load_data(made.data, task_of(made), tmp_path / "cache", seed=seed)


def test_a_task_of_ones_own(bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ours.py").write_text(
        "class Ours:\n    def __init__(self, config):\n        self.options = config.task.options\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    task: Any = task_of(config(bases["bert"], {"type": "custom", "class": "ours:Ours", "options": {"a": 1}}))
    assert task.options == {"a": 1}
    sys.modules.pop("ours")
    for name in ("ours:Theirs", "nowhere:Ours"):
        with pytest.raises(ConfigError, match=rf"task.class: {name} can't be imported"):
            task_of(config(bases["bert"], {"type": "custom", "class": name}))


def test_every_task_is_one_of_a_family() -> None:
    assert {family.task for family in FAMILIES.values()} == {
        "text-classification", "token-classification", "causal-lm", "seq2seq", "image-classification",
        "image-text-matching", "image-text-to-text",
    }  # fmt: skip


@pytest.mark.parametrize(("base", "longest"), [("bert", 512), ("roberta", 511), ("clip-matches", 512)])
def test_more_tokens_than_a_base_has_places_for_is_a_mistake(base: str, longest: int, tmp_path: Path) -> None:
    folder, task = make_base(base, tmp_path), FAMILIES[base].task
    section = {"type": task} | ({"labels": ["+", "-"]} if task == "text-classification" else {})
    task_of(config(folder, section | {"max_length": longest})).base()
    with pytest.raises(ConfigError, match=rf"task\.max_length: {longest + 1} is more than the {longest} tokens that"):
        task_of(config(folder, section | {"max_length": longest + 1})).base()
