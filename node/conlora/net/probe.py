"""`conlora check`: asks a peer, without training, whether it is reachable, trusted and of the same federation."""

import asyncio
import os

from conlora.core.federation import FederationSettings
from conlora.errors import PeerError
from conlora.net.identity import Peer
from conlora.net.introductions import Introductions
from conlora.net.link import Link
from conlora.net.streams import dialled_stream


def probe(name: str, us: Introductions, peer: Peer, settings: FederationSettings, seconds: float) -> None:
    """Shakes hands with one peer and parts. Raises PeerError with the reason where that fails."""
    asyncio.run(_probe(name, us, peer, settings, seconds))


async def _probe(name: str, us: Introductions, peer: Peer, settings: FederationSettings, seconds: float) -> None:
    async with dialled_stream(us.identity, peer, await us.expected(peer)) as stream:
        link = Link(peer, stream, dialled=True, depth=1)
        try:
            async with asyncio.timeout(seconds):
                await link.shake_hands(name, os.urandom(8), settings, probe=True)
        except TimeoutError:
            raise PeerError(
                f"{peer.name} did not answer within {seconds:.0f} s; is it running, and does a firewall let you through?"
            ) from None
