"""Checkpoints under damage, power cuts and disks that don't take any more: the newest good one is always there to go on from."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conlora.errors import StateError
from conlora.store.checkpoints import (
    ADAPTER_FILES,
    MANIFEST,
    Checkpoint,
    CheckpointStore,
    export_adapter,
    read_checkpoint,
)

FILES = (*ADAPTER_FILES, "optimizer.pt", "nested/rank-1.pt")
CALLS = ((os, "fsync"), (Path, "write_text"), (Path, "rename"), (Path, "open"), (Path, "mkdir"), (shutil, "copyfile"))


class PowerCut(BaseException):
    """Nothing after this is done."""


def stage(store: CheckpointStore, step: int) -> Path:
    staged = store.staging / f"checkpoint-{step}"
    for name in FILES:
        (staged / name).parent.mkdir(parents=True, exist_ok=True)
        (staged / name).write_text(json.dumps({"step": step, "name": name}))
    return staged


def seal(store: CheckpointStore, step: int) -> Checkpoint:
    return store.seal(stage(store, step), step // 4, step, "digest", "base")


@contextmanager
def two_checkpoints(keep: int = 2) -> Iterator[CheckpointStore]:
    """Of the steps 4 and 8."""
    folder = Path(tempfile.mkdtemp())
    try:
        store = CheckpointStore(folder / "checkpoints", keep)
        store.prepare()
        seal(store, 4)
        seal(store, 8)
        yield store
    finally:
        shutil.rmtree(folder)


@contextmanager
def failing(nth: int, failure: BaseException) -> Iterator[list[int]]:
    """The n-th call that touches the disk fails, and all after it; yields the number of calls so far."""
    count = [0]

    def broken(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] >= nth:
                raise failure
            return original(*args, **kwargs)

        return call

    patches = [mock.patch.object(owner, name, broken(getattr(owner, name))) for owner, name in CALLS]
    for patch in patches:
        patch.start()
    try:
        yield count
    finally:
        for patch in patches:
            patch.stop()


def contents(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in FILES}


damages = st.one_of(
    st.tuples(st.just("flip"), st.floats(0, 1, exclude_max=True), st.integers(0, 7)),
    st.tuples(st.just("truncate"), st.floats(0, 1, exclude_max=True), st.just(0)),
    st.tuples(st.just("zeros"), st.floats(0, 1, exclude_max=True), st.just(0)),  # what a file system leaves unwritten
    st.tuples(st.just("remove"), st.just(0.0), st.just(0)),
)


def damage(path: Path, kind: str, where: float, bit: int) -> None:
    data = bytearray(path.read_bytes())
    at = int(where * len(data))
    match kind:
        case "flip":
            data[at] ^= 1 << bit
        case "truncate":
            del data[at:]
        case "zeros":
            data[at:] = bytes(len(data) - at)
        case "remove":
            path.unlink()
            return
    path.write_bytes(data)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from([*FILES, MANIFEST]), damages)
def test_damage_anywhere_is_seen_and_the_checkpoint_before_is_used(name: str, how: tuple[str, float, int]) -> None:
    with two_checkpoints() as store:
        path = store.directory / "step-000000008"
        before, known = contents(path), read_checkpoint(path)
        damage(path / name, *how)
        newest, damaged = store.newest()
        assert newest is not None
        if newest.step == 8:  # a blank of the manifest that became another
            assert name == MANIFEST
            assert (newest, contents(path)) == (known, before)
        else:
            assert newest.step == 4
            assert len(damaged) == 1
            assert str(path) in damaged[0]


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("nth", range(1, 30))
def test_a_power_cut_at_any_moment_leaves_the_old_checkpoint_or_the_new(nth: int, keep: int) -> None:
    with two_checkpoints(keep) as store:
        staged = stage(store, 12)
        try:
            with failing(nth, PowerCut()) as calls:
                store.seal(staged, 3, 12, "digest", "base")
        except PowerCut:
            pass
        else:
            assert calls[0] < 29, "more calls than this test tries"
        store.prepare()
        newest, damaged = store.newest()
        assert newest is not None
        assert newest.step in (8, 12)
        assert damaged == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("nth", range(1, 25))
def test_a_disk_that_takes_no_more_costs_the_new_checkpoint_only(nth: int, code: int) -> None:
    with two_checkpoints() as store:
        staged, problem = stage(store, 12), ""
        try:
            with failing(nth, OSError(code, os.strerror(code))):
                store.seal(staged, 3, 12, "digest", "base")
        except StateError as error:
            problem = str(error)
        if problem:
            assert "step-000000012: the checkpoint can't be written" in problem
            assert "free space or mend the disk, older ones are intact" in problem
        assert not staged.exists(), "what is of no use takes up no space"
        newest, damaged = store.newest()
        assert newest is not None
        assert newest.step in (8, 12)
        assert damaged == []
        assert seal(store, 16).step == 16, "the disk has space again"


@pytest.mark.parametrize(("code", "remedy"), [(errno.ENOSPC, "free space"), (errno.EROFS, "mount it for writing")])
@pytest.mark.parametrize("nth", range(1, 12))
def test_an_export_that_fails_says_so_and_leaves_nothing_behind(
    nth: int, code: int, remedy: str, tmp_path: Path
) -> None:
    with two_checkpoints() as store:
        newest, _ = store.newest()
        assert newest is not None
        problem = ""
        try:
            with failing(nth, OSError(code, os.strerror(code))):
                export_adapter(newest, tmp_path / "adapter", "base", "readme", overwrite=False)
        except StateError as error:
            problem = str(error)
        left = [path.name for path in tmp_path.iterdir()]
        if "adapter_config.json: can't be read" in problem:  # of the checkpoint
            assert left == []
        elif problem:
            assert f"{tmp_path / 'adapter'}: the adapter can't be written" in problem
            assert remedy in problem
            assert left in ([], ["adapter"])  # the latter where only syncing its place has failed
        else:
            assert left == ["adapter"]


def test_a_damaged_checkpoint_does_not_displace_good_ones() -> None:
    with two_checkpoints(keep=1) as store:  # training went on from step 4, since 8 was damaged
        seal(store, 5)
        assert [path.name for path in store.directory.glob("step-*")] == ["step-000000005"]


@pytest.mark.parametrize("nth", range(1, 30))
def test_a_damaged_checkpoint_of_the_same_step_is_replaced_without_a_moment_without(nth: int) -> None:
    with two_checkpoints(keep=1) as store:
        (store.directory / "step-000000008" / "optimizer.pt").write_text("damaged")
        again = stage(store, 8)
        try:
            with failing(nth, PowerCut()):
                store.seal(again, 2, 8, "digest")
        except PowerCut:
            assert (store.directory / "step-000000008").exists()
        else:
            newest, damaged = store.newest()
            assert newest is not None
            assert (newest.step, damaged) == (8, [])
            assert len(list(store.directory.glob("step-*"))) == 1


def test_a_checkpoint_of_an_earlier_version_is_read() -> None:
    with two_checkpoints() as store:
        path = store.directory / "step-000000008" / MANIFEST
        manifest = json.loads(path.read_text())
        del manifest["digest"], manifest["base"]
        path.write_text(json.dumps(manifest))
        newest, damaged = store.newest()
        assert newest is not None
        assert (newest.step, newest.base, damaged) == (8, "", [])
