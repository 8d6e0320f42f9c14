"""A file that is replaced is the old one or the new, wherever the power is cut."""

import os
from pathlib import Path

import pytest

from conlora.files import replace_file


@pytest.mark.parametrize("done", range(4))
def test_a_power_cut_at_any_moment_leaves_the_old_file_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: int
) -> None:
    path, steps = tmp_path / "file", []
    replace_file(path, b"old")

    with monkeypatch.context() as cut:
        for owner, name in ((Path, "open"), (os, "fsync"), (Path, "replace")):

            def step(*args: object, name: str = name, original: object = getattr(owner, name)) -> object:
                if len(steps) == done:
                    raise OSError("power cut")
                steps.append(name)
                return original(*args)  # type: ignore[operator]

            cut.setattr(owner, name, step)
        with pytest.raises(OSError, match="power cut"):
            replace_file(path, b"new")
    assert steps == ["open", "fsync", "replace", "fsync"][:done]
    assert path.read_bytes() == (b"new" if "replace" in steps else b"old")
    replace_file(path, b"newest")
    assert path.read_bytes() == b"newest"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
