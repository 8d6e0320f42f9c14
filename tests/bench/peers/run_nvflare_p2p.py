"""Rounds of NVFLARE's peer-to-peer consensus executor, all to all with Metropolis weights, in its proof-of-concept mode.

Its messages from site to site go through the server, as they do by default. Values are NumPy arrays.
"""

import numpy as np
import poc
from common import Place, main, payload
from nvflare.app_opt.p2p.controllers import DistOptController
from nvflare.app_opt.p2p.executors import ConsensusExecutor
from nvflare.app_opt.p2p.types import Config, Neighbor, Network, Node
from nvflare.job_config.api import FedJob


class Controller(DistOptController):
    """As it is; but NVFLARE admits what is not on its list of components only in jobs that bring code of their own."""


class Timed(ConsensusExecutor):
    """Changes its value a little in each iteration, and tells when."""

    def _pre_algorithm_run(self, fl_ctx, shareable, abort_signal) -> None:
        self._place = poc.place_of(self.client_name)
        self.current_value = np.concatenate([array.ravel() for array in payload(self._place.node)])

    def _exchange_values(self, fl_ctx, value, iteration: int) -> None:
        self._place.rounds.mixed()
        self.value_history.clear()  # which would hold all of them
        value += np.float32(1e-3)  # the training
        self._place.rounds.trained()
        super()._exchange_values(fl_ctx, value, iteration)

    def _post_algorithm_run(self, fl_ctx, shareable, abort_signal) -> None:
        self._place.rounds.save()


def node(place: Place) -> None:
    """Starts all nodes, and their job."""
    sites = [f"site-{i + 1}" for i in range(place.nodes)]
    network = Network(
        [Node(site, [Neighbor(other, 1 / place.nodes) for other in sites if other != site]) for site in sites]
    )
    job = FedJob(name="consensus", min_clients=place.nodes)
    job.to_server(Controller(Config(network, {"iterations": place.total + 1})))
    for site in sites:
        job.to(Timed(), site)
    poc.run(place, lambda env: env.deploy(job))


if __name__ == "__main__":
    main("nvflare", poc.launch, node)
