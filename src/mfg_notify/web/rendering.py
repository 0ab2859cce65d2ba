"""One rendering of the metrics for all concurrent requests.

Owns when the page is rendered and compressed, and in which thread. Does not know what is on the page.
"""

import asyncio
import gzip
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import anyio
import anyio.to_thread
import structlog

from mfg_notify.web.limits import Limits

COMPRESSION_LEVEL = 5
"""Level of gzip. A page shrinks to about a fifteenth; level 9 saves another percent for three times the work."""
CODINGS_MAXIMUM = 20
"""Codings of an Accept-Encoding header that are read."""

log = structlog.get_logger(__name__)
Rendering = Callable[[str], bytes]


class RenderingError(Exception):
    """The page could not be rendered; the log has the reason."""


def accepts_gzip(accept_encoding: str) -> bool:
    """Tell whether an Accept-Encoding header allows gzip."""
    for coding in accept_encoding.split(",", CODINGS_MAXIMUM)[:CODINGS_MAXIMUM]:
        name, *parameters = (part.strip().lower() for part in coding.split(";"))
        if name in ("gzip", "*"):
            return not any(re.fullmatch(r"q=0(\.0*)?", parameter) for parameter in parameters)
    return False


def compress(page: bytes) -> bytes:
    """Compress a page with gzip."""
    return gzip.compress(page, COMPRESSION_LEVEL, mtime=0)


class MetricsPage(Protocol):
    """What this module needs of `exposition.Page`."""

    def choose_format(self, accept: str) -> str:
        """Return one of a few content types for an Accept header."""
        ...

    def begin(self) -> Rendering:
        """Read the view in the event loop; return the function that renders it as a content type in any thread."""
        ...


@dataclass(frozen=True, slots=True)
class Variant:
    """One form of the page: one of two content types, compressed or not."""

    content_type: str
    compressed: bool


@dataclass(slots=True)
class _Round:
    """One rendering: the variants that requests wait for, and the outcome."""

    wanted: set[Variant] = field(default_factory=set)
    pages: dict[Variant, bytes] = field(default_factory=dict)
    failed: bool = False
    done: anyio.Event = field(default_factory=anyio.Event)


class SharedRendering:
    """Renders the page in a thread, once for all requests that arrived before the rendering began.

    So a response is never older than its request. Under a sustained load of requests, the share of processor time that
    is spent rendering is limited; the requests that arrive during a pause share the next rendering. Processor time
    rather than elapsed time, because a busy machine must not make pauses longer. `cpu_clock` reads that of its thread.
    """

    def __init__(
        self,
        page: MetricsPage,
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._page = page
        self._share = limits.rendering_share
        self._burst = limits.rendering_burst / limits.rendering_share
        """Seconds of quiet time that count towards the share."""
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._next: _Round | None = None
        self._one_at_a_time = anyio.Lock()
        self._thread = anyio.CapacityLimiter(1)
        self._due = clock() - self._burst
        self._failing = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def render(self, variant: Variant) -> bytes:
        """Return the page as of now or later. Raise `RenderingError`."""
        if self._next is None:
            self._next = _Round()
            # In a task of its own, because the first client may disconnect while others still wait for the page.
            task = asyncio.create_task(self._run(self._next))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        joined = self._next
        joined.wanted.add(variant)
        await joined.done.wait()
        if joined.failed:
            raise RenderingError
        return joined.pages[variant]

    async def _run(self, current: _Round) -> None:
        async with self._one_at_a_time:
            await anyio.sleep(max(0.0, self._due - self._clock()))
            # Later requests join the next round, because the view is read now.
            self._next = None
            begun, reading = self._clock(), self._cpu_clock()
            spent = 0.0
            try:
                rendering = self._page.begin()
                spent = self._cpu_clock() - reading
                current.pages, in_thread = await anyio.to_thread.run_sync(
                    _render, rendering, frozenset(current.wanted), self._cpu_clock, limiter=self._thread
                )
                spent += in_thread
            except Exception:
                current.failed = True
                spent = self._clock() - begun
                # Log only the first failure: clients must not be able to fill the log.
                if not self._failing:
                    log.exception("the page of metrics cannot be rendered")
            finally:
                self._failing = current.failed
                current.done.set()
            self._due = max(self._due, begun - self._burst) + spent / self._share


def _render(
    rendering: Rendering, wanted: frozenset[Variant], cpu_clock: Callable[[], float]
) -> tuple[dict[Variant, bytes], float]:
    """Return the page in each variant, and the seconds of processor time that it took."""
    begun = cpu_clock()
    plain = {content_type: rendering(content_type) for content_type in {variant.content_type for variant in wanted}}
    pages = {
        variant: compress(plain[variant.content_type]) if variant.compressed else plain[variant.content_type]
        for variant in wanted
    }
    return pages, cpu_clock() - begun
