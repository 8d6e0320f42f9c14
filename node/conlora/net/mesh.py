"""All links of a node: admits peers that dial, has the others dialled, keeps one link per edge, and ends them in good order."""

import asyncio
import os
from collections.abc import Callable, Collection, MutableMapping
from typing import Protocol

import grpc
import structlog

from conlora.core.conduct import Quarantine
from conlora.core.federation import FederationSettings
from conlora.errors import CertificateRejected, PeerError, Refused, SettingsMismatch, Unanswered
from conlora.net import wire
from conlora.net.authorities import Authorities, Chain
from conlora.net.conversation import LinkClosed
from conlora.net.credentials import accepting_credentials
from conlora.net.dialling import Dialler
from conlora.net.edge import PeerState
from conlora.net.identity import Identity, Peer
from conlora.net.introductions import Introductions
from conlora.net.link import Link
from conlora.net.reception import Receiver
from conlora.net.streams import (
    AcceptedStream,
    FrameStream,
    ServicerContext,
    WrongCertificate,
    dialled_stream,
    open_port,
)
from conlora.net.transfers import Outgoing
from conlora.net.warden import Warden
from conlora.net.wire import Goodbye

log = structlog.get_logger()


class Node(Receiver, Protocol):
    """What the mesh needs of the node it belongs to."""

    def link_up(self, peer: Peer) -> list[Outgoing]:
        """The edge lives; returns the snapshots to begin with."""
        ...

    def link_down(self, peer: Peer) -> None:
        """The edge is dead."""
        ...


