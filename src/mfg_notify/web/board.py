"""The live board: a page, its style and script, and the stream that keeps it up to date.

One snapshot is taken for all viewers, at a limited rate, and only while somebody watches. Like a scrape, it reads
memory only. Text from the database never becomes markup: it is sent as JSON, and the script shows it as text.
"""

import html
import time
from collections.abc import AsyncIterator, Callable
from importlib.resources import files

import anyio
import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from mfg_notify import __version__
from mfg_notify.core.board import BoardSnapshot
from mfg_notify.core.row_details import KINDS, RowDetails
from mfg_notify.web.rendering import accepts_gzip, compress

INTERVAL = 0.5
"""Seconds between two snapshots, at least."""
SHARE = 0.05
"""Share of the time in which snapshots may be taken: the longer one takes, the less often."""
HEARTBEAT = 5.0
"""Seconds without a change after which the stream sends a heartbeat."""
VIEWERS_MAXIMUM = 20
TENURE = 10.0
"""Seconds for which a viewer cannot be evicted."""

DASHBOARD = "manufacturing-pipeline"
"""Its uid in Grafana."""
_HEARTBEAT = b"event: heartbeat\ndata: 0\n\n"
_PATH = "/-/board"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_REFERRER = {"referrer-policy": "no-referrer"}
_ASSETS = {"board.css": "text/css", "board.js": "text/javascript", "icon.svg": "image/svg+xml"}


class Board:
    """The board of one exporter: `take_snapshot` returns what it shows now, `find_row` what is known of one row."""

    def __init__(
        self,
        take_snapshot: Callable[[], BoardSnapshot],
        find_row: Callable[[str, str], RowDetails],
        clock: Callable[[], float] = time.monotonic,
        grafana_url: str | None = None,
    ) -> None:
        self._take_snapshot = take_snapshot
        self._find_row = find_row
        self._grafana_url = grafana_url
        self._clock = clock
        self._frame = b""
        self._due = clock()
        self._closed = False
        self._viewers: dict[Viewer, None] = {}
        """Current viewers, oldest first."""

    def close(self) -> None:
        """End all streams for good, so that they do not delay the exporter's exit."""
        self._closed = True
        self.end_streams()

    def end_streams(self) -> None:
        """End all streams. Browsers reconnect on their own, and have to authenticate again."""
        for viewer in self._viewers:
            viewer.end()

    def routes(self, telemetry_path: str, status_text: Callable[[], str]) -> list[Route]:
        """Return the routes of the page at `/` and of its parts; `status_text` returns the exporter's state."""
        pages = files(__package__) / "pages"
        page = pages.joinpath("board.html").read_text(encoding="utf-8")
        assets = {name: pages.joinpath(name).read_bytes() for name in _ASSETS}
        compressed = {name: compress(content) for name, content in assets.items()}

        grafana = ""
        if self._grafana_url is not None:
            address = html.escape(f"{self._grafana_url.rstrip('/')}/d/{DASHBOARD}", quote=True)
            grafana = f'\n      <li><a href="{address}">Grafana</a></li>'

        async def board(_: Request) -> Response:
            filled = page.format(
                version=__version__,
                state=html.escape(status_text()),
                metrics=html.escape("." + telemetry_path, quote=True),
                grafana=grafana,
            )
            return HTMLResponse(
                filled, headers={"content-security-policy": _POLICY, "cache-control": "no-cache"} | _REFERRER
            )

        async def asset(request: Request) -> Response:
            # Not `request.url`: Python would keep it, and clients choose its host and its query.
            name = request.scope["path"].removeprefix(f"{_PATH}/")
            headers = {"cache-control": "no-cache", "vary": "accept-encoding"} | _REFERRER
            if accepts_gzip(request.headers.get("accept-encoding", "")):
                encoded = headers | {"content-encoding": "gzip"}
                return Response(compressed[name], media_type=_ASSETS[name], headers=encoded)
            return Response(assets[name], media_type=_ASSETS[name], headers=headers)

        async def stream(request: Request) -> Response:
            if request.method == "HEAD":
                return Response(media_type="text/event-stream")
            viewer = self.admit()
            if viewer is None:
                busy = f"{VIEWERS_MAXIMUM} are watching already\n"
                return PlainTextResponse(busy, 503, {"retry-after": str(round(TENURE))})
            return _Stream(self, viewer)

        async def row(request: Request) -> Response:
            kind = request.query_params.get("kind", "")
            if kind not in KINDS:
                return PlainTextResponse(f"kind must be one of: {', '.join(KINDS)}\n", 400)
            found = msgspec.json.encode(self._find_row(kind, request.query_params.get("id", "")))
            return Response(found, media_type="application/json", headers={"cache-control": "no-store"} | _REFERRER)

        return [
            Route("/", board),
            *(Route(f"{_PATH}/{name}", asset) for name in assets),
            Route(f"{_PATH}/stream", stream),
            Route(f"{_PATH}/row", row),
        ]

    def admit(self) -> "Viewer | None":
        """Return a new viewer; None if there are too many and none may be evicted yet.

        If there are too many, evict the oldest. A browser reconnects, so viewers that never read cannot lock it out.
        """
        now = self._clock()
        if len(self._viewers) >= VIEWERS_MAXIMUM:
            oldest = next(iter(self._viewers))
            if now < oldest.admitted_at + TENURE:
                return None
            self.dismiss(oldest)
        viewer = Viewer(now)
        self._viewers[viewer] = None
        return viewer

    def dismiss(self, viewer: "Viewer") -> None:
        """End a viewer's stream and free its place."""
        viewer.end()
        self._viewers.pop(viewer, None)

    async def watch(self, viewer: "Viewer") -> AsyncIterator[bytes]:
        """Yield server-sent events until the stream is ended: a snapshot whenever it has changed, else heartbeats.

        A viewer that reads slowly skips snapshots: the next event is always the latest one.
        """
        seen = None
        heartbeat_due = 0.0
        while not viewer.ended.is_set() and not self._closed:
            frame = self._latest_frame()
            if frame is seen and self._clock() < heartbeat_due:
                with anyio.move_on_after(INTERVAL):
                    await viewer.ended.wait()
                continue
            news = _HEARTBEAT if frame is seen else frame
            seen, heartbeat_due = frame, self._clock() + HEARTBEAT
            yield news

    def _latest_frame(self) -> bytes:
        """Return the latest event, and take a snapshot if one is due. Return the same object while nothing changes."""
        now = self._clock()
        if now >= self._due:
            frame = b"data: " + msgspec.json.encode(self._take_snapshot()) + b"\n\n"
            if frame != self._frame:
                self._frame = frame
            self._due = now + max(INTERVAL, (self._clock() - now) / SHARE)
        return self._frame


class Viewer:
    """One viewer of the board."""

    def __init__(self, admitted_at: float) -> None:
        self.admitted_at = admitted_at
        self.ended = anyio.Event()

    def end(self) -> None:
        """End the stream."""
        self.ended.set()


class _Stream(StreamingResponse):
    """One viewer's stream."""

    def __init__(self, board: Board, viewer: Viewer) -> None:
        # Proxies must forward each event at once.
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"} | _REFERRER
        super().__init__(board.watch(viewer), media_type="text/event-stream", headers=headers)
        self._board = board
        self._viewer = viewer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream, then free the viewer's place."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._board.dismiss(self._viewer)
