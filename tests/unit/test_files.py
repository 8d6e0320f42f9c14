"""A file that is replaced is the old one or the new, wherever the power is cut."""

import os
from pathlib import Path

import pytest

from conlora.files import read_file, replace_file


@pytest.mark.parametrize("done", range(5))
def test_a_power_cut_at_any_moment_leaves_the_old_file_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: int
) -> None:
    path, steps = tmp_path / "file", []
    replace_file(path, b"old")

    with monkeypatch.context() as cut:
        for owner, name in ((os, "open"), (os, "fsync"), (Path, "replace")):

            def step(*args: object, name: str = name, original: object = getattr(owner, name)) -> object:
                if len(steps) == done:
                    raise OSError("power cut")
                steps.append(name)
                return original(*args)  # type: ignore[operator]

            cut.setattr(owner, name, step)
        with pytest.raises(OSError, match="power cut"):
            replace_file(path, b"new")
    assert steps == ["open", "fsync", "replace", "open", "fsync"][:done]
    assert path.read_bytes() == (b"new" if "replace" in steps else b"old")
    replace_file(path, b"newest")
    assert path.read_bytes() == b"newest"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_links_are_neither_written_nor_read_through(tmp_path: Path) -> None:
    """Whom the directory belongs to may have put them there, and root may be the one who writes."""
    (target := tmp_path / "target").write_bytes(b"untouched")
    path = tmp_path / "file"
    path.with_name("file.new").symlink_to(target)
    path.symlink_to(target)
    with pytest.raises(OSError, match="symbolic links"):
        read_file(path)
    owner = target.stat().st_uid
    replace_file(path, b"new", model=tmp_path)
    assert (target.read_bytes(), target.stat().st_uid) == (b"untouched", owner)
    assert not path.is_symlink()
    assert read_file(path) == b"new"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_root_is_given_to_whom_the_directory_belongs(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 12346)
    replace_file(tmp_path / "file", b"new", model=tmp_path)
    found = (tmp_path / "file").stat()
    assert (found.st_uid, found.st_gid) == (12345, 12346)
