"""One run of one fault: its server, writers, exporters and watches; the checks of the invariants; and the report."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from random import Random
from types import MappingProxyType
from typing import Any, LiteralString

import httpx
import psycopg
from tests import truth
from tests.conftest import Postgres, Server, install
from tests.faults.watch import BooksWatch, Watch, falls_between
from tests.samples import applied, number
from tests.support import PATIENCE, ROOT, ExporterProcess, eventually, free_port, settled_page

from mfg_notify.core.tuning import Tuning
from mfg_notify.demo.embedded import EmbeddedPostgres
from mfg_notify.diagnosis.verify import verify

SERVER = {"track_commit_timestamp": "on", "max_connections": "100"}
"""Settings of every server of a fault. The check of I3 needs commit times."""
WRITERS = 2
RATE = float(os.environ.get("MFG_NOTIFY_SOAK_RATE") or 150)
"""Statements a second of one writer: a busy game that leaves the machine enough time to scrape every 50 ms."""
RECONCILE = "500ms"
REPAIRS = re.compile(
    r"^mfg_notify_(?:events_rejected|reconcile_corrections)_total(?!.*ships_idle|.*utilization)\S+ (?!0\.0$)\S+$",
    re.MULTILINE,
)
"""Samples above 0 that count rejected events and corrected gauges. The gauges of idle ships change without events."""
LOST = "SELECT CASE WHEN is_called THEN last_value + 1 ELSE 0 END FROM mfg_notify.lost"


@dataclass
class Report:
    """What a run did and found. A figure is a maximum, in the unit of its name."""

    fault: str
    seed: int
    counts: Counter[str] = field(default_factory=Counter)
    figures: dict[str, float] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def figure(self, name: str, value: float) -> None:
        """Record the maximum of a figure."""
        self.figures[name] = max(value, self.figures.get(name, value))

    def __str__(self) -> str:
        counts = ", ".join(f"{n} {what}" for what, n in sorted(self.counts.items()))
        figures = ", ".join(f"{name} {value:.3g}" for name, value in sorted(self.figures.items()))
        verdict = f"{len(self.violations)} VIOLATIONS" if self.violations else "holds"
        return f"{self.fault} (seed {self.seed}, {self.seconds:.0f} s): {verdict}; {counts}; {figures}"


class Rig:
    """A database with the game, the audit and the triggers, and everything else that a fault needs."""

    def __init__(self, dsn: str, server: EmbeddedPostgres | None, report: Report, *, long: bool) -> None:
        self.dsn = dsn
        self.report = report
        self.random = Random(report.seed)
        self._server = server
        self._long = long
        self._stack = ExitStack()
        self._watches: dict[str, Watch] = {}
        self._books: BooksWatch | None = None
        self._ports: dict[str, int] = {}

    @property
    def server(self) -> EmbeddedPostgres:
        """The fault's own server."""
        assert self._server is not None, "this fault shares its server"
        return self._server

    def rounds(self, short: int, long: int) -> int:
        """Return the number of rounds: `short` in the test suite, `long` in the soak."""
        return long if self._long else short

    def close(self) -> None:
        """Stop watching."""
        self._stack.close()

    # ------------------------------------------------------------------------------------------- database --

    def connect(self, **more: str) -> psycopg.Connection:
        """Open a superuser's connection in autocommit mode."""
        return psycopg.connect(psycopg.conninfo.make_conninfo(self.dsn, **more), autocommit=True)

    def ask(self, query: LiteralString, *values: object) -> list[tuple[Any, ...]]:
        """Execute one statement on a new connection; return its rows, if it has any."""
        with self.connect() as connection:
            cursor = connection.execute(query, values or None)
            return cursor.fetchall() if cursor.description else []

    def lost(self) -> int:
        """Return how many changed rows the triggers have given up, by their own count."""
        return int(self.ask(LOST)[0][0])

    # ---------------------------------------------------------------------------------------------- parts --

    @contextmanager
    def exporter(
        self,
        *options: str,
        slot: str = "first",
        dsn: str | None = None,
        program: Sequence[str] = ("mfg_notify",),
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> Iterator[ExporterProcess]:
        """Run an exporter. Exporters of one slot run one after another on the same port and share a watch."""
        if slot not in self._watches:
            self._ports[slot] = free_port()
            self._watches[slot] = self._stack.enter_context(Watch(self._ports[slot]))
        if self._books is None:
            self._books = self._stack.enter_context(BooksWatch(self.dsn))
        options = ("--reconcile-interval", RECONCILE, *options)
        with ExporterProcess(
            dsn or self.dsn, *options, port=self._ports[slot], program=program, environment=environment
        ) as exporter:
            try:
                yield exporter
            except Exception:
                status = exporter.process.poll()
                self.violation(f"exporter {slot}: exit status {status}, log ends with: {exporter.read_log()[-4000:]}")
                raise

    def watch(self, slot: str = "first") -> Watch:
        """Return the watch of a slot."""
        return self._watches[slot]

    @contextmanager
    def game(
        self,
        writers: int = WRITERS,
        rate: float = RATE,
        players: int = 2,
        dsn: str | None = None,
        *,
        once: bool = False,
    ) -> Iterator[None]:
        """Let several writer processes play until the block ends. An error that a writer receives violates I4.

        A writer that loses its connection reconnects. With `once` it ends instead, which is no error.
        """
        processes = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.faults.writer", dsn or self.dsn),
                    *(str(self.random.randrange(1 << 30)), str(players), str(rate), "once" if once else "again"),
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=ROOT,
            )
            for _ in range(writers)
        ]
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()  # printed once the writer handles signals
        try:
            yield
        finally:
            for process in processes:
                process.send_signal(signal.SIGTERM)
            for process in processes:
                output, errors = process.communicate(timeout=PATIENCE)
                self._record_writer(output.decode(), errors.decode())

    def _record_writer(self, output: str, errors: str) -> None:
        if not output.startswith("{"):
            self.violation(f"I4: a writer died: {errors[-2000:]}")
            return
        result = json.loads(output)
        if result["error"] is not None:
            self.violation(f"I4: the game received an error: {result['error']}")
        self.report.counts["transactions"] += result["transactions"]
        self.report.counts["statements"] += result["statements"]
        self.report.counts["reconnects of the game"] += result["reconnects"]
        self.report.figure("slowest transaction of the game in ms", 1000 * result["slowest_seconds"])

    def harm(self, what: str) -> None:
        """Count one act of harm."""
        self.report.counts[what] += 1

    def violation(self, text: str) -> None:
        """Record that an invariant did not hold."""
        self.report.violations.append(text)

    def wait_for_events(self, exporter: ExporterProcess, events: int) -> None:
        """Wait until this exporter has counted this many more events."""
        before = applied(exporter.page())
        eventually(lambda: applied(exporter.page()), lambda n: n >= before + events)

    def wait_until(self, moment: float) -> None:
        """Wait until a moment of the monotonic clock, so that a harm lasts."""
        eventually(lambda: time.monotonic() >= moment, patience=moment - time.monotonic() + PATIENCE)

    @contextmanager
    def timed(self, figure: str) -> Iterator[None]:
        """Record the duration of the block as a figure in seconds, without asserting anything."""
        started = time.monotonic()
        yield
        self.report.figure(figure, time.monotonic() - started)

    # -------------------------------------------------------------------------------------------- checks --

    def check(
        self,
        exporter: ExporterProcess,
        *,
        page: bool = True,
        ahead: bool = True,
        missed: bool = False,
        known: bool = True,
    ) -> None:
        """Check all invariants after the game has stopped and the fault is over.

        - `page`: the page must equal the truth. False if counters showed unconfirmed events, which they keep showing.
        - `ahead`: nothing may have been shown before its commit.
        - `missed`: events were lost, and the triggers must have counted that. Totals may then be too low, within bounds
          that are checked after `copy_journal`; gauges of the live rows must be exact.
        - `known`: False if the triggers did not run, so that they could not count what was lost.
        """
        self.report.counts["checks"] += 1
        self._check_journal(exporter)
        if missed:
            self._check_lost(known=known)
        else:
            if lost := self.lost():
                self.violation(f"I6: {lost} changes count as lost, but nothing was lost")
            with self.connect() as connection:
                self._violations("I1", truth.compare_totals(connection))
        shown = settled_page(exporter)
        if page:
            with self.connect() as connection:
                found = truth.compare_gauges(shown, connection) if missed else truth.compare(shown, connection)
                self._violations("I1", found)
            if not missed:
                self._violations("no event was forged, lost or missed, but the page has", REPAIRS.findall(shown))
        self.check_watches(ahead=ahead)
        self.check_books(missed=missed)

    def check_books(self, *, missed: bool = False) -> None:
        """Check that no difference was found at any time, unless events were `missed`, and that the books balance."""
        books, self._books = self._books or BooksWatch(self.dsn), None
        if missed:
            # The exporter enters what is missing, that of the factories not with every reconciliation.
            books.differences = []
            eventually(lambda: verify(self.dsn, "public").balanced)
        elif unrecorded := verify(self.dsn, "public").unrecorded:
            self.violation(f"nothing was lost, but rows count as changed without an event: {unrecorded}")
        books.check()
        self._violations("the books do not balance", books.differences)
        self.report.counts["checks of the books"] += books.checks

    def copy_journal(self) -> None:
        """Copy all events that reach the journal, so that `check` knows what was lost. Call before the game begins."""
        with self.connect() as connection:
            truth.copy_journal(connection)

    def _check_lost(self, *, known: bool) -> None:
        least = 1 if known else 0
        if self.ask("SELECT to_regclass('audit.event') IS NOT NULL") == [(True,)]:
            with self.connect() as connection:
                least = truth.count_given_up(connection)
                self._violations("I1", truth.compare_bounds(connection))
            self.report.counts["transactions that lost events"] += least
        lost = self.lost()
        self.report.counts["changes counted as lost"] += lost
        if known and lost < least:
            self.violation(f"I6: at least {least} transactions lost events, but only {lost} changes count as lost")

    def check_watches(self, *, ahead: bool = True) -> None:
        """Check that no counter fell (I2), and that nothing was shown before its commit (I3)."""
        self._stack.close()
        with self.connect() as connection:
            history = truth.read_history(connection)
            [(changes,)] = connection.execute("SELECT count(*) FROM audit.change").fetchall()
            self.report.counts["changes"] += changes
        self._violations("I2", falls_between([watch.counters for watch in self._watches.values()]))
        for watch in self._watches.values():
            self._violations("I2", watch.counters.falls)
            if ahead:
                self._violations("I3", watch.counters.ahead_of(history))
            self.report.counts["scrapes"] += watch.scrapes
            self.report.counts["scrapes while polling"] += watch.polling_scrapes
        self._watches.clear()

    def _check_journal(self, exporter: ExporterProcess) -> None:
        exporter.wait_ready()

        def look() -> tuple[float, int]:
            # Read the number of folds first, so that at least this many were done when the rows are counted.
            folds = number(exporter.page(), "mfg_notify_fold_duration_seconds_count")
            return folds, self.ask("SELECT count(*) FROM mfg_notify.event")[0][0]

        before, backlog = look()
        allowed = before + 2 + backlog // Tuning().fold_chunk + 1  # one more, because one may be under way
        folds, rows = eventually(look, lambda seen: seen[1] == 0 or seen[0] > allowed)
        if rows:
            self.violation(f"I5: {rows} events are in the journal after {folds - before:.0f} folds")

    def _violations(self, invariant: str, found: Sequence[str]) -> None:
        self.report.violations += [f"{invariant}: {text}" for text in found[:10]]
        if len(found) > 10:
            self.violation(f"{invariant}: and {len(found) - 10} more")


