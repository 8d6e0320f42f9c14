"""Rounds of hivemind: a DecentralizedAverager per process, which averages its tensors with all others.

Default settings but for the size of a group, which is the number of nodes: so matchmaking ends when all are there, without
waiting for its five seconds, and each round averages all nodes.
"""

import torch
from common import Place, main, one_process_a_node, payload
from hivemind import DHT, DecentralizedAverager


def node(place: Place) -> None:
    torch.set_num_threads(1)
    known = [] if place.node == 0 else place.hear("address", 0).splitlines()
    dht = DHT(initial_peers=known, host_maddrs=["/ip4/127.0.0.1/tcp/0"], start=True)
    tensors = [torch.from_numpy(array) for array in payload(place.node)]
    averager = DecentralizedAverager(
        tensors, dht, prefix="bench", target_group_size=place.nodes, min_group_size=place.nodes, start=True
    )
    place.tell("address", "\n".join(str(address) for address in dht.get_visible_maddrs()))
    place.meet("ready")
    for _ in range(place.total):
        with averager.get_tensors() as shared:
            for tensor in shared:
                tensor.add_(1e-3)  # the training
        place.rounds.trained()
        group = averager.step()
        place.rounds.mixed()
        assert len(group) == place.nodes, group
    place.rounds.save()
    place.meet("done")
    averager.shutdown()
    dht.shutdown()


if __name__ == "__main__":
    main("hivemind", one_process_a_node, node)
