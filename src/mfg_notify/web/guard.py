"""Middleware in front of all pages: refuses malformed and foreign requests, and adds security headers.

Owns the rules that are the same for every page. Knows no page.
"""

import ipaddress
import socket
from collections.abc import Callable
from typing import Protocol

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mfg_notify.web.limits import Turns

CONNECTION = "mfg_notify.connection"
"""Key of the connection in the state of an ASGI scope."""
HEADERS = {"x-content-type-options": "nosniff", "cross-origin-resource-policy": "same-origin"}
"""Headers of every response: other origins must neither guess its type nor embed it."""

DOCKER_HOST_NAME = "host.docker.internal"
"""What containers call this machine. Docker Desktop passes their connections on to its loopback address.

No page can have this name by DNS rebinding: `.internal` is reserved for private networks and delegated to nobody.
"""

_MISDIRECTED = (
    "This exporter listens on a loopback address, so it answers only if the Host header is localhost, an IP address, "
    f"this machine's name or {DOCKER_HOST_NAME}. A proxy in front of it has to set one of those.\n"
)


class ServedConnection(Protocol):
    """What the guard needs of `server.Connection`."""

    on_loopback: bool
    """The listening socket is bound to a loopback address."""

    def begin_response(self) -> None:
        """Set the deadline of a response."""
        ...

    def extend_response(self) -> None:
        """Restart the deadline of the response: it is a stream whose last event was taken."""
        ...

    def end_response(self) -> None:
        """Set the deadline of the next request."""
        ...


class RequestGuard:
    """ASGI middleware: refuses what no legitimate client sends, limits the rate of responses, adds `HEADERS`."""

    def __init__(self, application: ASGIApp, turns: Turns, count: Callable[[int], None]) -> None:
        """Guard an application; `count` is called with the status of each response."""
        self._application = application
        self._turns = turns
        self._count = count
        self._own_name = socket.gethostname().lower()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on."""
        connection: ServedConnection = scope["state"][CONNECTION]
        streaming = False

        async def guarded_send(message: Message) -> None:
            nonlocal streaming
            if message["type"] == "http.response.start":
                await self._turns.take()
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                streaming = headers.get("content-type", "").startswith("text/event-stream")
                self._count(message["status"])
            await send(message)
            if streaming:
                connection.extend_response()

        connection.begin_response()
        try:
            answer = self._refuse(Headers(scope=scope), on_loopback=connection.on_loopback) or self._application
            await answer(scope, receive, guarded_send)
        finally:
            connection.end_response()

    def _refuse(self, headers: Headers, *, on_loopback: bool) -> ASGIApp | None:
        """Return the response that refuses a request; None if it may be passed on."""
        length, encoding = headers.get("content-length"), headers.get("transfer-encoding")
        # A body is never read, so the connection cannot carry another request.
        if length is not None and encoding is not None:
            return PlainTextResponse("Content-Length beside Transfer-Encoding\n", 400, {"connection": "close"})
        if encoding is not None or (length or "0").strip("0"):
            return PlainTextResponse("Requests must not have a body\n", 413, {"connection": "close"})
        if on_loopback and not self._is_own_name(headers.get("host")):
            return PlainTextResponse(_MISDIRECTED, 421)
        return None

    def _is_own_name(self, host: str | None) -> bool:
        # A browser sends the host name of the page. After DNS rebinding that is a foreign name which points here.
        if host is None:
            return True  # HTTP/1.0, which no browser uses
        name = host.lower()
        if name.startswith("["):
            name, bracket, _ = name[1:].partition("]")
            return bool(bracket) and _is_address(name)
        name = name.partition(":")[0]
        if name in ("localhost", DOCKER_HOST_NAME, self._own_name):
            return True
        return name.endswith(".localhost") or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
