"""Checkpoints that are either whole or not there: staged, digested, fsynced, renamed, and the last K kept."""

import hashlib
import itertools
import json
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conlora.errors import StateError
from conlora.files import sync_directory, unwritable
from conlora.store.disk import digest_and_sync

MANIFEST = "manifest.json"
MANIFEST_KEYS = {"round", "step", "schema", "base", "files", "digest"}
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A sealed checkpoint: optimizer step `step`, with `round` rounds mixed, of an adapter with this schema digest.

    base: the base model's fingerprint; empty where an earlier ConLoRA has not noted it. written: seconds since the epoch,
    as far as the file system knows.
    """

    path: Path
    round: int
    step: int
    schema: str
    base: str = ""
    written: float = field(default=0.0, compare=False)


class CheckpointStore:
    """The checkpoints of one node, in `directory`.

    The trainer writes into `staging`; `seal` makes that a checkpoint. Whatever lies in `staging` at a start is debris of a
    crash and is removed.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory = directory
        self.staging = directory / "staging"
        self.keep = keep

    def prepare(self) -> None:
        """Makes the directories and clears debris. Raises StateError where that is not possible."""
        try:
            shutil.rmtree(self.staging, ignore_errors=True)
            self.staging.mkdir(parents=True)
            sync_directory(self.directory.parent)  # a checkpoint is no safer than the directory that it lies in
        except OSError as error:
            raise unwritable(self.directory, "the checkpoints", error) from error

    def seal(self, staged: Path, round_: int, step: int, schema: str, base: str = "") -> Checkpoint:
        """Turns a staged directory into a checkpoint, durably, and prunes old ones. Raises StateError (disk full, ...)."""
        target = self._free_name(step)
        try:
            files = sorted(path for path in staged.rglob("*") if path.is_file())
            digests = {str(path.relative_to(staged)): digest_and_sync(path) for path in files}
            manifest = {"round": round_, "step": step, "schema": schema, "base": base, "files": digests}
            (staged / MANIFEST).write_text(json.dumps(manifest | {"digest": _digest(manifest)}, indent=1))
            digest_and_sync(staged / MANIFEST)
            for directory in (*(path for path in staged.rglob("*") if path.is_dir()), staged):
                sync_directory(directory)
            staged.rename(target)
            sync_directory(self.directory)
        except OSError as error:
            raise self.unwritten(staged, step, str(error)) from error
        self._prune(target)
        return Checkpoint(target, round_, step, schema, base, time.time())

    def unwritten(self, staged: Path, step: int, reason: str) -> StateError:
        """The sentence for a checkpoint that could not be written; what is staged of it no longer takes up space."""
        shutil.rmtree(staged, ignore_errors=True)
        return StateError(
            f"{self.directory / _name(step)}: the checkpoint can't be written ({reason}); free space or mend the disk, older "
            "ones are intact"
        )

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest intact checkpoint, and a sentence for each newer one that is damaged."""
        damaged: list[str] = []
        for path in sorted(self.directory.glob("step-*"), reverse=True):
            try:
                return read_checkpoint(path), damaged
            except StateError as error:
                damaged.append(str(error))
        return None, damaged

    def _free_name(self, step: int) -> Path:
        """One after all that there are of this step: what lies there, damaged most likely, stays until the new one is sealed."""
        path = self.directory / _name(step)
        for i in itertools.count(1):
            if not path.exists():
                break
            path = self.directory / f"{_name(step)}-{i}"
        return path

    def _prune(self, sealed: Path) -> None:
        """Keeps the last K. What bears a later name, or the same step, was passed over as damaged when training went on."""
        paths = sorted(self.directory.glob("step-*"))
        step = sealed.name[: len(_name(0))]
        before = [path for path in paths if path < sealed and not path.name.startswith(step)]
        kept = {sealed, *before[max(0, len(before) - self.keep + 1) :]}
        for path in paths:
            if path not in kept:
                shutil.rmtree(path, ignore_errors=True)


def read_checkpoint(path: Path) -> Checkpoint:
    """Checks a checkpoint against its manifest. Raises StateError that names the damaged file."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        # without a digest: of an earlier ConLoRA
        if not manifest.keys() <= MANIFEST_KEYS or manifest.pop("digest", None) not in (None, _digest(manifest)):
            raise StateError(f"{path / MANIFEST}: is damaged; the checkpoint is not used")
        for name, digest in manifest["files"].items():
            with (path / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    raise StateError(
                        f"{path / name}: does not have the digest in {MANIFEST}; the checkpoint is not used"
                    )
        written = (path / MANIFEST).stat().st_mtime
        return Checkpoint(
            path, manifest["round"], manifest["step"], manifest["schema"], manifest.get("base", ""), written
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StateError(f"{path}: not an intact checkpoint ({error}); it is not used") from error


def _name(step: int) -> str:
    return f"step-{step:09d}"


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def read_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """PEFT's own settings of the adapter. Raises StateError."""
    path = checkpoint.path / ADAPTER_FILES[0]
    try:
        settings: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StateError(f"{path}: can't be read ({error}); choose another checkpoint") from error
    return settings


def export_adapter(checkpoint: Checkpoint, target: Path, base: str, readme: str, overwrite: bool) -> None:
    """Copies a checkpoint's adapter to `target` as a PEFT directory with a README, by way of a temporary directory.

    base: what others are told of the base model's place, which on this machine may be a folder of no concern to them.
    overwrite: replace an earlier export; anything else that lies there is never removed. Raises StateError.
    """
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        _check_target(target, overwrite)
        partial.mkdir(parents=True)
        for name in ADAPTER_FILES:
            shutil.copyfile(checkpoint.path / name, partial / name)
        settings = read_settings(checkpoint) | {"base_model_name_or_path": base}
        (partial / ADAPTER_FILES[0]).write_text(json.dumps(settings, indent=2, sort_keys=True))
        (partial / "README.md").write_text(readme, encoding="utf-8")
        for path in partial.iterdir():
            digest_and_sync(path)
        sync_directory(partial)
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
        sync_directory(target.parent)
    except OSError as error:
        raise unwritable(target, "the adapter", error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_target(target: Path, overwrite: bool) -> None:
    if target.exists() and any(target.iterdir() if target.is_dir() else [target]):
        if not overwrite:
            raise StateError(f"{target}: exists already; choose another directory or pass --overwrite")
        if not (target / ADAPTER_FILES[0]).is_file():
            raise StateError(f"{target}: is no PEFT directory, so it is not overwritten; choose another one")
