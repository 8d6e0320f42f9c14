"""The trainer process: builds the model, tells the daemon, and runs a Hugging Face Trainer with the gossip callback."""

import hashlib
import signal
import socket
import sys
from pathlib import Path

import torch
import transformers
from peft.optimizers import create_loraplus_optimizer

from conlora.config import NodeConfig
from conlora.errors import ConLoRAError, RankLost
from conlora.training.arena import Arena
from conlora.training.callback import GossipCallback, ThrottleCallback
from conlora.training.channel import Channel
from conlora.training.data import Data, load_data
from conlora.training.gossip import Gossip
from conlora.training.launcher import all_ranks
from conlora.training.messages import Failed, Finished, Layout, Ready, Setup
from conlora.training.model import Built, build_model
from conlora.training.quiet import quiet_libraries
from conlora.training.saving import NodeTrainer


def main(channel_descriptor: int, memory: int) -> None:
    """Runs one trainer from Setup to Finished. A user's mistake is told to the daemon; anything else ends in a traceback."""
    # Signals are for the daemon, which ends this process in good order; a terminal or systemd sends them to both.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=channel_descriptor))
    setup = channel.expect(Setup)
    try:
        with all_ranks(setup, channel) as channel.ranks:
            complete = run(channel, setup, memory)
    except RankLost as error:
        sys.exit(str(error))  # a death like any other, after which the daemon starts a new trainer
    except ConLoRAError as error:
        channel.send(Failed(message=str(error), exit_code=error.exit_code))
        sys.exit(error.exit_code)
    channel.send(Finished(complete=complete))


def run(channel: Channel, setup: Setup, memory: int | None) -> bool:
    """Builds, and trains; returns whether all rounds are done. memory: None on ranks other than 0. Raises ConLoRAError."""
    channel.paused, channel.absent = setup.paused, setup.absent
    config = NodeConfig.model_validate(setup.config)
    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    quiet_libraries()
    seed = local_seed(config)
    transformers.set_seed(seed)
    built = channel.ranks.together(lambda: build_model(config))
    data = channel.ranks.after_first(lambda: load_data(config.data, built.task, config.state_dir / "datasets", seed))
    channel.send(
        Ready(
            fingerprint=built.fingerprint,
            peft=built.peft,
            adapter_schema=built.adapter.schema.to_json(),
            shared_schema=built.shared.to_json(),
        )
    )
    layout = channel.expect(Layout)
    arena = Arena(memory, built.shared.size) if memory is not None else None
    if setup.round >= config.training.rounds:
        return True
    gossip = Gossip(
        built,
        arena,
        channel,
        screen=config.mixing.screen(),
        publish=layout.publish,
        local_steps=config.training.local_steps,
        rounds_mixed=setup.round,
        step=setup.step,
    )
    return train(config, setup, built, data, gossip)


def train(config: NodeConfig, setup: Setup, built: Built, data: Data, gossip: Gossip) -> bool:
    """Trains to the configured round, or until the daemon says stop; returns whether all rounds are done."""
    training, channel = config.training, gossip.channel
    callbacks: list[transformers.TrainerCallback] = [
        GossipCallback(
            gossip,
            built.task.figures,
            evaluate_every=training.evaluate_every,
            checkpoint_every=training.checkpoint_every,
        )
    ]
    if training.slowdown > 1:
        callbacks.insert(0, ThrottleCallback(channel, training.slowdown))
    trainer = NodeTrainer(
        gossip,
        model=built.model,
        args=arguments(config, Path(setup.staging)),
        train_dataset=data.train,
        eval_dataset=data.evaluation,
        data_collator=built.task.collator(),
        compute_metrics=built.task.metrics,
        preprocess_logits_for_metrics=built.task.reduce,
        compute_loss_func=built.task.loss,
        callbacks=callbacks,
        optimizers=(_optimizer(config, built), None),
    )
    gossip.stand_still(setup.step)
    if channel.stopping:
        return False
    trainer.train(resume_from_checkpoint=setup.resume_from)
    return gossip.rounds_mixed >= training.rounds


def _optimizer(config: NodeConfig, built: Built) -> torch.optim.Optimizer | None:
    """LoRA+'s, where it is asked for; None: the Trainer's own."""
    ratio = config.lora.plus_ratio
    if ratio is None:
        return None
    # lr: of A and of heads; B's is larger by the ratio. embedding lr: there are no adapters on embeddings.
    optimizer: torch.optim.Optimizer = create_loraplus_optimizer(
        built.model, torch.optim.AdamW, lr=config.learning_rate, loraplus_lr_ratio=ratio,
        loraplus_weight_decay=config.training.weight_decay,
    )  # fmt: skip
    return optimizer


def local_seed(config: NodeConfig) -> int:
    """Seed of shuffling and dropout: repeatable, and different on every node."""
    text = f"{config.federation.seed}/{config.name}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def arguments(config: NodeConfig, staging: Path) -> transformers.TrainingArguments:
    """The configuration in the words of transformers. staging: where the Trainer writes checkpoints."""
    training = config.training
    return transformers.TrainingArguments(
        output_dir=str(staging),
        max_steps=training.rounds * training.local_steps,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=max(32, training.batch_size),
        gradient_accumulation_steps=training.gradient_accumulation,
        activation_checkpointing=training.activation_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        bf16=config.precision == "bfloat16",
        fp16=config.precision == "float16",
        learning_rate=config.learning_rate,
        lr_scheduler_type=training.lr_scheduler,
        weight_decay=training.weight_decay,
        seed=local_seed(config),
        # gloo, with which several processes meet where there is no CUDA, is for the CPU
        use_cpu=training.device == "cpu"
        or not (torch.cuda if training.processes > 1 else torch.accelerator).is_available(),
        dataloader_pin_memory=torch.cuda.is_available() and training.device != "cpu",
        # The callback decides when; these only keep the Trainer from deciding too.
        logging_strategy="steps",
        logging_steps=training.local_steps,
        eval_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        label_names=["labels"],
        remove_unused_columns=False,  # rows have what their task has put there
    )