# ---------------------------------------------------------------------------------------------------- faults --


@dataclass(frozen=True)
class Fault:
    """One kind of harm.

    With `settings` it has its own server with these settings. `needs` lists what the machine must have: `root`, or the
    name of a program. `version` is the oldest PostgreSQL that knows the settings.
    """

    name: str
    do: Callable[[Rig], None]
    settings: Mapping[str, str] | None
    needs: tuple[str, ...]
    version: int

    def lacks(self, postgres: Postgres) -> str:
        """Name what the machine or the PostgreSQL under test lacks for the fault; '' if nothing."""
        missing = [need for need in self.needs if not (os.geteuid() == 0 if need == "root" else _has(need))]
        if postgres.version < self.version:
            missing.append(f"PostgreSQL {self.version}")
        return ", ".join(missing)

    def run(self, server: Server, postgres: Postgres, seed: int, *, long: bool = False) -> Report:
        """Run the fault once, on `server` or on its own. An assertion that fails on the way counts as a violation."""
        report = Report(self.name, seed)
        started = time.monotonic()
        with ExitStack() as stack:
            if self.settings is None:
                rig = Rig(
                    stack.enter_context(contextmanager(server.clone)(server.installed)).dsn, None, report, long=long
                )
            else:
                port = {"port": str(free_port())}
                own = stack.enter_context(postgres.make({**SERVER, **port, **self.settings}))
                install(own.dsn())
                rig = Rig(own.dsn(), own, report, long=long)
            stack.callback(rig.close)
            try:
                self.do(rig)
            except (AssertionError, psycopg.Error, httpx.HTTPError, OSError, subprocess.SubprocessError):
                rig.violation(f"the fault did not run to its end: {traceback.format_exc()}")
        report.seconds = time.monotonic() - started
        return report


FAULTS: dict[str, Fault] = {}
"""All faults by name, in the order in which their modules are imported."""


def fault(
    name: str, settings: Mapping[str, str] | None = None, needs: Sequence[str] = (), version: int = 14
) -> Callable[[Callable[[Rig], None]], Callable[[Rig], None]]:
    """Register a function as a fault."""

    def register(do: Callable[[Rig], None]) -> Callable[[Rig], None]:
        assert name not in FAULTS
        FAULTS[name] = Fault(name, do, settings, tuple(needs), version)
        return do

    return register


def _has(program: str) -> bool:
    return shutil.which(program) is not None or shutil.which(program, path="/usr/sbin:/sbin") is not None
