"""A real daemon with an admin port: who is let in where, with the commands that operators type."""

import asyncio
import socket
from pathlib import Path

import pytest
from tests.authorities import Authority
from tests.daemons import Daemon, Daemons, free_port, wait_until
from tests.integration.test_daemon_changes import conlora

from conlora.net.credentials import presented
from conlora.net.identity import Identity, Peer, create_identity, load_identity
from conlora.net.operators import Role

pytestmark = pytest.mark.usefixtures("forks")


class Operator:
    """A directory as `conlora init --operator` makes it, on its way to one node."""

    def __init__(self, node: Daemon, name: str, identity: Identity | None = None, port: str = "admin_listen") -> None:
        """identity: another's, in other hands. port: the key of the address to call."""
        self.name = name
        self.directory = node.directory / f"operator-{name}"
        self.node = node
        assert conlora("init", self.directory, "--operator", "--name", name).returncode == 0
        if identity:
            (self.directory / "identity" / "node.key").write_bytes(identity.key)
            (self.directory / "identity" / "node.crt").write_bytes(identity.certificate)
        self.identity = load_identity(self.directory / "identity")
        (self.directory / "mercy.yaml").write_text(node.identity.card(node.name, None))
        (self.directory / "conlora.yaml").write_text(f"address: {node.config[port]}\ncard: mercy.yaml\n")

    def may(self, role: Role | None) -> None:
        """Puts the card where the role is; the daemon has to be told."""
        for each in Role:
            (self.node.directory / "operators" / each / f"{self.name}.yaml").unlink(missing_ok=True)
        if role:
            folder = self.node.directory / "operators" / role
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{self.name}.yaml").write_bytes((self.directory / f"{self.name}.yaml").read_bytes())

    def says(self, *arguments: object) -> tuple[int, str]:
        """Runs a command; returns its exit code, and what it says."""
        done = conlora(*arguments, "-c", self.directory)
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def node(daemons: Daemons) -> Daemon:
    """Not started, with an admin port."""
    return daemons.make("mercy", admin_listen=f"127.0.0.1:{free_port()}")


def test_operators_look_change_come_and_go(node: Daemon) -> None:
    alice, bob, eve = (Operator(node, name) for name in ("alice", "bob", "eve"))
    alice.may(Role.FULL)
    bob.may(Role.READ)
    node.start("--paused")
    node.wait_for(lambda s: s.state == "paused", "the model is loaded")

    for each in (alice, bob):
        code, said = each.says("status")
        assert (code, said.splitlines()[0]) == (0, "mercy · default · lora, async · paused · round 0 of 5"), said
    assert bob.says("resume")[0] == 5
    assert "bob may look at this node, and not change anything" in bob.says("stop")[1]
    hung_up = f"conlora: mercy at {node.config['admin_listen']} hangs up; "
    code, said = eve.says("status")
    assert code == 3
    assert said.startswith(hung_up)
    wait_until(
        lambda: "the certificate is that of no configured peer or operator" in node.log.read_text(), "in the log"
    )
    assert node.wait_for(lambda s: True, "nothing has changed").state == "paused"

    bob.may(Role.FULL)
    eve.may(Role.READ)
    assert alice.says("reload") == (0, "reloaded: operators bob, eve\n")
    assert eve.says("consensus")[0] == 0
    assert bob.says("resume") == (0, "training from round 0\n")
    node.wait_for(lambda s: s.round == 5, "it has trained")
    assert '"round": 5' in eve.says("status", "--json")[1]
    target = node.directory / "adapter"
    assert alice.says("export", target) == (0, f"adapter of round 5: {target}\n")
    assert (target / "adapter_model.safetensors").exists()

    bob.may(None)
    assert alice.says("reload") == (0, "reloaded: operators bob\n")
    code, said = bob.says("status")
    assert code == 3
    assert said.startswith(hung_up)
    assert alice.says("stop")[0] == 0
    assert node.exit_code() == 0
    assert alice.says("status")[0] == 3
    log = node.log.read_text()
    for command, operator in (("Resume", "bob"), ("Export", "alice"), ("Stop", "alice")):
        assert any(f"command={command} operator={operator}" in line for line in log.splitlines()), command
    assert "command=Stop operator=bob" in log  # refused, and in the log as such
    assert "refused an operator's command" in log


