"""Takes the adapter home: a checkpoint's adapter as a PEFT directory, with or without a running daemon."""

import contextlib
from pathlib import Path

from conlora.config import NodeConfig
from conlora.daemon.card import model_card, public_base
from conlora.errors import StateError
from conlora.net.identity import load_identity
from conlora.store.checkpoints import Checkpoint, CheckpointStore, export_adapter
from conlora.store.history import History


def export(config: NodeConfig, checkpoint: Checkpoint, card: str, target: Path, overwrite: bool) -> None:
    """Writes a checkpoint's adapter to `target`, with its model card. Raises StateError."""
    export_adapter(checkpoint, target, public_base(config.model), card, overwrite)


def export_last(config: NodeConfig, target: Path, overwrite: bool) -> int:
    """Writes the last checkpoint's adapter while no daemon runs; returns its round. Raises StateError and ConfigError."""
    newest = last_checkpoint(config)
    export(config, newest, _card(config, newest), target, overwrite)
    return newest.round


def _card(config: NodeConfig, checkpoint: Checkpoint) -> str:
    node_id, path = load_identity(config.identity_dir).node_id, config.state_dir / "history.db"
    if path.exists():
        with (
            contextlib.suppress(StateError),
            History(path) as history,
        ):  # a damaged one is no reason to keep the adapter
            return model_card(config, checkpoint, node_id, history)
    return model_card(config, checkpoint, node_id, None)


def last_checkpoint(config: NodeConfig) -> Checkpoint:
    """The newest one that is intact. Raises StateError where there is none."""
    store = CheckpointStore(config.state_dir / "checkpoints", config.training.keep_checkpoints)
    newest, damaged = store.newest()
    if newest is None:
        raise StateError(
            damaged[0] if damaged else f"{store.directory}: no checkpoint yet; train first with `conlora run`"
        )
    return newest
