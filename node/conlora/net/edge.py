"""The edge to one configured peer: its link while it lives, why there is none else, and what is known of the peer."""

from dataclasses import dataclass, field

import structlog

from conlora.core.conduct import Conduct
from conlora.net.authorities import Chain, to_pem
from conlora.net.identity import Peer
from conlora.net.link import Link
from conlora.net.reception import Counts
from conlora.net.warden import Turnstile

log = structlog.get_logger()


@dataclass(slots=True)
class PeerState:
    """One configured peer, as operators see it."""

    peer: Peer
    link: Link | None = None
    refused: bool = False
    left: bool = False  # it has said so
    last_error: str = ""
    retry_at: float = 0.0  # monotonic; 0: not waiting
    kept: frozenset[bytes] = frozenset()  # see `introductions.Acquaintance`
    chain: Chain = ()  # likewise
    shaken: Chain = ()  # likewise
    past: Counts = field(default_factory=Counts)  # of links that have ended
    conduct: Conduct = field(default_factory=Conduct)
    turnstile: Turnstile = field(default_factory=Turnstile)

    @property
    def counts(self) -> Counts:
        """Over all links of this edge, the present one included."""
        return self.past + self.link.counts if self.link else self.past

    @property
    def shown(self) -> bytes:
        """The certificate (PEM) that the peer shows, or will show, as far as is known."""
        return to_pem(self.chain[:1]) or self.peer.newest

    @property
    def word(self) -> str:
        """up, quarantined, refused, left or down."""
        if self.conduct.quarantine:
            return "quarantined"
        return "up" if self.link else "refused" if self.refused else "left" if self.left else "down"

    def keeps_its_link(self, other: Link, own_id: str) -> bool:
        """Whether the edge keeps the link that it has, so that `other` gives way. own_id: of this node.

        When both sides dial at once, both keep the link that the node with the smaller id dialled. A link from a new
        start of the peer's daemon always wins: the old one is a leftover.
        """
        if self.link is None or self.link.instance != other.instance or self.link.dialled == other.dialled:
            return False
        preferred = (own_id < self.peer.node_id) == other.dialled
        return not preferred

    def note(self, sentence: str, refused: bool) -> None:
        """Why there is no link. refused: until somebody changes something."""
        if self.link is not None:
            return  # it was about a second link: the edge lives
        if self.left and not refused:
            return  # that nobody answers is what it has said
        if sentence != self.last_error:
            log.warning("link refused" if refused else "no link", peer=self.peer.name, reason=sentence)
        self.last_error, self.refused = sentence, refused

    def note_left(self, sentence: str) -> None:
        """The peer has said that it leaves the federation."""
        if self.link is not None:
            return
        if not self.left:
            log.info("peer left", peer=self.peer.name)
        self.last_error, self.refused, self.left = sentence, False, True
