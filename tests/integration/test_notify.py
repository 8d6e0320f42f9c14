"""A real daemon under a service manager that only listens: what it is told from start to stop, and what it does without one."""

import signal
from pathlib import Path

import pytest
from tests.daemons import Daemons
from tests.managers import Manager

pytestmark = pytest.mark.usefixtures("forks")


def test_a_manager_hears_of_start_life_reload_and_stop(
    daemons: Daemons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Manager(tmp_path / "notify") as manager:
        monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
        monkeypatch.setenv("WATCHDOG_USEC", "600000")
        node = daemons.make("a", {"rounds": 1_000_000, "slowdown": 5})
        node.start()
        manager.wait_for("READY=1")
        assert node.admin.status().name == "a"  # at once, without waiting for a model
        manager.wait_for("STATUS=training, round")
        beats = manager.hear().count("WATCHDOG=1")
        manager.wait_for("WATCHDOG=1", times=beats + 2)
        assert node.process is not None
        node.process.send_signal(signal.SIGHUP)
        manager.wait_for("READY=1", times=2)
        assert manager.hear().index("RELOADING=1") < len(manager.told) - 1 - manager.told[::-1].index("READY=1")
        node.process.send_signal(signal.SIGTERM)
        assert node.exit_code() == 0
        assert manager.hear().count("STOPPING=1") == 1
        assert not any(line.startswith("READY=1") for line in manager.told[manager.told.index("STOPPING=1") :])


def test_a_node_lives_without_the_manager_that_it_was_promised(
    daemons: Daemons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    monkeypatch.setenv("WATCHDOG_USEC", "600000")
    node = daemons.make("a", {"rounds": 1_000_000, "slowdown": 5})
    node.start()
    node.wait_for(lambda s: s.round >= 1, "trains")
    node.admin.stop()
    assert node.exit_code() == 0
    assert node.log.read_text().count("the service manager can't be told") == 1
