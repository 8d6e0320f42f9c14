"""The identity of a node that runs as a service: the manager's copy counts, and a rotation waits for the next start."""

import shutil
import time
from pathlib import Path
from typing import cast

import pytest
from structlog.testing import capture_logs
from tests.unit.test_expiry import Watched

from conlora.daemon.certificates import Certificates
from conlora.errors import ConfigError, Refused
from conlora.net import identity as module
from conlora.net.identity import Identity, create_identity, load_identity
from conlora.net.mesh import Mesh
from conlora.net.rotation import rotate, take_over


@pytest.fixture
def mercy(tmp_path: Path) -> Identity:
    return create_identity(tmp_path / "mercy")


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mercy: Identity):
    """Copies the identity as systemd does at a start, and gives the place of the original, which the service can't read."""

    def start() -> Path:
        copies = tmp_path / "credentials"
        shutil.rmtree(copies, ignore_errors=True)
        copies.mkdir()
        for path in (tmp_path / "mercy").iterdir():
            (copies / f"identity_{path.name}").write_bytes(path.read_bytes())
            (copies / f"identity_{path.name}").chmod(0o440)  # an access list for one user looks like this
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(copies))
        return tmp_path / "not-to-be-read"

    return start


def test_the_copy_counts(started, mercy: Identity) -> None:
    assert load_identity(started()) == mercy


def test_credentials_of_other_kinds_are_none(tmp_path: Path, mercy: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "credentials").mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    assert load_identity(tmp_path / "mercy") == mercy


def test_who_may_not_look_is_told_who_may(tmp_path: Path, mercy: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", forbidden)  # for root nothing is
    with pytest.raises(
        ConfigError, match=r"the identity can't be read \(Permission denied\); run this as the user whom"
    ):
        load_identity(tmp_path / "mercy")


def test_elsewhere_a_key_is_still_private(tmp_path: Path, started) -> None:
    started()
    (tmp_path / "mercy" / "node.key").chmod(0o440)
    with pytest.raises(ConfigError, match="other users may read this private key"):
        module._load_pair(tmp_path / "mercy" / "node.key", tmp_path / "mercy" / "node.crt")


def test_a_rotation_counts_from_the_next_start(
    tmp_path: Path, started, mercy: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    started()
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    following = rotate(tmp_path / "mercy", 3600).next  # the operator's command has no copy
    assert following is not None
    place = started()
    assert load_identity(place) == Identity(mercy.key, mercy.certificate, mercy.node_id, next=following)
    later = time.time() + 3601
    monkeypatch.setattr(time, "time", lambda: later)
    assert load_identity(place) == following
    assert take_over(place) is False  # the files are not the service's to rename
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    assert rotate(tmp_path / "mercy", 3600).next is not None  # which has put them in place
    assert (tmp_path / "mercy" / "node.key").read_bytes() == following.key


def test_a_running_service_does_not_look_where_it_may_not(tmp_path: Path, started, mercy: Identity) -> None:
    started()
    rotate(tmp_path / "mercy", 3600)
    mesh = cast(Mesh, Watched(mercy))
    with capture_logs() as said:
        Certificates(tmp_path / "mercy", tmp_path / "state", None, mesh).look(time.time())
    assert said == []


def test_a_running_service_says_that_it_has_to_be_restarted(tmp_path: Path, started, mercy: Identity) -> None:
    with pytest.raises(Refused, match="restart it before the next certificate takes over, and its peers are told"):
        Certificates(started(), tmp_path / "state", None, cast(Mesh, Watched(mercy))).read()


def test_a_service_that_knows_the_next_certificate_need_not_be_restarted(
    tmp_path: Path, started, mercy: Identity
) -> None:
    """`conlora cert install` tells it of one that it may have found by itself."""
    rotate(tmp_path / "mercy", 3600)
    place = started()
    Certificates(place, tmp_path / "state", None, cast(Mesh, Watched(load_identity(place)))).read()
