"""Why TLS has refused callers, in our log: gRPC tells it on standard error and nowhere else.

A refused caller hears nothing but the end of the connection. gRPC keeps its certificate and address to itself, so the log has a
reason, and no name.
"""

import contextlib
import faulthandler
import os
import re
import sys
import threading
import time
from collections.abc import Iterator

import structlog

from conlora.core.budget import Seldom
from conlora.net.wire import printable

log = structlog.get_logger()

QUIET_SECONDS = 60.0  # strangers can call as often as they like; the log must not grow with that
LONGEST_LINE = 8192
LAST_SECONDS = 1.0
_GRPC = re.compile(r"[IWEF]\d{4} [\d:.]+ +\d+ [\w.]+:\d+\] ")
_FAILED = re.compile(r"Handshake failed with error (.*)")
UNKNOWN = "the certificate is that of no configured peer or operator, one that a peer has replaced, or none that ca_file covers"
REASONS = {
    "certificate has expired": "the certificate of a configured peer or operator has expired; `conlora cert` tells of peers",
    "certificate is not yet valid": "the certificate of a configured peer or operator is not valid yet; compare the clocks",
    "self signed certificate": UNKNOWN,
    "self-signed certificate": UNKNOWN,
    "unable to get local issuer certificate": UNKNOWN,
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it shows no certificate",
    "HTTP_REQUEST": "it does not speak TLS",
    "WRONG_VERSION_NUMBER": "it does not speak TLS",
    "UNSUPPORTED_PROTOCOL": "it does not speak TLS 1.3",
}


def reason(line: str) -> str | None:
    """Why a handshake failed, if that is what a line of gRPC's tells."""
    if not (found := _FAILED.search(line)):
        return None
    told = found[1].strip()
    return next((sentence for phrase, sentence in REASONS.items() if phrase in told), told[-160:])


class Refusals:
    """Logs the first refusal of each reason, and after that how many there were since, at most once in a while."""

    def __init__(self, event: str = "TLS has refused a connection") -> None:
        self._event = event
        self._seldom = Seldom(QUIET_SECONDS, 4 * len(REASONS))

    def add(self, why: str, now: float, **more: str) -> None:
        """now: seconds of any clock that does not jump. more: of this one, for the log; perhaps the reason in other words."""
        if told := self._seldom.add(why, now):
            log.warning(self._event, times=told[1], **{"reason": told[0]} | more)


@contextlib.contextmanager
def refusals_in_log(nicer: int = 0) -> Iterator[None]:
    """Puts a pipe in the place of standard error as C code sees it; what it holds beside gRPC's lines is passed on.

    Python's own standard error goes past it. Does nothing where the operator has asked for gRPC's own lines (GRPC_VERBOSITY).
    Has to be entered before gRPC is used, and before logging is set up. nicer: by how much the thread that reads it yields.
    The last words of C code that ends the process may stay in the pipe; where that was is written past it.
    """
    if os.environ.get("GRPC_VERBOSITY", "NONE") != "NONE":
        yield
        return
    os.environ["GRPC_VERBOSITY"] = "INFO"
    errors, before = os.dup(2), sys.stderr
    reading, writing = os.pipe()
    os.set_blocking(writing, False)  # gRPC must never wait for us; what does not fit is lost
    os.dup2(writing, 2)
    os.close(writing)
    thread = threading.Thread(target=_watch, args=(reading, errors, nicer), name="refusals", daemon=True)
    thread.start()
    sys.stderr = open(errors, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115  # for as long as this
    traced = faulthandler.is_enabled()
    faulthandler.enable(errors)
    try:
        yield
    finally:
        sys.stderr.flush()
        sys.stderr = before
        os.dup2(
            errors, 2
        )  # the last writing end is closed by that, and the thread ends: but for a child that still has it
        faulthandler.disable()
        if traced:
            faulthandler.enable(2)
        thread.join(LAST_SECONDS)
        if not thread.is_alive():
            os.close(errors)
        os.environ["GRPC_VERBOSITY"] = "NONE"


def _watch(reading: int, errors: int, nicer: int) -> None:
    os.nice(nicer)  # of this thread alone
    refusals = Refusals()
    with open(reading, "rb", buffering=0) as pipe:
        rest = b""
        while part := pipe.read(LONGEST_LINE):
            *lines, rest = (rest + part).split(b"\n")
            if len(rest) > LONGEST_LINE:
                lines, rest = [*lines, rest], b""
            for line in lines:
                text = line.decode(errors="replace")
                if why := reason(text):
                    refusals.add(why, time.monotonic())
                elif not _GRPC.match(text):  # or it is, and goes on after a line feed that a caller has put into it
                    _pass_on(errors, printable(text) + "\n")
        if rest:
            _pass_on(errors, printable(rest.decode(errors="replace")))


def _pass_on(errors: int, text: str) -> None:
    with contextlib.suppress(
        OSError
    ):  # a full disk, a log that nobody reads: it is lost, and the next line perhaps not
        os.write(errors, text.encode())
