"""A stand-in for the metrics of the game's daemon, and the exporter's page in the older of the two formats.

The daemon is not ours and cannot run here. The page has every market metric that the dashboards ask of it, under the
declared names and labels; the numbers mean nothing, they only rise from scrape to scrape. On request it also has the
names of the specification, as a daemon does whose own metrics are turned on.
"""

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from threading import Thread

import httpx

from mfg_notify.core.catalogue import MARKET, SPECIFIED, SUPPLY_LEVELS, Kind, Metric
from mfg_notify.dashboards.selectors import DAEMON_METRICS, DaemonMetric

JOB = "spacetraders-daemon"
OLDER_FORMAT_JOB = "older-format"
DAEMON_PATH = "/metrics"
OLDER_FORMAT_PATH = "/older-format"
VALUES: dict[str, Sequence[str]] = {
    "status": ("success", "error"),
    "age_threshold": ("300s", "600s", "3600s"),
    "supply_level": SUPPLY_LEVELS,
    "activity_level": ("WEAK", "GROWING", "STRONG", "RESTRICTED"),
    "type": ("buy", "sell"),
    "min_margin": ("10", "25", "50", "100"),
    "player_id": ("1", "2"),
    "good_symbol": ("FABRICS", "IRON"),
}
"""Of labels whose values are asked for by name; the others have one."""
BOUNDS = ("1", "10", "100", "+Inf")


class Daemon:
    """What the daemon says of itself."""

    def __init__(self, *, manufacturing: bool = False) -> None:
        """Be a daemon with or without the names that the exporter has, too."""
        self._metrics = (*DAEMON_METRICS, *MARKET, *(SPECIFIED if manufacturing else ()))
        self._scrapes = itertools.count(1)
        self._started = time.time()

    def restart(self) -> None:
        """Be another process from now on."""
        self._started = time.time()

    def page(self) -> str:
        """Return the next page."""
        lines = ["# TYPE process_start_time_seconds gauge", f"process_start_time_seconds {self._started}"]
        n = next(self._scrapes)
        for metric in self._metrics:
            lines += [f"# TYPE {metric.full_name} {metric.kind}", *_samples(metric, n)]
        return "\n".join(lines) + "\n"


def _samples(metric: DaemonMetric | Metric, n: int) -> Iterator[str]:
    for values in product(*(VALUES.get(label, ("X1",)) for label in metric.labels)):
        labels = ",".join(f'{label}="{value}"' for label, value in zip(metric.labels, values, strict=True))
        if metric.kind is Kind.HISTOGRAM:
            for below, bound in enumerate(BOUNDS, start=1):
                yield f'{metric.full_name}_bucket{{{labels},le="{bound}"}} {n * below}'
            yield f"{metric.full_name}_sum{{{labels}}} {n * 50}"
            yield f"{metric.full_name}_count{{{labels}}} {n * len(BOUNDS)}"
        else:
            yield f"{metric.full_name}{{{labels}}} {n}"


@contextmanager
def serving(daemon: Daemon, exporter: str) -> Iterator[str]:
    """Serve the daemon's page, and that of the exporter at this address in the older format; yield host and port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == OLDER_FORMAT_PATH:
                try:
                    page = httpx.get(f"http://{exporter}/metrics", headers={"Accept": "text/plain"}).text
                except httpx.TransportError:
                    self.send_error(502)
                    return
            else:
                page = daemon.page()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.end_headers()
            # Prometheus hangs up where a busy machine was too slow.
            with suppress(ConnectionError):
                self.wfile.write(page.encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
