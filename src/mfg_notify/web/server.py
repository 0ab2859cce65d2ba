"""The listening sockets, and uvicorn on them, with a deadline for everything that a client may leave undone.

Owns connections: how many may be open, how long each may take, and which one is closed if there are too many. Never
decides what is answered.
"""

import asyncio
import errno
import ipaddress
import math
import resource
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import cast

import anyio
import h11
import structlog
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from mfg_notify.errors import OptionError, UsageError
from mfg_notify.web.access import Access
from mfg_notify.web.guard import CONNECTION, HEADERS, RequestGuard
from mfg_notify.web.limits import Limits, Turns

GRACE = 1
"""Seconds that running requests get when the exporter stops."""
BACKLOG = 128
"""Connections that the kernel queues until they are accepted."""
RESERVED_FILES = 64
"""Files that stay free for everything but HTTP connections: the database, certificates, the log."""
HEAD_MAXIMUM = 16 * 1024
"""Bytes of a request line and its headers."""
ACCEPT_RETRY = 1.0
"""Seconds of rest after the server could not accept a connection."""
WARNING_INTERVAL = 60.0
"""Seconds between two warnings that clients can cause."""

log = structlog.get_logger(__name__)

_BAD_REQUEST = b"".join(
    (
        b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\nconnection: close\r\n",
        *(f"{name}: {value}\r\n".encode() for name, value in HEADERS.items()),
        b"\r\nBad Request\n",
    )
)


def bind(addresses: Sequence[str]) -> list[socket.socket]:
    """Open a listening socket for each `host:port`; an empty host is every address. Raise `UsageError`."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(_bind(address)) for address in addresses]
        # They are closed only if one of them could not be bound.
        stack.pop_all()
    return sockets


def _bind(address: str) -> socket.socket:
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise OptionError(f"--web.listen-address {address!r} is not host:port")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with ExitStack() as stack:
            listening = stack.enter_context(socket.socket(family, kind, protocol))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(place)
            # From now on clients are queued instead of refused.
            listening.listen(BACKLOG)
            stack.pop_all()
    except OSError as error:
        other = ""
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            other = "; choose another with --web.listen-address or MFG_NOTIFY_WEB_LISTEN_ADDRESS"
        raise UsageError(f"cannot listen on {address}: {error.strerror or error}{other}") from error
    except ValueError as error:  # a name that DNS cannot have, or one with the character 0
        raise UsageError(f"cannot listen on {address!r}: this cannot be the name of a host") from error
    return listening


def address_of(listening: socket.socket, scheme: str = "http") -> str:
    """Return the address of a bound socket as `http://host:port`."""
    host, port = listening.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _ignore(_: object) -> None:
    pass


class Connection(H11Protocol):
    """A client's connection and its deadline: for a complete request, or for the response to be read."""

    def __init__(self, server: "Server", *, on_loopback: bool) -> None:
        super().__init__(server.config, server.server_state, {CONNECTION: self}, asyncio.get_running_loop())
        self.on_loopback = on_loopback
        self.ended = anyio.Event()
        self.opening = anyio.CancelScope()
        """Cancels the TLS handshake, during which there is no transport to abort."""
        self._server = server
        self._made = self._aborted = self._answering = self._answered = False
        self._deadline = server.clock() + server.limits.request_seconds

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in H11Protocol
        """Start to receive requests."""
        super().connection_made(transport)
        self._made = True
        if self._aborted:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the server that the connection has ended."""
        super().connection_lost(exc)
        # uvicorn leaves the timer if the client has reset the connection; it would keep all of this for seconds.
        self._unset_keepalive_if_required()
        self.ended.set()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - one response for every error
        """Answer a request that is not valid HTTP, and close."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        if cycle is not None and not cycle.response_complete:
            # The head was valid and the body is not, so the application's response can no longer be sent.
            cycle.disconnected = True
        else:
            self._server.count_response(400)
            self.transport.write(_BAD_REQUEST)
        self.transport.close()

    def shutdown(self) -> None:
        """Close now, or after the response that is being sent."""
        try:
            super().shutdown()
        except h11.LocalProtocolError:  # the client has sent something that is not HTTP
            self.transport.abort()

    def begin_response(self) -> None:
        """Set the deadline of a response."""
        self._answering = True
        self.extend_response()
        self._server.mark_busy(self)

    def extend_response(self) -> None:
        """Restart the deadline of the response: it is a stream whose last event was taken."""
        self._deadline = self._server.clock() + self._server.limits.response_seconds

    def end_response(self) -> None:
        """Set the deadline of the next request."""
        self._answering, self._answered = False, True
        self._deadline = self._server.clock() + self._server.limits.request_seconds
        self._server.mark_idle(self)

    async def wait_closed(self) -> None:
        """Wait until the connection has ended. Abort it at its deadline."""
        while not self.ended.is_set():
            left = self._deadline - self._server.clock()
            if left > 0:
                with anyio.move_on_after(left):
                    await self.ended.wait()
            elif self._answering:
                return self.abort("response_timeout")
            else:
                # Closing a connection that was used and is idle now is normal, so do not count it.
                return self.abort(None if self._answered else "request_timeout")
        return None

    def abort(self, reason: str | None) -> None:
        """End the connection at once and discard what the client has not read. Count the reason, if there is one."""
        if reason is not None:
            self._server.count_dropped(reason)
        self._aborted = True
        self.opening.cancel()
        if self._made:
            self.transport.abort()


