"""Rounds of Flower: FedAvg by a server process, with a client process per node, over gRPC without TLS.

The server and the clients are those of `start_server` and `start_client`, which live through all rounds. Flower deprecates
them in favour of SuperLink and SuperNodes, which run_superlink.py measures.
"""

import argparse
import sys
from pathlib import Path

from common import Place, Processes, as_node, free_address, listens, main, payload, wait_for
from flwr.client import NumPyClient, start_client
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerConfig, start_server
from flwr.server.strategy import FedAvg


class Still(NumPyClient):
    """Changes the parameters a little, and tells when."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def fit(self, parameters: list, config: dict) -> tuple[list, int, dict]:
        """The training."""
        self._place.rounds.mixed()
        for array in parameters:
            array += 1e-3
        self._place.rounds.trained()
        return parameters, 1, {}


def node(place: Place) -> None:
    address = (place.folder / "address").read_text()
    start_client(server_address=address, client=Still(place).to_client(), insecure=True)
    place.rounds.save()


def serve(address: str, nodes: int, rounds: int) -> None:
    """The server, which waits for all nodes."""
    strategy = FedAvg(
        fraction_evaluate=0, min_fit_clients=nodes, min_available_clients=nodes,
        initial_parameters=ndarrays_to_parameters(payload(0)),
    )  # fmt: skip
    start_server(server_address=address, config=ServerConfig(num_rounds=rounds), strategy=strategy)


def launch(args: argparse.Namespace, folder: Path, processes: Processes) -> None:
    """Server and clients; the clients end when the server has made all rounds."""
    address = free_address()
    (folder / "address").write_text(address)
    quiet = {"FLWR_TELEMETRY_ENABLED": "0"}
    # A round is over when the next one begins, so there is one more.
    server = (
        f"import run_flower, common; run_flower.serve('{address}', {args.nodes}, common.WARM_UP + {args.rounds + 1})"
    )
    processes.start("server", [sys.executable, "-c", server], PYTHONPATH=str(Path(__file__).parent), **quiet)
    wait_for(lambda: listens(address), "the server listens")
    for i in range(args.nodes):
        processes.start(f"node-{i}", as_node(args, folder, i), **quiet)
    processes.wait(*(f"node-{i}" for i in range(args.nodes)))


if __name__ == "__main__":
    main("flwr", launch, node)
