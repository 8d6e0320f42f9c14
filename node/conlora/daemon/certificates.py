"""Certificates as time goes by: warnings before they expire, and the takeover at the end of a rotation."""

import asyncio
import time
from pathlib import Path

import structlog

from conlora.errors import ConfigError, ConLoRAError, Refused
from conlora.net.authorities import load_authorities
from conlora.net.certificates import expires, warns
from conlora.net.expiry import day, warning
from conlora.net.identity import NEXT_CERTIFICATE_FILE, Identity, load_identity, loaded_credentials
from conlora.net.issued import ISSUED_FILE, lacks_one_for_next, with_issued
from conlora.net.mesh import Mesh
from conlora.net.rotation import take_over
from conlora.net.wire import OUTDATED, Goodbye

log = structlog.get_logger()

LOOK_SECONDS = 60.0
REMIND_SECONDS = 86400.0
TAKEN_OVER = "the next certificate has taken over; new partners need the card that `conlora id` prints now"


class Certificates:
    """Watches over a node's certificate, its next one, and its peers'."""

    def __init__(self, directory: Path, state_dir: Path, ca_file: Path | None, mesh: Mesh) -> None:
        """directory: the identity's."""
        self._directory = directory
        self._state_dir = state_dir
        self._ca_file = ca_file
        self._mesh = mesh
        self._said: dict[str, float] = {}  # what is said once a day, by node id or file: when

    @property
    def identity(self) -> Identity:
        """As it is now."""
        return self._mesh.introductions.identity

    @property
    def newest(self) -> Identity:
        """What counts once a rotation is over; what counts now, where an authority has issued it: that has to be renewed."""
        return self.identity if self.identity.issued else self.identity.next or self.identity

    async def watch(self) -> None:
        """Looks at all of them, for ever."""
        while True:
            try:
                self.look(time.time())
            except Exception as error:  # a defect, perhaps a library's: the next look may find the file mended
                log.error("a look at certificates has failed by a defect; the next is in a minute", exc_info=error)
            await asyncio.sleep(LOOK_SECONDS)

    def look(self, now: float) -> None:
        """now: seconds since the epoch."""
        if self.identity.next and self.identity.at(now) is not self.identity:
            self._take_over()
        else:
            self._look_for_newer(now)
        self._look_at_authorities(now)
        newest = self.newest
        if ends := self._to_be_said(newest.node_id, newest.shown, now):
            if newest.issued:
                log.warning("this node's certificate is near its end: renew it with `conlora cert install`", ends=ends)
            else:
                log.warning("this node's certificate is near its end: run `conlora cert rotate`", ends=ends)
        if self._is_due("neighbours", now):
            self._mesh.tell()  # one may not have been able to store it, and hears it again no sooner on a link
        for state in self._mesh.states.values():
            if ends := self._to_be_said(state.peer.node_id, state.shown, now):
                log.warning(
                    "a peer's certificate is near its end: its operator has to replace it",
                    peer=state.peer.name,
                    ends=ends,
                )

    def read_authorities(self) -> None:
        """Takes up what `ca_file` holds now. Raises ConfigError."""
        if self._ca_file:
            self._mesh.introductions.authorities = load_authorities(self._ca_file)
            self._end_outdated(time.time())

    def read(self) -> None:
        """Takes up what `conlora cert` has put beside the identity or installed, and tells peers. Raises ConfigError, StateError,
        and Refused where this service has a copy of its keys, which its manager makes at a start.
        """
        if not self._refreshed() and loaded_credentials() and not self.identity.next:
            raise Refused(
                "the service has a copy of the identity from its start: restart it before the next certificate takes over, and "
                "its peers are told"
            )

    def _refreshed(self) -> bool:
        """Whether there was anything new."""
        before, identity = self.identity, with_issued(load_identity(self._directory), self._state_dir)
        if identity == before:
            return False
        if identity.node_id != before.node_id:
            raise ConfigError(
                f"{self._directory}: holds the identity of another node now; restart the daemon if that is right"
            )
        self._mesh.show(identity)
        if identity.next and not before.next:
            log.info("a next certificate is announced to peers", takes_over=day(identity.next.takes_over_at))
        elif identity.key != before.key:
            log.info(TAKEN_OVER)
        else:
            log.info("what was issued for this node is shown to peers", expires=day(expires(identity.shown)))
        return True

    def _look_for_newer(self, now: float) -> None:
        """`conlora cert` tells this daemon of what it has put there, which may not have heard it."""
        issued, following = self._state_dir / ISSUED_FILE, self._directory / NEXT_CERTIFICATE_FILE
        copied = loaded_credentials()  # then the directory is closed to us, and a next certificate is found at a start
        try:
            if issued.exists() or (not (self.identity.next or copied) and following.exists()):
                self._refreshed()
        except (OSError, ConLoRAError) as error:
            if self._is_due(NEXT_CERTIFICATE_FILE, now):
                log.error("the next certificate can't be taken up", reason=str(error))
        identity = self.identity
        if identity.issued and identity.next and lacks_one_for_next(identity, now) and self._is_due("request", now):
            log.warning(
                "no authority has issued a certificate for the next key that is good at the takeover: `conlora cert request` "
                "asks for it",
                takes_over=day(identity.next.takes_over_at),
            )

    def _look_at_authorities(self, now: float) -> None:
        try:
            self.read_authorities()
        except ConfigError as error:
            if self._is_due("ca_file", now):
                log.error("what ca_file held before goes on to count", reason=str(error))
            self._end_outdated(now)

    def _end_outdated(self, now: float) -> None:
        """A link lives for as long as what the peer has shown, or announced since, lets it in."""
        for state in self._mesh.states.values():
            if state.link and (why := self._mesh.introductions.outdated(state, now)):
                log.warning("a link is ended, for its peer is let in no more", peer=state.peer.name, reason=why)
                state.link.close(Goodbye.REASON_LEAVING, OUTDATED)
                state.link.discard()  # nothing more is taken from it

    def _take_over(self) -> None:
        following = self.identity.at(time.time())
        try:
            take_over(self._directory)
        except (OSError, ConLoRAError) as error:  # what is on the disk counts by the time, so this can wait
            log.warning("the next certificate counts, but its files keep their names", reason=str(error))
        self._mesh.show(following)
        log.info(TAKEN_OVER)

    def _to_be_said(self, node_id: str, certificate: bytes, now: float) -> str:
        """What to say of a certificate, once a day."""
        text = warning(expires(certificate), now, warns(certificate))
        return text if text and self._is_due(node_id, now) else ""

    def _is_due(self, what: str, now: float) -> bool:
        if now - self._said.get(what, -REMIND_SECONDS) < REMIND_SECONDS:
            return False
        self._said[what] = now
        return True