class Server(uvicorn.Server):
    """uvicorn with its own accept loop and without signal handlers.

    The exporter handles signals itself, because it has to fold once more. asyncio's accept loop has no limit, accepts a
    whole backlog in one iteration of the event loop, and logs a traceback for every connection that it cannot open.
    """

    def __init__(
        self,
        application: ASGIApp,
        access: Access | None = None,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        *,
        count_response: Callable[[int], None] = _ignore,
        count_dropped: Callable[[str], None] = _ignore,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Serve an application, over TLS if `access` asks for it.

        `count_response` is called with the status of each response, `count_dropped` with the reason for each connection
        that was dropped: `request_timeout`, `response_timeout`, `evicted` or `accept_failed`.
        """
        self.limits = limits
        self.clock = clock
        self.count_response = count_response
        self.count_dropped = count_dropped
        self._turns = Turns(limits, clock)
        config = uvicorn.Config(
            RequestGuard(application, self._turns, count_response),
            http=Connection,
            ws="none",
            interface="asgi3",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            h11_max_incomplete_event_size=HEAD_MAXIMUM,
            # Later than the deadlines here, which also end connections that do not read.
            timeout_keep_alive=math.ceil(limits.request_seconds) + 1,
            timeout_graceful_shutdown=GRACE,
        )
        config.load()
        super().__init__(config)
        self._access = access
        self._connections: set[Connection] = set()
        self._idle: dict[Connection, None] = {}
        """Connections without a running request, longest idle first."""
        self._room_made = anyio.Event()
        """Set when a connection has ended or become idle."""
        self._maximum = _connection_maximum(limits)
        self._full = _RateLimitedWarning(clock, "too many connections; closing those that are idle for longest")
        self._failing = _RateLimitedWarning(clock, "cannot accept connections")
        self._accepting = anyio.CancelScope()
        self._stopped_accepting = anyio.Event()
        self.started_serving = anyio.Event()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until `should_exit` is set."""
        async with anyio.create_task_group() as self._tasks:
            if self._access is not None:
                self._tasks.start_soon(self._access.watch)
            await super().serve(sockets)
            self._tasks.cancel_scope.cancel()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept connections, and set `started_serving`."""
        self.servers = []
        self._tasks.start_soon(self._listen, sockets or [])
        self.started = True
        self.started_serving.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, and close all connections. Running requests get `GRACE` seconds."""
        self._accepting.cancel()
        await self._stopped_accepting.wait()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no signal handlers."""
        yield

    def mark_busy(self, connection: Connection) -> None:
        """Record that a connection has a running request."""
        self._idle.pop(connection, None)

    def mark_idle(self, connection: Connection) -> None:
        """Record that a connection waits for its next request."""
        if connection in self._connections:
            self._idle[connection] = None
            self._room_made.set()

    async def _listen(self, sockets: list[socket.socket]) -> None:
        with self._accepting:
            async with anyio.create_task_group() as listeners:
                for listening in sockets:
                    listening.setblocking(False)
                    listeners.start_soon(self._accept, listening)
        self._stopped_accepting.set()

    async def _accept(self, listening: socket.socket) -> None:
        on_loopback = ipaddress.ip_address(listening.getsockname()[0].partition("%")[0]).is_loopback
        while True:
            try:
                accepted, _ = await asyncio.get_running_loop().sock_accept(listening)
            except OSError as error:
                self.count_dropped("accept_failed")
                self._failing.warn(error=error.strerror or str(error))
                # Retry at once if only this client has gone, later if the process or the machine lacks something.
                await anyio.sleep(0 if error.errno == errno.ECONNABORTED else ACCEPT_RETRY)
                continue
            await self._make_room()
            connection = Connection(self, on_loopback=on_loopback)
            self._connections.add(connection)
            self._idle[connection] = None
            self._tasks.start_soon(self._handle, connection, accepted)
            await self._turns.take()

    async def _make_room(self) -> None:
        """Wait until another connection may be opened. Evict the longest idle one if necessary."""
        while len(self._connections) >= self._maximum:
            self._full.warn(maximum=self._maximum)
            if self._idle:
                longest_idle = next(iter(self._idle))
                self._forget(longest_idle)
                longest_idle.abort("evicted")
            else:
                self._room_made = anyio.Event()
                await self._room_made.wait()

    async def _handle(self, connection: Connection, accepted: socket.socket) -> None:
        """Open a connection on an accepted socket, and watch it until it has ended."""
        context = None if self._access is None else self._access.rules.context
        seconds = None if context is None else self.limits.request_seconds
        try:
            # A handshake that fails is the client's fault, and clients must not fill the log.
            with suppress(OSError), connection.opening:
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: connection,
                    accepted,
                    ssl=context,
                    ssl_handshake_timeout=seconds,
                    ssl_shutdown_timeout=seconds,
                )
                await connection.wait_closed()
        finally:
            self._forget(connection)
            if not connection.ended.is_set():
                connection.abort(None)

    def _forget(self, connection: Connection) -> None:
        self._idle.pop(connection, None)
        self._connections.discard(connection)
        self._room_made.set()


class _RateLimitedWarning:
    """A warning that clients can cause. It is logged once per `WARNING_INTERVAL`, with the number of occurrences."""

    def __init__(self, clock: Callable[[], float], event: str) -> None:
        self._clock = clock
        self._event = event
        self._due = clock()
        self._times = 0

    def warn(self, **details: object) -> None:
        """Log the warning, or count it for the next line."""
        self._times += 1
        if (now := self._clock()) >= self._due:
            log.warning(self._event, times=self._times, **details)
            self._due, self._times = now + WARNING_INTERVAL, 0


def _connection_maximum(limits: Limits) -> int:
    """Return the maximum number of connections, lowered if the limit of open files requires it."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY or files - RESERVED_FILES >= limits.max_connections:
        return limits.max_connections
    maximum = max(1, files - RESERVED_FILES)
    log.info("the limit of open files allows fewer connections than asked for", maximum=maximum, open_files=files)
    return maximum
