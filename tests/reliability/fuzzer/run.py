"""A coverage-guided fuzzer at a node's decode path: `python -m tests.reliability.fuzzer.run FRAMES DIRECTORY`, with atheris.

It ends when so many frames have been read, and then leaves what it saw in the directory's report.json. Where something goes
wrong it ends with another code than 0, the input is in the directory, and `... 0 DIRECTORY INPUT` plays it again.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import atheris  # type: ignore[import-not-found]  # not among our packages: see test_fuzzing.py
import numpy as np
import psutil

with atheris.instrument_imports(include=["conlora"]):
    from tests.reliability import frames
    from tests.reliability.victim import Victim, quiet, small_chunks

LONGEST = 512  # bytes of an input
WARM_UP = 0.1  # of the frames: memory is compared from here on


class Session:
    """Counts until there were enough frames."""

    def __init__(self, victim: Victim, said: list[list[bytes]], wanted: int, report: Path) -> None:
        self._victim, self._said, self._wanted, self._report = victim, said, wanted, report
        self._resident: int | None = None
        self.inputs = 0

    def once(self, data: bytes) -> None:
        """One input."""
        self._victim.hear(frames.read(data, self._said))
        self.inputs += 1
        done = self._victim.frames.total()
        if self._resident is None and done >= WARM_UP * self._wanted:
            self._resident = psutil.Process().memory_info().rss
        if done >= self._wanted > 0:
            assert self._resident is not None
            growth = psutil.Process().memory_info().rss - self._resident
            self._report.write_text(json.dumps({**self._victim.seen(), "inputs": self.inputs, "growth": growth}))
            os._exit(0)  # the fuzzer itself would go on


def seeds(folder: Path) -> None:
    """Inputs to begin with: arbitrary, but long enough to say something."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for i in range(300):
        (folder / str(i)).write_bytes(draw.bytes(int(draw.integers(2, 100))))


def fuzz(once: Callable[[bytes], None], *arguments: object) -> None:
    """Runs until `once` ends the process, or plays the inputs that are named."""
    atheris.Setup([sys.argv[0], *map(str, arguments)], once)
    atheris.Fuzz()


def main(wanted: int, directory: Path, *inputs: str) -> None:
    with small_chunks(), quiet():
        session = Session(Victim(directory), frames.groups(), wanted, directory / "report.json")
        if inputs:
            for path in inputs:
                session.once(Path(path).read_bytes())
            return
        seeds(directory / "corpus")
        options = (f"-max_len={LONGEST}", f"-artifact_prefix={directory}/", "-rss_limit_mb=2048", "-verbosity=0")
        fuzz(session.once, directory / "corpus", *options)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
