"""The pages: /metrics, health, readiness, and the landing page without the board."""

import html
from collections.abc import Callable, Sequence

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from mfg_notify import __version__
from mfg_notify.web.board import Board
from mfg_notify.web.limits import Limits
from mfg_notify.web.rendering import MetricsPage, RenderingError, SharedRendering, Variant, accepts_gzip

CHUNK = 64 * 1024
"""Bytes of a page that are sent at a time, and about as much as is buffered for a client that does not read."""

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


class MetricsEndpoint:
    """ASGI application that answers scrapes, a limited number at a time."""

    def __init__(self, page: MetricsPage, limits: Limits) -> None:
        self._page = page
        self._maximum = limits.max_requests
        self._rendering = SharedRendering(page, limits)
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a scrape."""
        if self._maximum and self._in_flight >= self._maximum:
            busy = f"Limit of concurrent requests reached ({self._maximum}), try again later.\n"
            await PlainTextResponse(busy, 503, {"retry-after": "1"})(scope, receive, send)
            return
        self._in_flight += 1
        try:
            await self._answer(scope, receive, send)
        finally:
            self._in_flight -= 1

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        content_type = self._page.choose_format(headers.get("accept", ""))
        compressed = accepts_gzip(headers.get("accept-encoding", ""))
        try:
            page = await self._rendering.render(Variant(content_type, compressed))
        except RenderingError:
            await PlainTextResponse("The metrics cannot be rendered; see the log\n", 500)(scope, receive, send)
            return
        about = {"content-type": content_type, "content-length": str(len(page)), "vary": "accept, accept-encoding"}
        start = Response(headers=about | ({"content-encoding": "gzip"} if compressed else {}))
        await send({"type": "http.response.start", "status": 200, "headers": start.raw_headers})
        # In chunks, because asyncio copies what a client has not read yet.
        for first in range(0, len(page), CHUNK):
            await send({"type": "http.response.body", "body": page[first : first + CHUNK], "more_body": True})
        await send({"type": "http.response.body"})


def make_application(
    page: MetricsPage,
    readiness: Callable[[], tuple[bool, str]],
    telemetry_path: str,
    board: Board | None = None,
    middleware: Sequence[Middleware] = (),
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> Starlette:
    """Return the application.

    `readiness` returns whether the exporter is ready, and its status text. Without a board, `/` is a plain page with
    the same links. Requests pass through `middleware` first.
    """

    async def healthy(_: Request) -> Response:
        return PlainTextResponse("mfg-notify is healthy\n")

    async def ready(_: Request) -> Response:
        is_ready, state = readiness()
        return PlainTextResponse(f"{state}\n", status_code=200 if is_ready else 503)

    async def landing(_: Request) -> Response:
        filled = _PAGE.format(
            version=__version__, state=html.escape(readiness()[1]), metrics=html.escape(telemetry_path, quote=True)
        )
        return HTMLResponse(filled)

    at_root = [Route("/", landing)] if board is None else board.routes(telemetry_path, lambda: readiness()[1])
    application = Starlette(
        routes=[
            Route(telemetry_path, MetricsEndpoint(page, limits), methods=["GET"]),
            Route("/-/healthy", healthy),
            Route("/-/ready", ready),
            *([] if telemetry_path == "/" else at_root),
        ],
        middleware=list(middleware),
    )
    # Answer 404 for every other path, including one with an extra slash.
    application.router.redirect_slashes = False
    return application
