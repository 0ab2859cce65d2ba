"""The live board: a page, its style and script, and the stream that keeps it up to date.

However many watch, a picture is drawn once for all of them, seldom, and only while somebody watches. Shows what is in
memory, like a scrape. Nothing from the database becomes part of a page: it travels as JSON, and the script shows it as
text.
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

INTERVAL = 0.5
"""Seconds between two pictures, at least."""
SHARE = 0.05
"""Of the exporter's time that drawing may take: the more there is to draw, the more seldom it is done."""
BEAT = 5.0
"""Seconds without a change after which the stream says that it is still there."""
VIEWERS_MAXIMUM = 20

_BEAT = b"event: beat\ndata: 0\n\n"
_PATH = "/-/board"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_GUARDS = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}
_ASSETS = {"board.css": "text/css", "board.js": "text/javascript", "icon.svg": "image/svg+xml"}


class Board:
    """The board of one exporter: `draw` gives the picture of the moment."""

    def __init__(self, draw: Callable[[], BoardSnapshot], clock: Callable[[], float] = time.monotonic) -> None:
        self._draw = draw
        self._clock = clock
        self._frame = b""
        self._due = clock()
        self._closed = False
        self._ended = anyio.Event()
        self.viewers = 0

    def close(self) -> None:
        """End all streams for good: the exporter stops, and open ones would hold it up."""
        self._closed = True
        self.end_streams()

    def end_streams(self) -> None:
        """End all streams. Who may watch comes back by himself: browsers do."""
        self._ended.set()
        self._ended = anyio.Event()

    def routes(self, telemetry_path: str, words: Callable[[], str]) -> list[Route]:
        """Return the routes of the page at `/` and of what it is made of; `words` say how the exporter is."""
        pages = files(__package__) / "pages"
        page = pages.joinpath("board.html").read_text(encoding="utf-8")
        assets = {name: pages.joinpath(name).read_bytes() for name in _ASSETS}

        async def board(_: Request) -> Response:
            filled = page.format(
                version=__version__,
                state=html.escape(words()),
                metrics=html.escape("." + telemetry_path, quote=True),
            )
            return HTMLResponse(
                filled, headers={"content-security-policy": _POLICY, "cache-control": "no-cache"} | _GUARDS
            )

        async def asset(request: Request) -> Response:
            name = request.url.path.removeprefix(f"{_PATH}/")
            return Response(assets[name], media_type=_ASSETS[name], headers={"cache-control": "no-cache"} | _GUARDS)

        async def stream(request: Request) -> Response:
            if request.method == "HEAD":
                return Response(media_type="text/event-stream")
            if self.viewers >= VIEWERS_MAXIMUM:
                return PlainTextResponse(
                    f"{VIEWERS_MAXIMUM} are watching already\n", status_code=503, headers={"retry-after": "10"}
                )
            return _Stream(self)

        return [
            Route("/", board),
            *(Route(f"{_PATH}/{name}", asset) for name in assets),
            Route(f"{_PATH}/stream", stream),
        ]

    async def watch(self) -> AsyncIterator[bytes]:
        """Yield server-sent events until streams are ended: the picture where it has changed, else a beat.

        Who is too slow to take one gets the latest afterwards, and misses those between.
        """
        seen = None
        beat_due = 0.0
        ended = self._ended
        while not ended.is_set() and not self._closed:
            frame = self._look()
            if frame is seen and self._clock() < beat_due:
                with anyio.move_on_after(INTERVAL):
                    await ended.wait()
                continue
            news = _BEAT if frame is seen else frame
            seen, beat_due = frame, self._clock() + BEAT
            yield news

    def _look(self) -> bytes:
        """Return the frame of now, drawn by whoever asks first when it is due; the same object while it is the same."""
        now = self._clock()
        if now >= self._due:
            frame = b"data: " + msgspec.json.encode(self._draw()) + b"\n\n"
            if frame != self._frame:
                self._frame = frame
            self._due = now + max(INTERVAL, (self._clock() - now) / SHARE)
        return self._frame


class _Stream(StreamingResponse):
    """One viewer's stream. It has a place on the board from the moment it is made."""

    def __init__(self, board: Board) -> None:
        # Proxies in front must pass on each event as it comes.
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"} | _GUARDS
        super().__init__(board.watch(), media_type="text/event-stream", headers=headers)
        self._board = board
        board.viewers += 1

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, and give the place back."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._board.viewers -= 1
