"""One run of one fault: the server, writers, exporters and watches that it needs, what must hold, and the report."""

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
from tests.conftest import Server, create_game_tables
from tests.faults.watch import Watch
from tests.support import PATIENCE, ROOT, ExporterProcess, applied, eventually, free_port, number, settled_page

from mfg_notify.core.tuning import Tuning
from mfg_notify.demo.embedded import EmbeddedPostgres
from mfg_notify.postgres import migrations

SERVER = {"track_commit_timestamp": "on", "max_connections": "100"}
"""Settings of every server here: commit times are what I3 is checked against."""
WRITERS = 2
RATE = float(os.environ.get("MFG_NOTIFY_SOAK_RATE") or 150)
"""Statements a second of one writer: a busy game that leaves the machine time for scrapes every 50 ms."""
RECONCILE = "500ms"
EXCUSES = re.compile(
    r"^mfg_notify_(?:events_rejected|reconcile_corrections)_total(?!.*ships_idle|.*utilization)\S+ \S+$", re.MULTILINE
)
"""What an exporter counts when it had to put something right. Ships change without events."""
LOST = "SELECT CASE WHEN is_called THEN last_value + 1 ELSE 0 END FROM mfg_notify.lost"


@dataclass
class Report:
    """What a run did and found. Figures are maxima, in the unit that their name says."""

    fault: str
    seed: int
    counts: Counter[str] = field(default_factory=Counter)
    figures: dict[str, float] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def figure(self, name: str, value: float) -> None:
        """Keep the greatest value of a figure."""
        self.figures[name] = max(value, self.figures.get(name, value))

    def __str__(self) -> str:
        counts = ", ".join(f"{n} {what}" for what, n in sorted(self.counts.items()))
        figures = ", ".join(f"{name} {value:.3g}" for name, value in sorted(self.figures.items()))
        verdict = f"{len(self.violations)} VIOLATIONS" if self.violations else "holds"
        return f"{self.fault} (seed {self.seed}, {self.seconds:.0f} s): {verdict}; {counts}; {figures}"


