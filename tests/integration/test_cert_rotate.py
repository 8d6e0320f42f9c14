"""`conlora cert` with real daemons: a rotation while nodes train, a restart in its midst, and callers that are refused."""

import json
import time

import pytest
from tests.certificates import shifted
from tests.daemons import Daemon, Daemons, wait_until
from tests.integration.test_daemon_changes import ENDLESS, conlora, goes_on, weights

from conlora.net.identity import create_identity, load_identity

pytestmark = pytest.mark.usefixtures("forks")


@pytest.mark.long
def test_a_certificate_is_replaced_while_nodes_train(daemons: Daemons) -> None:
    a, b = daemons.pair(ENDLESS)
    for node in (a, b):
        node.start()
    before = a.wait_for(lambda s: weights(s) == [0.5], "a mixes with b")
    b.wait_for(lambda s: weights(s) == [0.5], "b mixes with a")

    overlap = 40.0
    done = conlora("cert", "rotate", "-c", a.config_path, "--overlap-days", overlap / 86400)
    assert done.returncode == 0, done.stderr
    assert "neighbours are told now" in done.stdout
    a.wait_for(lambda s: s.peers[0].knows_next_certificate, "b has stored it")
    assert "knows the next one" in conlora("cert", "-c", a.config_path).stdout
    again = conlora("cert", "rotate", "-c", a.config_path)
    assert again.returncode == 5
    assert "a next certificate is there already" in again.stderr

    def restarted(node: Daemon) -> None:
        node.kill()
        node.start()
        for each in (a, b):
            each.wait_for(lambda s: weights(s) == [0.5], "they mix again")

    restarted(b)  # in the overlap, with what it has stored
    a.wait_for(lambda s: s.next_certificate_at is None, "the takeover", seconds=overlap + 90)
    assert (a.status().pid, a.identity.node_id) == (before.pid, before.node_id)  # type: ignore[union-attr]
    wait_until(lambda: not (a.directory / "identity" / "next.key").exists(), "the old key is gone")
    following = load_identity(a.directory / "identity")
    assert following.key != a.identity.key
    goes_on(b, b.wait_for(lambda s: weights(s) == [0.5], "the link has outlived the takeover"))

    restarted(b)  # has to know the new one by now
    restarted(a)
    assert a.status().node_id == before.node_id  # type: ignore[union-attr]
    assert "does not fit" not in b.log.read_text()
    shown = json.loads(conlora("cert", "-c", b.config_path, "--json").stdout)
    assert shown["peers"][0]["expires"] > time.time() + 9 * 365 * 86400


def test_the_reason_of_a_refusal_in_tls_is_in_the_log_of_who_refuses(daemons: Daemons) -> None:
    a, b = daemons.pair(ENDLESS)
    a.knows(b, address=False)
    stranger = create_identity(b.directory / "other")
    for name, content in (("node.key", stranger.key), ("node.crt", stranger.certificate)):
        (b.directory / "identity" / name).write_bytes(content)
    a.start()
    b.start()
    wait_until(lambda: "the certificate is that of no configured peer" in a.log.read_text(), "the reason at a")
    b.wait_for(lambda s: s.peers[0].last_error, "an error at b")
    assert "configured peer" not in b.log.read_text()


def test_a_certificate_that_soon_expires_is_shown(daemons: Daemons) -> None:
    a = daemons.make("a", ENDLESS)
    (a.directory / "identity" / "node.crt").write_bytes(shifted(a.identity, -100, 20).certificate)
    a.start()
    a.wait_for(lambda s: s.round >= 1, "a trains")
    shown = conlora("status", "-c", a.config_path).stdout
    assert "this node's certificate expires on 20" in shown
    assert "UTC; run `conlora cert rotate`" in shown
    assert "this node's certificate is near its end: run `conlora cert rotate`" in a.log.read_text()
