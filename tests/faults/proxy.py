"""A TCP proxy in front of PostgreSQL that can stall connections, or cut one between a request and its answer."""

import os
import select
import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

CHUNK = 65536
IDLE = 0.1
"""Seconds between two checks of a relay whether it should stop."""


class Proxy:
    """Relays TCP connections on 127.0.0.1, each in its own thread, to a Unix socket or another port there.

    While `stalled` is set, nothing is relayed and every connection stays open. `cut_after` is a sequence of byte
    strings that a client sends on one connection. The proxy relays the last one, waits for the server's answer,
    discards it and closes the connection. `cuts` counts these. After `stall_after` bytes from the server on one
    connection the proxy sets `stalled` itself.
    """

    def __init__(self, upstream: str | int, host: str = "127.0.0.1") -> None:
        self.stalled = threading.Event()
        self.cut_after: tuple[bytes, ...] = ()
        self.cuts = 0
        self.stall_after: int | None = None
        self._upstream = upstream
        self._listening = socket.create_server((host, 0))
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]

    @property
    def port(self) -> int:
        """The TCP port."""
        return int(self._listening.getsockname()[1])

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()
        self._listening.close()

    def _accept(self) -> None:
        while not self._done.is_set():
            if not select.select([self._listening], [], [], IDLE)[0]:
                continue
            client = self._listening.accept()[0]
            upstream = self._next_upstream()
            server = socket.socket(socket.AF_UNIX if isinstance(upstream, str) else socket.AF_INET)
            try:
                server.connect(upstream if isinstance(upstream, str) else ("127.0.0.1", upstream))
            except OSError:
                client.close()
                continue
            relay = threading.Thread(target=self._relay, args=(client, server))
            self._threads.append(relay)
            relay.start()

    def _next_upstream(self) -> str | int:
        return self._upstream

    def _relay(self, client: socket.socket, server: socket.socket) -> None:
        awaited, seen, answered = self.cut_after, 0, 0
        with client, server, suppress(OSError):
            while not self._done.is_set():
                if self.stalled.is_set():
                    self._done.wait(IDLE)
                    continue
                for end in select.select([client, server], [], [], IDLE)[0]:
                    piece = end.recv(CHUNK)
                    if not piece:
                        return
                    if awaited != self.cut_after:
                        awaited, seen = self.cut_after, 0
                    if end is client:
                        while seen < len(awaited) and awaited[seen] in piece:
                            seen += 1
                        server.sendall(piece)
                    elif awaited and seen == len(awaited):
                        # The server has executed the request, and the client will never learn it.
                        self.cut_after = ()
                        self.cuts += 1
                        return
                    else:
                        client.sendall(piece)
                        answered += len(piece)
                        if self.stall_after is not None and answered > self.stall_after:
                            self.stall_after = None
                            self.stalled.set()
                            break


def main(upstream: str, host: str) -> None:
    """Relay until standard input ends, for a process of its own, for example in a network namespace."""
    with Proxy(upstream, host) as proxy:
        os.write(1, f"{proxy.port}\n".encode())
        os.read(0, 1)


if __name__ == "__main__":
    import sys

    main(*sys.argv[1:])
