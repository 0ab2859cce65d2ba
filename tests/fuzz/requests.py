"""HTTP: bytes, pauses and disconnects against the server itself, in a thread of this process.

Whatever clients do, the next correct request is answered, nothing is logged, nothing that a client has sent is in a
response, and nothing of it is remembered once the connection is closed.
"""

import base64
import gc
import itertools
import logging
import re
import socket
import struct
import sys
import types
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import anyio
import anyio.from_thread
import yaml
from hypothesis import strategies as st
from starlette.middleware import Middleware
from structlog.testing import capture_logs
from tests.fuzz.mutation import mutated
from tests.fuzz.target import Check, Target
from tests.support import PATIENCE, eventually
from tests.web_configuration import hashed

from mfg_notify.core.board import BoardSnapshot
from mfg_notify.core.ledger import Ledger
from mfg_notify.core.tuning import Tuning
from mfg_notify.exposition import Page
from mfg_notify.web.access import Access, BasicAuthMiddleware
from mfg_notify.web.application import make_application
from mfg_notify.web.board import Board
from mfg_notify.web.limits import Limits
from mfg_notify.web.server import Server, bind

MARK = "qzvxjk"
"""In everything that clients send and a server might remember. Each input gets its own in place of it."""
LIMITS = Limits(request_seconds=0.2, turns_per_second=1e6, turns_burst=1e6, rendering_share=1.0)
STATUSES = {200, 400, 401, 404, 405, 413, 421, 429, 503}
"""A 500 would be an exception."""
_USER = "alice"
_PASSWORD = "correct horse"  # noqa: S105 - of nobody
_CREDENTIALS = base64.b64encode(f"{_USER}:{_PASSWORD}".encode()).decode()
_GUESS = base64.b64encode(f"{_USER}:{MARK}".encode()).decode()
_LINGER = struct.pack("ii", 1, 0)
"""Closing resets the connection."""
_OF_THE_SERVER = ("mfg_notify", "starlette", "uvicorn", "h11", "prometheus_client", "anyio", "asyncio")
"""Modules whose memory is searched."""

Port = Literal["open", "users"]


@dataclass(frozen=True)
class Client:
    """One connection: what is sent, piece by piece, and how it ends."""

    port: Port
    pieces: list[bytes]
    end: Literal["read", "close", "reset", "shutdown"]


