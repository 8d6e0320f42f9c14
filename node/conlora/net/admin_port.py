"""The admin port: the admin service for operators on other machines, by their certificates, and what each of them may ask."""

import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from conlora.core.budget import Seldom
from conlora.errors import CertificateRejected, Refused, Unavailable
from conlora.net.admin import SERVICE, AdminService
from conlora.net.credentials import accepting_credentials, caller
from conlora.net.handshakes import QUIET_SECONDS
from conlora.net.identity import Identity
from conlora.net.operators import Operator, Role
from conlora.net.streams import LIMITS, ServicerContext
from conlora.net.ways import KEEPALIVE_MS, NOT_ADMITTED
from conlora.net.wire import HANDSHAKE_SECONDS, printable
from conlora.v1 import admin_pb2_grpc

log = structlog.get_logger()

HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
# All that is not here changes something, or may one day.
LOOKING = frozenset(f"/{SERVICE}/{name}" for name in ("Status", "Consensus", "History")) | {f"/{HEALTH}/Check"}
CONNECTION_SECONDS = 60.0  # then TLS looks again who it is; gRPC varies it by a tenth
MOST_KINDS = 100  # of refusals that the log tells apart
PORT_OPTIONS = [
    *LIMITS,
    ("grpc.so_reuseport", 0),  # a second daemon on this address is a mistake that has to be seen
    ("grpc.server_handshake_timeout_ms", int(1000 * HANDSHAKE_SECONDS)),  # TLS included
    # New calls need another connection then. Those under way go on, a drain for hours: max_connection_age_grace_ms has no limit.
    ("grpc.max_connection_age_ms", int(1000 * CONNECTION_SECONDS)),
    ("grpc.max_concurrent_streams", 16),  # of a connection
    ("grpc.max_receive_message_length", 64 * 1024),  # what an operator asks is small
    (
        "grpc.http2.min_ping_interval_without_data_ms",
        KEEPALIVE_MS // 2,
    ),  # operators wait for long, and ask if we are there
]


class AdminPort:
    """Offers an AdminService, and health, over mutual TLS to exactly the operators that it has."""

    def __init__(self, service: AdminService, identity: Callable[[], Identity], operators: list[Operator]) -> None:
        """identity: this node's, asked for each caller, in any thread."""
        self.operators = operators  # replaced when they change, and never changed itself: TLS reads it in other threads
        self._admin = service
        self._identity = identity
        self._health = HealthServicer()
        self._port: grpc.aio.Server | None = None

    async def open(self, address: str) -> None:
        """Raises Unavailable where the address can't be taken."""
        port = grpc.aio.server(options=PORT_OPTIONS, interceptors=[_Gate(lambda: self.operators)])
        admin_pb2_grpc.add_AdminServicer_to_server(self._admin, port)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, port)
        credentials = accepting_credentials(self._identity, lambda: [operator.card for operator in self.operators])
        try:
            port.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise Unavailable(
                f"admin_listen: {address} can't be used; it may be taken by another program, or not be an address of this machine"
            ) from error
        await port.start()
        self._port = port
        for name in ("", SERVICE):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def close(self) -> None:
        """Lets calls under way finish."""
        if self._port:
            await self._port.stop(grace=1.0)


class _Gate(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its types only
    """Stands before every call: who calls is looked up anew, so that an operator whose card was removed is out at once."""

    def __init__(self, operators: Callable[[], list[Operator]]) -> None:
        self._operators = operators
        self._strangers = Seldom(QUIET_SECONDS, MOST_KINDS)
        self._refused = Seldom(QUIET_SECONDS, MOST_KINDS)

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        """See grpc.aio.ServerInterceptor. Calls that stream, of which health has one, are not offered here."""
        handler, looks = await continuation(details), details.method in LOOKING
        command = details.method.rpartition("/")[2]
        if handler is None or handler.unary_unary is None:
            return None

        async def look(request: Any, context: ServicerContext) -> Any:
            await self._known(context)
            return await handler.unary_unary(request, context)

        async def change(request: Any, context: ServicerContext) -> Any:
            operator = await self._known(context)
            told = {field.name: printable(str(value)) for field, value in request.ListFields()}
            if operator.role is not Role.FULL:
                await self._refuse(operator, command, told, context)
            log.info("an operator's command", operator=operator.name, command=command, address=context.peer(), **told)
            outcome = "not known, for the operator has not waited"
            try:
                reply = await handler.unary_unary(request, context)
                outcome = "done"
            except Exception as error:
                outcome = printable(context.details() or repr(error))
                raise
            finally:
                log.info("an operator's command has ended", operator=operator.name, command=command, outcome=outcome)
            return reply

        return grpc.unary_unary_rpc_method_handler(
            look if looks else change, handler.request_deserializer, handler.response_serializer
        )

    async def _known(self, context: ServicerContext) -> Operator:
        """Who calls; ends the call of somebody else."""
        operators = self._operators()
        try:
            card, _ = caller(context.auth_context(), [operator.card for operator in operators], called="operator")
        except CertificateRejected as error:
            if told := self._strangers.add(printable(str(error)), time.monotonic()):
                reason, times = told
                log.warning("refused a caller that is no operator", reason=reason, address=context.peer(), times=times)
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, NOT_ADMITTED)
            raise  # abort raises; this tells the type checker
        return next(operator for operator in operators if operator.card is card)

    async def _refuse(self, operator: Operator, command: str, told: dict[str, str], context: ServicerContext) -> None:
        """Ends the call of who may not ask this."""
        if refused := self._refused.add(f"{operator.name} {command}", time.monotonic()):
            log.warning(
                "refused an operator's command", operator=operator.name, command=command, times=refused[1], **told
            )
        refusal = Refused(
            f"{operator.name} may look at this node, and not change anything; whoever keeps it can move the operator's card "
            "from read/ to full/"
        )
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(refusal))
