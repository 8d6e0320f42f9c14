"""What a trainer is answered between two rounds where the history can't be read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conlora.core.gossip import Contribution
from conlora.daemon.progress import Progress
from conlora.daemon.rounds import Rounds
from conlora.daemon.troubles import Troubles
from conlora.store.history import History
from conlora.training import messages

ANNAS = Contribution("ANNA", 0, 1, 30, 1.0, None)


class Exchange:
    """Offers anna's snapshot, whatever was mixed last."""

    def __init__(self) -> None:
        self.last_mixed: Mapping[str, int] | None = None

    async def offer(self, round_: int, last_mixed: Mapping[str, int]) -> Contribution:
        """See `exchange.Exchange`."""
        self.last_mixed = last_mixed
        return ANNAS

    def name(self, peer: str) -> str:
        """See `exchange.Exchange`."""
        return peer.lower()


async def test_a_node_that_comes_back_without_a_history_is_offered_what_a_newcomer_is(tmp_path: Path) -> None:
    nobody: Any = None
    exchange: Any = Exchange()
    told: list[messages.ToTrainer] = []
    failures: list[BaseException] = []
    troubles = Troubles()
    with History(tmp_path / "history.db") as history:
        rounds = Rounds(
            nobody, exchange, nobody, history, Progress(), troubles,
            tell=told.append, on_publish=nobody, on_failure=failures.append,
        )  # fmt: skip
        history._db.execute("DROP TABLE edges")
        rounds.hear(messages.Rejoining(round=5))
        assert rounds._answering is not None
        await rounds._answering
    assert not failures
    assert exchange.last_mixed == {}
    assert told == [messages.Offer(item=messages.Contribution(place=0, slot=1, weight=1.0))]
    assert "history.db: the history can't be read (no such table: edges)" in str(troubles)
