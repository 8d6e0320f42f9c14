"""Supervised fine-tuning with TRL's SFTTrainer, made decentralised: `python sft.py NODE ROWS.jsonl`.

NODE is the directory of a node whose daemon runs with `task: {type: guest}`; each row of ROWS.jsonl has a `prompt` and a
`completion`, which is learnt. Needs `pip install trl`.
"""

import sys
import tempfile

import torch
from datasets import load_dataset
from peft import TaskType
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

import conlora

node = conlora.join(sys.argv[1])  # 1
base = node.config.model.base
model = node.adapt(AutoModelForCausalLM.from_pretrained(base), peft_type=TaskType.CAUSAL_LM)  # 2

with tempfile.TemporaryDirectory() as output:
    SFTTrainer(
        model=model,
        processing_class=AutoTokenizer.from_pretrained(base),
        args=SFTConfig(
            output,
            max_steps=100_000,  # the node says when the run is over
            per_device_train_batch_size=4,
            learning_rate=node.config.learning_rate,
            lr_scheduler_type="constant",
            max_length=128,
            bf16=torch.cuda.is_available(),
            logging_steps=node.config.training.local_steps,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=load_dataset("json", data_files=sys.argv[2], split="train", cache_dir=output),
        callbacks=[node.callback()],  # 3
    ).train()
