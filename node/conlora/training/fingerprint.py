"""What peers know a base model by: a digest of its weight files, made while the model is loaded. Imports no torch."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from conlora.config import ModelSection
from conlora.errors import ConfigError

WEIGHT_FILES = ("*.safetensors", "*.gguf", "*.bin", "*.h5")  # the first kind that is there counts


def fingerprint(model: ModelSection) -> str:
    """SHA-256 (hex) over the digests of the base model's weight files, in the order of the files' names.

    Files rather than loaded tensors, so that nodes may load one base in different precisions. Of a hub's model, those
    that loading it has fetched. Raises ConfigError where there are none.
    """
    base = Path(model.base)
    if not base.is_dir():
        base = _fetched(model)
    files = weight_files(base)
    if not files:
        raise ConfigError(f"model.base: {base} holds no weights ({', '.join(WEIGHT_FILES)}); give the folder that does")
    total = hashlib.sha256()
    for path in files:
        total.update(digest(path))
    return total.hexdigest()


@contextlib.contextmanager
def fingerprinted(model: ModelSection) -> Iterator[Callable[[], str]]:
    """Begins with the fingerprint in a thread, where the files are there already; what it yields waits for it, and raises."""
    if not Path(model.base).is_dir():
        yield lambda: fingerprint(model)
        return
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="fingerprint") as beside:
        yield beside.submit(fingerprint, model).result


def weight_files(base: Path) -> list[Path]:
    """The files in a folder that a model's weights are loaded from, sorted."""
    return next((found for pattern in WEIGHT_FILES if (found := sorted(base.glob(pattern)))), [])


def digest(path: Path) -> bytes:
    """SHA-256 of a file; other threads go on meanwhile."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _fetched(model: ModelSection) -> Path:
    import huggingface_hub

    from conlora.training.tasks import loading

    with loading(model):
        return Path(
            huggingface_hub.snapshot_download(
                model.base, revision=model.revision, allow_patterns=list(WEIGHT_FILES), local_files_only=True
            )
        )
