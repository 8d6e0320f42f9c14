"""Which certificates a peer may show as time goes by, and which it is refused for, with the reason."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
from tests.certificates import shifted, successor

from conlora.errors import (
    CertificateRejected,
)
from conlora.net.certificates import (
    LAG_SECONDS,
    tls_name,
)
from conlora.net.identity import Identity, Peer, create_identity

DAY = 86400.0


def test_one_after_the_other_is_accepted_and_both_in_between(card: Peer, mercy: Identity) -> None:
    now = float(int(time.time()))
    second = successor(mercy, until=now + 100)
    third = successor(second, until=now + DAY)
    peer = card.succeeded(second.certificate, now).succeeded(third.certificate, now)
    assert peer.successors == (second.certificate, third.certificate)
    assert peer.accepted(now) == [mercy.certificate, second.certificate, third.certificate]
    assert peer.accepted(now + 100 + LAG_SECONDS - 1) == peer.accepted(now)
    assert peer.accepted(now + 100 + LAG_SECONDS) == [second.certificate, third.certificate]
    assert peer.accepted(now + DAY + LAG_SECONDS) == [third.certificate]


def test_who_has_missed_one_learns_the_next(card: Peer, mercy: Identity) -> None:
    third = successor(successor(mercy))
    assert card.succeeded(third.certificate, time.time()).successors == (third.certificate,)


def test_a_known_certificate_changes_nothing(card: Peer, mercy: Identity) -> None:
    peer = card.succeeded(successor(mercy, until=time.time() + DAY).certificate, time.time())
    for known in (peer.certificate, peer.newest):
        assert peer.succeeded(known, time.time()) is peer


def refused(peer: Peer, certificate: bytes) -> str:
    with pytest.raises(CertificateRejected) as caught:
        peer.succeeded(certificate, time.time())
    return str(caught.value)


def test_what_is_refused_and_why(card: Peer, mercy: Identity, tmp_path: Path) -> None:
    anna, second, rival = create_identity(tmp_path / "anna"), successor(mercy), successor(mercy)
    assert refused(card, b"hello") == "format: no PEM certificate"
    for other in (anna, successor(anna)):
        assert refused(card, other.certificate) == f"another-node: the certificate is that of node {anna.node_id}"
    named = shifted(second, -1, 5, tls_name(anna.node_id))
    assert refused(card, named.certificate) == "format: the certificate holds other extensions than those of a node's"
    claiming = shifted(mercy, -1, 5, lineage=b"x")
    assert refused(card, claiming.certificate) == "format: the certificate is malformed (its lineage is malformed)"
    assert refused(card, shifted(second, -20, -10).certificate).startswith("expired: the certificate has expired on 20")
    early = refused(card, shifted(second, 10, 20).certificate)
    assert early.startswith("not-yet-valid: the certificate is not valid before 20")
    peer = card.succeeded(second.certificate, time.time())
    assert refused(peer, mercy.certificate) == "replaced: the certificate was replaced by a newer one"
    assert refused(peer, rival.certificate) == (
        "not-vouched: the key that is known does not vouch for that of the certificate"
    ), "who has the old key still can't name another next one"


def test_a_successor_is_signed_by_its_own_key(card: Peer, mercy: Identity) -> None:
    """Whoever has mercy's old key, but not the new one, can't put other dates on the new certificate."""
    second = successor(mercy)
    assert refused(card, shifted(replace(second, key=mercy.key), -1, 5).certificate) == (
        "format: the certificate is malformed (it is not signed by its own key)"
    )


def test_who_has_missed_one_trusts_the_one_before_it_no_longer_for_that(card: Peer, mercy: Identity) -> None:
    now = float(int(time.time()))
    second = successor(mercy, until=now + 100)
    third = successor(second, until=now + DAY)
    peer = card.succeeded(third.certificate, now)
    assert peer.accepted(now + 100 + LAG_SECONDS - 1) == [mercy.certificate, third.certificate]
    assert peer.accepted(now + 100 + LAG_SECONDS) == [third.certificate]


def test_one_that_was_missed_is_learnt_for_as_long_as_it_is_shown(card: Peer, mercy: Identity) -> None:
    """The link was up all the time, so the third was announced while the peer still showed the second."""
    now = float(int(time.time()))
    second = successor(mercy, until=now - DAY)
    third, rival = successor(second, until=now + DAY), successor(mercy, until=now - DAY)
    peer = card.succeeded(third.certificate, now)
    shown = peer.succeeded(second.certificate, now + DAY + LAG_SECONDS - 1)
    assert shown == replace(card, successors=(second.certificate, third.certificate))
    assert shown.accepted(now) == [second.certificate, third.certificate]
    assert shown.succeeded(second.certificate, now) is shown
    with pytest.raises(CertificateRejected, match="not-vouched"):
        peer.succeeded(rival.certificate, now)
    for known in (peer, shown):
        with pytest.raises(CertificateRejected, match="replaced: the certificate was replaced by a newer one"):
            known.succeeded(second.certificate, now + DAY + LAG_SECONDS)
    newer_card = replace(card, certificate=third.certificate)
    with pytest.raises(CertificateRejected, match="replaced: the certificate was replaced by the one on the card"):
        newer_card.succeeded(second.certificate, now)
