"""The HTTP side: /metrics, health and readiness, the landing page, and the server that carries them.

Answers from memory, whatever the database does.
"""

import html
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from mfg_notify import __version__
from mfg_notify.errors import UsageError

GRACE = 1
"""Seconds that open requests get when the exporter stops."""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>mfg-notify</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>:root {{ color-scheme: light dark }} body {{ font: 1rem/1.5 system-ui, sans-serif; margin: 2rem auto;
max-width: 40rem; padding: 0 1rem }}</style></head>
<body><h1>mfg-notify {version}</h1>
<p>Manufacturing metrics of a SpaceTraders bot, from PostgreSQL LISTEN/NOTIFY.</p>
<p>State: {state}</p>
<ul><li><a href="{metrics}">Metrics</a></li><li><a href="/-/healthy">Healthy</a></li>
<li><a href="/-/ready">Ready</a></li></ul></body></html>
"""


def make_application(
    render: Callable[[str], tuple[bytes, str]], readiness: Callable[[], tuple[bool, str]], telemetry_path: str
) -> Starlette:
    """Return the application.

    `render` makes the page of metrics for an Accept header, and its content type; `readiness` says whether
    the exporter is ready, and how it is in a few words.
    """

    async def metrics(request: Request) -> Response:
        page, content_type = render(request.headers.get("accept", ""))
        return Response(page, headers={"content-type": content_type})

    async def healthy(_: Request) -> Response:
        return PlainTextResponse("mfg-notify is healthy\n")

    async def ready(_: Request) -> Response:
        is_ready, state = readiness()
        return PlainTextResponse(f"{state}\n", status_code=200 if is_ready else 503)

    async def landing(_: Request) -> Response:
        page = _PAGE.format(
            version=__version__, state=html.escape(readiness()[1]), metrics=html.escape(telemetry_path, quote=True)
        )
        return HTMLResponse(page)

    application = Starlette(
        routes=[
            Route(telemetry_path, metrics),
            Route("/-/healthy", healthy),
            Route("/-/ready", ready),
            *([Route("/", landing)] if telemetry_path != "/" else []),
        ],
        middleware=[Middleware(GZipMiddleware, minimum_size=1000, compresslevel=5)],
    )
    # Other paths are 404, those with a slash too many among them.
    application.router.redirect_slashes = False
    return application


def bind(addresses: Sequence[str]) -> list[socket.socket]:
    """Open a listening socket for each `host:port`; an empty host is every address. Raise `UsageError`."""
    sockets = []
    for address in addresses:
        host, colon, port = address.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not colon or not port.isdecimal() or int(port) > 65535:
            raise UsageError(f"--web.listen-address {address!r} is not host:port")
        try:
            family, kind, protocol, _, place = socket.getaddrinfo(
                host or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            listening = socket.socket(family, kind, protocol)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(place)
            # From here on a client waits instead of being refused.
            listening.listen()
        except OSError as error:
            raise UsageError(f"cannot listen on {address}: {error.strerror or error}") from error
        sockets.append(listening)
    return sockets


def address_of(listening: socket.socket) -> str:
    """Return the address of a bound socket as `host:port`."""
    host, port = listening.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Server(uvicorn.Server):
    """uvicorn without its hands on the signals: they are the exporter's, which has a last fold to do."""

    def __init__(self, application: Starlette) -> None:
        super().__init__(
            uvicorn.Config(
                application,
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                timeout_graceful_shutdown=GRACE,
            )
        )
        self.started_serving = anyio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to serve, and say so."""
        await super().startup(sockets)
        self.started_serving.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield
