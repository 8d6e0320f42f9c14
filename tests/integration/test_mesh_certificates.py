"""Certificates that end, begin, follow each other and are refused, over real TLS on loopback."""

import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from tests.certificates import odd, shifted, successor
from tests.meshes import SETTINGS, Member, linked, pair, snapshot, until

from conlora.errors import StateError
from conlora.net import certificates
from conlora.net.credentials import presented
from conlora.net.identity import Identity, Peer
from conlora.net.introductions import Introductions
from conlora.net.mesh import Mesh, PeerState
from conlora.net.rotation import Announced

Members = Callable[[str], Member]
DAY = 86400.0
HANGS_UP = "b hangs up on this node; perhaps its operator still has to add this node's card"


def running(member: Member) -> Mesh:
    assert member.mesh is not None
    return member.mesh


def rotating(identity: Identity, until: float) -> Identity:
    """With the next one beside it, which takes over at that moment."""
    return replace(identity, next=successor(identity, until))


async def restart(member: Member, *peers: Peer, listens: bool = True, **options: object) -> None:
    await member.close()
    member.mesh = Mesh(member.name, member.identity, list(peers), member.node, 1, **options)  # type: ignore[arg-type]
    if listens:
        await member.mesh.listen(member.address)
    member.mesh.begin(SETTINGS)


# Refused, with the reason here and none there


@pytest.mark.parametrize(
    ("days", "reason"),
    [
        ((-10, -1), r"the certificate has expired on .* UTC; its operator has to run `conlora cert rotate`"),
        ((1, 10), r"the certificate is not valid before .* UTC; compare the clocks of both machines"),
    ],
    ids=["expired", "not yet valid"],
)
async def test_a_peer_whose_certificate_is_not_valid_now(
    member: Members, monkeypatch: pytest.MonkeyPatch, days: tuple[float, float], reason: str
) -> None:
    """At both ends: whoever dials, and whoever is dialled."""
    monkeypatch.setattr(Introductions, "check_own", lambda self: None)
    a, b = member("a"), member("b")
    b.identity = shifted(b.identity, *days)
    await b.start(a.card(dialled=False))
    with capture_logs() as logs:
        await a.start(b.card())
        await until(lambda: a.state(b).word == "refused", "refused")
        assert a.state(b).last_error.startswith("b is refused, for the certificate ")
        assert re.search(reason, a.state(b).last_error)
        assert ("link refused", "b") in [(entry["event"], entry.get("peer")) for entry in logs]
    await a.close()
    await b.close()

    await restart(a, b.card(dialled=False))
    await restart(b, a.card(), listens=False)
    await until(lambda: b.state(a).last_error, "an error")
    assert b.state(a).last_error == HANGS_UP.replace("b ", "a ", 1)
    assert a.node.events == b.node.events == []


async def test_a_node_whose_own_certificate_has_expired_says_so_and_does_not_dial(member: Members) -> None:
    a, b = member("a"), member("b")
    await b.start(a.card(dialled=False))
    a.identity = shifted(a.identity, -10, -1)
    await a.start(b.card())
    await until(lambda: a.state(b).word == "refused", "refused")
    assert a.state(b).last_error.startswith("no peer lets this node in, for the certificate has expired on 20")
    assert a.state(b).last_error.endswith("; run `conlora cert rotate`, or set the clock if that is wrong")


async def test_a_certificate_that_was_replaced(member: Members) -> None:
    """An old copy of b runs somewhere: it neither gets in nor is believed."""
    a, b = member("a"), member("b")
    second = successor(b.identity)
    known = b.card(successors=(second.certificate,))
    await b.start(a.card(dialled=False))
    await a.start(known)
    await until(lambda: a.state(b).word == "refused", "refused")
    assert a.state(b).last_error == (
        "b is refused, for the certificate was replaced by a newer one; perhaps an old copy of that node runs there"
    )
    await restart(a, replace(known, address=None))
    await restart(b, a.card(), listens=False)
    await until(lambda: b.state(a).last_error, "an error")
    assert b.state(a).last_error == HANGS_UP.replace("b ", "a ", 1)
    assert a.node.events == b.node.events == []


async def test_a_next_key_that_the_known_one_does_not_vouch_for(member: Members) -> None:
    """Somebody has stolen b's first key after b had replaced it."""
    a, b = member("a"), member("b")
    known = b.card(successors=(successor(b.identity).certificate,))
    b.identity = successor(b.identity)
    await b.start(a.card(dialled=False))
    await a.start(known)
    await until(lambda: a.state(b).word == "refused", "refused")
    assert a.state(b).last_error == (
        "whoever answers at b's address has another certificate than its card; ask b for a new card "
        "(the key that is known does not vouch for that of the certificate)"
    )
    assert a.state(b).peer == known


