"""The admin port and the way to it over loopback: who is let in, who may ask what, and what everybody else hears."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs
from tests.certificates import shifted, successor
from tests.daemons import free_port
from tests.fakes import FakeNode, rounds
from tests.meshes import until
from tests.relays import BACK, FORTH, Relay

from conlora.config import RemoteNode
from conlora.errors import ConfigError, NodeSlow, NodeUnreachable, Refused
from conlora.net import admin_client, admin_port, remote
from conlora.net.admin import SERVICE, AdminService
from conlora.net.admin_client import AdminClient
from conlora.net.admin_port import LOOKING, AdminPort
from conlora.net.credentials import accepting_credentials
from conlora.net.identity import Identity, Peer, create_identity
from conlora.net.operators import Operator, Role
from conlora.net.remote import RemoteWay
from conlora.net.status import Changes
from conlora.net.streams import open_port
from conlora.v1 import admin_pb2 as pb
from conlora.v1 import admin_pb2_grpc

T = TypeVar("T")
CHANGES = {"pause", "resume", "checkpoint", "stop", "drain", "leave", "reload", "read_identity"}


def operator(identity: Identity, name: str, role: Role) -> Operator:
    return Operator(Peer(name, identity.node_id, None, identity.certificate), role)


class Setting:
    """A node with an admin port on loopback, and operators with their own directories."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.node = FakeNode()
        self.identity = create_identity(directory / "node")
        (directory / "mercy.yaml").write_text(self.identity.card("mercy", None))
        self.alice, self.bob, self.eve = (create_identity(directory / name) for name in ("alice", "bob", "eve"))
        operators = [operator(self.alice, "alice", Role.FULL), operator(self.bob, "bob", Role.READ)]
        service = AdminService(self.node, directory / "admin.sock")
        self.port = AdminPort(service, lambda: self.identity, operators)
        self.address = f"127.0.0.1:{free_port()}"

    def way(self, who: str = "alice", address: str | None = None) -> RemoteWay:
        card, own = self.directory / "mercy.yaml", self.directory / who
        return RemoteWay(RemoteNode(address=address or self.address, card=card, identity_dir=own))

    async def ask(self, question: Callable[[AdminClient], T], who: str = "alice", address: str | None = None) -> T:
        """In another thread: the operator's side is synchronous."""

        def call() -> T:
            with AdminClient(self.way(who, address)) as client:
                return question(client)

        return await asyncio.to_thread(call)


@pytest.fixture
async def setting(tmp_path: Path) -> AsyncIterator[Setting]:
    setting = Setting(tmp_path)
    await setting.port.open(setting.address)
    yield setting
    await setting.port.close()


async def test_who_may_change_may_do_all(setting: Setting) -> None:
    assert await setting.ask(AdminClient.status) == setting.node.reply
    assert await setting.ask(AdminClient.consensus) == setting.node.seen
    assert await setting.ask(AdminClient.history) == setting.node.records
    assert await setting.ask(AdminClient.pause) == 4
    assert await setting.ask(lambda client: client.export(Path("/out"))) == 7
    assert await setting.ask(AdminClient.reload) == Changes(["anna"], ["berta"], [], ["exchange.encoding"])
    await setting.ask(lambda client: client.lift("anna"))
    assert await setting.ask(AdminClient.leave) == (Path("/state/step-8"), 10)
    assert setting.node.asked == ["pause", (Path("/out"), False), "reload", "lift anna", "leave"]


async def test_a_long_history_comes_over_too(setting: Setting) -> None:
    setting.node.records = rounds(5)[1:] * 7000  # 5 MB; gRPC takes 4 by default
    assert len(await setting.ask(lambda client: client.history(), "bob")) == 28_000


async def test_who_may_look_may_not_change(setting: Setting) -> None:
    for question in (AdminClient.status, AdminClient.consensus, AdminClient.history):
        await setting.ask(question, "bob")
    for command in sorted(CHANGES):
        with pytest.raises(Refused) as caught:
            await setting.ask(lambda client, command=command: getattr(client, command)(), "bob")  # type: ignore[misc]
        assert str(caught.value) == (
            "bob may look at this node, and not change anything; whoever keeps it can move the operator's card from read/ to "
            "full/"
        )
        assert caught.value.exit_code == 5
    with pytest.raises(Refused, match="bob may look at this node"):
        await setting.ask(lambda client: client.export(Path("/out")), "bob")
    with pytest.raises(Refused, match="bob may look at this node"):
        await setting.ask(lambda client: client.lift("anna"), "bob")
    assert setting.node.asked == []


