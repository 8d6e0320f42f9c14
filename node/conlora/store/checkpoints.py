"""Checkpoints that are either whole or not there: staged, digested, fsynced, renamed, and the last K kept."""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conlora.errors import StateError

MANIFEST = "manifest.json"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A sealed checkpoint: optimizer step `step`, with `round` rounds mixed, of an adapter with this schema digest.

    base: the base model's fingerprint; empty where an earlier ConLoRA has not noted it.
    """

    path: Path
    round: int
    step: int
    schema: str
    base: str = ""


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
        except OSError as error:
            raise StateError(
                f"{self.directory}: can't be written ({error}); make it writable for the node's user"
            ) from error

    def seal(self, staged: Path, round_: int, step: int, schema: str, base: str = "") -> Checkpoint:
        """Turns a staged directory into a checkpoint, durably, and prunes old ones. Raises StateError (disk full, ...)."""
        target = self.directory / f"step-{step:09d}"
        try:
            files = sorted(path for path in staged.rglob("*") if path.is_file())
            digests = {str(path.relative_to(staged)): _digest_and_sync(path) for path in files}
            manifest = staged / MANIFEST
            manifest.write_text(
                json.dumps({"round": round_, "step": step, "schema": schema, "base": base, "files": digests}, indent=1)
            )
            _digest_and_sync(manifest)
            _sync_directory(staged)
            if target.exists():  # the same step again, after a restart
                shutil.rmtree(target)
            staged.rename(target)
            _sync_directory(self.directory)
        except OSError as error:
            raise StateError(
                f"{target}: the checkpoint can't be written ({error}); free space or mend the disk, older ones are intact"
            ) from error
        self._prune()
        return Checkpoint(target, round_, step, schema, base)

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest intact checkpoint, and a sentence for each newer one that is damaged."""
        damaged: list[str] = []
        for path in sorted(self.directory.glob("step-*"), reverse=True):
            try:
                return read_checkpoint(path), damaged
            except StateError as error:
                damaged.append(str(error))
        return None, damaged

    def _prune(self) -> None:
        for path in sorted(self.directory.glob("step-*"))[: -self.keep]:
            shutil.rmtree(path, ignore_errors=True)


def read_checkpoint(path: Path) -> Checkpoint:
    """Checks a checkpoint against its manifest. Raises StateError that names the damaged file."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        for name, digest in manifest["files"].items():
            with (path / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    raise StateError(
                        f"{path / name}: does not have the digest in {MANIFEST}; the checkpoint is not used"
                    )
        return Checkpoint(path, manifest["round"], manifest["step"], manifest["schema"], manifest.get("base", ""))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StateError(f"{path}: not an intact checkpoint ({error}); it is not used") from error


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
    if target.exists() and any(target.iterdir() if target.is_dir() else [target]):
        if not overwrite:
            raise StateError(f"{target}: exists already; choose another directory or pass --overwrite")
        if not (target / ADAPTER_FILES[0]).is_file():
            raise StateError(f"{target}: is no PEFT directory, so it is not overwritten; choose another one")
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        for name in ADAPTER_FILES:
            shutil.copyfile(checkpoint.path / name, partial / name)
        settings = read_settings(checkpoint) | {"base_model_name_or_path": base}
        (partial / ADAPTER_FILES[0]).write_text(json.dumps(settings, indent=2, sort_keys=True))
        (partial / "README.md").write_text(readme, encoding="utf-8")
        for path in partial.iterdir():
            _digest_and_sync(path)
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
    except OSError as error:
        raise StateError(f"{target}: the adapter can't be written ({error}); choose a writable directory") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _digest_and_sync(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return digest


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
