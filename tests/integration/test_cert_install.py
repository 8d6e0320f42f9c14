"""`conlora cert install` with real daemons: certificates of an authority are renewed while nodes exchange, and withdrawn."""

from pathlib import Path

import pytest
from tests.authorities import Authority
from tests.daemons import Daemon, Daemons, wait_until
from tests.integration.test_daemon_changes import ENDLESS, conlora, goes_on, weights

from conlora.net.authorities import load_chain
from conlora.net.identity import Identity

pytestmark = pytest.mark.usefixtures("forks")


@pytest.mark.long
def test_a_certificate_is_renewed_and_withdrawn_while_nodes_train(daemons: Daemons, tmp_path: Path) -> None:
    root = Authority()
    file = root.file(tmp_path / "ca.pem")
    a, b = daemons.pair(ENDLESS, ca_file=str(file))

    def install(node: Daemon, identity: Identity) -> str:
        issued = tmp_path / f"{node.name}.pem"
        issued.write_bytes(identity.issued)
        done = conlora("cert", "install", issued, "-c", node.config_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    for node in (a, b):
        install(node, root.issue(node.identity))
        node.start()
    a.wait_for(lambda s: weights(s) == [0.5], "a mixes with b")
    before = b.wait_for(lambda s: weights(s) == [0.5], "b mixes with a")

    renewed = root.issue(a.identity, days=(-1, 30))
    assert "peers see it from now on, and no link was ended" in install(a, renewed)
    end = load_chain(renewed.issued)[0].not_valid_after_utc.timestamp()
    after = b.wait_for(lambda s: s.peers[0].certificate_expires == end, "b knows it")
    assert after.peers[0].bytes_received >= before.peers[0].bytes_received
    goes_on(b, after)
    for node in (a, b):
        assert node.log.read_text().count("link up") == 1
        assert "it shows no certificate" not in node.log.read_text(), "a look leaves nothing in the log"

    root.file(tmp_path / "ca.pem", root.revoked(load_chain(renewed.issued)))
    assert conlora("reload", "-c", b.config_path).returncode == 0
    b.wait_for(lambda s: s.peers[0].link != "up", "the link's end")
    wait_until(
        lambda: "revoked: the certificate was revoked by an authority in ca_file" in b.log.read_text(), "the reason"
    )
    install(a, root.issue(a.identity))
    for node in (a, b):
        assert conlora("reload", "-c", node.config_path).returncode == 0  # dials at once
    b.wait_for(lambda s: weights(s) == [0.5], "they mix again")
