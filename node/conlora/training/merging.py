"""Merges an adapter into its base: full weights that load without PEFT."""

import shutil
from functools import partial
from pathlib import Path

from peft import PeftModel
from safetensors import SafetensorError

from conlora.config import NodeConfig
from conlora.errors import ConfigError, StateError
from conlora.training.conversion import converted
from conlora.training.fingerprint import fingerprint
from conlora.training.quiet import quiet_libraries
from conlora.training.tasks import task_of

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def merge(config: NodeConfig, adapter: Path, target: Path) -> None:
    """Writes the configured base with `adapter` (a PEFT directory) merged into it to `target`, tokenizer or processor beside.

    Raises ConfigError for an adapter that is not of this base and task, StateError where `target` is in the way or can't
    be written.
    """
    if config.guest:
        raise ConfigError(
            "task.type: guest: only your program knows the model; merge there, with PEFT's merge_and_unload()"
        )
    if target.exists():
        raise StateError(f"{target}: exists already; choose another directory")
    for name in ADAPTER_FILES:
        if not (adapter / name).is_file():  # PEFT would look for it on a hub
            raise ConfigError(f"{adapter}: holds no {name}; give a directory that `conlora export` has written")
    quiet_libraries()
    # What 4 or 8 bits have rounded off is no part of what is written.
    whole = config.model.model_copy(update={"quantization": None})
    task = task_of(converted(config.model_copy(update={"model": whole}), partial(fingerprint, whole)))
    try:
        model = PeftModel.from_pretrained(task.base().model, str(adapter)).merge_and_unload(safe_merge=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{adapter}: no adapter for {config.model.base} ({reason}); give one of this node") from error
    unfinished = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        model.save_pretrained(unfinished)
        task.save_processing(unfinished)
        unfinished.rename(target)
    except OSError as error:
        raise StateError(f"{target}: can't be written ({error}); free space or choose another directory") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
