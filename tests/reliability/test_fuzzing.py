"""Hostile frames through a node's decode path: only errors about the peer come out, and nothing bad is kept."""

import itertools
import json
import os
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.bench.figures import ROOT, Figures
from tests.reliability import frames
from tests.reliability.frames import MOVES, Move, changed, groups
from tests.reliability.victim import Victim, quiet, small_chunks

FRAMES = 1_000_000  # of the coverage-guided fuzzer; hypothesis comes on top
EXAMPLES = 10_000
PACKAGES = ROOT / ".bench-envs" / "atheris"
MOST_GROWTH = 100e6  # bytes, of which most are the fuzzer's own: what it has found, and where
# Of one link beyond twice what came: a sketch that is arriving, what a header is compared with, tasks and timers.
MOST_HELD = 512 * 1024

# Zero, a megabyte and 2^64-1 in each of the first eight fields; a huge element, an infinite one, and one that is no number.
SMALL_AND_LARGE = [(frames.VALUE, i + 8 * value) for i in range(8) for value in (0, 3, 8)]
SMALL_AND_LARGE += [(frames.ELEMENT, i) for i in (3, 5, 7)]


@pytest.fixture(scope="module")
def said() -> Iterator[list[list[bytes]]]:
    with small_chunks(), quiet():
        yield groups()


@pytest.fixture
def victim(said: list[list[bytes]], tmp_path: Path) -> Iterator[Victim]:
    victim = Victim(tmp_path)
    yield victim
    victim.close()


def test_what_an_honest_neighbour_says_is_kept(victim: Victim, said: list[list[bytes]]) -> None:
    """Otherwise the tests below would see little."""
    hello = said[frames.HELLO]
    kinds: Counter[str] = Counter()
    for group in said:
        victim.hear([*hello, *group])
        kinds += Counter(frame for frame in victim.frames)
    assert set(kinds) == {"hello", "snapshot", "chunk", "snapshot_end", "sketch", "taken", "heartbeat", "goodbye"}
    assert victim.kept == 5  # fp32, bf16, int8, int8 and differences to it
    assert victim.sketches == 1
    assert victim.refused == 0


@pytest.mark.parametrize("mended", [False, True])
def test_any_number_in_any_field_does_no_harm(victim: Victim, said: list[list[bytes]], mended: bool) -> None:
    """Of the frames' fields, and the first of a chunk's elements."""
    tried = set()
    for group in said:
        sequence = [*said[frames.HELLO], *group]
        for where, (kind, number) in itertools.product(range(len(sequence)), SMALL_AND_LARGE):
            messages = frames.one_changed(sequence, where, kind, number)
            if messages[where] not in tried:
                tried.add(messages[where])
                hear(victim, frames.mended(messages) if mended else messages)
    assert victim.frames.total() > 1000
    assert victim.ends.keys() >= {"ProtocolError", "LinkClosed", "PeerError", "SettingsMismatch"}


def sequences(said: list[list[bytes]]) -> st.SearchStrategy[list[bytes]]:
    """Real frames of every kind, changed in several places."""
    moves = st.lists(
        st.builds(
            Move, st.integers(0, len(MOVES) - 1), st.integers(0, 60), st.integers(0, 2**16 - 1), st.binary(max_size=16)
        ),
        max_size=6,
    )
    chosen = st.lists(st.integers(1, len(said) - 1), min_size=1, max_size=4)

    def sequence(rude: int, chosen: list[int], moves: list[Move], mended: bool) -> list[bytes]:
        first = [] if rude == 7 else [frames.HELLO]
        return changed([message for i in (*first, *chosen) for message in said[i]], moves, mended)

    return st.builds(sequence, st.integers(0, 7), chosen, moves, st.booleans())


def test_changed_frames_do_no_harm(victim: Victim, said: list[list[bytes]]) -> None:
    play(victim, said, 600)
    assert victim.frames.total() > 2000
    assert victim.ends.keys() >= {"ProtocolError", "LinkClosed", "PeerError", "SettingsMismatch"}
    assert victim.refused


def play(victim: Victim, said: list[list[bytes]], examples: int) -> None:
    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=examples < 1000,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(sequences(said))
    def one(messages: list[bytes]) -> None:
        hear(victim, messages)

    one()


def hear(victim: Victim, messages: list[bytes]) -> None:
    """One link, whose memory is compared with what came."""
    tracemalloc.start()
    try:
        victim.hear(messages)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MOST_HELD + 2 * sum(map(len, messages)), "it took more memory than came"


def test_arbitrary_sequences_do_no_harm(victim: Victim, said: list[list[bytes]]) -> None:
    """What the fuzzer does, without its eyes."""
    draw = np.random.default_rng(0)
    for _ in range(700):
        victim.hear(frames.read(draw.bytes(int(draw.integers(2, 100))), said))
    assert victim.frames.total() > 3000
    assert victim.kept > 50  # it comes far enough to be let in ...
    assert victim.sketches > 10
    assert victim.refused > 10  # ... and is turned away there, too


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_million_frames(victim: Victim, said: list[list[bytes]], tmp_path: Path, figures: Figures) -> None:
    play(victim, said, EXAMPLES)
    figures.record("hostile frames, by hypothesis", victim.frames.total(), remark=told(victim.seen()))
    install()
    paths = [str(PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")]), str(ROOT), str(ROOT / "node")]
    folder = tmp_path / "fuzzer"
    folder.mkdir()
    with (folder / "log").open("wb") as log:
        fuzzer = subprocess.run(
            [sys.executable, "-m", "tests.reliability.fuzzer.run", str(FRAMES), str(folder)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, stdout=log, stderr=log, check=False,
        )  # fmt: skip
    assert fuzzer.returncode == 0, (folder / "log").read_text()[-5000:]
    seen = json.loads((folder / "report.json").read_text())
    total = sum(seen["frames"].values())
    figures.record("hostile frames, by a coverage-guided fuzzer", total, at_least=FRAMES, remark=told(seen))
    figures.record(
        "growth of its resident memory, after the first tenth", seen["growth"] / 1e6, "MB", at_most=MOST_GROWTH / 1e6
    )
    assert total >= FRAMES
    assert seen["growth"] < MOST_GROWTH


def told(seen: dict[str, object]) -> str:
    """What came, and what came of it, in words."""
    return "; ".join(
        f"{name}: {', '.join(f'{k} {n}' for k, n in sorted(what.items())) if isinstance(what, dict) else what}"
        for name, what in seen.items()
        if name != "growth"
    )


def install() -> None:
    """Puts the fuzzer into a folder of its own, once; skips the test where that is not possible."""
    requirements = Path(__file__).parent / "fuzzer" / "atheris.txt"
    stamp = PACKAGES / "installed.txt"
    if stamp.exists() and stamp.read_text() == requirements.read_text():
        return
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade"]
    done = subprocess.run(
        [*pip, "--target", str(PACKAGES), "-r", str(requirements)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"pip could not install {requirements.name}: {done.stderr.strip()[-300:]}")
    stamp.write_text(requirements.read_text())