def test_what_is_new_in_the_service_is_not_for_all() -> None:
    methods = {method.name for method in pb.DESCRIPTOR.services_by_name["Admin"].methods}
    looks = {path.rpartition("/")[2] for path in LOOKING if path.startswith(f"/{SERVICE}/")}
    assert looks == {"Status", "Consensus", "History"}
    assert len(methods - looks) == len(CHANGES | {"export", "lift"})  # all of which the test above tries


async def test_health_is_for_all_operators_and_nothing_streams(setting: Setting) -> None:
    def check() -> tuple[int, grpc.StatusCode]:
        with setting.way("bob").open() as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            status = stub.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=10).status
            try:
                next(stub.Watch(health_pb2.HealthCheckRequest(), timeout=10))
            except grpc.RpcError as error:
                return status, error.code()
        raise AssertionError("it streams")

    assert await asyncio.to_thread(check) == (health_pb2.HealthCheckResponse.SERVING, grpc.StatusCode.UNIMPLEMENTED)


async def test_who_changes_what_and_how_it_ended_is_in_the_log(setting: Setting) -> None:
    with capture_logs() as logs:
        await setting.ask(AdminClient.status)
        await setting.ask(lambda client: client.export(Path("/out\n"), overwrite=True))
        with pytest.raises(Refused):
            await setting.ask(AdminClient.pause, "bob")
        setting.node.refusal = "can't pause:\nnot now"
        with pytest.raises(Refused):
            await setting.ask(AdminClient.pause)
        await until(lambda: len(logs) == 5, "the operator hears it first")
    done, end, refused, declined, end_of_declined = logs
    for asked in (done, declined):
        assert asked.pop("address").startswith("ipv4:127.0.0.1:")
    told = {"operator": "alice", "command": "Export"}
    assert done == {
        "event": "an operator's command", "log_level": "info", **told, "path": "/out?", "overwrite": "True"
    }  # fmt: skip
    assert end == {"event": "an operator's command has ended", "log_level": "info", **told, "outcome": "done"}
    told = {"operator": "bob", "command": "Pause"}
    assert refused == {"event": "refused an operator's command", "log_level": "warning", **told, "times": 1}
    told = {"operator": "alice", "command": "Pause"}
    assert declined == {"event": "an operator's command", "log_level": "info", **told}
    told["outcome"] = "can't pause:?not now"
    assert end_of_declined == {"event": "an operator's command has ended", "log_level": "info", **told}


