"""The HTTP server in this process, with short deadlines: clients that send nothing or read nothing."""

import asyncio
import errno
import gc
import re
import socket
import ssl
import struct
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import anyio.abc
import httpx
import pytest
from starlette.types import ASGIApp
from structlog.testing import capture_logs
from tests.http_client import request
from tests.support import PATIENCE, ROOT
from tests.web_configuration import TLS, Setting

from mfg_notify.core.board import BoardSnapshot
from mfg_notify.core.ledger import Ledger
from mfg_notify.core.tuning import Tuning
from mfg_notify.web.access import Access
from mfg_notify.web.application import make_application
from mfg_notify.web.board import Board
from mfg_notify.web.limits import Limits
from mfg_notify.web.rendering import Rendering
from mfg_notify.web.server import RESERVED_FILES, Server, bind

pytestmark = pytest.mark.anyio
HUGE = b"x" * 32 * 2**20
"""More than the kernel buffers for a client that does not read."""
NOTHING = Ledger(lambda: 0.0, 0, Tuning())
SOON = Limits(request_seconds=0.3, response_seconds=0.6)


@dataclass
class HugePage:
    """A page of metrics that counts how often it is rendered."""

    rendered: int = 0

    def choose_format(self, accept: str) -> str:
        """Return the one content type there is, whatever is accepted."""
        assert isinstance(accept, str)
        return "text/plain"

    def begin(self) -> Rendering:
        """Count, and return what renders."""
        self.rendered += 1
        return lambda _: HUGE


@dataclass
class Serving:
    """A server that runs, and what it has counted."""

    port: int
    server: Server
    responses: Counter[int] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)

    @property
    def open(self) -> int:
        """Connections that the server has."""
        return len(self.server.server_state.connections)


@asynccontextmanager
async def serving(application: ASGIApp, limits: Limits = SOON, access: Access | None = None) -> AsyncIterator[Serving]:
    responses: Counter[int] = Counter()
    dropped: Counter[str] = Counter()
    server = Server(
        application,
        access,
        limits,
        count_response=lambda status: responses.update((status,)),
        count_dropped=lambda reason: dropped.update((reason,)),
    )
    sockets = bind(["127.0.0.1:0"])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve, sockets)
        await server.started_serving.wait()
        with anyio.fail_after(PATIENCE):
            yield Serving(sockets[0].getsockname()[1], server, responses, dropped)
        server.should_exit = True


def ready() -> tuple[bool, str]:
    return True, "ready"


def ready_snapshot() -> BoardSnapshot:
    return BoardSnapshot("1", "live", True, "ready", None, None, [], [])


def pages(page: HugePage | None = None, limits: Limits = SOON, board: Board | None = None) -> ASGIApp:
    return make_application(page or HugePage(), ready, "/metrics", board, (), limits)


