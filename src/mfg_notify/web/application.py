"""The pages: /metrics, health and readiness, and the landing page where there is no board."""

import html
from collections.abc import Callable, Sequence

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from mfg_notify import __version__
from mfg_notify.web.board import Board

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
    render: Callable[[str], tuple[bytes, str]],
    readiness: Callable[[], tuple[bool, str]],
    telemetry_path: str,
    board: Board | None = None,
    more: Sequence[Middleware] = (),
) -> Starlette:
    """Return the application.

    `render` makes the page of metrics for an Accept header, and its content type; `readiness` says whether
    the exporter is ready, and how it is in a few words. Without a board `/` is a plain page with the same links. What
    comes in passes `more` first.
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

    at_root = [Route("/", landing)] if board is None else board.routes(telemetry_path, lambda: readiness()[1])
    application = Starlette(
        routes=[
            Route(telemetry_path, metrics),
            Route("/-/healthy", healthy),
            Route("/-/ready", ready),
            *([] if telemetry_path == "/" else at_root),
        ],
        middleware=[*more, Middleware(GZipMiddleware, minimum_size=1000, compresslevel=5)],
    )
    # Other paths are 404, those with a slash too many among them.
    application.router.redirect_slashes = False
    return application
