"""What a service manager is told, over a real socket, and that a broken one costs nothing."""

import asyncio
import os
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from tests.managers import Manager
from tests.meshes import until

from conlora.daemon import notify
from conlora.daemon.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path):
    address = f"@conlora-test-{os.getpid()}" if request.param == "abstract" else tmp_path / "notify"
    with Manager(address) as manager:
        yield manager


def test_what_is_told(manager: Manager) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.address})
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.ready()
    notifier.status("training,\nround 1")
    notifier.status("training,\nround 1")
    with notifier.reloading():
        assert manager.hear()[2] == "RELOADING=1"
    notifier.stopping()
    notifier.stopping()
    told = manager.hear()
    assert told[:2] == ["READY=1", "STATUS=training, round 1"]
    assert told[4:] == ["READY=1", "STOPPING=1"]
    name, _, moment = told[3].partition("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(moment) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_a_reload_that_fails_is_over_too(manager: Manager) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.address})
    with pytest.raises(ZeroDivisionError), notifier.reloading():
        _ = 1 / 0
    assert manager.hear()[-1] == "READY=1"


def test_processes_that_the_node_starts_inherit_nothing(tmp_path: Path) -> None:
    environment = {
        "NOTIFY_SOCKET": str(tmp_path),
        "WATCHDOG_USEC": "3000000",
        "WATCHDOG_PID": str(os.getpid()),
        "HOME": "/",
    }
    assert Notifier(environment).watchdog_seconds == 3.0
    assert environment == {"HOME": "/"}


@pytest.mark.parametrize(
    "variables",
    [{}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getppid())}],
    ids=["none", "no number", "another process's"],
)
def test_no_watchdog(variables: dict[str, str]) -> None:
    assert Notifier({"NOTIFY_SOCKET": "/nowhere", **variables}).watchdog_seconds == 0


async def test_the_watchdog_is_fed_for_as_long_as_the_event_loop_turns(manager: Manager) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "30000"})
    rounds = iter(range(1_000_000))
    watching = asyncio.create_task(notifier.watch(lambda: f"round {next(rounds)}"))
    await until(lambda: manager.hear().count("WATCHDOG=1") >= 5, "it is fed")
    assert "STATUS=round 3" in manager.told
    fed = len(manager.hear())
    time.sleep(0.2)  # noqa: ASYNC251  # the loop hangs
    assert len(manager.hear()) <= fed
    watching.cancel()


async def test_a_status_that_fails_does_not_end_a_node_that_is_alive(manager: Manager) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "30000"})
    with capture_logs() as logs:
        watching = asyncio.create_task(notifier.watch(lambda: str(1 / 0)))
        await until(lambda: manager.hear().count("WATCHDOG=1") >= 3, "it is fed all the same")
        watching.cancel()
    assert logs[0]["event"] == "no status for the service manager"


async def test_without_a_watchdog_there_is_a_status_alone(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "STATUS_SECONDS", 0.001)
    notifier = Notifier({"NOTIFY_SOCKET": manager.address})
    looks = 0

    def describe() -> str:
        nonlocal looks
        looks += 1
        return "training"

    watching = asyncio.create_task(notifier.watch(describe))
    await until(lambda: looks >= 5, "it looks again and again")
    watching.cancel()
    assert manager.hear() == ["STATUS=training"]


@pytest.mark.parametrize("address", ["/nowhere/notify", "vsock:2:1", "@" + "x" * 200, "relative\0zero"])
async def test_a_broken_socket_is_logged_once_and_costs_nothing(address: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address})
    with capture_logs() as logs:
        notifier.ready()
        with notifier.reloading():
            pass
        notifier.stopping()
    assert [entry["event"] for entry in logs] == ["the service manager can't be told; the node goes on"]


async def test_a_manager_that_does_not_read_holds_nobody_up_and_hears_that_the_node_is_ready_later(
    manager: Manager,
) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "3000"})
    began = time.monotonic()
    for number in range(2000):  # more than a socket holds
        notifier.status(f"round {number}")
    notifier.ready()
    assert time.monotonic() - began < 5
    assert "READY=1" not in manager.hear()
    watching = asyncio.create_task(notifier.watch(lambda: "training"))
    await until(lambda: "READY=1" in manager.hear(), "it is told in the end")
    watching.cancel()


async def test_without_a_manager_nothing_is_told_and_nothing_waits() -> None:
    notifier = Notifier({})
    notifier.ready()
    notifier.stopping()
    async with asyncio.timeout(1):
        await notifier.watch(lambda: pytest.fail("nobody asks"))