async def test_a_stranger_with_an_odd_certificate_does_not_end_dialling(member: Members) -> None:
    a, b, c = member("a"), member("b"), member("c")
    c.identity = replace(c.identity, certificate=odd(c.identity)["a name of a kind that nobody uses"])
    c.address = b.address
    await c.start()
    with capture_logs() as logs:
        await a.start(b.card())
        await until(lambda: a.state(b).word == "refused", "refused")
    assert "(the certificate is malformed (" in a.state(b).last_error
    assert "defect" not in str(logs)
    await c.close()
    await b.start(a.card(dialled=False))
    running(a).show(a.identity)  # dials at once
    await until(lambda: linked(a, b), "a link")


async def test_an_edge_outlives_a_defect(member: Members, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = member("a"), member("b")
    dial, failures = Mesh._dial, iter([RuntimeError("boom")])

    async def dial_badly_at_first(mesh: Mesh, state: PeerState) -> None:
        if failure := next(failures, None):
            raise failure
        await dial(mesh, state)

    monkeypatch.setattr(Mesh, "_dial", dial_badly_at_first)
    await b.start(a.card(dialled=False))
    with capture_logs() as logs:
        await a.start(b.card())
        await until(lambda: linked(a, b), "a link")
    assert "a link has failed by a defect; it is tried again" in [entry["event"] for entry in logs]


# A rotation


async def test_neighbours_learn_the_next_certificate_and_no_link_is_lost(member: Members, tmp_path: Path) -> None:
    a, b = member("a"), member("b")
    announced = Announced(tmp_path / "b-state")
    await a.start(b.card())
    await restart(b, a.card(dialled=False), keep=announced.keep)
    await until(lambda: linked(a, b), "a link")
    first, link = a.identity, a.link(b)
    a.identity = rotating(first, time.time() + DAY)
    assert a.identity.next is not None
    running(a).show(a.identity)
    await until(lambda: running(a).introductions.known_by(a.state(b)), "b says that it has stored it")
    assert announced.known(a.card(dialled=False)).newest == a.identity.next.certificate
    assert a.link(b) is link

    running(a).publish(snapshot(3))
    await until(lambda: b.node.snapshots, "a snapshot on the same link")
    assert a.node.events == [("up", "b")]
    assert b.node.events == [("up", "a")]


@pytest.mark.parametrize("a_dials", [True, False])
async def test_both_are_accepted_in_the_overlap_and_the_new_one_alone_after_it(member: Members, a_dials: bool) -> None:
    a, b = await pair(member, a_dials=a_dials, b_dials=not a_dials)
    first = a.identity
    following = successor(first, time.time() + DAY)
    running(a).show(replace(first, next=following))
    await until(lambda: running(a).introductions.known_by(a.state(b)), "b knows it")
    for shown in (following, first):
        a.identity = shown
        await restart(a, b.card(dialled=a_dials))
        await until(lambda: linked(a, b), "a link")

    state = b.state(a)
    late = successor(first, time.time() - certificates.LAG_SECONDS - 1)
    state.peer = replace(state.peer, successors=(late.certificate,))
    events = len(b.node.events)
    await restart(a, b.card(dialled=a_dials))
    await until(lambda: a.state(b).last_error or b.state(a).word == "refused", "refused")
    assert not a.link(b)
    assert len(b.node.events) == events + 1, "only the old link's end"
    a.identity = late
    await restart(a, b.card(dialled=a_dials))
    running(b).show(b.identity)  # dials at once
    await until(lambda: linked(a, b), "a link")


async def test_what_is_shown_changes_when_it_is_time_in_a_running_node(member: Members) -> None:
    a, b = member("a"), member("b")
    first, until_then = a.identity, time.time() + 3
    a.identity = rotating(first, until_then)
    await a.start(b.card(dialled=False))
    await b.start(a.card(), listens=False)
    await until(lambda: running(a).introductions.known_by(a.state(b)), "b knows it")
    link = a.link(b)
    assert await presented(a.card()) == first.certificate
    await until(lambda: time.time() > until_then, "the takeover")
    assert a.identity.next is not None
    assert await presented(a.card()) == a.identity.next.certificate
    assert a.link(b) is link
    await restart(b, b.state(a).peer, listens=False)
    await until(lambda: linked(a, b), "a link with the new one")


async def test_who_could_not_store_it_is_told_again_and_so_is_who_missed_a_takeover(
    member: Members, tmp_path: Path
) -> None:
    """Without an overlap there is no next certificate that is left to announce. b never dials."""
    a, b = member("a"), member("b")
    announced, room = Announced(tmp_path / "b-state"), [False]

    def keep(peer: Peer) -> None:
        if not room[0]:
            raise StateError("no space left on the device; make room")
        announced.keep(peer)

    await a.start(b.card())
    await restart(b, a.card(dialled=False), keep=keep)
    await until(lambda: linked(a, b), "a link")
    link, a.identity = a.link(b), successor(a.identity)
    with capture_logs() as logs:
        running(a).show(a.identity)
        await until(
            lambda: [e for e in logs if e["event"] == "the new certificate of a peer is not stored"], "an error"
        )
    assert not running(a).introductions.known_by(a.state(b))
    room[0] = True
    running(a).tell()
    await until(lambda: running(a).introductions.known_by(a.state(b)), "b has stored it")
    assert a.link(b) is link
    running(a).tell()
    await restart(a, b.card())
    await until(lambda: linked(a, b), "a link with the new one")


async def test_a_peer_that_was_away_learns_it_when_it_comes_back(member: Members) -> None:
    a, b = member("a"), member("b")
    a.identity = rotating(a.identity, time.time() + DAY)
    await a.start(b.card())
    await b.start(a.card(dialled=False))
    await until(lambda: running(a).introductions.known_by(a.state(b)), "b knows it")


async def test_a_peer_that_was_away_for_the_whole_overlap_finds_it_at_the_address(
    member: Members, tmp_path: Path
) -> None:
    a, b = member("a"), member("b")
    announced, card = Announced(tmp_path / "b-state"), a.card()
    a.identity = successor(a.identity)
    await a.start(b.card(dialled=False))
    with capture_logs() as logs:
        await restart(b, card, listens=False, keep=announced.keep)
        await until(lambda: linked(a, b), "a link")
    assert "b shows" not in str(logs)
    assert announced.known(card).newest == a.identity.certificate
    assert "a shows a new certificate, which its old key vouches for" in [entry.get("reason") for entry in logs]

    await restart(b, announced.known(card), listens=False)
    await until(lambda: linked(a, b), "a link after a restart")


async def test_an_expired_certificate_is_replaced_and_found_at_the_address(member: Members) -> None:
    a, b = member("a"), member("b")
    a.identity = shifted(a.identity, -10, -1)
    card = a.card()
    await a.start(b.card(dialled=False))
    await b.start(card, listens=False)
    await until(lambda: b.state(a).word == "refused", "refused")
    running(a).show(successor(a.identity))
    running(b).show(b.identity)  # dials at once
    await until(lambda: linked(a, b), "a link")


async def test_what_can_not_be_stored_is_not_acknowledged(member: Members) -> None:
    a, b = member("a"), member("b")

    def full(peer: Peer) -> None:
        raise StateError("no space left on the device; make room")

    a.identity = rotating(a.identity, time.time() + DAY)
    await a.start(b.card())
    with capture_logs() as logs:
        await restart(b, a.card(dialled=False), keep=full)
        await until(
            lambda: [e for e in logs if e["event"] == "the new certificate of a peer is not stored"], "an error"
        )
    assert not running(a).introductions.known_by(a.state(b))
    assert linked(a, b)
    assert b.state(a).peer == a.card(dialled=False)


async def test_an_announcement_that_is_none_costs_no_link(member: Members) -> None:
    a, b, c = member("a"), member("b"), member("c")
    a.identity = replace(a.identity, next=successor(c.identity, time.time() + DAY))
    await a.start(b.card())
    with capture_logs() as logs:
        await b.start(a.card(dialled=False))
        await until(lambda: [e for e in logs if "refused a certificate" in e["event"]], "refused")
    running(a).publish(snapshot(3))
    await until(lambda: b.node.snapshots, "a snapshot")
    assert b.state(a).peer == a.card(dialled=False)


async def test_endless_announcements_end_the_link(member: Members) -> None:
    a, b = await pair(member)
    link = a.link(b)
    assert link is not None
    a.identity = rotating(a.identity, time.time() + DAY)
    for _ in range(65):
        running(a).show(a.identity)
    await until(lambda: b.state(a).last_error, "an error")
    assert b.state(a).last_error == "a sent more than 64 frames about certificates"
