"""The admin service and its client over a real Unix socket, with a node that only remembers what it was asked."""

import asyncio
import grp
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tests.fakes import ALONE, DOWN, UP, FakeNode, rounds, status, view

from conlora.errors import ConfigError, NodeSlow, NodeUnreachable, Refused, StateError
from conlora.net import admin_client
from conlora.net.admin import AdminService
from conlora.net.admin_client import AdminClient
from conlora.net.status import Changes, ConsensusView, NodeStatus, RoundRecord


@pytest.fixture
def node() -> FakeNode:
    return FakeNode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "admin.sock"


@pytest.fixture
async def service(node: FakeNode, path: Path) -> AsyncIterator[AdminService]:
    service = AdminService(node, path)
    await service.start()
    yield service
    await service.close()
    assert not path.exists()


Ask = Callable[[Callable[[AdminClient], Any]], Coroutine[Any, Any, Any]]


@pytest.fixture
def ask(service: AdminService, path: Path) -> Ask:
    """Calls a function with a client in another thread: the client is synchronous."""

    def call(question: Callable[[AdminClient], Any]) -> Any:
        with AdminClient(path) as client:
            return question(client)

    return lambda question: asyncio.to_thread(call, question)


@pytest.mark.parametrize(
    "reply",
    [
        status(),
        status(loss=None, accuracy=None, message="out of memory", trainer_pid=9),
        status(consensus=0.0, peers=[UP, DOWN]),
        status(consensus=0.125, peers=[DOWN]),
    ],
)
async def test_status_comes_over_whole(ask: Ask, node: FakeNode, reply: NodeStatus) -> None:
    node.reply = reply
    assert await ask(AdminClient.status) == reply


@pytest.mark.parametrize(
    "reply",
    [
        view(),
        ALONE,
        view(edges=[], amplification=None),
        view(s=None, graph=[]),
        view(amplification=0.0, rho=0.0, s=0.0),
    ],
)
async def test_the_consensus_view_comes_over_whole(ask: Ask, node: FakeNode, reply: ConsensusView) -> None:
    node.seen = reply
    assert await ask(AdminClient.consensus) == reply


async def test_history_comes_over_whole(ask: Ask, node: FakeNode) -> None:
    node.records = [*rounds(5), RoundRecord(6, 0.0, 0.0)]
    assert await ask(AdminClient.history) == node.records
    assert await ask(lambda client: client.history(4)) == node.records[4:]
    assert await ask(lambda client: client.history(6)) == []


async def test_a_long_history_comes_over_too(ask: Ask, node: FakeNode) -> None:
    node.records = rounds(40_000)  # more than the 4 MB that gRPC takes by default
    assert len(await ask(AdminClient.history)) == 40_000


