"""Takes the adapter home: a checkpoint's adapter as a PEFT directory, with or without a running daemon."""

from pathlib import Path

from conlora import __version__
from conlora.config import NodeConfig
from conlora.config.tasks import LabelledTaskSection
from conlora.errors import StateError
from conlora.store.checkpoints import Checkpoint, CheckpointStore, export_adapter

_README = """\
---
base_model: {base}
library_name: peft
tags: [lora, conlora]
---
# {federation}: a LoRA adapter trained by a federation, with no server in the middle

- base model: `{base}`
- task: {task}
- rule: `{rule}`, mode: `{mode}`, rounds mixed: {round}, federation seed: {seed}
- node: {name}; made by ConLoRA {version}

```python
from peft import PeftModel
from transformers import {auto_class}

base = {auto_class}.from_pretrained("{base}"{head})
model = PeftModel.from_pretrained(base, "PATH OF THIS DIRECTORY")
```
"""


def export(config: NodeConfig, checkpoint: Checkpoint, target: Path, overwrite: bool) -> None:
    """Writes a checkpoint's adapter to `target`. Raises StateError."""
    export_adapter(checkpoint, target, _readme(config, checkpoint), overwrite)


def export_last(config: NodeConfig, target: Path, overwrite: bool) -> int:
    """Writes the last checkpoint's adapter while no daemon runs; returns its round. Raises StateError."""
    newest = last_checkpoint(config)
    export(config, newest, target, overwrite)
    return newest.round


def last_checkpoint(config: NodeConfig) -> Checkpoint:
    """The newest one that is intact. Raises StateError where there is none."""
    store = CheckpointStore(config.state_dir / "checkpoints", config.training.keep_checkpoints)
    newest, damaged = store.newest()
    if newest is None:
        raise StateError(
            damaged[0] if damaged else f"{store.directory}: no checkpoint yet; train first with `conlora run`"
        )
    return newest


def _readme(config: NodeConfig, checkpoint: Checkpoint) -> str:
    federation, task = config.federation, config.task
    labels = task.labels if isinstance(task, LabelledTaskSection) else []
    return _README.format(
        base=config.model.base,
        federation=federation.name,
        task=f"{task.type}; labels in the order of the head's rows: {', '.join(labels)}" if labels else task.type,
        auto_class=task.auto_class,
        head=f", num_labels={len(labels)}" if labels else "",
        rule=federation.rule,
        mode=federation.mode.value,
        round=checkpoint.round,
        seed=federation.seed,
        name=config.name,
        version=__version__,
    )
