"""Every configuration in docs/how-to/tasks.md, as it stands there, trains a node on rows of the kind that it is about."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from tests.contract.test_docs import ROOT, blocks
from tests.daemons import Daemons
from tests.families import make_base

EXAMPLES = [yaml.safe_load(text) for kind, text in blocks(ROOT / "docs" / "how-to" / "tasks.md") if kind == "yaml"]
BASES = {
    "text-classification": "bert",
    "token-classification": "bert",
    "causal-lm": "llama",
    "seq2seq": "t5",
    "image-classification": "vit",
    "image-text-matching": "clip-matches",
    "image-text-to-text": "llava",
    "custom": "bert",
}
CHAT = "{% for message in messages %}{{ message['role'] + ' ' + message['content'] + ' [SEP] ' }}{% endfor %}"
SENTENCE = "the film was good"


def title(example: dict[str, Any]) -> str:
    task = example.get("task", {"type": "a larger model"})
    return "-".join(str(value) for value in task.values() if isinstance(value, str))


@pytest.mark.usefixtures("forks")
@pytest.mark.parametrize("example", EXAMPLES, ids=title)
def test_an_example_trains_as_it_stands(example: dict[str, Any], daemons: Daemons, tmp_path: Path) -> None:
    task = example.get("task", {"type": "causal-lm"})
    base = make_base(BASES[task["type"]], tmp_path / "base")
    if "messages_column" in task:
        settings = json.loads((base / "tokenizer_config.json").read_text())
        (base / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": CHAT}))
    data = example.get("data", {"path": "rows.jsonl"})
    node = daemons.make("a", task=task, data=data, model=example.get("model", {}) | {"base": str(base)})
    node.config["training"] = {"batch_size": 4, **example.get("training", {}), "rounds": 1, "local_steps": 2}
    node.write()
    write_rows(node.directory / data["path"], task)
    node.start()
    status = node.wait_for(lambda status: status.state == "finished", "finishes")
    assert status.evaluation.keys() > {"loss"}


def write_rows(path: Path, task: dict[str, Any]) -> None:
    """24 rows with all columns that the examples name, or a folder of images."""
    images = path if not path.suffix else path.parent / "images"
    labels = task.get("labels", ["cat", "dog"])
    rows = []
    for i in range(24):
        image = images / labels[i % 2] / f"{i}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (10 * i, 0, 0)).save(image)
        talk = [{"role": "user", "content": "the day"}, {"role": "assistant", "content": "was bad"}]
        texts = dict.fromkeys(("text", "question", "answer", "report", "summary", "caption", "words"), SENTENCE)
        tags = " ".join(["O", labels[-1], "O", "O"])
        rows.append(
            {**texts, "image": str(image.relative_to(path.parent)), "label": labels[i % 2], "urgency": i % 10}
            | {"tags": tags, "messages": talk}
        )
    if path.suffix == ".csv":
        lines = [",".join(("image", "caption")), *(f"{row['image']},{row['caption']}" for row in rows)]
        path.write_text("\n".join(lines))
    elif path.suffix:
        path.write_text("\n".join(map(json.dumps, [row | {"text": " ".join([SENTENCE] * 99)} for row in rows])))
