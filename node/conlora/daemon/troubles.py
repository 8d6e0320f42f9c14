"""What a node can't write at present, and trains on without: in the log when it begins and ends, in the status meanwhile."""

import contextlib
from collections.abc import Iterator

import structlog

from conlora.errors import StateError

log = structlog.get_logger()


KINDS = ("checkpoint", "history")


class Troubles:
    """By what can't be written, a sentence each."""

    def __init__(self) -> None:
        self._sentences: dict[str, str] = {}

    def __str__(self) -> str:
        return "; ".join(self._sentences.values())

    def __iter__(self) -> Iterator[str]:
        return iter(self._sentences)

    def __contains__(self, what: str) -> bool:
        return what in self._sentences

    @contextlib.contextmanager
    def of(self, what: str, heals: bool = True) -> Iterator[None]:
        """Does without `what` where writing it raises StateError. heals: where it does not, all is well again."""
        try:
            yield
        except StateError as error:
            if self._sentences.get(what) != str(error):
                log.error(f"no {what}, training goes on", reason=str(error))
            self._sentences[what] = str(error)
        else:
            if heals and what in self._sentences:
                del self._sentences[what]
                log.info(f"{what} is written again")
