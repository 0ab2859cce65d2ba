"""One rendering for all concurrent requests, and the turns in which clients are served."""

import asyncio
import gzip
import time
from dataclasses import dataclass, field
from threading import Event, current_thread, main_thread

import anyio
import httpx
import pytest
from structlog.testing import capture_logs
from tests.support import PATIENCE

from mfg_notify.web.application import make_application
from mfg_notify.web.limits import Limits, Turns
from mfg_notify.web.rendering import Rendering, RenderingError, SharedRendering, Variant, accepts_gzip

pytestmark = pytest.mark.anyio
PLAIN, GZIP = Variant("text", compressed=False), Variant("text", compressed=True)
OTHER = Variant("other", compressed=False)


@dataclass
class Held:
    """A page whose renderings wait to be released; each shows the next number."""

    read: int = 0
    rendered: list[tuple[int, str]] = field(default_factory=list)
    begun: anyio.Event = field(default_factory=anyio.Event)
    release: Event = field(default_factory=Event)
    broken: bool = False

    def choose_format(self, accept: str) -> str:
        """Use the Accept header as the format."""
        return accept or "text"

    def begin(self) -> Rendering:
        """Take the next number, in the event loop."""
        assert current_thread() is main_thread()
        self.read += 1
        number = self.read
        self.begun.set()

        def render(content_type: str) -> bytes:
            assert current_thread() is not main_thread()
            assert self.release.wait(PATIENCE)
            if self.broken:
                raise ValueError("cannot")
            self.rendered.append((number, content_type))
            return f"{content_type} {number}".encode()

        return render


async def gather(rendering: SharedRendering, *variants: Variant) -> list[bytes]:
    """Ask for several at once."""
    pages: dict[int, bytes] = {}

    async def ask(n: int, variant: Variant) -> None:
        pages[n] = await rendering.render(variant)

    async with anyio.create_task_group() as tasks:
        for n, variant in enumerate(variants):
            tasks.start_soon(ask, n, variant)
    return [pages[n] for n in range(len(variants))]


async def test_concurrent_requests_share_one_rendering() -> None:
    page = Held()
    page.release.set()
    found = await gather(SharedRendering(page, Limits()), *[PLAIN, GZIP, OTHER] * 20)
    assert set(found[0::3]) == {b"text 1"}
    assert {gzip.decompress(each) for each in found[1::3]} == {b"text 1"}
    assert set(found[2::3]) == {b"other 1"}
    assert sorted(page.rendered) == [(1, "other"), (1, "text")]


async def test_a_request_during_a_rendering_gets_the_next_one() -> None:
    page = Held()
    rendering = SharedRendering(page, Limits())
    first: list[bytes] = []
    later: list[bytes] = []

    async def ask(into: list[bytes]) -> None:
        into += await gather(rendering, PLAIN)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, first)
        await page.begun.wait()
        for _ in range(9):
            tasks.start_soon(ask, later)
        await anyio.wait_all_tasks_blocked()
        page.release.set()
    assert first == [b"text 1"]
    assert later == [b"text 2"] * 9
    assert page.read == 2


async def test_the_first_client_may_disconnect() -> None:
    page = Held()
    rendering = SharedRendering(page, Limits())
    found: list[bytes] = []

    async def ask() -> None:
        found.extend(await gather(rendering, PLAIN))

    async with anyio.create_task_group() as tasks:
        async with anyio.create_task_group() as impatient:
            impatient.start_soon(ask)
            tasks.start_soon(ask)
            await page.begun.wait()
            impatient.cancel_scope.cancel()
        page.release.set()
    assert found == [b"text 1"]


async def test_a_page_that_cannot_be_rendered_is_logged_once() -> None:
    page = Held(broken=True)
    page.release.set()
    application = make_application(page, lambda: (True, "ready"), "/metrics", limits=Limits())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://x") as client:
        with capture_logs() as logged:
            for _ in range(3):
                answer = await client.get("/metrics")
                assert (answer.status_code, answer.text) == (500, "The metrics cannot be rendered; see the log\n")
            assert len(logged) == 1
            page.broken = False
            assert (await client.get("/metrics", headers={"accept": "text"})).text == "text 4"
    page.broken = True
    with pytest.raises(RenderingError):
        await SharedRendering(page, Limits()).render(PLAIN)


async def test_renderings_have_a_share_of_the_time() -> None:
    now = [100.0]
    page = Held()
    page.release.set()
    begin = page.begin

    def slow() -> Rendering:
        now[0] += 0.01
        return begin()

    page.begin = slow  # type: ignore[method-assign]
    limits = Limits(rendering_share=0.25, rendering_burst=0.02)
    rendering = SharedRendering(page, limits, cpu_clock=lambda: now[0])
    begun = time.monotonic()
    for _ in range(5):
        await rendering.render(PLAIN)
    # Two pauses, each three times as long as a rendering of 0.01 s.
    assert time.monotonic() - begun > 2 * 0.03 * 0.99


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        ("gzip", True),
        ("deflate, GZIP;q=1.0, *;q=0.5", True),
        ("*", True),
        ("", False),
        ("identity", False),
        ("gzip;q=0", False),
        ("gzip; q=0.000, *", False),
        ("gzipped, xgzip", False),
        ("x," * 30 + "gzip", False),
    ],
)
def test_accept_encoding(header: str, *, accepted: bool) -> None:
    assert accepts_gzip(header) is accepted


async def test_one_turn_per_iteration_of_the_loop_in_fifo_order() -> None:
    turns = Turns(Limits())
    passes = 0
    taken: list[tuple[int, int]] = []
    loop = asyncio.get_running_loop()

    def count() -> None:
        nonlocal passes
        passes += 1
        loop.call_soon(count)

    async def take(n: int) -> None:
        await turns.take()
        taken.append((n, passes))

    count()
    async with anyio.create_task_group() as tasks:
        for n in range(50):
            tasks.start_soon(take, n)
    assert [n for n, _ in taken] == list(range(50))
    assert len({at for _, at in taken}) == 50


async def test_turns_have_a_rate() -> None:
    turns = Turns(Limits(turns_per_second=1000, turns_burst=5))
    begun = time.monotonic()
    for _ in range(45):
        await turns.take()
    assert time.monotonic() - begun > 40 / 1000 * 0.99


async def test_a_cancelled_request_takes_no_turn() -> None:
    turns = Turns(Limits(turns_per_second=20, turns_burst=1))
    await turns.take()
    taken: list[int] = []

    async def take(n: int) -> None:
        await turns.take()
        taken.append(n)

    async with anyio.create_task_group() as tasks:
        async with anyio.create_task_group() as impatient:
            for n in range(9):
                impatient.start_soon(take, n)
            await anyio.lowlevel.checkpoint()
            impatient.cancel_scope.cancel()
        tasks.start_soon(take, 9)
    assert taken == [9]
