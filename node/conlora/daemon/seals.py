"""A node's checkpoints: the one that its trainer goes on from, and what it has saved since, sealed."""

import asyncio

import structlog

from conlora.config import NodeConfig
from conlora.core.schema import Schema
from conlora.daemon.troubles import Troubles
from conlora.errors import ConfigError, StateError
from conlora.store.checkpoints import Checkpoint, CheckpointStore
from conlora.store.history import History
from conlora.training.messages import Saved

log = structlog.get_logger()


class Seals:
    """Has the store seal what a trainer has staged, and knows what came of it."""

    def __init__(self, config: NodeConfig, history: History, troubles: Troubles) -> None:
        self.store = CheckpointStore(config.state_dir / "checkpoints", config.training.keep_checkpoints)
        self.last: Checkpoint | None = None
        self.ended = 0  # attempts, one way or the other
        self.problem = ""  # of the last attempt
        self._history = history
        self._troubles = troubles

    @property
    def unsaved(self) -> StateError | None:
        """Why the last checkpoint is older than it should be, if it is."""
        if not self.problem:
            return None
        last = self.last.round if self.last else 0
        return StateError(f"{self.problem}; what was trained after round {last} is not saved")

    async def newest(self) -> Checkpoint | None:
        """The newest that is intact, which is the last from now on. Raises StateError where there are only damaged ones."""
        self.problem = ""
        newest, damaged = await asyncio.to_thread(self.store.newest)
        for sentence in damaged:
            log.error("damaged checkpoint", reason=sentence)
        if damaged and not newest:
            raise StateError(
                f"{self.store.directory}: no checkpoint there is intact (see above in the log); put one back from a "
                "backup, or move the directory away to start anew"
            )
        if newest:
            self.last = newest
            log.info("going on from a checkpoint", path=str(newest.path), round=newest.round)
        return newest

    def check(self, shared: Schema) -> None:
        """Raises ConfigError where the last checkpoint is of other tensors."""
        if self.last and self.last.schema != shared.digest:
            raise ConfigError(
                f"{self.last.path}: was made with another model or other LoRA settings; put those back, or "
                f"start anew with another state_dir"
            )

    def unchanged(self) -> None:
        """The trainer had nothing new to save: an attempt that came to the same as the last."""
        self.ended += 1

    async def seal(self, saved: Saved, shared_digest: str, fingerprint: str) -> None:
        """Makes a checkpoint of what the trainer has staged, or keeps in `problem` why there is none.

        shared_digest: of the schema of what is exchanged. fingerprint: of the base model.
        """
        staged, problem = self.store.staging / f"checkpoint-{saved.step}", ""
        with self._troubles.of("checkpoint"):
            try:
                if saved.problem:
                    raise self.store.unwritten(staged, saved.step, saved.problem)
                self.last = await asyncio.to_thread(
                    self.store.seal, staged, saved.round, saved.step, shared_digest, fingerprint
                )
            except StateError as error:
                problem = str(error)
                raise
            log.info("checkpoint", path=str(self.last.path), round=saved.round)
            if "history" in self._troubles:  # after the last round nothing else would find that there is room again
                with self._troubles.of("history"):
                    self._history.touch()
        self.problem = problem
        self.ended += 1