class Rig:
    """A database with the game, the audit and the triggers, and everything that a fault needs around it."""

    def __init__(self, dsn: str, server: EmbeddedPostgres | None, report: Report, *, long: bool) -> None:
        self.dsn = dsn
        self.report = report
        self.chance = Random(report.seed)
        self._server = server
        self._long = long
        self._stack = ExitStack()
        self._watches: dict[str, Watch] = {}
        self._ports: dict[str, int] = {}

    @property
    def server(self) -> EmbeddedPostgres:
        """The server, where the fault has one of its own."""
        assert self._server is not None, "this fault shares its server"
        return self._server

    def rounds(self, short: int, long: int) -> int:
        """Return how often to do harm: a little in the test suite, a lot in the soak."""
        return long if self._long else short

    def close(self) -> None:
        """Stop watching."""
        self._stack.close()

    # ------------------------------------------------------------------------------------------- database --

    def connect(self, **more: str) -> psycopg.Connection:
        """Open a superuser's connection in autocommit mode."""
        return psycopg.connect(psycopg.conninfo.make_conninfo(self.dsn, **more), autocommit=True)

    def ask(self, query: LiteralString, *values: object) -> list[tuple[Any, ...]]:
        """Execute one statement on a connection of its own; return its rows, if it has any."""
        with self.connect() as connection:
            cursor = connection.execute(query, values or None)
            return cursor.fetchall() if cursor.description else []

    def lost(self) -> int:
        """Return how many statements the triggers say that they have given up."""
        return int(self.ask(LOST)[0][0])

    # ---------------------------------------------------------------------------------------------- parts --

    @contextmanager
    def exporter(
        self,
        *options: str,
        seat: str = "first",
        dsn: str | None = None,
        program: Sequence[str] = ("mfg_notify",),
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> Iterator[ExporterProcess]:
        """Run an exporter; those of one seat follow each other on one port, and are watched as one."""
        if seat not in self._watches:
            self._ports[seat] = free_port()
            self._watches[seat] = self._stack.enter_context(Watch(self._ports[seat]))
        options = ("--reconcile-interval", RECONCILE, *options)
        with ExporterProcess(
            dsn or self.dsn, *options, port=self._ports[seat], program=program, environment=environment
        ) as exporter:
            yield exporter

    def watch(self, seat: str = "first") -> Watch:
        """Return who watches a seat."""
        return self._watches[seat]

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
        """Let several processes play until the block ends. An error that a writer was given violates I4.

        They connect again when a connection is lost; with `once` they end then, and that is no error.
        """
        processes = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.faults.writer", dsn or self.dsn),
                    *(str(self.chance.randrange(1 << 30)), str(players), str(rate), "once" if once else "again"),
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=ROOT,
            )
            for _ in range(writers)
        ]
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()  # it listens to signals now
        try:
            yield
        finally:
            for process in processes:
                process.send_signal(signal.SIGTERM)
            for process in processes:
                output, complaint = process.communicate(timeout=PATIENCE)
                self._take_down(output.decode(), complaint.decode())

    def _take_down(self, output: str, complaint: str) -> None:
        if not output.startswith("{"):
            self.violation(f"I4: a writer died: {complaint[-2000:]}")
            return
        said = json.loads(output)
        if said["error"] is not None:
            self.violation(f"I4: the game was refused: {said['error']}")
        self.report.counts["transactions"] += said["transactions"]
        self.report.counts["statements"] += said["statements"]
        self.report.counts["reconnects of the game"] += said["reconnects"]
        self.report.figure("slowest transaction of the game in ms", 1000 * said["slowest_seconds"])

    def harm(self, what: str) -> None:
        """Count a harm done."""
        self.report.counts[what] += 1

    def violation(self, text: str) -> None:
        """Note that something that must hold did not."""
        self.report.violations.append(text)

    def some_more(self, exporter: ExporterProcess, events: int) -> None:
        """Wait until this exporter has counted so many more events."""
        before = applied(exporter.page())
        eventually(lambda: applied(exporter.page()), lambda n: n >= before + events)

    def wait_until(self, moment: float) -> None:
        """Let a harm last until a moment of the monotonic clock."""
        eventually(lambda: time.monotonic() >= moment, patience=moment - time.monotonic() + PATIENCE)

    @contextmanager
    def timed(self, figure: str) -> Iterator[None]:
        """Measure what the block takes, as a figure in seconds. Nothing is asserted of it."""
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
        """Check all invariants when the game has stopped and the fault is over.

        `page`: the page equals the truth, too (not where ghosts were shown and stay shown). `ahead`: nothing was shown
        before it was committed. `missed`: events were lost, and that must be known; then the totals may be behind (by
        how much is checked after `copy_journal`) and the gauges that come from the live rows are exact all the same.
        `known` False: no trigger was asked, so none knows.
        """
        self.report.counts["checks"] += 1
        self._check_journal(exporter)
        if missed:
            self._check_lost(known=known)
        else:
            if lost := self.lost():
                self.violation(f"I6: {lost} statements count as lost and nothing was")
            with self.connect() as connection:
                self._violations("I1", truth.compare_totals(connection))
        shown = settled_page(exporter)
        if page:
            with self.connect() as connection:
                found = truth.compare_gauges(shown, connection) if missed else truth.compare(shown, connection)
                self._violations("I1", found)
            if not missed:
                self._violations("no event was forged, lost or missed, and yet", EXCUSES.findall(shown))
        self.check_watches(ahead=ahead)

    def copy_journal(self) -> None:
        """Copy what reaches the journal from now on, so that `check` knows what was lost. Before the game begins."""
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
        self.report.counts["statements counted as lost"] += lost
        if known and lost < least:
            self.violation(f"I6: {least} transactions or more have lost events and {lost} statements count as lost")

    def check_watches(self, *, ahead: bool = True) -> None:
        """Check that nothing that was shown fell (I2), and that nothing was shown too early (I3)."""
        self._stack.close()
        with self.connect() as connection:
            history = truth.read_history(connection)
            [(changes,)] = connection.execute("SELECT count(*) FROM audit.change").fetchall()
            self.report.counts["changes"] += changes
        for watch in self._watches.values():
            self._violations("I2", watch.ratchet.falls)
            if ahead:
                self._violations("I3", watch.ratchet.ahead_of(history))
            self.report.counts["scrapes"] += watch.scrapes
            self.report.counts["scrapes while the triggers were quiet"] += watch.quiet
        self._watches.clear()

    def _check_journal(self, exporter: ExporterProcess) -> None:
        exporter.wait_ready()

        def look() -> tuple[float, int]:
            # Folds first: so many had been done when the rows were counted.
            folds = number(exporter.page(), "mfg_notify_fold_duration_seconds_count")
            return folds, self.ask("SELECT count(*) FROM mfg_notify.event")[0][0]

        before, backlog = look()
        allowed = before + 2 + backlog // Tuning().fold_chunk + 1  # the one that is under way does not count
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
    """One kind of harm. `settings`: it has a server of its own, with these. `needs`: what the machine must have."""

    name: str
    do: Callable[[Rig], None]
    settings: Mapping[str, str] | None
    needs: tuple[str, ...]

    def lacks(self) -> str:
        """Say what this machine lacks for it, '' if nothing."""
        return ", ".join(need for need in self.needs if not (os.geteuid() == 0 if need == "root" else _has(need)))

    def run(self, server: Server | None, seed: int, *, long: bool = False) -> Report:
        """Do the harm once. An assertion that fails on the way is a violation as well."""
        report = Report(self.name, seed)
        started = time.monotonic()
        with ExitStack() as stack:
            if self.settings is None and server is not None:
                rig = Rig(
                    stack.enter_context(contextmanager(server.clone)(server.installed)).dsn, None, report, long=long
                )
            else:
                port = {"port": str(free_port())}
                own = stack.enter_context(EmbeddedPostgres(settings={**SERVER, **port, **(self.settings or {})}))
                _install(own.dsn())
                rig = Rig(own.dsn(), own, report, long=long)
            stack.callback(rig.close)
            try:
                self.do(rig)
            except (AssertionError, psycopg.Error, httpx.HTTPError, OSError, subprocess.SubprocessError):
                rig.violation(f"it could not be played to its end: {traceback.format_exc()}")
        report.seconds = time.monotonic() - started
        return report


FAULTS: dict[str, Fault] = {}
"""All of them by name, in the order of their files."""


def fault(
    name: str, settings: Mapping[str, str] | None = None, needs: Sequence[str] = ()
) -> Callable[[Callable[[Rig], None]], Callable[[Rig], None]]:
    """Register a function as a fault."""

    def register(do: Callable[[Rig], None]) -> Callable[[Rig], None]:
        assert name not in FAULTS
        FAULTS[name] = Fault(name, do, settings, tuple(needs))
        return do

    return register


def _has(program: str) -> bool:
    return shutil.which(program) is not None or shutil.which(program, path="/usr/sbin:/sbin") is not None


def _install(dsn: str) -> None:
    create_game_tables(dsn)
    with psycopg.connect(dsn, autocommit=True) as connection:
        truth.install(connection)
        migrations.up(connection, "public", print)
