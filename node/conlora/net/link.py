"""One link: Hello, then snapshots both ways until it ends, over one bidirectional stream; the same whoever dialled."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import NoReturn

import structlog

from conlora.core.budget import Budget
from conlora.core.conduct import Conduct
from conlora.core.encoding import Encoding
from conlora.core.federation import FederationSettings
from conlora.errors import Overdue, ProtocolError, Quarantined, SettingsMismatch
from conlora.net import wire
from conlora.net.conversation import Conversation, LinkClosed, Stream
from conlora.net.identity import Peer
from conlora.net.mailbox import Mailbox
from conlora.net.reception import Counts, Receiver, Reception
from conlora.net.transfers import Outgoing, Sender
from conlora.net.wire import Chunk, Frame, Goodbye, SnapshotTaken

log = structlog.get_logger()

# What is being sent would be of no use to anybody.
BREAKING_OFF = (Goodbye.REASON_DUPLICATE, Goodbye.REASON_QUARANTINED, Goodbye.REASON_LEFT)


class Link:
    """A link with `peer`. `shake_hands`, then `run` until it raises the PeerError that ended it; then `farewell`."""

    def __init__(
        self, peer: Peer, stream: Stream, *, dialled: bool, depth: int, conduct: Conduct | None = None
    ) -> None:
        """conduct: what is known of the peer's; None: nothing."""
        self.peer = peer
        # Answers frames about certificates; where it is not there, they break the protocol.
        self.on_certificate: Callable[[Frame], Frame | None] | None = None
        self._certificate_frames = Budget(wire.CERTIFICATE_FRAMES_AT_ONCE, wire.CERTIFICATE_FRAMES_PER_SECOND)
        self.dialled = dialled
        self.instance = b""
        self.counts = Counts()
        self.conduct = conduct or Conduct()
        self._talk = Conversation(peer.name, stream)
        self._mailbox = Mailbox(depth)
        self._discarded = asyncio.Event()
        self._sender: Sender | None = None
        self._sending: Outgoing | None = None
        self._understood: list[str] = []  # encodings that the other side knows
        self._farewell: Frame | None = None  # to the other side, where it has ended the link by what it did

    async def shake_hands(self, name: str, instance: bytes, settings: FederationSettings, probe: bool = False) -> bool:
        """Exchanges Hellos and compares them; returns whether the other side only probes.

        Raises SettingsMismatch naming every field that differs (both sides do, each from its own view), ProtocolError
        where the other side does not speak the protocol, Overdue where it says nothing, LinkClosed where it parts.
        """
        with self._judging():
            theirs = await self._talk.greet(wire.hello(name, instance, settings, probe))
        if problems := wire.differences(settings, theirs):
            self._farewell = wire.goodbye(Goodbye.REASON_MISMATCH)
            raise SettingsMismatch(f"{self.peer.name} does not fit: {'; '.join(problems)}")
        self.instance, self._understood = theirs.instance, list(theirs.encodings)
        return theirs.probe

    @property
    def encoding(self) -> Encoding | None:
        """What the next snapshot is sent in; None before `run`."""
        return self._sender.encoding if self._sender else None

    @property
    def delivery_seconds(self) -> float | None:
        """From publishing until the other side had the last snapshot, checked; None before the first."""
        return self._sender.delivery_seconds if self._sender else None

    def change(self, peer: Peer, receiver: Receiver) -> None:
        """The peer's card has changed, or what it is to be sent snapshots in."""
        self.peer, self._talk.name = peer, peer.name
        if self._sender:
            self._sender.use(self._encoding(receiver))

    def offer(self, snapshot: Outgoing) -> None:
        """Gives the link a snapshot to send when it can."""
        self._mailbox.put(snapshot)
        if self._sender:
            self._sender.published()

    def tell(self, frame: Frame) -> None:
        """Sends a frame soon, before snapshots that wait."""
        self._mailbox.answer(frame)

    def close(self, reason: "Goodbye.Reason", detail: str = "") -> None:
        """Says good-bye after what is being sent now; `run` then ends. A link that was replaced, whose node leaves, or to a
        peer of which nothing is accepted any more, breaks off at once.
        """
        self._mailbox.close(wire.goodbye(reason, detail))
        if reason in BREAKING_OFF:
            self.discard()

    def discard(self) -> None:
        """Lets go of all snapshots, also of the one that is being sent, which then stays unfinished, and takes no more.

        Where the other side does not let it say good-bye, `run` ends without.
        """
        self._mailbox.clear()
        self._let_go()
        self._discarded.set()

    async def run(self, receiver: Receiver) -> None:
        """Sends and receives until the link ends, always by raising: LinkClosed or another PeerError."""
        self._sender = Sender(receiver.formats, self._encoding(receiver))
        sending = asyncio.ensure_future(self._judged(self._send, receiver))
        receiving = asyncio.ensure_future(self._judged(self._receive, receiver))
        discarded = asyncio.ensure_future(self._discarded.wait())
        try:
            await asyncio.wait({sending, receiving, discarded}, return_when=asyncio.FIRST_COMPLETED)
            if discarded.done():
                await asyncio.wait(
                    {sending, receiving}, timeout=wire.GOODBYE_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
            if sending.done():
                # Ending the stream here could overtake our good-bye, and the other side may have said why it went.
                await asyncio.wait({receiving}, timeout=wire.GOODBYE_SECONDS)
        finally:
            for task in (sending, receiving, discarded):
                task.cancel()
            ours, theirs, _ = await asyncio.gather(sending, receiving, discarded, return_exceptions=True)
        if isinstance(ours, asyncio.CancelledError) and isinstance(theirs, asyncio.CancelledError):
            raise LinkClosed(Goodbye.REASON_DUPLICATE, f"{self.peer.name} has another link")
        error = ours if isinstance(ours, LinkClosed) or isinstance(theirs, asyncio.CancelledError) else theirs
        if isinstance(error, ProtocolError):
            self._farewell = wire.goodbye(Goodbye.REASON_PROTOCOL, str(error))
        elif isinstance(error, Quarantined):
            self._farewell = wire.goodbye(Goodbye.REASON_QUARANTINED, f"{wire.QUARANTINED}: {error}")
        raise error

    async def farewell(self) -> None:
        """Says why, where the other side is to blame for the end. That may take seconds: first its snapshots are let go of."""
        if self._farewell:
            await self._talk.part(self._farewell)

    async def part(self, goodbye: Frame) -> None:
        """See `Conversation.part`."""
        await self._talk.part(goodbye)

    @contextlib.contextmanager
    def _judging(self) -> Iterator[None]:
        """Counts what ends the conversation, and at once: who offends may hang up, and so cancel whatever is awaited here."""
        try:
            yield
        except ProtocolError as error:
            if self.conduct.offend(error.reason, time.monotonic()):
                raise Quarantined(f"{error}; that was once too often ({self.conduct.offences})") from error
            raise
        except Overdue as error:
            self.conduct.fail(error.reason)
            raise

    async def _judged(self, talk: Callable[[Receiver], Awaitable[NoReturn]], receiver: Receiver) -> NoReturn:
        with self._judging():
            await talk(receiver)

    def _encoding(self, receiver: Receiver) -> Encoding | None:
        """What this node wants, if the other side understands it. fp32 is understood by all."""
        wanted = receiver.encoding_for(self.peer)
        needed = {wanted} if wanted else {Encoding.BF16, Encoding.INT8}
        return wanted if needed <= set(self._understood) else Encoding.FP32

    async def _send(self, receiver: Receiver) -> NoReturn:
        while True:
            nbytes = None
            match await self._mailbox.next(wire.HEARTBEAT_SECONDS):
                case Outgoing() as snapshot:
                    nbytes = await self._send_snapshot(snapshot)
                    if nbytes is None:
                        continue
                case Frame() as frame if frame.HasField("goodbye"):
                    await self._talk.say_last(frame)
                    raise LinkClosed(frame.goodbye.reason, frame.goodbye.detail or "this node closed the link")
                case Frame() as answer:
                    await self._talk.say(answer)
                    continue
                case None:
                    await self._talk.say(wire.heartbeat())
            for sketch in receiver.sketches_for(self.peer, nbytes):
                for part in sketch.parts():
                    await self._send_part(part)
                self.counts.sketch_bytes_sent += len(sketch.payload)

    async def _send_snapshot(self, snapshot: Outgoing) -> int | None:
        """Sends it to its end and returns its bytes, or None where the link has let go of it before."""
        assert self._sender is not None
        before = self.counts.bytes_sent
        self._sending = snapshot
        try:
            for part in self._sender.parts(snapshot):
                await self._send_part(part)
                if self._sending is None:
                    return None
        finally:
            self._let_go()
        return self.counts.bytes_sent - before

    async def _send_part(self, part: Frame | Chunk) -> None:
        """A frame, or a chunk, of something longer. Answers don't wait for its end: the other side waits for them."""
        while self._mailbox.answering:
            await self._talk.say(self._mailbox.next_answer())
        if isinstance(part, Chunk):
            await self._talk.say(part.message)
            self.counts.bytes_sent += len(part.data)
        else:
            await self._talk.say(part)

    def _let_go(self) -> None:
        snapshot, self._sending = self._sending, None
        if snapshot:
            snapshot.release()

    async def _receive(self, receiver: Receiver) -> NoReturn:
        reception = Reception(self.peer, receiver, self.counts, self.conduct)
        frames = Budget(wire.FRAMES_AT_ONCE, wire.FRAMES_PER_SECOND)
        while True:
            if not frames.spend(1, time.monotonic()):
                self.conduct.fail("throttled")
                await asyncio.sleep(wire.FRAMES_AT_ONCE / wire.FRAMES_PER_SECOND / 2)
                continue
            frame = await self._talk.hear(reception)
            if self._discarded.is_set():
                continue  # another link has taken the edge over
            if isinstance(frame, memoryview):
                reception.chunk(frame)
            elif self.on_certificate and frame.WhichOneof("kind") in ("next_certificate", "certificate_kept"):
                self._certificate(self.on_certificate, frame)
            elif frame.HasField("taken"):
                self._answered(frame.taken)
            elif frame.HasField("heartbeat"):
                reception.heartbeat()
            elif answer := reception.frame(frame, self._mailbox.owing):
                self._mailbox.answer(answer)

    def _certificate(self, handle: Callable[[Frame], Frame | None], frame: Frame) -> None:
        if not self._certificate_frames.spend(1, time.monotonic()):
            raise ProtocolError(
                "rate", f"{self.peer.name} sent more than {wire.CERTIFICATE_FRAMES_AT_ONCE} frames about certificates"
            )
        if answer := handle(frame):
            self._mailbox.answer(answer)

    def _answered(self, answer: SnapshotTaken) -> None:
        assert self._sender is not None
        if not self._sender.taken(answer):
            raise ProtocolError("answer", f"{self.peer.name} answered a snapshot that it was not sent")
        if answer.outcome == SnapshotTaken.OUTCOME_REJECTED:
            log.warning("this node's snapshot was rejected", peer=self.peer.name, reason=wire.printable(answer.detail))
        self._mailbox.delivered()
