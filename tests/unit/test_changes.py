"""What may change while a node runs, from what it runs with to what its files say now."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from conlora.config import NodeConfig, load_config
from conlora.daemon.changes import changes, changes_of_operators, check_encodings
from conlora.errors import ConfigError, Refused
from conlora.net.identity import Peer
from conlora.net.operators import Operator, Role
from conlora.net.status import Changes

ANNA, BERTA, CARLA = (Peer(name, name.upper(), f"{name}:7443", b"") for name in ("anna", "berta", "carla"))


def configured(directory: Path, **sections: Any) -> NodeConfig:
    base = {"name": "mercy", "model": {"base": "owner/model"}, "task": {"type": "guest"}}
    path = directory / "conlora.yaml"
    path.write_text(yaml.safe_dump({**base, **sections}))
    return load_config(path)


def test_nothing_differs(tmp_path: Path) -> None:
    config = configured(tmp_path)
    assert changes(config, [ANNA], configured(tmp_path), [ANNA]) == Changes([], [], [], [])


def test_peers_come_go_and_move(tmp_path: Path) -> None:
    config, moved = configured(tmp_path), replace(BERTA, address="elsewhere:7443")
    assert changes(config, [ANNA, BERTA], config, [moved, CARLA]) == Changes(["carla"], ["anna"], ["berta"], [])


def test_a_peer_may_get_another_name(tmp_path: Path) -> None:
    config = configured(tmp_path)
    assert changes(config, [ANNA], config, [replace(ANNA, name="st-anna")]) == Changes([], [], ["st-anna"], [])


def test_what_only_the_daemon_knows_may_change(tmp_path: Path) -> None:
    later = configured(
        tmp_path,
        advertise="mercy:7443",
        operators_dir="elsewhere",
        exchange={"encoding": "int8", "encodings": {"anna": "fp32"}},
        federation={"sync_deadline_seconds": 5},
    )
    keys = ["advertise", "exchange.encoding", "exchange.encodings", "federation.sync_deadline_seconds"]
    keys.append("operators_dir")
    assert changes(configured(tmp_path), [ANNA], later, [ANNA]).keys == keys


@pytest.mark.parametrize(
    ("sections", "keys"),
    [
        ({"training": {"rounds": 7}}, "training.rounds"),
        ({"name": "mild", "lora": {"rank": 3}}, "lora.rank, name"),
        ({"exchange": {"encoding": "fp32"}, "federation": {"seed": 5}}, "federation.seed"),
        ({"observing": {"sketched": False}}, "observing.sketched"),
        ({"admin_listen": "mercy:7444"}, "admin_listen"),
    ],
)
def test_the_rest_is_refused_as_a_whole_by_its_keys(tmp_path: Path, sections: dict[str, Any], keys: str) -> None:
    with pytest.raises(Refused) as caught:
        changes(configured(tmp_path), [ANNA], configured(tmp_path, **sections), [BERTA])
    assert str(caught.value) == (
        f"nothing was reloaded: {keys} can't change while the node runs; put the old value back, or restart the daemon"
    )


def test_lockstep_keeps_its_peers_but_not_their_addresses(tmp_path: Path) -> None:
    config = configured(tmp_path, federation={"mode": "sync"})
    moved = replace(ANNA, address=None)
    assert changes(config, [ANNA, BERTA], config, [moved, BERTA]).changed == ["anna"]
    for peers in ([ANNA], [ANNA, BERTA, CARLA]):
        with pytest.raises(Refused, match="can't change in sync mode"):
            changes(config, [ANNA, BERTA], config, peers)


def test_operators_come_go_and_get_other_rights() -> None:
    anna, berta = Operator(ANNA, Role.FULL), Operator(BERTA, Role.READ)
    assert changes_of_operators([anna, berta], [anna, berta]) == []
    assert changes_of_operators([anna], [berta]) == ["anna", "berta"]
    assert changes_of_operators([anna, berta], [anna, Operator(BERTA, Role.FULL)]) == ["berta"]
    assert changes_of_operators([anna], [Operator(replace(ANNA, certificate=b"other"), Role.FULL)]) == ["anna"]


def test_an_encoding_for_nobody_is_a_mistake(tmp_path: Path) -> None:
    config = configured(tmp_path, exchange={"encodings": {"anna": "int8", "dora": "fp32"}})
    check_encodings(configured(tmp_path), [])
    with pytest.raises(ConfigError, match=r"exchange\.encodings: dora is no peer's name; the cards in \S+ have them"):
        check_encodings(config, [ANNA])
