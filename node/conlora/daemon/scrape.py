"""The node's metrics over HTTP: read when Prometheus asks, on an address of the operator's choice."""

import asyncio
import contextlib
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Protocol
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import structlog
from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from conlora.daemon.metrics import METRICS, Declared, Moment
from conlora.daemon.tally import Durations, Tally
from conlora.errors import Unavailable
from conlora.net.status import ConsensusView, NodeStatus

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = structlog.get_logger()

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
        server = _Endpoint(host.strip("[]"), int(port), _answering(make_wsgi_app(registry)))
    except OSError as error:
        raise Unavailable(
            f"observing.metrics: {address} can't be used ({error}); choose another address or port"
        ) from error
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Endpoint(ThreadingMixIn, WSGIServer):
    """A thread for each scrape. Nothing that goes wrong is printed: the log is for programs, with an object on each line."""

    daemon_threads = True

    def __init__(self, host: str, port: int, app: "WSGIApplication") -> None:
        """Raises OSError where that is no address of this machine."""
        self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        super().__init__((host, port), _Silent)
        self.set_app(app)

    def handle_error(self, request: object, client_address: object) -> None:
        """Who has asked may hang up; for anything else there is a line in the log."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            log.error("no answer to who asks for metrics, by a defect", exc_info=True)


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are no events."""


def _answering(app: "WSGIApplication") -> "WSGIApplication":
    """The application, and where it fails a line in the log and 503: Prometheus then takes the node to be down."""

    def answer(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        try:
            return app(environ, start_response)
        except TimeoutError:
            log.warning("no metrics: the node was too busy to tell them", seconds=ANSWER_SECONDS)
        except Exception:
            log.error("no metrics, by a defect", exc_info=True)
        start_response("503 Service Unavailable", [("Content-Type", "text/plain")])
        return [b"the node could not tell its metrics; its log says why\n"]

    return answer


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
