"""Who is kept out: peers that were quarantined, and callers that call too often."""

import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager

import structlog

from conlora.core.budget import Budget
from conlora.core.conduct import Conduct, Quarantine
from conlora.errors import Refused
from conlora.net.identity import Peer

log = structlog.get_logger()

CALLS_AT_ONCE, CALLS_PER_SECOND = 64, 1.0  # of a peer that dials; backoff keeps an honest one far below
OPEN_CALLS = 4  # of a peer: a link, one that replaces it, and `conlora check`


class Turnstile:
    """Lets one peer's calls in."""

    def __init__(self) -> None:
        self._calls = Budget(CALLS_AT_ONCE, CALLS_PER_SECOND)
        self.open = 0

    @contextmanager
    def call(self) -> Iterator[bool]:
        """As long as a call lasts; says whether it may."""
        if self.open == OPEN_CALLS or not self._calls.spend(1, time.monotonic()):
            yield False
            return
        self.open += 1
        try:
            yield True
        finally:
            self.open -= 1


class Warden:
    """Knows who is quarantined."""

    def __init__(self, quarantines: MutableMapping[str, Quarantine]) -> None:
        """quarantines: by node id, also of those that are no peers now; kept up to date."""
        self._quarantines = quarantines

    def conduct(self, peer: Peer) -> Conduct:
        """Of a peer that is new here: to be removed and added again lifts nothing."""

        def quarantine(conduct: Conduct) -> None:
            if conduct.quarantine is None:
                conduct.quarantine = self._quarantines[peer.node_id] = Quarantine(time.time(), conduct.offences)
                log.error("peer quarantined", peer=peer.name, offences=conduct.offences)

        return Conduct(self._quarantines.get(peer.node_id), quarantine)

    def lift(self, peer: Peer, conduct: Conduct) -> None:
        """Ends a quarantine. Raises Refused where there is none."""
        if conduct.quarantine is None:
            raise Refused(f"nothing was lifted: {peer.name} is not quarantined; `conlora peers` says who is")
        conduct.forgive()
        del self._quarantines[peer.node_id]
        log.info("quarantine lifted", peer=peer.name)
