"""Bases in GGUF, which transformers takes long to unpack: unpacked once, and loaded as safetensors from then on."""

import contextlib
import fcntl
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from conlora.config import ModelSection, NodeConfig
from conlora.errors import ConfigError, StateError
from conlora.training.fingerprint import digest, weight_files
from conlora.training.tasks import loading

MANIFEST = "digests.json"
FOLDER = "converted"  # in the state directory


def converted(config: NodeConfig, fingerprint: Callable[[], str]) -> NodeConfig:
    """The configuration with a base that loads as it lies there: its own, or what was made of its GGUF file.

    fingerprint: of the base as it is configured; asked for where there is something to convert. Raises ConfigError for a
    file that can't be converted, StateError where there is no room for the result.
    """
    source = _gguf(config.model)
    if source is None:
        return config
    # All that the result depends on. An interrupted or damaged one does not have the digests that it was finished with.
    folder = config.state_dir / FOLDER / f"{fingerprint()}-{config.model.dtype}-{transformers.__version__}"
    try:
        with _alone(folder.parent):
            if not _intact(folder):
                _make(folder, source, config.model)
    except (OSError, SafetensorError) as error:
        raise StateError(
            f"{folder}: the base in safetensors can't be written ({error}); free space, or give state_dir to the node's user"
        ) from error
    model = config.model.model_copy(update={"base": str(folder), "revision": None})
    return config.model_copy(update={"model": model})


def _gguf(model: ModelSection) -> Path | None:
    """The file to convert; None for a base in another format."""
    files = weight_files(Path(model.base))
    if not files or files[0].suffix != ".gguf":
        return None
    if len(files) > 1:
        raise ConfigError(
            f"model.base: {model.base} holds {len(files)} GGUF files; give a folder with the one that all nodes use"
        )
    if find_spec("gguf") is None:
        raise ConfigError(
            f"model.base: {files[0]} needs the package gguf, which is not installed; `pip install 'conlora[gguf]'`, or give "
            "the model in safetensors"
        )
    return files[0]


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """While entered, no other process converts for this node: a rank, or `conlora check` beside the daemon."""
    directory.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    directory.mkdir(exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _intact(folder: Path) -> bool:
    try:
        digests = json.loads((folder / MANIFEST).read_text())
        return bool(digests) and all(digest(folder / name).hex() == known for name, known in digests.items())
    except (OSError, ValueError, AttributeError):
        return False


def _make(folder: Path, source: Path, model: ModelSection) -> None:
    for other in folder.parent.iterdir():  # of another precision or version, or what an interrupted one has left
        if other.is_dir():
            shutil.rmtree(other)
    partial = folder.with_name("partial")
    _save(source, model, partial)
    digests = {path.name: digest(path).hex() for path in partial.iterdir()}
    (partial / MANIFEST).write_text(json.dumps(digests))
    os.rename(partial, folder)


def _save(source: Path, model: ModelSection, target: Path) -> None:
    """Writes model and tokenizer as `from_pretrained` takes them."""
    place: dict[str, Any] = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    try:
        with loading(model):
            whole, told = _whole_model(transformers.AutoConfig.from_pretrained(**place)).from_pretrained(
                **place,
                dtype=getattr(torch, model.dtype),
                quantization_config=transformers.GgufConfig(dequantize=True),
                output_loading_info=True,
            )
            if (source.parent / "tokenizer.json").exists():
                del place["gguf_file"]  # as it was made, rather than as it can be told from the file
            tokenizer = transformers.AutoTokenizer.from_pretrained(**place)
    except (struct.error, IndexError, TypeError, RuntimeError) as error:
        raise ConfigError(
            f"model.base: {source} can't be unpacked ({' '.join(str(error).split())[:300]}); get it again, or give the model "
            "in safetensors"
        ) from error
    # What the file lacks, and was drawn at random, stays lacking: it has to be seeded like any fresh parameter.
    there = {name: value for name, value in whole.state_dict().items() if name not in told["missing_keys"]}
    whole.save_pretrained(target, state_dict=there)
    tokenizer.save_pretrained(target)


def _whole_model(config: transformers.PretrainedConfig) -> Any:
    """The class that takes all weights of such a file, whatever the task will use of them."""
    if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        return transformers.AutoModelForCausalLM
    if type(config) in transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        return transformers.AutoModelForSeq2SeqLM
    return transformers.AutoModel
