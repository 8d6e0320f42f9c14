"""Certificates as time goes by: warnings before they expire, and the takeover at the end of a rotation."""

import asyncio
import time
from pathlib import Path

import structlog

from conlora.errors import ConfigError, ConLoRAError, Refused
from conlora.net.certificates import expires
from conlora.net.expiry import day, warning
from conlora.net.identity import NEXT_CERTIFICATE_FILE, Identity, load_identity, loaded_credentials
from conlora.net.mesh import Mesh
from conlora.net.rotation import take_over

log = structlog.get_logger()

LOOK_SECONDS = 60.0
REMIND_SECONDS = 86400.0
TAKEN_OVER = "the next certificate has taken over; new partners need the card that `conlora id` prints now"


class Certificates:
    """Watches over a node's certificate, its next one, and its peers'."""

    def __init__(self, directory: Path, mesh: Mesh) -> None:
        """directory: the identity's."""
        self._directory = directory
        self._mesh = mesh
        self._said: dict[str, float] = {}  # what is said once a day, by node id or file: when

    @property
    def identity(self) -> Identity:
        """As it is now."""
        return self._mesh.introductions.identity

    @property
    def newest(self) -> Identity:
        """What counts once a rotation is over."""
        return self.identity.next or self.identity

    async def watch(self) -> None:
        """Looks at all of them, for ever."""
        while True:
            self.look(time.time())
            await asyncio.sleep(LOOK_SECONDS)

    def look(self, now: float) -> None:
        """now: seconds since the epoch."""
        if self.identity.next and self.identity.at(now) is not self.identity:
            self._take_over()
        elif not self.identity.next:
            self._look_for_next(now)
        if ends := self._to_be_said(self.newest.node_id, self.newest.certificate, now):
            log.warning("this node's certificate is near its end: run `conlora cert rotate`", ends=ends)
        if self._is_due("neighbours", now):
            self._mesh.tell()  # one may not have been able to store it, and hears it again no sooner on a link
        for state in self._mesh.states.values():
            if ends := self._to_be_said(state.peer.node_id, state.peer.newest, now):
                log.warning(
                    "a peer's certificate is near its end: its operator has to run `conlora cert rotate`",
                    peer=state.peer.name,
                    ends=ends,
                )

    def read(self) -> None:
        """Takes up what `conlora cert rotate` has put beside the identity, and tells peers. Raises ConfigError, and Refused where
        this service has a copy, which its manager makes at a start.
        """
        if loaded_credentials():
            raise Refused(
                "the service has a copy of the identity from its start: restart it before the next certificate takes over, and "
                "its peers are told"
            )
        before, identity = self.identity, load_identity(self._directory)
        if identity == before:
            return
        if identity.node_id != self.identity.node_id:
            raise ConfigError(
                f"{self._directory}: holds the identity of another node now; restart the daemon if that is right"
            )
        self._mesh.show(identity)
        if identity.next:
            log.info("a next certificate is announced to peers", takes_over=day(identity.next.takes_over_at))
        else:
            log.info(TAKEN_OVER)

    def _look_for_next(self, now: float) -> None:
        """`conlora cert rotate` tells this daemon, which may not have heard it. A service has a copy, and finds it at a start."""
        if loaded_credentials():
            return
        try:
            if (self._directory / NEXT_CERTIFICATE_FILE).exists():
                self.read()
        except (OSError, ConLoRAError) as error:
            if self._is_due(NEXT_CERTIFICATE_FILE, now):
                log.error("the next certificate can't be taken up", reason=str(error))

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
        text = warning(expires(certificate), now)
        return text if text and self._is_due(node_id, now) else ""

    def _is_due(self, what: str, now: float) -> bool:
        if now - self._said.get(what, -REMIND_SECONDS) < REMIND_SECONDS:
            return False
        self._said[what] = now
        return True