async def test_the_log_says_where_nobody_heard_how_it_ended(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = asyncio.Event()

    async def pause() -> int:
        begun.set()
        return await asyncio.Future()

    async def resume() -> int:
        raise ValueError("a mistake of ours")

    monkeypatch.setattr(setting.node, "pause", pause)
    monkeypatch.setattr(setting.node, "resume", resume)
    monkeypatch.setattr(admin_client, "SLOW_SECONDS", 1.0)
    with capture_logs() as logs:
        with pytest.raises(NodeSlow):
            await setting.ask(AdminClient.pause)
        assert begun.is_set()
        with pytest.raises(NodeUnreachable):
            await setting.ask(AdminClient.resume)
        await until(lambda: len(logs) == 4, "both have ended")
    assert {(entry["command"], entry["outcome"]) for entry in logs if "outcome" in entry} == {
        ("Pause", "not known, for the operator has not waited"),
        ("Resume", "ValueError('a mistake of ours')"),
    }


async def test_refusals_do_not_fill_the_log(setting: Setting) -> None:
    _, bob = setting.port.operators

    def calls() -> None:
        with AdminClient(setting.way()) as client:
            client.status()
            setting.port.operators = [bob]
            for _ in range(50):
                with pytest.raises(Refused, match="does not have this operator any more"):
                    client.status()
        with AdminClient(setting.way("bob")) as client:
            for command in (client.pause, client.stop) * 50:
                with pytest.raises(Refused, match="may look at this node"):
                    command()  # type: ignore[operator]

    with capture_logs() as logs:
        await asyncio.to_thread(calls)
    assert [(entry["event"], entry.get("command"), entry.get("times")) for entry in logs] == [
        ("refused a caller that is no operator", None, 1),
        ("refused an operator's command", "Pause", 1),
        ("refused an operator's command", "Stop", 1),
    ]


@pytest.fixture
async def brief(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Setting]:
    """As `setting`, with connections that become as old as a tenth of a second."""
    quick = [(name, 100 if name == "grpc.max_connection_age_ms" else value) for name, value in admin_port.PORT_OPTIONS]
    assert quick != admin_port.PORT_OPTIONS
    monkeypatch.setattr(admin_port, "PORT_OPTIONS", quick)
    setting = Setting(tmp_path)
    await setting.port.open(setting.address)
    yield setting
    await setting.port.close()


async def test_who_is_no_operator_any_more_loses_the_connection(brief: Setting) -> None:
    def conversation() -> None:
        with AdminClient(brief.way()) as client:
            client.status()
            brief.port.operators = brief.port.operators[1:]
            for _ in range(1000):
                with pytest.raises((Refused, NodeUnreachable)) as caught:
                    client.status()
                if "hangs up" in str(caught.value):
                    return
        raise AssertionError("the connection lives on")

    await asyncio.to_thread(conversation)


async def test_a_drain_outlives_its_connections_age(brief: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """New calls go over new connections meanwhile."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def drain() -> tuple[Path | None, int]:
        begun.set()
        await go_on.wait()
        return None, 9

    monkeypatch.setattr(brief.node, "drain", drain)
    with AdminClient(brief.way()) as client, capture_logs() as logs:
        draining = asyncio.create_task(asyncio.to_thread(client.drain))
        await begun.wait()
        while len({entry["address"] for entry in logs if "address" in entry}) < 4:
            assert await asyncio.to_thread(client.pause) == 4
        go_on.set()
        assert await draining == (None, 9)


async def test_a_refusal_of_the_node_arrives_as_its_sentence(setting: Setting) -> None:
    setting.node.refusal = "not now: später\nnor \x1b[2Jthen"
    with pytest.raises(Refused) as caught:
        await setting.ask(AdminClient.pause)
    assert str(caught.value) == "not now: später\nnor ?[2Jthen"


async def test_a_stranger_hears_nothing_but_the_end(setting: Setting) -> None:
    with pytest.raises(NodeUnreachable, match=r"hangs up; whoever keeps it has to put this operator's card") as caught:
        await setting.ask(AdminClient.status, "eve")
    assert caught.value.exit_code == 3
    assert str(caught.value).startswith(f"mercy at {setting.address} ")


async def test_without_operators_nobody_is_let_in_not_even_the_node(setting: Setting) -> None:
    setting.port.operators = []
    for who in ("alice", "eve"):
        with pytest.raises(NodeUnreachable, match="hangs up"):
            await setting.ask(AdminClient.status, who)
    with capture_logs() as logs, pytest.raises(Refused, match="does not have this operator any more"):
        await setting.ask(AdminClient.status, "node")
    assert (logs[0]["event"], logs[0]["reason"]) == (
        "refused a caller that is no operator",
        f"stranger: {setting.identity.node_id} is no operator",
    )


async def test_operators_come_and_go_at_once(setting: Setting) -> None:
    alice, bob = setting.port.operators

    def conversation() -> list[str]:
        said = []
        with AdminClient(setting.way()) as client:
            for operators in ([alice, bob], [bob], [replace(alice, role=Role.READ)], [alice]):
                setting.port.operators = operators
                try:
                    client.pause()
                except Refused as error:
                    said.append(str(error).partition(";")[0])
                else:
                    said.append("paused")
        return said

    assert await asyncio.to_thread(conversation) == [
        "paused",
        f"mercy at {setting.address} does not have this operator any more",
        "alice may look at this node, and not change anything",
        "paused",
    ]
    setting.port.operators = [alice, bob, operator(setting.eve, "eve", Role.READ)]
    assert await setting.ask(AdminClient.status, "eve") == setting.node.reply


async def test_the_nodes_next_certificate_is_known_by_the_old_card(setting: Setting) -> None:
    """Also in the midst of a conversation, after the connection has been lost."""
    async with Relay(setting.address) as relay:
        asked, rotated = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def conversation() -> None:
            with AdminClient(setting.way(address=relay.address)) as client:
                client.status()
                loop.call_soon_threadsafe(asked.set)
                asyncio.run_coroutine_threadsafe(rotated.wait(), loop).result(30)
                with contextlib.suppress(NodeUnreachable):  # the first may have been on the old connection
                    client.status()
                client.status()

        talking = asyncio.create_task(asyncio.to_thread(conversation))
        await asked.wait()
        setting.identity = successor(setting.identity)
        relay.reset()
        rotated.set()
        await talking
    setting.identity = successor(setting.identity)
    assert await setting.ask(AdminClient.pause) == 4


async def test_somebody_else_at_the_address(setting: Setting) -> None:
    setting.identity = create_identity(setting.directory / "somebody")
    with pytest.raises(NodeUnreachable) as caught:
        await setting.ask(AdminClient.status)
    card = setting.directory / "mercy.yaml"
    assert str(caught.value) == (
        f"whoever answers as mercy at {setting.address} has another certificate than {card} (the certificate is that of node "
        f"{setting.identity.node_id}); ask for the node's card again"
    )


async def test_a_certificate_that_has_expired(setting: Setting) -> None:
    setting.identity = shifted(setting.identity, -2, -1)
    (setting.directory / "mercy.yaml").write_text(setting.identity.card("mercy", None))
    with pytest.raises(NodeUnreachable, match=r"\(the certificate has expired on 20"):
        await setting.ask(AdminClient.status)


async def test_an_operator_whose_own_certificate_has_expired(setting: Setting) -> None:
    path = setting.directory / "alice" / "node.crt"
    path.write_bytes(shifted(setting.alice, -2, -1).certificate)
    with pytest.raises(NodeUnreachable, match=r"no node lets this operator in, for the certificate has expired on 20"):
        await setting.ask(AdminClient.status)


async def test_the_peer_port_is_not_the_admin_port(setting: Setting) -> None:
    """Even for a peer that is an operator."""

    async def accept(context: Any) -> None:
        raise AssertionError("nobody links")

    credentials = accepting_credentials(lambda: setting.identity, lambda: [setting.port.operators[0].card])
    address = f"127.0.0.1:{free_port()}"
    peers = await open_port(address, credentials, accept)
    with pytest.raises(
        NodeUnreachable, match="offers no administration, or not this; give the address of its admin_listen"
    ):
        await setting.ask(AdminClient.status, address=address)
    await peers.stop(None)


async def test_an_address_that_is_taken(setting: Setting) -> None:
    other = AdminPort(AdminService(setting.node, setting.directory / "b.sock"), lambda: setting.identity, [])
    with pytest.raises(ConfigError, match=f"admin_listen: {setting.address} can't be used; it may be taken by another"):
        await other.open(setting.address)
    await other.close()


async def test_nobody_listens(setting: Setting) -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(NodeUnreachable) as caught:
        await setting.ask(AdminClient.status, address=address)
    assert str(caught.value) == f"mercy at {address} can't be reached or went away (connection refused); is it running?"


async def test_a_name_that_there_is_not(setting: Setting) -> None:
    with pytest.raises(NodeUnreachable, match=r"mercy at mercy\.invalid:7444 (can't be reached|did not answer)"):
        await setting.ask(AdminClient.status, address="mercy.invalid:7444")


async def test_an_address_that_does_not_answer(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_client, "QUICK_SECONDS", 1.0)
    with socket.socket() as stuck:
        stuck.bind(("127.0.0.1", 0))
        stuck.listen()
        address = f"127.0.0.1:{stuck.getsockname()[1]}"
        with pytest.raises(NodeSlow, match=r"did not answer within 1 s; is it running, and does a firewall") as caught:
            await setting.ask(AdminClient.status, address=address)
    assert caught.value.exit_code == 3


async def test_a_network_that_is_gone_ends_a_long_wait(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drain has no deadline."""
    quick = [(name, value and 500) for name, value in remote.KEEPALIVE]
    monkeypatch.setattr(remote, "KEEPALIVE", quick)
    begun, never = asyncio.Event(), asyncio.Event()

    async def drain() -> Any:
        begun.set()
        await never.wait()

    monkeypatch.setattr(setting.node, "drain", drain)
    async with Relay(setting.address) as relay:
        waiting = asyncio.create_task(setting.ask(AdminClient.drain, address=relay.address))
        await begun.wait()
        relay.stop(FORTH, BACK)
        with pytest.raises(NodeUnreachable, match="can't be reached or went away"):
            await asyncio.wait_for(waiting, 30)  # gRPC alone gives up after a minute
        relay.heal()
    never.set()


async def test_export_names_a_place_on_the_nodes_machine(setting: Setting) -> None:
    with pytest.raises(
        ConfigError, match=r"^adapter: the node writes on its own machine, where a relative path has no place"
    ):
        await setting.ask(lambda client: client.export(Path("adapter")))

    def by_another_program() -> str:
        with setting.way().open() as channel:
            stub: Any = admin_pb2_grpc.AdminStub(channel)  # type: ignore[no-untyped-call]
            with pytest.raises(grpc.RpcError) as caught:
                stub.Export(pb.ExportRequest(path="adapter"), timeout=10)
        return str(caught.value.details())

    assert (await asyncio.to_thread(by_another_program)).startswith(
        "nothing was exported: adapter is not absolute; give"
    )
    assert setting.node.asked == []
