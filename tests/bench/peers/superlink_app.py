"""The Flower app of run_superlink.py: FedAvg, and a node that changes the parameters a little and writes down when."""

import os
import time
from pathlib import Path

from common import payload
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

client = ClientApp()
server = ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """The training. The clock is one for all processes of a machine, and this may be another one each time."""
    began = time.perf_counter()
    arrays = message.content["arrays"].to_numpy_ndarrays()
    content = RecordDict(
        {"arrays": ArrayRecord([array + 1e-3 for array in arrays]), "told": MetricRecord({"num-examples": 1})}
    )
    with (Path(os.environ["PLACE"]) / f"{context.node_config['number']}.times").open("a") as file:
        file.write(f"{began} {time.perf_counter()}\n")
    return Message(content=content, reply_to=message)


@server.main()
def serve(grid: Grid, context: Context) -> None:
    """FedAvg over all nodes, without evaluations."""
    nodes = int(context.run_config["nodes"])
    strategy = FedAvg(fraction_evaluate=0, min_train_nodes=nodes, min_available_nodes=nodes)
    strategy.start(grid, ArrayRecord(payload(0)), num_rounds=int(context.run_config["rounds"]))
