"""Requests byte by byte, for tests of what clients should not send."""

import socket

from tests.support import PATIENCE, ExporterProcess


def connect(exporter: ExporterProcess) -> socket.socket:
    """Open a connection and say nothing."""
    host, port = exporter.address.removeprefix("http://").rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=PATIENCE)


def exchange(exporter: ExporterProcess, sent: bytes) -> bytes:
    """Send some bytes, and return what comes until the server closes the connection."""
    received = b""
    with connect(exporter) as connection:
        connection.sendall(sent)
        while chunk := connection.recv(65536):
            received += chunk
    return received


def request(method: str = "GET", path: str = "/-/healthy", host: str = "localhost", **headers: str) -> bytes:
    """Return the head of a request that asks for one answer and no more; `_` in the name of a header stands for `-`."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