def unread_socket(port: int) -> socket.socket:
    """Connect with a small receive buffer, so that the server soon notices that nobody reads."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.connect(("127.0.0.1", port))
    return made


async def read_all(stream: anyio.abc.ByteReceiveStream) -> bytes:
    received = b""
    try:
        while True:
            received += await stream.receive()
    except (anyio.EndOfStream, anyio.BrokenResourceError):
        return received


@pytest.mark.parametrize("beginning", [b"", b"GET / HT", request()[:-2]])
async def test_a_request_has_a_deadline(beginning: bytes) -> None:
    async with serving(pages()) as found, await anyio.connect_tcp("127.0.0.1", found.port) as stream:
        if beginning:
            await stream.send(beginning)
        assert await read_all(stream) == b""
        assert found.dropped == {"request_timeout": 1}


async def test_single_bytes_do_not_extend_the_deadline() -> None:
    async with serving(pages()) as found, await anyio.connect_tcp("127.0.0.1", found.port) as stream:

        async def drip() -> None:
            while True:
                await stream.send(b"G")
                with anyio.move_on_after(0.05):
                    await stream.receive()

        with pytest.raises((anyio.BrokenResourceError, anyio.EndOfStream)):
            await drip()
        assert found.dropped == {"request_timeout": 1}


async def test_a_connection_is_reused_and_closed_uncounted() -> None:
    async with serving(pages()) as found, await anyio.connect_tcp("127.0.0.1", found.port) as stream:
        for _ in range(3):
            await stream.send(b"GET /-/healthy HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await stream.receive()).startswith(b"HTTP/1.1 200 ")
        await read_all(stream)
        assert found.responses == {200: 3}
        assert found.dropped == {}


async def test_nothing_is_kept_of_a_connection_that_was_reset() -> None:
    """Neither by a timer: connections that are open are limited, those that a timer keeps would not be."""
    async with serving(pages(), Limits()) as found:
        client = socket.create_connection(("127.0.0.1", found.port))
        client.sendall(b"GET /-/healthy HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await anyio.wait_readable(client)
        [connection] = map(weakref.ref, found.server.server_state.connections)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        # The loop that accepts connections keeps the latest one until the next.
        async with await anyio.connect_tcp("127.0.0.1", found.port) as another:
            await another.send(request())
            await read_all(another)
        with anyio.fail_after(PATIENCE):
            while found.open or connection() is not None:
                await anyio.lowlevel.checkpoint()
                gc.collect()


def splits() -> int:
    """Return how often Python has kept a URL that was split."""
    return int(urlsplit.cache_info().misses)  # type: ignore[attr-defined]  # typeshed does not say that it is cached


@pytest.mark.parametrize(
    "path", ["/", "/metrics", "/-/healthy", "/-/board/board.js", "/-/board/row?kind=task&id=", "/nothing"]
)
async def test_no_url_is_cached(path: str) -> None:
    """Python keeps the last URLs that were split, and those of a request contain the Host header and the query."""
    async with serving(pages(board=Board(ready_snapshot, NOTHING.row_details)), Limits()) as found:
        before = splits()
        async with await anyio.connect_tcp("127.0.0.1", found.port) as stream:
            await stream.send(request("HEAD", f"{path}?{'x' * 1000}", host="x.localhost"))
            assert (await read_all(stream)).startswith(b"HTTP/1.1 ")
        assert splits() == before


async def test_a_tls_handshake_has_a_deadline(tmp_path: Path) -> None:
    setting = Setting.in_folder(tmp_path)
    setting.write(tls_server_config=TLS)
    limits = Limits(max_connections=2, request_seconds=0.5)
    async with serving(pages(), limits, Access(setting.file)) as found:
        async with await anyio.connect_tcp("127.0.0.1", found.port) as silent:
            assert await read_all(silent) == b""
        # Handshakes that do not end make room, too.
        silent_ones = [await anyio.connect_tcp("127.0.0.1", found.port) for _ in range(5)]
        trust = ssl.create_default_context(cafile=setting.folder / "ca.crt")
        async with httpx.AsyncClient(verify=trust, base_url=f"https://127.0.0.1:{found.port}") as client:
            assert (await client.get("/-/healthy")).status_code == 200
        assert found.dropped["evicted"] >= 3
        for each in silent_ones:
            await each.aclose()


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/metrics", "/metrics HTTP/1.1\r\nHost: localhost\r\n\r\nGET /metrics"])
async def test_a_client_that_does_not_read_is_disconnected(path: str) -> None:
    limits = Limits(max_requests=3, response_seconds=0.6)
    page = HugePage()
    async with serving(pages(page, limits), limits) as found:
        stuck = [unread_socket(found.port) for _ in range(3)]
        for each in stuck:
            each.sendall(request(path=path))
        while found.dropped["response_timeout"] < 3:
            await anyio.lowlevel.checkpoint()
        # Their places are free again.
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{found.port}") as client:
            answer = await client.get("/metrics", headers={"accept-encoding": "gzip"})
            assert answer.content == HUGE
        for each in stuck:
            each.close()


async def test_a_client_that_reads_slowly_costs_one_chunk() -> None:
    async with serving(pages(), Limits()) as found:
        stuck = unread_socket(found.port)
        stuck.sendall(request(path="/metrics"))
        while not found.open or not _buffered(found):
            await anyio.lowlevel.checkpoint()
        assert _buffered(found) < 200_000
        stuck.close()


def _buffered(found: Serving) -> int:
    """Return how many bytes wait in this process until clients read them."""
    connections = (connection.transport for connection in found.server.server_state.connections)
    return sum(transport.get_write_buffer_size() for transport in connections)


@pytest.mark.slow
async def test_a_viewer_that_does_not_read_is_disconnected() -> None:
    count = iter(range(10**9))

    def snapshot() -> BoardSnapshot:
        return BoardSnapshot("1", "live", True, f"{next(count)} " + "x" * 2**20, None, None, [], [])

    board = Board(snapshot, NOTHING.row_details)
    # Long enough for a viewer that reads on a busy machine.
    limits = Limits(response_seconds=3.0)
    async with serving(pages(None, limits, board), limits) as found:
        stuck = unread_socket(found.port)
        stuck.sendall(request(path="/-/board/stream"))
        async with await anyio.connect_tcp("127.0.0.1", found.port) as stream:
            await stream.send(request(path="/-/board/stream"))
            while found.dropped["response_timeout"] == 0:
                await stream.receive()
            # A viewer that reads may watch for longer than the deadline of a response.
            assert (await stream.receive()) != b""
        stuck.close()
        board.close()


async def test_concurrent_requests_share_renderings() -> None:
    page = HugePage()
    async with serving(pages(page, Limits()), Limits()) as found:
        streams = [await anyio.connect_tcp("127.0.0.1", found.port) for _ in range(30)]
        async with anyio.create_task_group() as tasks:
            for stream in streams:
                await stream.send(request("HEAD", "/metrics", Accept_Encoding="gzip"))
                tasks.start_soon(read_all, stream)
        assert found.responses == {200: 30}
        assert page.rendered < 10
        for stream in streams:
            await stream.aclose()


async def test_failures_to_accept_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    loop_type = type(asyncio.get_running_loop())
    accept: Callable[..., Awaitable[object]] = loop_type.sock_accept
    failures = iter(range(20))

    async def failing(self: object, listening: socket.socket) -> object:
        if next(failures, None) is not None:
            raise ConnectionAbortedError(errno.ECONNABORTED, "Software caused connection abort")
        return await accept(self, listening)

    monkeypatch.setattr(loop_type, "sock_accept", failing)
    with capture_logs() as logged:
        async with serving(pages()) as found, await anyio.connect_tcp("127.0.0.1", found.port) as stream:
            await stream.send(request())
            assert (await read_all(stream)).startswith(b"HTTP/1.1 200 ")
            assert found.dropped["accept_failed"] == 20
    assert [line["event"] for line in logged] == ["cannot accept connections"]


def test_the_unit_leaves_room_for_all_connections() -> None:
    unit = (ROOT / "systemd" / "mfg-notify.service").read_text(encoding="utf-8")
    [limit] = re.findall(r"^LimitNOFILE=(\d+)$", unit, re.MULTILINE)
    assert int(limit) >= Limits().max_connections + RESERVED_FILES


async def test_running_requests_are_answered_when_the_server_stops() -> None:
    async with serving(pages(), Limits()) as found:
        stream = await anyio.connect_tcp("127.0.0.1", found.port)
        await stream.send(request(path="/-/healthy"))
        idle = await anyio.connect_tcp("127.0.0.1", found.port)
    assert (await read_all(stream)).startswith(b"HTTP/1.1 200 ")
    assert await read_all(idle) == b""
    await stream.aclose()
    await idle.aclose()
