"""Warnings of a certificate's end, and the daemon that takes the next one over when it is time."""

import asyncio
import re
import time
from pathlib import Path
from unittest import mock

import pytest
from structlog.testing import capture_logs
from tests.certificates import at, names, shifted

from conlora.daemon.certificates import REMIND_SECONDS, TAKEN_OVER, Certificates
from conlora.daemon.node import Node
from conlora.errors import (
    ConfigError,
)
from conlora.net.certificates import (
    expires,
)
from conlora.net.edge import PeerState
from conlora.net.expiry import WARNING_SECONDS, warning
from conlora.net.identity import Identity, Peer, create_identity, load_identity
from conlora.net.introductions import Introductions
from conlora.net.rotation import rotate

DAY = 86400.0


class Watched:
    """What `Certificates` needs of a mesh."""

    def __init__(self, identity: Identity, *peers: Peer) -> None:
        self.introductions = Introductions(identity, lambda peer: None)
        self.states = {peer.node_id: PeerState(peer) for peer in peers}
        self.told = 0

    def show(self, identity: Identity) -> None:
        self.introductions.identity = identity

    def tell(self) -> None:
        self.told += 1


def watch(directory: Path, mesh: Watched) -> Certificates:
    return Certificates(directory, directory.parent / "state", None, mesh)  # type: ignore[arg-type]


def test_a_month_before_the_end_there_is_a_warning_a_day(tmp_path: Path, mercy: Identity) -> None:
    anna = create_identity(tmp_path / "anna")
    end = expires(mercy.certificate)
    old = shifted(anna, -1, 2000)  # half of what mercy's has left
    watched = watch(tmp_path / "mercy", Watched(mercy, Peer("anna", anna.node_id, None, old.certificate)))
    with capture_logs() as logs:
        watched.look(expires(old.certificate) - WARNING_SECONDS - 1)
    assert logs == []
    with capture_logs() as logs:
        watched.look(first := expires(old.certificate) - WARNING_SECONDS + 1)
        watched.look(first + REMIND_SECONDS - 1)
    assert len(logs) == 1
    assert (logs[0]["log_level"], logs[0]["peer"]) == ("warning", "anna")
    assert logs[0]["event"] == "a peer's certificate is near its end: its operator has to replace it"
    assert re.fullmatch(r"expires on 20\d\d-\d\d-\d\d \d\d:\d\d UTC", logs[0]["ends"])
    with capture_logs() as logs:
        watched.look(first + REMIND_SECONDS)
        watched.look(end + 1)
    assert [(entry.get("peer"), entry["ends"].split(" on ")[0]) for entry in logs] == [
        ("anna", "expires"),
        (None, "has expired"),
        ("anna", "has expired"),
    ]
    assert logs[1]["event"] == "this node's certificate is near its end: run `conlora cert rotate`"


def test_a_certificate_that_was_replaced_needs_no_warning(tmp_path: Path, mercy: Identity) -> None:
    short = shifted(mercy, -1, 5)
    (tmp_path / "mercy" / "node.crt").write_bytes(short.certificate)
    following = rotate(tmp_path / "mercy", 3 * DAY)
    with capture_logs() as logs:
        watch(tmp_path / "mercy", Watched(following)).look(time.time())
    assert logs == []


def test_the_daemon_takes_over_when_it_is_time(
    tmp_path: Path, mercy: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh = Watched(rotate(tmp_path / "mercy", DAY))
    watched, now = watch(tmp_path / "mercy", mesh), time.time()
    following = watched.identity.next
    watched.look(now)
    assert watched.identity.next is following
    at(monkeypatch, now + DAY)
    watched.look(now + DAY)
    assert watched.identity == following == load_identity(tmp_path / "mercy")
    assert names(tmp_path / "mercy") == {"node.key", "node.crt"}


def test_a_directory_that_the_daemon_may_only_read_is_no_obstacle(
    tmp_path: Path, mercy: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh = Watched(rotate(tmp_path / "mercy", DAY))
    watched, following = watch(tmp_path / "mercy", mesh), mesh.introductions.identity.next
    at(monkeypatch, time.time() + DAY)

    def read_only(*_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(Path, "replace", read_only)
    with capture_logs() as logs:
        watched.look(time.time())
    assert watched.identity == following == load_identity(tmp_path / "mercy")
    assert logs[0]["event"] == "the next certificate counts, but its files keep their names"
    with capture_logs() as logs:
        watched.look(time.time() + DAY)
    assert logs == []


def test_an_identity_that_was_exchanged_is_not_taken_up(tmp_path: Path, mercy: Identity) -> None:
    mesh = Watched(mercy)
    anna = create_identity(tmp_path / "anna")
    with pytest.raises(
        ConfigError, match="holds the identity of another node now; restart the daemon if that is right"
    ):
        watch(tmp_path / "anna", mesh).read()
    assert mesh.introductions.identity is mercy
    assert anna.node_id != mercy.node_id


def test_words_for_an_end() -> None:
    assert warning(None, 0.0) == ""
    assert warning(WARNING_SECONDS, 0.0) == ""
    assert warning(DAY, 0.0) == "expires on 1970-01-02 00:00 UTC"
    assert warning(DAY, DAY) == "has expired on 1970-01-02 00:00 UTC"


def test_neighbours_are_told_again_once_a_day(tmp_path: Path, mercy: Identity) -> None:
    mesh = Watched(rotate(tmp_path / "mercy", 0))
    watched, now = watch(tmp_path / "mercy", mesh), time.time()
    told = []
    for moment in (now, now + REMIND_SECONDS - 1, now + REMIND_SECONDS):
        watched.look(moment)
        told.append(mesh.told)
    assert told == [1, 1, 2]


def test_a_takeover_without_an_overlap_is_shown_at_once(tmp_path: Path, mercy: Identity) -> None:
    mesh = Watched(mercy)
    second = rotate(tmp_path / "mercy", 0)
    with capture_logs() as logs:
        watch(tmp_path / "mercy", mesh).read()
    assert mesh.introductions.identity == second
    assert [entry["event"] for entry in logs] == [TAKEN_OVER]


def test_a_daemon_that_was_not_told_finds_the_next_one(tmp_path: Path, mercy: Identity) -> None:
    mesh = Watched(mercy)
    watched, rotated = watch(tmp_path / "mercy", mesh), rotate(tmp_path / "mercy", DAY)
    with capture_logs() as logs:
        watched.look(time.time())
        watched.look(time.time())
    assert mesh.introductions.identity == rotated
    assert [entry["event"] for entry in logs] == ["a next certificate is announced to peers"]


def test_a_next_certificate_that_is_none_is_said_once_a_day(tmp_path: Path, mercy: Identity) -> None:
    mesh = Watched(mercy)
    watched, now = watch(tmp_path / "mercy", mesh), time.time()
    (tmp_path / "mercy" / "next.crt").write_bytes(b"hello")
    with capture_logs() as logs:
        for moment in (now, now + REMIND_SECONDS - 1, now + REMIND_SECONDS):
            watched.look(moment)
    assert [entry["event"] for entry in logs] == ["the next certificate can't be taken up"] * 2
    assert mesh.introductions.identity is mercy


async def test_no_other_command_keeps_the_daemon_from_reading_the_next_one() -> None:
    """A reload may wait for peers, and a drain for a round."""
    node, read = object.__new__(Node), mock.Mock()
    node._changing, node._certificates = asyncio.Lock(), mock.Mock(read=read)
    async with node._changing, asyncio.timeout(1):
        await node.read_identity()
    read.assert_called_once_with()
