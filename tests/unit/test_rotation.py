"""What `conlora cert rotate` and the takeover leave on disk, also where they are broken off."""

import errno
import os
import time
from pathlib import Path

import pytest
from tests.certificates import at, names, shifted

from conlora.errors import (
    ConfigError,
    Refused,
)
from conlora.net.certificates import (
    MOST_HANDOVERS,
    expires,
)
from conlora.net.identity import Identity, create_identity, load_identity
from conlora.net.rotation import rotate, take_over

DAY = 86400.0


def test_a_rotation_from_beginning_to_end(tmp_path: Path, mercy: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, now = tmp_path / "mercy", float(int(time.time()))
    at(monkeypatch, now)
    rotated = rotate(directory, DAY)
    assert rotated.next is not None
    assert (rotated.certificate, rotated.next.takes_over_at) == (mercy.certificate, now + DAY)
    assert (directory / "next.key").stat().st_mode & 0o777 == 0o600
    assert not take_over(directory), "it is not time yet"
    assert load_identity(directory) == rotated

    at(monkeypatch, now + DAY)
    assert load_identity(directory) == rotated.next, "what counts is the time, not the names of the files"
    assert take_over(directory)
    assert names(directory) == {"node.key", "node.crt"}
    assert load_identity(directory) == rotated.next
    assert not take_over(directory)


@pytest.mark.parametrize("kept", [0, 1], ids=["nothing was renamed", "the certificate was renamed"])
def test_a_takeover_that_is_broken_off_is_finished_later(
    tmp_path: Path, mercy: Identity, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    directory = tmp_path / "mercy"
    new = rotate(directory, 0)
    renames = [0]
    rename = Path.replace

    def power_cut(self: Path, target: Path) -> Path:
        if renames[0] == kept:
            raise OSError("power cut")
        renames[0] += 1
        return rename(self, target)

    with monkeypatch.context() as cut:
        cut.setattr(Path, "replace", power_cut)
        with pytest.raises(OSError, match="power cut"):
            take_over(directory)
    assert load_identity(directory) == new
    assert take_over(directory)
    assert load_identity(directory) == new
    assert names(directory) == {"node.key", "node.crt"}


@pytest.mark.parametrize("left", [{"next.key"}, {"next.key", "next.crt.new"}])
def test_a_rotation_that_is_broken_off_is_none(tmp_path: Path, mercy: Identity, left: set[str]) -> None:
    directory = tmp_path / "mercy"
    rotate(directory, DAY)
    (directory / "next.crt").rename(directory / "next.crt.new")
    for name in {"next.key", "next.crt.new"} - left:
        (directory / name).unlink()
    assert load_identity(directory) == mercy
    assert not take_over(directory)
    assert rotate(directory, DAY).next is not None


def test_one_rotation_at_a_time(tmp_path: Path, mercy: Identity) -> None:
    rotate(tmp_path / "mercy", DAY)
    before = {path.name: path.read_bytes() for path in (tmp_path / "mercy").iterdir()}
    with pytest.raises(Refused, match="a next certificate is there already, and takes over on 20"):
        rotate(tmp_path / "mercy", DAY)
    assert {path.name: path.read_bytes() for path in (tmp_path / "mercy").iterdir()} == before


def test_a_certificate_that_expires_sooner_shortens_the_overlap(tmp_path: Path, mercy: Identity) -> None:
    short = shifted(mercy, -1, 1)
    (tmp_path / "mercy" / "node.crt").write_bytes(short.certificate)
    following = rotate(tmp_path / "mercy", 14 * DAY).next
    assert following is not None
    assert following.takes_over_at == int(expires(short.certificate))


def test_an_expired_certificate_is_replaced_at_once(tmp_path: Path, mercy: Identity) -> None:
    (tmp_path / "mercy" / "node.crt").write_bytes(shifted(mercy, -20, -1).certificate)
    rotated = rotate(tmp_path / "mercy", 14 * DAY)
    assert rotated.next is None
    assert rotated.key != mercy.key
    assert rotated.node_id == mercy.node_id


def test_a_node_has_so_many_keys_and_no_more(tmp_path: Path, mercy: Identity) -> None:
    for _ in range(MOST_HANDOVERS):
        rotate(tmp_path / "mercy", 0)
    assert len(load_identity(tmp_path / "mercy").certificate) < 16 * 1024
    with pytest.raises(Refused, match="has had 32 keys before, which is the most; make a new identity"):
        rotate(tmp_path / "mercy", 0)


def test_a_directory_that_can_not_be_written(tmp_path: Path, mercy: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(path: Path, content: bytes, model: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr("conlora.net.rotation.write_private", read_only)
    with pytest.raises(
        ConfigError,
        match=r"/mercy: the next certificate can't be written \(.*\); run this as the user whom the directory belongs to$",
    ):
        rotate(tmp_path / "mercy", DAY)
    assert load_identity(tmp_path / "mercy") == mercy


def test_a_next_certificate_of_another_node_is_named(tmp_path: Path, mercy: Identity) -> None:
    create_identity(tmp_path / "anna")
    rotate(tmp_path / "anna", DAY)
    for name in ("next.key", "next.crt"):
        (tmp_path / "anna" / name).rename(tmp_path / "mercy" / name)
    with pytest.raises(ConfigError, match=r"next\.crt is that of another node; remove next\.key and next\.crt"):
        load_identity(tmp_path / "mercy")
