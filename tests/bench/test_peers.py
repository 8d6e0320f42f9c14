"""Figures: seconds a round of 33.6 MB of fp32 weights takes, all to all on one machine, in ConLoRA and in other systems.

Each system runs in an environment of its own, .bench-envs/NAME, which is made from tests/bench/peers/NAME.txt when it is
missing or other than that file. Ours is measured before and after each of the others, so that ratios are those of one
time. docs/performance.md says what the systems do in a round.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.bench.figures import ROOT, Figures

pytestmark = [pytest.mark.bench, pytest.mark.peers, pytest.mark.timeout(7200)]

RUNNERS = Path(__file__).with_name("peers")
ENVIRONMENTS = ROOT / ".bench-envs"
TORCH = "torch==2.13.0"  # first, so that pip takes the build that its configuration prefers
LONGEST = 1800.0  # seconds of a run
OURS = 10  # rounds


@dataclass(frozen=True)
class Peer:
    """Another system. targets: of our seconds over its, by the number of nodes."""

    environment: str
    script: str
    options: tuple[str, ...] = ()
    rounds: int = 10
    targets: dict[int, float] = field(default_factory=dict)


PEERS = {
    "hivemind": Peer("hivemind", "run_hivemind.py", targets={2: 1 / 6, 4: 1 / 3.5}),
    "p2pfl": Peer("p2pfl", "run_p2pfl.py", rounds=5, targets={2: 1 / 45, 4: 1 / 20}),
    "p2pfl, tuned": Peer("p2pfl", "run_p2pfl.py", ("--tuned",), targets={2: 1 / 15, 4: 1 / 14}),
    "Flower, start_server": Peer("flower", "run_flower.py"),
    "Flower, SuperLink": Peer("flower", "run_superlink.py", rounds=4),
    "NVFLARE, swarm": Peer("nvflare", "run_nvflare_swarm.py", rounds=6),
    "NVFLARE, peer to peer": Peer("nvflare", "run_nvflare_p2p.py"),
}


class NotMeasured(Exception):
    """A system could not be installed or run; the sentence says why."""


@pytest.mark.parametrize("nodes", [2, 4])
@pytest.mark.parametrize("name", PEERS)
def test_a_round(figures: Figures, name: str, nodes: int) -> None:
    peer = PEERS[name]
    try:
        python = environment(peer.environment)
        before = our_seconds(nodes)
        version, theirs = seconds_of(python, peer.script, nodes, peer.rounds, peer.options)
        ours = before + our_seconds(nodes)
    except NotMeasured as error:
        figures.record(f"round of {name}, {nodes} nodes", at_most=peer.targets.get(nodes), remark=str(error))
        pytest.skip(str(error))
    figures.record(f"round of {name} ({version}), {nodes} nodes", unit="s", samples=theirs)
    figures.record(
        f"round of ConLoRA, {nodes} nodes",
        unit="s",
        samples=ours,
        against=name,
        ratio=statistics.median(ours) / statistics.median(theirs),
        at_most=peer.targets.get(nodes),
    )


def our_seconds(nodes: int) -> list[float]:
    return seconds_of(Path(sys.executable), "run_conlora.py", nodes, OURS)[1]


def seconds_of(
    python: Path, script: str, nodes: int, rounds: int, options: Sequence[str] = ()
) -> tuple[str, list[float]]:
    """A system's version, and the seconds of all rounds at all nodes. Raises NotMeasured."""
    command = [python, RUNNERS / script, "--nodes", str(nodes), "--rounds", str(rounds), *options]
    ours = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'node'}"} if python == Path(sys.executable) else {}
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | ours
    with (
        tempfile.TemporaryDirectory() as scratch,  # some leave files where they are started
        subprocess.Popen(
            command, cwd=scratch, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as runner,
    ):
        try:
            out, err = runner.communicate(timeout=LONGEST)
        except subprocess.TimeoutExpired:
            raise NotMeasured(f"{script} took more than {LONGEST:.0f} s") from None
        finally:
            runner.terminate()  # it ends what it has started
    if runner.returncode:
        raise NotMeasured(f"{script}: {last_line(err)}")
    told = json.loads(last_line(out))
    return told["version"], [seconds for node in told["seconds"] for seconds in node]


def environment(name: str) -> Path:
    """The interpreter of an environment with what the file says, and nothing else. Raises NotMeasured."""
    requirements, folder = RUNNERS / f"{name}.txt", ENVIRONMENTS / name
    python, stamp = folder / "bin" / "python", folder / "installed.txt"
    if stamp.exists() and stamp.read_bytes() == requirements.read_bytes():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for packages in ([TORCH], [TORCH, "-r", requirements]):
        done = subprocess.run([*pip, *packages], capture_output=True, text=True, check=False)
        if done.returncode:
            raise NotMeasured(f"pip could not install {requirements.name}: {last_line(done.stderr)}")
    shutil.copyfile(requirements, stamp)
    return python


def last_line(text: str) -> str:
    """The last that is not empty."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "it said nothing")
