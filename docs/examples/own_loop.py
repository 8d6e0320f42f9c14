"""A training loop of one's own in plain PyTorch, made decentralised: `python own_loop.py NODE ROWS.csv`.

NODE is the directory of a node whose daemon runs with `task: {type: guest}`; ROWS.csv has columns text and label (0 or 1).
"""

import csv
import random
import sys

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import conlora

with open(sys.argv[2], newline="") as file:
    rows = [(row["text"], int(row["label"])) for row in csv.DictReader(file)]

with conlora.join(sys.argv[1]) as node:  # 1
    base = node.config.model.base
    tokenizer = AutoTokenizer.from_pretrained(base)
    model, told = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2, output_loading_info=True)
    model = node.adapt(model, fresh=told["missing_keys"])  # 2: the head is new

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=node.config.learning_rate)
    model.train()
    while not node.finished:
        texts, labels = zip(*random.sample(rows, 8), strict=True)
        batch = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        loss = model(**batch, labels=torch.tensor(labels)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        node.step(loss.item())  # 3
