"""Shared fixtures: a tiny random model, small data, and the environment that node processes get."""

import csv
import os
import random
import signal
from pathlib import Path

import pytest

from tests.daemons import Daemons

# Where the tests run in the background, these are ignored, by every process that is started too; some are sent on purpose.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here may come from a hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "good",
    "fine",
    "great",
    "bad",
    "awful",
    "sad",
    "the",
    "a",
    "film",
    "day",
    "was",
]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of a few thousand weights, with a word tokenizer: loads and steps in milliseconds."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    directory = tmp_path_factory.mktemp("tiny-model")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32,
    )  # fmt: skip
    BertModel(config).save_pretrained(directory)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 sentences that the tiny model can learn."""
    path = tmp_path_factory.mktemp("tiny-data") / "films.csv"
    draw = random.Random(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for _ in range(600):
            good = draw.random() < 0.5
            word = draw.choice(VOCABULARY[5:8] if good else VOCABULARY[8:11])
            writer.writerow([f"the {draw.choice(['film', 'day'])} was {word}", "positive" if good else "negative"])
    return path


@pytest.fixture
def daemons(tmp_path: Path, tiny_model: Path, tiny_data: Path):
    """Starts real daemons on loopback, and ends them whatever happens."""
    with Daemons(tmp_path, tiny_model, tiny_data) as started:
        yield started
