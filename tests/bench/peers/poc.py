"""NVFLARE's proof-of-concept mode: a server and a client process per node on this machine, with mTLS, that run one job."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import Failed, Place, Processes, as_node

HERE = Path(__file__).parent


def launch(args: argparse.Namespace, folder: Path, processes: Processes) -> None:
    """Leaves it all to one process, the start of everything else, so that all ends with it."""
    processes.start(
        "poc", as_node(args, folder, 0),
        NVFLARE_POC_WORKSPACE=str(folder / "poc"), PYTHONPATH=str(HERE), PLACE=f"{folder} {args.nodes} {args.rounds}",
    )  # fmt: skip
    processes.wait("poc")


def place_of(site: str) -> Place:
    """For code of the job, which learns from its environment where it is: a site's folder, by its name, site-1 and up."""
    folder, nodes, rounds = os.environ["PLACE"].split()
    return Place(Path(folder), int(site.split("-")[1]) - 1, int(nodes), int(rounds), False)


def run(place: Place, submit: Callable[[Any], str]) -> None:
    """Starts everything, has a job submitted to it, and ends everything when that is done."""
    from nvflare.recipe import PocEnv

    env = PocEnv(num_clients=place.nodes)
    try:
        job = submit(env)
        env.get_job_result(job)
        if not place.rounds.path.exists():
            raise Failed(f"the job ended without a result: {env.get_job_status(job)}")
    finally:
        env.stop()
