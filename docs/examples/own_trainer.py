"""A script with a Hugging Face Trainer of one's own, made decentralised: `python own_trainer.py NODE ROWS.csv`.

NODE is the directory of a node whose daemon runs with `task: {type: guest}`; ROWS.csv has columns text and label (0 or 1).
"""

import sys
import tempfile

from datasets import load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

import conlora

node = conlora.join(sys.argv[1])  # 1
base = node.config.model.base
tokenizer = AutoTokenizer.from_pretrained(base)
model, told = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2, output_loading_info=True)
model = node.adapt(model, fresh=told["missing_keys"])  # 2: the head is new

with tempfile.TemporaryDirectory() as output:
    rows = load_dataset("csv", data_files=sys.argv[2], split="train", cache_dir=output)
    rows = rows.map(lambda row: tokenizer(row["text"], truncation=True), remove_columns=["text"])
    Trainer(
        model=model,
        args=TrainingArguments(
            output,
            max_steps=100_000,  # the node says when the run is over
            per_device_train_batch_size=8,
            learning_rate=node.config.learning_rate,
            lr_scheduler_type="constant",
            average_tokens_across_devices=False,  # with several processes: rows are counted here
            logging_steps=node.config.training.local_steps,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=rows,
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[node.callback()],  # 3
    ).train()
