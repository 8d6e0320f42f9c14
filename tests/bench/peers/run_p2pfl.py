"""Rounds of p2pfl: a Node per process, all to all over its gRPC protocol, whose learner trains nothing.

Default settings, or, tuned, its periods cut to 10 and 20 ms. Only the time after which a node without heartbeats is given up
is longer: with four nodes, calls block one another at times until they fail after ten seconds, and the others would go on without
the node, and faster. Models are plain NumPy arrays, which spares it PyTorch Lightning,
and Ray is off, which would train in processes of its own. As installed, p2pfl has no certificates, so that it speaks
without TLS.
"""

import os
import sys

import numpy as np
from common import Place, free_address, main, one_process_a_node, payload, wait_for
from datasets import Dataset, DatasetDict
from p2pfl.settings import Settings

Settings.general.DISABLE_RAY = True  # p2pfl starts it while it is imported
Settings.general.LOG_DIR = f"logs-{os.getpid()}"  # made then, too: nodes that start at once would trip over one
from p2pfl.learning.dataset.p2pfl_dataset import P2PFLDataset  # noqa: E402
from p2pfl.learning.frameworks import Framework  # noqa: E402
from p2pfl.learning.frameworks.learner import Learner  # noqa: E402
from p2pfl.learning.frameworks.p2pfl_model import P2PFLModel  # noqa: E402
from p2pfl.node import Node  # noqa: E402

PATIENT = {"heartbeat": {"timeout": 60.0}}  # by default 5 s
# By default 0.1 s, 1 s and 10 periods without news, after which a node gives up: the same time as here.
TUNED = {"gossip": {"period": 0.01, "models_period": 0.02, "exit_on_x_equal_rounds": 500}}


class Arrays(P2PFLModel):
    """A model that is its parameters."""

    def get_parameters(self) -> list[np.ndarray]:
        """As they are."""
        return self.model

    def set_parameters(self, params: "list[np.ndarray] | bytes") -> None:
        """Those of a peer may come encoded."""
        if isinstance(params, bytes):
            params, info = self.decode_parameters(params)
            self.additional_info.update(info)
        self.model = params

    def get_framework(self) -> str:
        """A name that p2pfl knows."""
        return Framework.PYTORCH.value


class Still(Learner):
    """Changes the parameters a little, and tells when."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self._place = place
        self.lonely = False

    def fit(self) -> P2PFLModel:
        """The training."""
        self._place.rounds.mixed()
        model = self.get_model()
        self.lonely |= bool(self._place.rounds.seconds) and len(model.contributors) < self._place.nodes
        model.set_parameters([array + np.float32(1e-3) for array in model.get_parameters()])
        model.set_contribution([self.addr], 1)
        self._place.rounds.trained()
        return model

    def interrupt_fit(self) -> None:
        """There is nothing to interrupt."""

    def evaluate(self) -> dict[str, float]:
        """Nothing, so that no metrics are sent."""
        return {}

    def get_framework(self) -> str:
        """As the model's."""
        return Framework.PYTORCH.value


def node(place: Place) -> None:
    Settings.set_from_dict(PATIENT)
    if place.tuned:
        Settings.set_from_dict(TUNED)
    rows = Dataset.from_dict({"x": [0]})
    data = P2PFLDataset(DatasetDict({"train": rows, "test": rows}), dataset_name="none")
    address = free_address()
    learner = Still(place)
    peer = Node(Arrays(payload(place.node)), data, addr=address, learner=learner)
    peer.start()
    place.tell("address", address)
    for other in range(place.node):
        assert peer.connect(place.hear("address", other))
    wait_for(lambda: len(peer.get_neighbors(only_direct=True)) == place.nodes - 1, "connections to all")
    place.meet("connected")
    if place.node == 0:
        peer.set_start_learning(rounds=place.total + 1, epochs=1)  # a round is over when the next one begins
    wait_for(lambda: learner.lonely or len(place.rounds.seconds) == place.total, "the last round")
    if learner.lonely:
        sys.exit("a round went on without some of the nodes")
    place.rounds.save()
    place.meet("done")
    os._exit(0)  # its threads would first bring to an end what they are at, against peers that have left


if __name__ == "__main__":
    main("p2pfl", one_process_a_node, node)
