"""The node's metrics over HTTP: read when Prometheus asks, on an address of the operator's choice."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Protocol

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from conlora.daemon.metrics import METRICS, Declared, Moment
from conlora.daemon.tally import Durations, Tally
from conlora.errors import Unavailable
from conlora.net.status import ConsensusView, NodeStatus

ANSWER_SECONDS = 5.0
TRAINER = "conlora_trainer"  # before the names of what is told of the trainer's process


class Subject(Protocol):
    """What metrics are read from."""

    def status(self) -> NodeStatus:
        """The node as it is now."""
        ...

    def consensus(self) -> ConsensusView:
        """Edge errors, and the federation as the node sees it."""
        ...

    def tally(self) -> Tally:
        """What the node has done since the daemon's start."""
        ...


@contextlib.contextmanager
def metrics_endpoint(address: str, node: Subject) -> Iterator[None]:
    """Serves the node's metrics as long as the context lasts; needs a running event loop.

    Raises Unavailable for an address that can't be used.
    """
    host, _, port = address.rpartition(":")
    registry = CollectorRegistry()
    collector = NodeCollector(node, asyncio.get_running_loop())
    for part in (collector, *process_collectors(collector.trainer)):
        registry.register(part)
    try:
        server, thread = start_http_server(int(port), host.strip("[]"), registry)
    except OSError as error:
        raise Unavailable(
            f"observing.metrics: {address} can't be used ({error}); choose another address or port"
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def process_collectors(trainer: Callable[[], int | str]) -> tuple[Collector, Collector]:
    """Processor time, memory and descriptors of this process, and of the trainer's; of one that is not there, nothing."""
    return ProcessCollector(registry=None), ProcessCollector(namespace=TRAINER, pid=trainer, registry=None)


class NodeCollector(Collector):
    """Asks the node, in its own event loop, each time Prometheus asks us."""

    def __init__(self, node: Subject, loop: asyncio.AbstractEventLoop) -> None:
        self._node = node
        self._loop = loop
        self._trainer_pid = 0

    def trainer(self) -> int:
        """The trainer's process as of the last collection; 0: none."""
        return self._trainer_pid

    def describe(self) -> Iterator[Metric]:
        """Nothing: the node is asked once somebody asks us."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """All metrics of this moment."""
        answer: Future[Moment] = Future()

        def read() -> None:
            try:
                answer.set_result(Moment(self._node.status(), self._node.consensus(), self._node.tally()))
            except Exception as error:
                answer.set_exception(error)

        try:
            self._loop.call_soon_threadsafe(read)
        except RuntimeError:
            return  # the node has just ended
        moment = answer.result(ANSWER_SECONDS)
        self._trainer_pid = moment.status.trainer_pid
        yield from (_family(metric, moment) for metric in METRICS)


def _family(metric: Declared, moment: Moment) -> Metric:
    match metric.kind:
        case "gauge":
            family: Metric = GaugeMetricFamily(metric.name, metric.text)
        case "counter":
            family = CounterMetricFamily(metric.name, metric.text)
        case "summary":
            family = SummaryMetricFamily(metric.name, metric.text)
    for values, value in metric.read(moment):
        labels = dict(zip(metric.labels, values, strict=True))
        if isinstance(value, Durations):
            family.add_sample(f"{metric.name}_count", labels, value.count)
            family.add_sample(f"{metric.name}_sum", labels, value.seconds)
        else:
            family.add_sample(metric.name, labels, value)
    return family