_PATHS = st.sampled_from(
    [
        *("/metrics", "/metrics", f"/metrics?{MARK}=1", "/-/healthy", "/-/ready", "/", "/-/board/board.js"),
        *("/-/board/stream", f"/-/board/row?kind=task&id={MARK}", f"/{MARK}", f"/-/board/{MARK}"),
    ]
)
_HEADERS = st.sampled_from(
    [
        *(f"Accept: application/openmetrics-text;version={MARK}", "Accept: application/openmetrics-text; q=0.5"),
        *("Accept: */*", f"Accept: text/{MARK};q={MARK}", "Accept: text/plain;q=nan", "Accept: " + "a/b," * 900),
        *("Accept-Encoding: gzip", f"Accept-Encoding: gzip;q=1.{MARK}", f"Accept-Encoding: {MARK}, gzip"),
        *(f"Authorization: Basic {_CREDENTIALS}", f"Authorization: Basic {_GUESS}", f"Authorization: Digest {MARK}"),
        *(f"Authorization: Basic {MARK}!", "Authorization: Basic /////w=="),
        *(f"User-Agent: {MARK}", f"X-{MARK}: {MARK}", f"Cookie: {MARK}", f"X-Forwarded-For: {MARK}"),
        *("Range: bytes=0-1", f"If-None-Match: {MARK}", "X: " + "x" * 5000, "Content-Length: 0"),
    ]
)
_ODD_PATHS = st.sampled_from(
    ["*", "/%2e%2e/metrics", f"http://localhost/{MARK}", "//metrics", "/metrics/", "/%ff%00", "localhost:80", "?", "/é"]
)
_ODD_HEADERS = st.sampled_from(
    [
        *("Host: evil.example", f"Host: {MARK}", "Connection: close", "Connection: keep-alive", "Content-Length: 5"),
        *("Content-Length: -1", "Transfer-Encoding: chunked", f"Transfer-Encoding: {MARK}", "Expect: 100-continue"),
        *("Upgrade: websocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "X: " + "x" * 20_000, "X:\0"),
    ]
)


def _request(method: str, path: str, version: str, host: str, headers: list[str]) -> str:
    return "\r\n".join([f"{method} {path} {version}", f"Host: {host}", *headers, "", ""])


_USUAL = st.builds(
    _request,
    st.sampled_from(["GET", "GET", "GET", "HEAD", MARK.upper()]),
    _PATHS,
    st.just("HTTP/1.1"),
    st.sampled_from(["localhost", "localhost", "127.0.0.1:9810", f"{MARK}.localhost", f"{MARK}.example"]),
    st.lists(_HEADERS, max_size=4),
)
_REQUESTS = _USUAL | st.builds(
    _request,
    st.sampled_from(["GET", "HEAD", "POST", "OPTIONS", "CONNECT", "PRI", ""]),
    _PATHS | _ODD_PATHS,
    st.sampled_from(["HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/9"]),
    st.sampled_from(["localhost", "[::1]:80", ""]),
    st.lists(_HEADERS | _ODD_HEADERS, max_size=4),
)
_PIECES = st.sampled_from(
    [
        *("\r", "\n", "\r\n", "\r\n\r\n", "\0", " ", ":", "\t", "\xff", "\x16\x03\x01", "5\r\nhello\r\n0\r\n\r\n"),
        *("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "x" * 20_000, "\r\n folded", "Content-Length: 1\r\n", MARK),
    ]
)  # fmt: skip
_TEXTS = st.one_of(
    # First what the server answers: after what it refuses, it reads no further.
    st.tuples(st.lists(_USUAL, max_size=4), st.lists(_REQUESTS | mutated(_REQUESTS, _PIECES), max_size=3)),
    st.tuples(st.lists(_USUAL, min_size=1, max_size=5), st.just([])),
).map(lambda drawn: "".join(drawn[0] + drawn[1]))
_SENT = st.one_of(
    *3 * [_TEXTS.map(lambda text: text.encode("latin-1"))],
    st.binary(max_size=200),
)


def _split(drawn: tuple[bytes, list[float]]) -> list[bytes]:
    sent, places = drawn
    cuts = [0, *sorted(round(place * len(sent)) for place in places), len(sent)]
    return [sent[a:b] for a, b in itertools.pairwise(cuts) if a < b]


_CLIENTS = st.builds(
    Client,
    st.sampled_from(["open", "open", "users"]),
    st.tuples(_SENT, st.lists(st.floats(0, 1), max_size=3)).map(_split),
    st.sampled_from(["read", "read", "read", "close", "reset", "shutdown"]),
)


class _Errors(logging.Handler):
    """Keeps what libraries log."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


class _Serving:
    """Two servers in a thread, one of which asks for passwords."""

    def __init__(self, portal: anyio.from_thread.BlockingPortal, folder: Path, lines: list[Any]) -> None:
        self._portal = portal
        self._lines = lines
        self.page = Page(lambda: None, lambda: 0)
        # Each differs, so that a viewer that has gone is noticed when the next one is sent.
        snapshots = (BoardSnapshot("1", "live", True, f"{n}", None, None, [], []) for n in itertools.count())
        self.board = Board(lambda: next(snapshots), Ledger(lambda: 0.0, 0, Tuning()).row_details)
        (folder / "web.yml").write_text(yaml.safe_dump({"basic_auth_users": {_USER: hashed(_PASSWORD)}}))
        self.access = Access(folder / "web.yml")
        self.servers: dict[Port, Server] = {}
        self.ports: dict[Port, int] = {}
        self.errors = _Errors()
        self.inputs = 0
        self.statuses: Counter[int] = Counter()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Serve until the block ends."""
        root = logging.getLogger()
        root.addHandler(self.errors)
        tasks = [self._portal.start_task_soon(self._serve, port) for port in ("open", "users")]
        eventually(lambda: len(self.ports) == len(tasks))
        try:
            yield
        finally:
            root.removeHandler(self.errors)
            for server in self.servers.values():
                server.should_exit = True
            for task in tasks:
                task.result(PATIENCE)

    async def _serve(self, port: Port) -> None:
        middleware = [Middleware(BasicAuthMiddleware, self.access)] if port == "users" else []
        application = make_application(
            self.page, lambda: (True, "ready"), "/metrics", self.board, middleware, LIMITS
        )  # fmt: skip
        server = self.servers[port] = Server(application, limits=LIMITS, count_response=self._count)
        sockets = bind(["127.0.0.1:0"])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, sockets)
            await server.started_serving.wait()
            self.ports[port] = sockets[0].getsockname()[1]

    def _count(self, status: int) -> None:
        self.statuses[status] += 1
        self.page.telemetry.http_responses.labels(status).inc()

    # ----------------------------------------------------------------------------------------------- one input --

    def check(self, clients: list[Client]) -> None:
        """Let clients do what they do, side by side; then see what is left of it."""
        self.inputs += 1
        mark = MARK + "".join(chr(ord("a") + int(digit)) for digit in str(self.inputs)) + "z"
        clients = [replace(client, pieces=_marked(client.pieces, mark)) for client in clients]
        with ExitStack() as stack:
            open_ones = [(client, stack.enter_context(self._connect(client.port))) for client in clients]
            for turn in range(max((len(client.pieces) for client, _ in open_ones), default=0)):
                for client, connection in open_ones:
                    if turn < len(client.pieces):
                        _send(connection, client.pieces[turn])
            for client, connection in open_ones:
                self._end(client, connection)
        self._check_answering("open", 200, b"")
        self._check_answering("users", 200, f"Authorization: Basic {_CREDENTIALS}\r\n".encode())
        self._check_answering("users", 401, b"")
        self._check_forgotten(mark)

    def _connect(self, port: Port) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.ports[port]), timeout=PATIENCE)

    def _end(self, client: Client, connection: socket.socket) -> None:
        match client.end:
            case "read":
                _check_received(_receive(connection))
            case "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
            case "shutdown":
                try:
                    connection.shutdown(socket.SHUT_WR)
                except OSError:  # the server was faster
                    return
                _check_received(_receive(connection))

    def _check_answering(self, port: Port, status: int, header: bytes) -> None:
        def ask() -> bytes:
            with self._connect(port) as connection:
                _send(
                    connection,
                    b"GET /-/healthy HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + header + b"\r\n",
                )
                return _receive(connection)

        # Nothing comes if a busy machine lets the deadline of the request pass.
        assert eventually(ask).startswith(f"HTTP/1.1 {status} ".encode())

    def _check_forgotten(self, mark: str) -> None:
        """Assert that no connection, no line and no byte is left of what the clients have sent."""
        for server in self.servers.values():
            eventually(lambda server=server: not server.server_state.connections and not server._connections)  # type: ignore[misc]
            assert not server._idle
            eventually(lambda server=server: not server.server_state.tasks)  # type: ignore[misc]
        eventually(lambda: not self.board._viewers)
        assert self.errors.lines == []
        assert self._lines == []
        assert self.statuses.keys() <= STATUSES
        # A task that has just ended is forgotten in a moment.
        eventually(lambda: _remembered(mark), lambda found: found == [])


