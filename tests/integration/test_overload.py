"""Hostile HTTP clients: what they send or leave out costs no memory, no log and no other client's answer."""

import re
import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from tests.conftest import Database
from tests.http_client import connect, exchange, request
from tests.samples import number
from tests.support import PATIENCE, ROOT, ExporterProcess, eventually, settled_page
from tests.web_configuration import NO_DATABASE, Setting

from mfg_notify.web.access import LOOK_INTERVAL, QUEUE_MAXIMUM, SETTLED
from mfg_notify.web.application import CHUNK
from mfg_notify.web.board import TENURE, VIEWERS_MAXIMUM
from mfg_notify.web.limits import Limits
from mfg_notify.web.server import RESERVED_FILES

GUARDS = {"x-content-type-options": "nosniff", "cross-origin-resource-policy": "same-origin"}


@pytest.fixture(scope="module")
def exporter() -> Iterator[ExporterProcess]:
    with ExporterProcess(NO_DATABASE) as started:
        yield started


@contextmanager
def open_files_limited_to(maximum: int) -> Iterator[None]:
    """Let processes that are started in this block open no more files than this."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (maximum, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("version", ["x", "1.0.0.0.1", "99", "1e9", '"1.0.0"', "", "\xff"])
@pytest.mark.parametrize("media_type", ["application/openmetrics-text", "text/plain"])
def test_accept_chooses_one_of_two_formats(exporter: ExporterProcess, media_type: str, version: str) -> None:
    answer = exchange(exporter, request(path="/metrics", Accept=f"{media_type};version={version}"))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert re.search(rb"content-type: ([^\r]*)", answer, re.IGNORECASE)[1] in (  # type: ignore[index]
        b"text/plain; version=0.0.4; charset=utf-8",
        b"application/openmetrics-text; version=1.0.0; charset=utf-8",
    )


def test_idle_connections_lock_nobody_out() -> None:
    with open_files_limited_to(128):
        exporter = ExporterProcess(NO_DATABASE)
    with exporter, ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(connect(exporter))
        assert httpx.get(exporter.address + "/-/healthy", timeout=PATIENCE).status_code == 200
        page = exporter.page()
        assert number(page, "process_open_fds") < number(page, "process_max_fds") == 128
        assert number(page, "mfg_notify_http_connections_dropped_total", reason="evicted") > 0
        assert len(exporter.read_log()) < 2000


@pytest.mark.slow
@pytest.mark.parametrize(
    "beginning", [b"", b"GET", b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n", request() * 2 + b"GET /"]
)
def test_a_client_without_a_complete_request_is_disconnected(exporter: ExporterProcess, beginning: bytes) -> None:
    exchange(exporter, beginning)


def test_a_request_with_a_body_is_refused(exporter: ExporterProcess) -> None:
    both = request("POST", Content_Length="3", Transfer_Encoding="chunked") + b"0\r\n\r\n"
    assert exchange(exporter, both).startswith(b"HTTP/1.1 400 ")
    assert exchange(exporter, request(Content_Length="100000000000") + b"x" * 1000).startswith(b"HTTP/1.1 413 ")
    assert exchange(exporter, request(Transfer_Encoding="chunked") + b"1\r\nx\r\n").startswith(b"HTTP/1.1 413 ")
    assert exchange(exporter, request(Content_Length="0")).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "name",
    [
        *("localhost", "LOCALHOST:1", "board.localhost", "127.0.0.1:9810", "[::1]:80", "10.0.0.1"),
        *("host.docker.internal:9810", socket.gethostname()),
    ],
)
def test_hosts_of_this_machine(exporter: ExporterProcess, name: str) -> None:
    assert exchange(exporter, request(host=name)).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "name",
    [
        *("evil.example", "localhost.evil.example", "127.0.0.1.evil.example:9810", "[::1", "", "a@localhost"),
        *("host.docker.internal.evil.example", "evil.docker.internal", "evil.host.docker.internal"),
    ],
)
def test_foreign_hosts_are_misdirected(exporter: ExporterProcess, name: str) -> None:
    """A page whose name is made to point to this machine (DNS rebinding) must not read what is served here."""
    answer = exchange(exporter, request(path="/metrics", host=name))
    assert answer.startswith(b"HTTP/1.1 421 ")
    assert b"mfg_notify" not in answer


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (request(path="/metrics"), 200),
        (request(path="/-/ready"), 503),
        (request(path="/"), 200),
        (request(path="/-/board/board.js"), 200),
        (request(path="/nothing"), 404),
        (request("DELETE"), 405),
        (request(host="evil.example"), 421),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: " + b"x" * 20_000, 400),
    ],
)
def test_every_response_is_guarded(exporter: ExporterProcess, sent: bytes, status: int) -> None:
    head = exchange(exporter, sent).partition(b"\r\n\r\n")[0].decode().lower()
    assert head.startswith(f"http/1.1 {status} ")
    for name, value in GUARDS.items():
        assert head.count(f"{name}: {value}") == 1


def test_nothing_that_is_sent_is_logged(exporter: ExporterProcess) -> None:
    sent = [
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nno-chunk\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        request(path="http://localhost/metrics"),
        request(path="/%ff%00%0a%0d?%ff"),
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"\x00" * 70_000,
    ]
    assert exporter.get("/-/healthy").status_code == 200
    before = len(exporter.read_log())
    for data in sent:
        exchange(exporter, data)
    assert exporter.get("/-/healthy").status_code == 200
    assert exporter.read_log()[before:].count("\n") == exporter.read_log()[before:].count("waiting for the database")


@pytest.mark.slow
def test_clients_decide_nothing_that_is_remembered(exporter: ExporterProcess) -> None:
    exporter.page()  # the first response makes the series that counts responses
    series = {line.rpartition(" ")[0] for line in exporter.page().splitlines()}
    before = resident(exporter)
    with httpx.Client(base_url=exporter.address, timeout=PATIENCE) as client:
        for n in range(500):
            client.get(
                f"/metrics?{n}" if n % 2 else f"/{n}",
                headers={
                    "accept": f"application/openmetrics-text;version=1.0.{n};q=0.{n}",
                    "accept-encoding": f"gzip;q=0.{n}, x{n}",
                    "host": f"localhost:{n}",
                    "authorization": f"Basic {n}",
                    "user-agent": f"client/{n}",
                    f"x-{n}": "x" * 1000,
                },
            )
    now = {line.rpartition(" ")[0] for line in exporter.page().splitlines()}
    assert {re.sub(r'code="\d+"', "", line) for line in now} == {re.sub(r'code="\d+"', "", line) for line in series}
    assert resident(exporter) - before < 8 * 2**20


def resident(exporter: ExporterProcess) -> float:
    """Return the resident memory of an exporter in bytes."""
    return number(exporter.page(), "process_resident_memory_bytes")


def test_scrapes_at_once_are_limited() -> None:
    with ExporterProcess(NO_DATABASE, "--web.max-requests", "2") as exporter, ExitStack() as stack:
        # Sent at once, so that they wait for the same rendering.
        asking = [stack.enter_context(connect(exporter)) for _ in range(30)]
        for connection in asking:
            connection.sendall(request(path="/metrics"))
        statuses = [connection.recv(12)[-3:] for connection in asking]
        assert set(statuses) == {b"200", b"503"}
        eventually(lambda: exporter.get("/metrics").status_code, lambda status: status == 200)
        assert number(exporter.page(), "mfg_notify_http_responses_total", code="503") == statuses.count(b"503")


def test_connections_are_limited() -> None:
    with ExporterProcess(NO_DATABASE, "--web.max-connections", "3") as exporter, ExitStack() as stack:
        idle = [stack.enter_context(connect(exporter)) for _ in range(4)]
        assert exporter.get("/-/healthy").status_code == 200
        # The oldest had to go.
        assert idle[0].recv(1) == b""


@pytest.mark.slow
def test_the_event_loop_opens_no_files(installed: Database, tmp_path: Path) -> None:
    """There may be none left to open, and a slow disk would hold up everything."""
    found = tmp_path / "opened"
    setting = Setting.in_folder(tmp_path)
    setting.write(http_server_config={"headers": {"X-Frame-Options": "deny"}})
    options = ("--web.config.file", str(setting.file), "--reconcile-interval", "100ms", "--collect-market")
    program = ("tests.integration.opening", str(found))
    with ExporterProcess(installed.dsn, *options, program=program) as exporter:
        assert exporter.address
        exporter.process.send_signal(signal.SIGUSR1)
        settled_page(exporter)
        for path in ("/", "/-/board/board.js", "/nothing"):
            exporter.get(path)
        setting.write(http_server_config={"headers": {"X-Frame-Options": "sameorigin"}})
        eventually(lambda: "read the web configuration again" in exporter.read_log())
        settled_page(exporter)
        assert exporter.terminate() == 0
    assert found.read_text(encoding="utf-8") == ""


def test_what_the_pages_of_security_and_tls_say() -> None:
    pages = (ROOT / "docs" / "explanation" / "security.md", ROOT / "docs" / "how-to" / "tls.md")
    page = " ".join(" ".join(file.read_text(encoding="utf-8") for file in pages).split())
    limits = Limits()
    for said in (
        f"a complete request is closed after {limits.request_seconds:.0f} s, one whose response is not read after "
        f"{limits.response_seconds:.0f} s",
        f"`--web.max-connections` ({limits.max_connections}) connections are open, and always {RESERVED_FILES} fewer",
        f"`--web.max-requests` ({limits.max_requests}) scrapes are in flight",
        f"at most {limits.turns_per_second:.0f} responses and connections a second",
        f"a chunk of {CHUNK // 1024} KiB of the page",
        f"At most {VIEWERS_MAXIMUM} viewers watch the board.",
        f"has watched the longest after at least {TENURE:.0f} s",
        f"At most {QUEUE_MAXIMUM} checks are pending; more get 429",
    ):
        assert said in page
    assert (limits.rendering_share, SETTLED + LOOK_INTERVAL) == (1 / 5, 1)
    tests = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py"))
    for name in re.findall(r"`(test_\w+)`", page):
        assert f"def {name}(" in tests
