"""Takes the adapter home: a checkpoint's adapter as a PEFT directory, with or without a running daemon."""

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
        try:
            with History(path) as history:
                return card_of(config, checkpoint, node_id, history)
        except StateError:
            pass
    return model_card(config, checkpoint, node_id, None)


def card_of(config: NodeConfig, checkpoint: Checkpoint, node_id: str, history: History) -> str:
    """The model card; of a history that is damaged it goes without, for that is no reason to keep the adapter."""
    try:
        return model_card(config, checkpoint, node_id, history)
    except StateError:
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