async def test_a_history_that_takes_long_holds_up_nothing_but_others(
    ask: Ask, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, free = threading.Event(), threading.Event(), threading.Lock()

    def history(after_round: int) -> list[RoundRecord]:
        assert free.acquire(blocking=False), "two at a time"
        begun.set()
        assert go_on.wait(4.0), "nothing else is answered meanwhile"
        free.release()
        return []

    monkeypatch.setattr(node, "history", history)
    asked = [asyncio.create_task(ask(AdminClient.history)) for _ in range(3)]
    assert await asyncio.to_thread(begun.wait, 10.0)
    for _ in range(20):
        assert await ask(AdminClient.status) == node.reply
    go_on.set()
    assert await asyncio.gather(*asked) == [[], [], []]


async def test_a_history_that_can_not_be_read_is_a_sentence(
    ask: Ask, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def history(after_round: int) -> list[RoundRecord]:
        raise StateError("history.db: the history can't be read (disk I/O error); mend the disk")

    monkeypatch.setattr(node, "history", history)
    with pytest.raises(Refused, match=r"^history\.db: the history can't be read \(disk I/O error\); mend the disk$"):
        await ask(AdminClient.history)


async def test_every_command_arrives_and_is_answered(ask: Ask, node: FakeNode) -> None:
    assert await ask(AdminClient.pause) == 4
    assert await ask(AdminClient.resume) == 5
    assert await ask(AdminClient.checkpoint) == (Path("/state/step-8"), 6)
    assert await ask(lambda client: client.export(Path("/out"), overwrite=True)) == 7
    assert await ask(AdminClient.stop) == (Path("/state/step-8"), 8)
    assert await ask(AdminClient.reload) == Changes(["anna"], ["berta"], [], ["exchange.encoding"])
    await ask(lambda client: client.lift("anna"))
    await ask(AdminClient.read_identity)
    assert await ask(AdminClient.drain) == (Path("/state/step-8"), 9)
    assert await ask(AdminClient.leave) == (Path("/state/step-8"), 10)
    called = ["pause", "resume", "checkpoint", (Path("/out"), True), "stop", "reload", "lift anna", "read_identity"]
    assert node.asked == [*called, "drain", "leave"]


async def test_export_is_relative_to_the_operator_not_the_node(
    ask: Ask, node: FakeNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    await ask(lambda client: client.export(Path("adapter")))
    assert node.asked == [(tmp_path / "adapter", False)]


async def test_stop_without_a_checkpoint(ask: Ask, node: FakeNode) -> None:
    node.last_checkpoint = None
    assert await ask(AdminClient.stop) == (None, 8)
    assert await ask(AdminClient.drain) == (None, 9)
    assert await ask(AdminClient.leave) == (None, 10)


@pytest.mark.parametrize(
    "command", ["pause", "resume", "checkpoint", "stop", "reload", "read_identity", "drain", "leave"]
)
async def test_a_refusal_arrives_as_its_sentence(ask: Ask, node: FakeNode, command: str) -> None:
    node.refusal = "can't do that: the node is loading – später"
    with pytest.raises(Refused) as caught:
        await ask(lambda client: getattr(client, command)())
    assert str(caught.value) == node.refusal
    assert caught.value.exit_code == 5
    assert node.asked == []


async def test_only_the_nodes_user_may_open_the_socket(service: AdminService, path: Path) -> None:
    assert path.is_socket()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


async def test_health_says_serving(service: AdminService, path: Path) -> None:
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", "conlora.v1.Admin"):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest(service="conlora.v1.Peer"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_reflection_lists_and_describes_the_service(service: AdminService, path: Path) -> None:
    def describe() -> tuple[list[str], list[str]]:
        with grpc.insecure_channel(f"unix:{path}") as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            admin = DescriptorPool(database).FindServiceByName("conlora.v1.Admin")
            return list(database.get_services()), [method.name for method in admin.methods]

    services, methods = await asyncio.to_thread(describe)
    assert "conlora.v1.Admin" in services
    assert "conlora.v1.Peer" not in services
    assert methods == [
        "Status",
        "Consensus",
        "History",
        "Pause",
        "Resume",
        "Checkpoint",
        "Export",
        "Stop",
        "Drain",
        "Leave",
        "Reload",
        "Lift",
        "ReadIdentity",
    ]


async def test_a_path_that_is_too_long(node: FakeNode, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100) / "admin.sock"
    with pytest.raises(ConfigError, match="set admin_socket to a shorter one"):
        await AdminService(node, long).start()
    assert not long.parent.exists()


async def test_a_killed_daemons_socket_is_replaced(node: FakeNode, path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    service = AdminService(node, path)
    await service.start()
    with AdminClient(path) as client:
        assert await asyncio.to_thread(client.status) == node.reply
    await service.close()


async def test_a_file_that_is_no_socket_is_left_alone(node: FakeNode, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("precious")
    with pytest.raises(ConfigError, match=r"rows\.csv is there already, and no socket; choose another path"):
        await AdminService(node, tmp_path / "rows.csv").start()
    assert (tmp_path / "rows.csv").read_text() == "precious"


async def test_a_directory_that_can_not_be_made(node: FakeNode, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    sentence = (
        rf"^admin_socket: {tmp_path}/file/admin\.sock can't be made \(.*\); choose a path in a writable directory$"
    )
    with pytest.raises(ConfigError, match=sentence):
        await AdminService(node, tmp_path / "file" / "admin.sock").start()


async def test_a_directory_that_takes_no_socket(node: FakeNode) -> None:
    sentence = r"^admin_socket: /proc/admin\.sock can't be opened; choose a path in a writable directory$"
    with pytest.raises(ConfigError, match=sentence):
        await AdminService(node, Path("/proc/admin.sock")).start()


@pytest.mark.parametrize("group", [None, "own"])
async def test_who_may_open_the_socket(node: FakeNode, path: Path, group: str | None) -> None:
    own = grp.getgrgid(os.getegid()).gr_name
    service = AdminService(node, path, group and own)
    await service.start()
    assert path.stat().st_mode & 0o777 == (0o660 if group else 0o600)
    assert path.stat().st_gid == os.getegid()
    await service.close()


async def test_a_group_that_there_is_not(node: FakeNode, path: Path) -> None:
    service = AdminService(node, path, "no-such-group")
    with pytest.raises(ConfigError, match="admin_group: the admin socket can't be given to 'no-such-group'"):
        await service.start()
    await service.close()


def test_who_may_not_look_is_told_who_may(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", forbidden)  # for root nothing is
    with (
        AdminClient(path) as client,
        pytest.raises(NodeUnreachable, match="ask as the node's user, or as a member of its admin_group"),
    ):
        client.status()


def test_no_socket_means_no_daemon(path: Path) -> None:
    with AdminClient(path) as client, pytest.raises(NodeUnreachable, match="start it with `conlora run`") as caught:
        client.status()
    assert caught.value.exit_code == 3


DEAD = r"^no daemon answers at .*admin\.sock \(it has died or is starting\); start it with `conlora run`$"


def test_a_socket_that_nobody_listens_on(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with AdminClient(path) as client, pytest.raises(NodeUnreachable, match=DEAD):
        client.status()


async def test_a_daemon_that_is_busy_is_not_one_that_is_not_there(
    ask: Ask, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_client, "QUICK_SECONDS", 0.3)
    monkeypatch.setattr(node, "read_identity", asyncio.Event().wait)
    with pytest.raises(NodeSlow, match=r"did not answer within 0 s") as caught:
        await ask(AdminClient.read_identity)
    assert caught.value.exit_code == 3


def test_a_daemon_that_is_stuck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_client, "QUICK_SECONDS", 0.3)
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as stuck:
        stuck.bind(str(path))
        stuck.listen()
        with AdminClient(path) as client, pytest.raises(NodeUnreachable, match=r"did not answer|no daemon answers"):
            client.status()