def _marked(pieces: list[bytes], mark: str) -> list[bytes]:
    return [
        piece.replace(MARK.encode(), mark.encode()).replace(MARK.upper().encode(), mark.upper().encode())
        for piece in pieces
    ]


def _send(connection: socket.socket, sent: bytes) -> None:
    # The server may have refused what came before.
    with suppress(ConnectionError):
        connection.sendall(sent)


def _receive(connection: socket.socket) -> bytes:
    """Return what comes until the server closes the connection, or until it is the endless stream."""
    received = b""
    with suppress(ConnectionError):
        while b"text/event-stream" not in received and (chunk := connection.recv(65536)):
            received += chunk
    return received


def _check_received(received: bytes) -> None:
    assert MARK.encode() not in received.lower()
    assert _PASSWORD.encode() not in received
    heads = re.findall(rb"HTTP/1\.1 (\d{3}) (?:[^\r\n]*)\r\n((?:[^\r\n]+\r\n)*)", received)
    assert received == b"" or received.startswith(b"HTTP/1.1 ")
    for status, head in heads:
        assert int(status) in STATUSES | {100}
        if int(status) >= 200:
            assert b"x-content-type-options: nosniff\r\n" in head.lower()


def _remembered(mark: str) -> list[str]:
    """Return the texts with this mark that the modules of the server reach, by a search of their memory."""
    gc.collect()
    found: list[str] = []
    seen: set[int] = set()
    waiting: list[Any] = [
        value
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] in _OF_THE_SERVER
        for value in vars(module).values()
    ]
    waiting += [server for server in gc.get_objects() if isinstance(server, Server)]
    own = re.compile(mark, re.IGNORECASE)
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, str):
            if own.search(value):
                found.append(value)
        elif isinstance(value, bytes | bytearray):
            if own.search(value.decode("latin-1")):
                found.append(value.decode("latin-1"))
        elif isinstance(value, types.FunctionType):
            waiting += [value.__closure__, value.__defaults__, value.__kwdefaults__, value.__dict__]
        elif not isinstance(value, types.ModuleType | types.CodeType | types.FrameType):
            waiting += gc.get_referents(value)
    return found


@contextmanager
def _open() -> Iterator[Check]:
    with TemporaryDirectory() as folder, capture_logs() as lines, anyio.from_thread.start_blocking_portal() as portal:
        serving = _Serving(portal, Path(folder), lines)
        with serving.running():
            yield serving.check


TARGET = Target("requests", st.lists(_CLIENTS, min_size=2, max_size=6), _open, short=8, slice=60)
