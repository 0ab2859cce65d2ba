"""The network between exporter and database: connections are cut, stall, or lose their link."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from psycopg.conninfo import conninfo_to_dict, make_conninfo
from tests.faults.proxy import Proxy
from tests.faults.rig import Rig, fault
from tests.samples import number, reconnects
from tests.support import ROOT, ExporterProcess, eventually


def socket_of(dsn: str) -> str:
    """Return the path of the server's Unix socket."""
    given = conninfo_to_dict(dsn)
    return f"{given['host']}/.s.PGSQL.{given.get('port', 5432)}"


def through(dsn: str, host: str, port: int) -> str:
    """Return the conninfo of the same database by TCP."""
    return make_conninfo(dsn, host=host, port=port)


def is_connected(exporter: ExporterProcess) -> bool:
    return number(exporter.page(), "mfg_notify_connected") == 1


@fault("backends terminated")
def backends_terminated(rig: Rig) -> None:
    with rig.exporter() as exporter:
        exporter.wait_ready()
        with rig.game():
            for _ in range(rig.rounds(4, 40)):
                rig.wait_for_events(exporter, rig.random.randrange(1, 200))
                before = reconnects(exporter.page())
                with rig.connect() as connection:
                    backends = connection.execute(
                        """SELECT pid, application_name = 'mfg-notify' FROM pg_stat_activity
                           WHERE datname = current_database() AND backend_type = 'client backend'
                             AND pid <> pg_backend_pid() ORDER BY application_name, backend_start"""
                    ).fetchall()
                    doomed = rig.random.sample(backends, (len(backends) + 1) // 2)
                    for pid, _ in doomed:
                        connection.execute("SELECT pg_terminate_backend(%s)", (pid,))
                        rig.harm("backends terminated")
                if any(ours for _, ours in doomed):
                    with rig.timed("back after a termination in s"):
                        eventually(lambda before=before: reconnects(exporter.page()) > before)  # type: ignore[misc]
                        exporter.wait_ready()
        rig.check(exporter)


@fault("COMMIT of unknown outcome")
def unknown_outcome(rig: Rig) -> None:
    with Proxy(socket_of(rig.dsn)) as proxy, rig.exporter(dsn=through(rig.dsn, "127.0.0.1", proxy.port)) as exporter:
        exporter.wait_ready()
        with rig.game():
            for cut in range(rig.rounds(4, 40)):
                rig.wait_for_events(exporter, rig.random.randrange(1, 100))
                # The COMMIT of a fold, which sends its barrier first.
                proxy.cut_after = (b"barrier ", b"COMMIT")
                eventually(lambda cut=cut: proxy.cuts > cut)  # type: ignore[misc]
                rig.harm("cuts")
                exporter.wait_ready()
        rig.check(exporter)


def wait_until_noticed(rig: Rig, exporter: ExporterProcess) -> None:
    """Wait until the exporter reports that it lost the database. It must answer every scrape meanwhile."""
    watch = rig.watch()
    unanswered, watch.slowest_seconds = watch.unanswered, 0.0
    with rig.timed("noticed in s"):
        eventually(lambda: not is_connected(exporter))
    if watch.unanswered != unanswered:
        rig.violation(f"{watch.unanswered - unanswered} scrapes were not answered while the database was away")
    rig.report.figure("slowest scrape while the database was away in ms", 1000 * watch.slowest_seconds)


def lose_and_restore(
    rig: Rig, exporter: ExporterProcess, lose: Callable[[], None], restore: Callable[[], None]
) -> None:
    """Take the network away and bring it back, repeatedly, while the game goes on."""
    exporter.wait_ready()
    with rig.game():
        for _ in range(rig.rounds(1, 6)):
            rig.wait_for_events(exporter, rig.random.randrange(1, 100))
            lose()
            rig.harm("networks lost")
            wait_until_noticed(rig, exporter)
            restore()
            exporter.wait_ready()
    rig.check(exporter)


@fault("stall: nothing is relayed, the connection stays open")
def stall(rig: Rig) -> None:
    with Proxy(socket_of(rig.dsn)) as proxy, rig.exporter(dsn=through(rig.dsn, "127.0.0.1", proxy.port)) as exporter:
        lose_and_restore(rig, exporter, proxy.stalled.set, proxy.stalled.clear)


class Wire:
    """A network namespace with a proxy to the database, behind a virtual cable that can be unplugged."""

    def __init__(self, upstream: str) -> None:
        self._name = f"mfg{os.getpid()}"
        self._near, self._far = f"{self._name}n"[-15:], f"{self._name}f"[-15:]
        self._upstream = upstream
        self.host = "10.213.97.2"

    @contextmanager
    def plugged_in(self) -> Iterator[int]:
        """Create the namespace with the proxy in it; yield the proxy's port."""
        self._ip("netns", "add", self._name)
        try:
            self._ip("link", "add", self._near, "type", "veth", "peer", "name", self._far, "netns", self._name)
            self._ip("address", "add", "10.213.97.1/30", "dev", self._near)
            self._ip("-n", self._name, "address", "add", f"{self.host}/30", "dev", self._far)
            self._ip("link", "set", self._near, "up")
            self.plug("up")
            inside = ["ip", "netns", "exec", self._name, sys.executable]
            with subprocess.Popen(
                [*inside, "-m", "tests.faults.proxy", self._upstream, self.host],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT,
            ) as proxy:  # fmt: skip
                assert proxy.stdout is not None
                try:
                    yield int(proxy.stdout.readline())
                finally:
                    proxy.kill()
        finally:
            self._ip("netns", "delete", self._name)

    def plug(self, state: str) -> None:
        """Set the far end of the cable `up` or `down`."""
        self._ip("-n", self._name, "link", "set", self._far, state)

    @staticmethod
    def _ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True)


@fault("half-open: the network goes down", needs=("root", "ip"))
def half_open(rig: Rig) -> None:
    wire = Wire(socket_of(rig.dsn))
    with wire.plugged_in() as port, rig.exporter(dsn=through(rig.dsn, wire.host, port)) as exporter:
        lose_and_restore(rig, exporter, partial(wire.plug, "down"), partial(wire.plug, "up"))