def test_a_peer_is_no_operator_and_an_operator_no_peer(node: Daemon, daemons: Daemons) -> None:
    other = daemons.make("anna")
    node.knows(other, address=False)
    alice = Operator(node, "alice")
    alice.may(Role.FULL)
    node.start("--paused")
    node.wait_for(lambda s: s.state == "paused", "the model is loaded")
    assert alice.says("status")[0] == 0

    as_peer, at_the_peer_port = Operator(node, "anna", other.identity), Operator(node, "al", alice.identity, "listen")
    for refused in (as_peer, at_the_peer_port):
        code, said = refused.says("status")
        assert code == 3
        assert "hangs up" in said
    peer_at_its_port = Operator(node, "an", other.identity, "listen")
    assert "offers no administration, or not this" in peer_at_its_port.says("status")[1]


def test_the_nodes_key_changes_under_its_operators(node: Daemon) -> None:
    alice = Operator(node, "alice")
    alice.may(Role.FULL)
    node.start("--paused")
    node.wait_for(lambda s: s.state == "paused", "the model is loaded")
    before = alice.says("status")
    assert before[0] == 0
    done = conlora("cert", "rotate", "-c", node.config_path, "--overlap-days", 0)
    assert done.returncode == 0, done.stderr
    following = load_identity(node.directory / "identity")
    assert following.key != node.identity.key
    wait_until(lambda: "the next certificate has taken over" in node.log.read_text(), "the takeover")
    shown = asyncio.run(presented(Peer("mercy", following.node_id, node.config["admin_listen"], b"")))
    assert shown == following.certificate
    assert alice.says("status") == before  # with the card of the first key

    stolen = Operator(node, "mallory")  # somebody else's card in the name of the node
    (stolen.directory / "mercy.yaml").write_text(create_identity(Path(stolen.directory / "x")).card("mercy", None))
    code, said = stolen.says("status")
    assert code == 3
    assert "has another certificate than" in said


def test_a_reload_refuses_what_is_wrong_with_operators(node: Daemon) -> None:
    alice = Operator(node, "alice")
    alice.may(Role.FULL)
    node.start("--paused")
    node.wait_for(lambda s: s.state == "paused", "the model is loaded")
    (node.directory / "operators" / "bob.yaml").write_text("name: bob\n")
    code, said = alice.says("reload")
    assert code == 5
    assert "operators/bob.yaml: says who the operator is, and not what they may do" in said
    (node.directory / "operators" / "bob.yaml").unlink()
    node.config["admin_listen"] = f"127.0.0.1:{free_port()}"
    node.write()
    code, said = alice.says("reload")
    assert code == 5
    assert "nothing was reloaded: admin_listen can't change while the node runs" in said
    assert alice.says("status")[0] == 0


def test_operators_go_by_the_card_though_an_authority_decides_on_peers(node: Daemon, tmp_path: Path) -> None:
    root = Authority()
    node.config["ca_file"] = str(root.file(tmp_path / "ca.pem"))
    node.write()
    (tmp_path / "issued.pem").write_bytes(root.issue(node.identity).issued)
    done = conlora("cert", "install", tmp_path / "issued.pem", "-c", node.config_path)
    assert done.returncode == 0, done.stderr
    alice = Operator(node, "alice")
    alice.may(Role.READ)
    node.start("--paused")
    node.wait_for(lambda s: s.state == "paused", "the model is loaded")
    assert alice.says("status")[0] == 0


def test_a_port_that_is_taken_ends_the_node(node: Daemon) -> None:
    host, port = str(node.config["admin_listen"]).split(":")
    with socket.socket() as other:
        other.bind((host, int(port)))
        other.listen()
        node.start("--paused")
        assert node.exit_code() == 9
    assert f"conlora: admin_listen: {host}:{port} can't be used; it may be taken" in node.log.read_text()
    assert not Path(node.config["admin_socket"]).exists()