class Mesh:
    """The links of one node to its configured peers."""

    def __init__(
        self,
        name: str,
        identity: Identity,
        peers: list[Peer],
        node: Node,
        depth: int,
        quarantines: MutableMapping[str, Quarantine] | None = None,
        keep: Callable[[Peer], None] = lambda peer: None,
        authorities: Authorities | None = None,
    ) -> None:
        """depth: snapshots that may wait for a link, 1 in async mode and 2 in lockstep. quarantines: see `Warden`.

        keep, authorities: see `Introductions`.
        """
        self._warden = Warden({} if quarantines is None else quarantines)
        # Replaced when peers change, and never changed itself: TLS reads it in other threads.
        self.states = {peer.node_id: PeerState(peer, conduct=self._warden.conduct(peer)) for peer in peers}
        self._name = name
        self.introductions = Introductions(identity, keep, authorities)
        self._node = node
        self._depth = depth
        self._instance = os.urandom(8)
        self._settings: FederationSettings | None = None
        self._ready = asyncio.Event()
        self._links_changed = asyncio.Condition()
        self._service: grpc.aio.Server | None = None
        self._dialler = Dialler(self._dial, lambda: self._parting, self._until)
        self._closing = False
        self._away = False

    async def listen(self, address: str) -> None:
        """Opens the peer port, if it is not open yet. Raises ConfigError where the address can't be taken."""
        if self._service:
            return
        credentials = accepting_credentials(
            lambda: self.introductions.identity, lambda: self._peers, lambda: self.introductions.authorities
        )
        self._service = await open_port(address, credentials, self.accept)

    def begin(self, settings: FederationSettings) -> None:
        """Starts dialling, and answering those who dial, now that the settings to compare are known."""
        if self._settings is not None:
            return
        self._settings = settings
        self._ready.set()
        self._dial_all()

    async def part(self, node_ids: Collection[str]) -> None:
        """Says good-bye to some peers, which are none any more."""
        gone = [state for node_id, state in self.states.items() if node_id in node_ids]
        self.states = {node_id: state for node_id, state in self.states.items() if node_id not in node_ids}
        await self._end(gone, wire.PARTING)

    def change(self, peers: list[Peer]) -> None:
        """Has exactly these peers from now on, and dials at once those that are down. First `part` from those left out."""
        states = {}
        for peer in peers:
            state = self.states.get(peer.node_id) or PeerState(peer, conduct=self._warden.conduct(peer))
            states[peer.node_id] = state
            state.peer = state.peer.on_card(peer)  # it may have announced more since the files were read
            if state.link:
                state.link.change(state.peer, self._node)
        self.states = states
        self._dial_all()

    async def lift(self, name: str) -> None:
        """Ends the quarantine of the peer with that name, and dials it at once. Raises Refused where there is none."""
        state = next((state for state in self.states.values() if state.peer.name == name), None)
        if state is None:
            raise Refused(f"nothing was lifted: no peer is called {name}; `conlora peers` lists them")
        self._warden.lift(state.peer, state.conduct)
        state.last_error = ""
        await self._announce()

    def show(self, identity: Identity) -> None:
        """Has this identity from now on, and tells neighbours its new certificates."""
        self.introductions.identity = identity
        self.tell()
        self._dial_all()

    def tell(self) -> None:
        """Tells neighbours that have not stored them, or could not, the certificates of this node's later keys."""
        for state in self.states.values():
            if state.link and not self.introductions.known_by(state):
                for frame in self.introductions.announcements():
                    state.link.tell(frame)

    def _dial_all(self) -> None:
        """Keeps every edge dialled, once there is something to say, unless the node leaves."""
        if self._settings is not None and not self._parting:
            self._dialler.keep(self.states.values())

    def publish(self, snapshot: Outgoing) -> None:
        """Offers a snapshot to every live link."""
        for state in self.states.values():
            if state.link:
                state.link.offer(snapshot)

    @property
    def _peers(self) -> list[Peer]:
        return [state.peer for state in self.states.values()]

    @property
    def away(self) -> bool:
        """Whether this node has left."""
        return self._away

    @property
    def _parting(self) -> bool:
        """Whether this node takes and makes no links."""
        return self._away or self._closing

    async def leave(self) -> None:
        """Tells every peer that this node has left, and takes and makes no links until `come_back`."""
        self._away = True
        await self._end(self.states.values(), "", Goodbye.REASON_LEFT)

    def come_back(self) -> None:
        """Takes links again, and dials all peers that have an address."""
        self._away = False
        self._dial_all()

    async def close(self) -> None:
        """Says good-bye on every link and closes the port."""
        self._closing = True
        await self._end(self.states.values(), wire.LEAVING)
        if self._service:
            await self._service.stop(grace=0.2)

    async def _end(
        self, states: Collection[PeerState], detail: str, reason: "Goodbye.Reason" = Goodbye.REASON_LEAVING
    ) -> None:
        """Ends these edges, with a good-bye where the other side takes it. They must not be given new links meanwhile."""
        for state in states:
            if state.link:
                state.link.close(reason, detail)
        try:
            async with asyncio.timeout(wire.GOODBYE_SECONDS):
                await self._until(lambda: all(state.link is None for state in states))
        except TimeoutError:
            log.warning("a peer took no good-bye", seconds=wire.GOODBYE_SECONDS)
        await self._dialler.end(states)
        for state in states:
            if link := state.link:  # which the other side had dialled
                link.discard()
                await self._dismiss(state, link)

    async def accept(self, context: ServicerContext) -> None:
        """A configured peer, or somebody else, has dialled."""
        try:
            peer, chain = self.introductions.caller(context.auth_context(), context.peer(), self._peers)
        except CertificateRejected as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, self.introductions.refusal(error.reason))
            return
        state = self.states[peer.node_id]
        if state.conduct.quarantine:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, wire.QUARANTINED)
        if self._parting:
            await context.abort(grpc.StatusCode.UNAVAILABLE, wire.LEFT if self._away else wire.LEAVING)
        with state.turnstile.call() as admitted:
            if not admitted:
                state.conduct.fail("calls")
                await context.abort(grpc.StatusCode.UNAVAILABLE, "too many calls")
            await self._answer(state, context, chain)

    async def _answer(self, state: PeerState, context: ServicerContext, chain: Chain) -> None:
        try:
            async with asyncio.timeout(wire.HANDSHAKE_SECONDS / 2):
                await self._ready.wait()
        except TimeoutError:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "still loading the model")
        await self._converse(state, AcceptedStream(state.peer.name, context), chain, dialled=False)

    async def _dial(self, state: PeerState) -> None:
        try:
            self.introductions.check_own()
            chain = await self.introductions.expected(state.peer)
        except PeerError as error:
            state.note(str(error), refused=not isinstance(error, Unanswered))
            return
        async with dialled_stream(self.introductions.identity, state.peer, chain) as stream:
            await self._converse(state, stream, chain or (), dialled=True)

    async def _converse(self, state: PeerState, stream: FrameStream, chain: Chain, dialled: bool) -> None:
        """One link from Hello to its end; whatever ended it is kept for the operator. chain: what the peer shows."""
        assert self._settings is not None  # _ready is set by then
        link = Link(state.peer, stream, dialled=dialled, depth=self._depth, conduct=state.conduct)
        link.on_certificate = lambda frame: self.introductions.heard(state, frame)
        try:
            if await link.shake_hands(self._name, self._instance, self._settings):
                return
            try:
                await self._admit(state, link, chain)
                await link.run(self._node)
            finally:
                link.discard()
                await self._dismiss(state, link)
        except LinkClosed as error:
            if error.reason == Goodbye.REASON_LEFT:
                if not self._away:  # where both have left: it will say so again
                    state.note_left(str(error))
            elif error.reason != Goodbye.REASON_DUPLICATE:
                state.note(str(error), refused=error.reason == Goodbye.REASON_MISMATCH)
        except WrongCertificate as error:
            state.note(*await self.introductions.look(state, error))
        except PeerError as error:
            state.note(str(error), refused=isinstance(error, SettingsMismatch))
        except asyncio.CancelledError:
            if not dialled and not self._parting:  # how gRPC tells that the dialler is gone
                state.note(f"{state.peer.name} went away without a word", refused=False)
            raise
        finally:
            if state.conduct.quarantine and state.link:  # another one than this, which has ended
                state.link.close(Goodbye.REASON_QUARANTINED, wire.QUARANTINED)
        await link.farewell()

    async def _admit(self, state: PeerState, link: Link, chain: Chain) -> None:
        """Makes `link` the edge's link, unless there is a better one. Raises LinkClosed for the one that gives way."""
        if state.conduct.quarantine:
            await link.part(wire.goodbye(Goodbye.REASON_QUARANTINED, wire.QUARANTINED))
            raise LinkClosed(Goodbye.REASON_QUARANTINED, wire.QUARANTINED)
        if self._away:
            await link.part(wire.goodbye(Goodbye.REASON_LEFT))
            raise LinkClosed(Goodbye.REASON_LEFT, wire.LEFT)
        if self._closing or self.states.get(state.peer.node_id) is not state:
            await link.part(wire.goodbye(Goodbye.REASON_LEAVING, wire.LEAVING))
            raise LinkClosed(Goodbye.REASON_LEAVING, wire.LEAVING)
        if state.keeps_its_link(link, self.introductions.identity.node_id):
            await link.part(wire.goodbye(Goodbye.REASON_DUPLICATE))
            raise LinkClosed(Goodbye.REASON_DUPLICATE, "the edge has a link already")
        if current := state.link:
            current.close(Goodbye.REASON_DUPLICATE)
            state.past += current.counts
        state.link, state.refused, state.left, state.last_error = link, False, False, ""
        state.chain = state.shaken = chain
        for snapshot in self._node.link_up(state.peer):
            link.offer(snapshot)
        for frame in self.introductions.announcements():
            link.tell(frame)
        if current is None:
            log.info("link up", peer=state.peer.name, dialled=link.dialled)
        await self._announce()

    async def _dismiss(self, state: PeerState, link: Link) -> None:
        if state.link is not link:
            return  # replaced: the edge lives on
        state.link = None
        state.past += link.counts
        self._node.link_down(state.peer)
        await self._announce()

    async def _announce(self) -> None:
        async with self._links_changed:
            self._links_changed.notify_all()

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with self._links_changed:
            await self._links_changed.wait_for(condition)
