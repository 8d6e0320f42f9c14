"""A step's loss and gradients are the same however it is cut, also with a model that leaves that to others, as BERT's."""

from pathlib import Path

import torch
import transformers

from conlora.training.even import EvenTrainer

SMALL = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def trained(folder: Path, batch_size: int, passes: int) -> tuple[float, torch.Tensor]:
    transformers.set_seed(0)
    still = {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
    model = transformers.BertForTokenClassification(transformers.BertConfig(**SMALL, **still))
    rows = [{"input_ids": [i, i + 1, i + 2], "labels": [i % 2, -100, 1 if i % 3 else -100]} for i in range(8)]
    trainer = EvenTrainer(
        model=model,
        args=transformers.TrainingArguments(
            str(folder), max_steps=1, per_device_train_batch_size=batch_size, gradient_accumulation_steps=passes,
            learning_rate=0.1, optim="sgd", max_grad_norm=0, logging_steps=1, use_cpu=True, save_strategy="no",
            report_to="none", disable_tqdm=True, dataloader_pin_memory=False,
        ),
        train_dataset=rows,
    )  # fmt: skip
    trainer.train()
    return trainer.state.log_history[0]["loss"], model.classifier.weight.detach().clone()


def test_passes_make_no_difference(tmp_path: Path) -> None:
    (whole, once), (cut, often) = trained(tmp_path, 8, 1), trained(tmp_path, 2, 4)
    assert abs(whole - cut) < 1e-4
    torch.testing.assert_close(once, often, rtol=0, atol=1e-6)
