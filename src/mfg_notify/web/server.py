"""The sockets, and uvicorn on them."""

import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import anyio
import uvicorn
from starlette.applications import Starlette

from mfg_notify.errors import UsageError

GRACE = 1
"""Seconds that open requests get when the exporter stops."""


def bind(addresses: Sequence[str]) -> list[socket.socket]:
    """Open a listening socket for each `host:port`; an empty host is every address. Raise `UsageError`."""
    sockets = []
    for address in addresses:
        host, colon, port = address.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not colon or not port.isdecimal() or int(port) > 65535:
            raise UsageError(f"--web.listen-address {address!r} is not host:port")
        try:
            family, kind, protocol, _, place = socket.getaddrinfo(
                host or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            listening = socket.socket(family, kind, protocol)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(place)
            # From here on a client waits instead of being refused.
            listening.listen()
        except OSError as error:
            raise UsageError(f"cannot listen on {address}: {error.strerror or error}") from error
        sockets.append(listening)
    return sockets


def address_of(listening: socket.socket, scheme: str = "http") -> str:
    """Return the address of a bound socket as `http://host:port`."""
    host, port = listening.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class Server(uvicorn.Server):
    """uvicorn without its hands on the signals: they are the exporter's, which has a last fold to do."""

    def __init__(self, application: Starlette, context: ssl.SSLContext | None = None) -> None:
        """Make one for an application; `context` where it is to speak TLS."""
        config = uvicorn.Config(
            application,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=GRACE,
        )
        config.load()
        config.ssl = context
        super().__init__(config)
        self.started_serving = anyio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to serve, and say so."""
        await super().startup(sockets)
        self.started_serving.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield
