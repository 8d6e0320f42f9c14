"""Programs that join a node's daemon with MiniLM and train it on tweets; some of them lie about what they have learned."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import conlora
from conlora.core.schema import Schema, Vector
from conlora.training.adapter import Adapter
from conlora.training.joining import Guest

BATCH, MAX_LENGTH = 8, 32
LABELS = ("negative", "positive")
Rows = list[tuple[str, int]]


def sign_flipping() -> Callable[[Vector], None]:
    """Publishes the opposite of what it has learned."""
    return lambda vector: np.negative(vector, out=vector)


def scaling() -> Callable[[Vector], None]:
    """Publishes a hundred times what it has learned."""
    return lambda vector: np.multiply(vector, np.float32(100), out=vector)


def replaying() -> Callable[[Vector], None]:
    """Publishes what it had in the first round for ever."""
    first: list[Vector] = []

    def lie(vector: Vector) -> None:
        first.append(vector.copy())
        vector[:] = first[0]
        del first[1:]

    return lie


ATTACKS = {"sign-flipping": sign_flipping, "scaled by 100": scaling, "stale": replaying}


def read_rows(path: Path) -> Rows:
    """Texts and class numbers of a CSV file with the columns text and label."""
    with path.open(newline="") as file:
        return [(row["text"], LABELS.index(row["label"])) for row in csv.DictReader(file)]


def train(directory: Path, rows: Rows, test: Rows, attack: str | None, seed: int, report: Path) -> None:
    """One program from its joining to its node's last round; writes its model's accuracy on the test rows.

    seed: of the order in which it takes its rows. The learning rate falls to nothing by the last round, so that nodes agree
    in the end: what is left between them is then the liar's doing, and not that of their last steps.
    """
    torch.set_num_threads(1)
    with conlora.join(directory) as guest:
        base = guest.config.model.base
        tokenizer = AutoTokenizer.from_pretrained(base)
        model, told = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2, output_loading_info=True)
        model = guest.adapt(model, fresh=told["missing_keys"])
        if attack:
            _corrupt(guest, ATTACKS[attack]())

        def logits(batch: Rows) -> torch.Tensor:
            texts = [text for text, _ in batch]
            tokens = tokenizer(texts, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
            return model(**tokens).logits

        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], guest.config.learning_rate)
        training = guest.config.training
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, training.rounds * training.local_steps)
        draw = np.random.default_rng(seed)
        while not guest.finished:
            batch = [rows[i] for i in draw.choice(len(rows), BATCH)]
            loss = torch.nn.functional.cross_entropy(logits(batch), torch.tensor([label for _, label in batch]))
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            guest.step(loss.item())
        model.eval()
        with torch.no_grad():
            found = [logits(test[first : first + 50]).argmax(dim=1) for first in range(0, len(test), 50)]
    right = torch.cat(found) == torch.tensor([label for _, label in test])
    report.write_text(json.dumps(right.float().mean().item()))


def _corrupt(guest: Guest, lie: Callable[[Vector], None]) -> None:
    """It trains alone from now on, and publishes something else."""
    adapted = guest._adapted
    assert adapted is not None
    adapter: Adapter = adapted.adapter
    read = adapter.read

    def lying(schema: Schema, into: Vector | None = None) -> Vector:
        vector = read(schema, into)
        lie(vector)
        return vector

    adapter.read = lying  # type: ignore[method-assign]
    adapter.write = lambda schema, vector: None  # type: ignore[method-assign]
