"""Serves the page, what it is made of, and the stream of news that keeps it live. Nothing of it changes a node."""

import asyncio
import contextlib
import importlib.util
import ipaddress
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from conlora.dashboard.source import Source
from conlora.dashboard.view import News, to_json, view
from conlora.errors import ConfigError

STATIC = Path(__file__).parent / "static"
CALM_SECONDS = 0.4  # the least time between two views: many nodes don't answer all at once
LEAVE_SECONDS = 3  # for the last answers to go out
HEADERS = {
    # Nothing comes from elsewhere; Plotly sets styles, and draws heat maps as data: images.
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # the browser asks whether its copy is still good
}
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def application(source: Source, host: str) -> Starlette:
    """The page of a source that listens on `host`."""

    async def current(request: Request) -> Response:
        return Response(to_json(view(source.nodes())), media_type="application/json")

    async def stream(request: Request) -> Response:
        return StreamingResponse(_events(source), media_type="text/event-stream")

    async def plotly(request: Request) -> Response:
        return FileResponse(plotly_script(), media_type="text/javascript")

    return Starlette(
        routes=[
            Route("/api/view", current),
            Route("/api/stream", stream),
            Route("/plotly.js", plotly),
            Mount("/", StaticFiles(directory=STATIC, html=True)),
        ],
        middleware=[Middleware(Guard, allowed=_host_check(host))],
    )


def plotly_script() -> Path:
    """The script that comes with the package plotly, which itself need not be imported."""
    found = importlib.util.find_spec("plotly")
    assert found
    assert found.origin
    return Path(found.origin).parent / "package_data" / "plotly.min.js"


async def _events(source: Source) -> AsyncIterator[str]:
    """Server-sent events: `history` where a node's history went on, then `view`, whenever something has changed."""
    news, changed, loop = News(), asyncio.Event(), asyncio.get_running_loop()

    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(changed.set)

    with source.listening(wake):
        yield "event: begin\ndata: {}\n\n"  # a page that was cut off forgets what it has, and gets all again
        while not source.ended:
            changed.clear()
            nodes = source.nodes()
            for piece in news.of(nodes):
                yield f"event: history\ndata: {to_json(piece)}\n\n"
            yield f"event: view\ndata: {to_json(view(nodes))}\n\n"
            await asyncio.sleep(CALM_SECONDS)
            await changed.wait()


class Guard:
    """Declines requests for other hosts' names, and gives every answer the headers above.

    Without the first, any web page could have its own name resolved to this machine, and read what is served here.
    """

    def __init__(self, app: ASGIApp, allowed: Callable[[str], bool]) -> None:
        self._app = app
        self._allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        app: ASGIApp = self._app
        if not self._allowed(Headers(scope=scope).get("host", "")):
            app = PlainTextResponse("This page is not served under that host name.\n", status_code=400)
        await app(scope, receive, send_with_headers)


def _host_check(listening: str) -> Callable[[str], bool]:
    """Whether a Host header is one of ours; a page that is open to the network can be reached by any of its addresses."""
    public = not is_loopback(listening)
    names = (
        LOOPBACK | {listening.lower()} | ({socket.gethostname().lower(), socket.getfqdn().lower()} if public else set())
    )

    def allowed(header: str) -> bool:
        host, _ = _split(header)
        return host in names or (public and _address(host) is not None)

    return allowed


def _split(address: str) -> tuple[str, int | None]:
    """Host, in small letters and without brackets, and port of `host` or `host:port`; an empty host where it is neither."""
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        return "", None
    return (host, port) if host and parts.netloc == address and "@" not in address else ("", None)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host."""
    address = _address(host)
    return host.lower() == "localhost" or (address is not None and address.is_loopback)


def listen(address: str, public: bool) -> tuple[socket.socket, str]:
    """Opens `host:port`; returns the listening socket and the page's URL.

    Raises ConfigError where the address is malformed, taken, or open to the network while `public` is not set.
    """
    host, port = _split(address)
    if not host or port is None:
        raise ConfigError(f"--listen: {address!r} is not an address; write host:port, such as 127.0.0.1:8088")
    if not public and not is_loopback(host):
        raise ConfigError(
            f"--listen: {host} can be reached from other machines, and the page has no login; listen on 127.0.0.1 and "
            "look at it through an SSH tunnel, or add --public"
        )
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(where[:2], family=family)
    except OSError as error:
        raise ConfigError(f"--listen: can't listen on {address} ({error.strerror}); choose another address") from error
    shown = f"[{host}]" if ":" in host else host
    return listener, f"http://{shown}:{listener.getsockname()[1]}"


class _Uvicorn(uvicorn.Server):
    """Ends the streams as soon as it is told to leave: a page keeps its stream open for ever."""

    def __init__(self, config: uvicorn.Config, source: Source) -> None:
        super().__init__(config)
        self._source = source

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._source.end()
        super().handle_exit(sig, frame)


def serve(source: Source, listener: socket.socket, host: str) -> None:
    """Serves until SIGINT or SIGTERM; these then do what they would have done, so that SIGINT raises KeyboardInterrupt."""
    config = uvicorn.Config(
        application(source, host),
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=LEAVE_SECONDS,
    )
    with source:
        _Uvicorn(config, source).run(sockets=[listener])
