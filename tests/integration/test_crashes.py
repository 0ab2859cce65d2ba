"""Whatever crashes: every counter equals the recount, and none ever fell."""

import os
import signal
from collections.abc import Callable

import psycopg
import pytest
from tests import truth
from tests.conftest import Database, create_game_tables
from tests.support import ExporterProcess, assert_exact, eventually, samples, simulated_game, value

from mfg_notify.core import catalogue
from mfg_notify.demo.embedded import EmbeddedPostgres
from mfg_notify.postgres import migrations

ROUNDS = 10

_MAY_FALL = f"{catalogue.PIPELINE_PROFIT.full_name}_sum"
"""Losses are negative observations."""
_RISING = tuple(
    metric.full_name + part
    for metric in (*catalogue.COUNTERS, *catalogue.HISTOGRAMS)
    for part in (("_bucket", "_count", "_sum") if metric.buckets else ("",))
    if metric.full_name + part != _MAY_FALL
)


class Watch:
    """Remembers every counter that was shown, and complains when one falls."""

    def __init__(self) -> None:
        self.highest: dict[object, float] = {}

    def look(self, page: str) -> str:
        """Compare a page with all pages before it."""
        for key, shown in samples(page).items():
            if key[0] in _RISING:
                assert shown >= self.highest.get(key, 0), f"{key} fell from {self.highest[key]} to {shown}"
                self.highest[key] = shown
        return page


def journal_rows(connection: psycopg.Connection) -> int:
    rows = connection.execute("SELECT count(*) FROM mfg_notify.event").fetchone()
    return 0 if rows is None else rows[0]


def settled_page(exporter: ExporterProcess, connection: psycopg.Connection, watch: Watch) -> str:
    """Wait until everything is folded and the gauges were read after that."""
    eventually(lambda: journal_rows(connection), lambda rows: rows == 0)
    read = "mfg_notify_reconcile_duration_seconds_count"
    before = value(watch.look(exporter.page()), read) or 0.0
    return eventually(lambda: watch.look(exporter.page()), lambda page: (value(page, read) or 0.0) > before + 1)


def applied(page: str) -> float:
    return sum(n for (name, _), n in samples(page).items() if name == "mfg_notify_events_applied_total")


def some_more(exporter: ExporterProcess, watch: Watch, more: float) -> None:
    """Watch until this exporter has counted that many events."""
    eventually(lambda: applied(watch.look(exporter.page())), lambda n: n >= more)


def test_sigkill_under_load(installed: Database) -> None:
    watch = Watch()
    with installed.connect() as connection:
        with simulated_game(installed.dsn, "--rate", "600", "--seed", "5"):
            for events in range(ROUNDS):
                with ExporterProcess(installed.dsn) as exporter:
                    exporter.wait_ready()
                    # A different moment each time, in the middle of what it does.
                    some_more(exporter, watch, 50 + 37 * events)
        with ExporterProcess(installed.dsn, "--reconcile-interval", "200ms") as exporter:
            exporter.wait_ready()
            assert_exact(settled_page(exporter, connection, watch), connection)


def test_sigterm_folds_and_ends_well(installed: Database) -> None:
    watch = Watch()
    with installed.connect() as connection:
        with simulated_game(installed.dsn, "--rate", "600", "--seed", "6"), ExporterProcess(installed.dsn) as exporter:
            exporter.wait_ready()
            some_more(exporter, watch, 200)
            assert exporter.terminate() == 0, exporter.read_log()
            # The lease is free at once.
            assert connection.execute("SELECT who FROM mfg_notify.owner").fetchone() == (None,)
        with ExporterProcess(installed.dsn, "--reconcile-interval", "200ms") as exporter:
            exporter.wait_ready()
            assert_exact(settled_page(exporter, connection, watch), connection)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_while_there_is_no_database(number: signal.Signals) -> None:
    with ExporterProcess("host=/nonexistent dbname=nothing") as exporter:
        eventually(lambda: "waiting for the database" in exporter.read_log())
        exporter.process.send_signal(number)
        assert exporter.process.wait(10) == 0


def test_terminated_backends(installed: Database) -> None:
    watch = Watch()
    with (
        installed.connect() as connection,
        ExporterProcess(installed.dsn, "--reconcile-interval", "200ms") as exporter,
    ):
        with simulated_game(installed.dsn, "--rate", "600", "--seed", "8"):
            for which in ("LISTEN%", "%", "LISTEN%", "%mfg_notify.%", "%"):
                exporter.wait_ready()
                some_more(exporter, watch, 1 + applied(exporter.page()))
                connection.execute(
                    """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                       WHERE datname = current_database() AND application_name = 'mfg-notify' AND query LIKE %s""",
                    (which,),
                )
        exporter.wait_ready()
        assert_exact(settled_page(exporter, connection, watch), connection)
        assert (value(exporter.page(), "mfg_notify_reconnects_total", reason="unavailable") or 0) >= 1


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_server_restart(mode: str) -> None:
    watch = Watch()
    with EmbeddedPostgres() as server:
        create_game_tables(server.dsn())
        connect: Callable[[], psycopg.Connection] = lambda: psycopg.connect(server.dsn(), autocommit=True)  # noqa: E731
        with connect() as connection:
            truth.install(connection)
            migrations.up(connection, "public", print)
        with ExporterProcess(server.dsn(), "--reconcile-interval", "200ms") as exporter:
            exporter.wait_ready()
            with simulated_game(server.dsn(), "--rate", "600") as game:
                some_more(exporter, watch, 300)
                server.stop(mode)  # type: ignore[arg-type]
                game.wait()
                eventually(lambda: exporter.get("/-/ready").status_code, lambda code: code == 503)
                # Answers while the database is down, with the numbers of before.
                watch.look(exporter.page())
                server.start()
            exporter.wait_ready()
            with connect() as connection:
                assert_exact(settled_page(exporter, connection, watch), connection)
            assert exporter.read_log().count("waiting for the database") <= 2


def test_database_comes_up_later() -> None:
    with EmbeddedPostgres() as server:
        create_game_tables(server.dsn())
        server.stop("fast")
        with ExporterProcess(server.dsn()) as exporter:
            eventually(lambda: exporter.get("/-/ready"), lambda answer: "does not" not in answer.text)
            assert exporter.get("/-/ready").status_code == 503
            assert exporter.get("/-/healthy").status_code == 200
            assert not any(name.startswith("spacetraders") for name, _ in samples(exporter.page()))
            server.start()
            eventually(lambda: "mfg-notify migrate up" in exporter.get("/-/ready").text)
            with psycopg.connect(server.dsn(), autocommit=True) as connection:
                migrations.up(connection, "public", print)
            exporter.wait_ready()
            # Once a change of state: no server, then no schema, then connected.
            assert exporter.read_log().count("waiting for the database") == 2
            assert exporter.terminate() == 0


def test_standby_takes_over(installed: Database) -> None:
    watch = Watch()
    with installed.connect() as connection:
        with simulated_game(installed.dsn, "--rate", "300"), ExporterProcess(installed.dsn) as first:
            first.wait_ready()
            with ExporterProcess(installed.dsn, "--reconcile-interval", "200ms") as second:
                second.wait_ready()
                assert value(second.page(), "mfg_notify_standby") == 1
                assert not any(name.startswith("spacetraders") for name, _ in samples(second.page()))
                some_more(first, watch, 100)
                first.kill()
                eventually(lambda: value(second.page(), "mfg_notify_leader") == 1)
                second.wait_ready()
                some_more(second, watch, 50)
                assert second.terminate() == 0
        with ExporterProcess(installed.dsn, "--reconcile-interval", "200ms") as third:
            third.wait_ready()
            assert_exact(settled_page(third, connection, watch), connection)


def stop_backend(connection: psycopg.Connection) -> int:
    """Freeze the backend that the active exporter works with, between two transactions; return its process id."""

    def freeze() -> int:
        [(pid,)] = connection.execute("SELECT backend_pid FROM mfg_notify.owner").fetchall()
        os.kill(pid, signal.SIGSTOP)
        states = connection.execute("SELECT state FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchall()
        if states == [("idle",)]:
            return int(pid)
        os.kill(pid, signal.SIGCONT)
        return 0

    return eventually(freeze)


def test_a_backend_that_hangs_is_left_behind(installed: Database) -> None:
    watch = Watch()
    with (
        installed.connect() as connection,
        ExporterProcess(installed.dsn, "--reconcile-interval", "200ms") as exporter,
    ):
        exporter.wait_ready()
        with simulated_game(installed.dsn, "--rate", "100"):
            some_more(exporter, watch, 50)
            hanging = stop_backend(connection)
            try:
                eventually(
                    lambda: connection.execute("SELECT backend_pid FROM mfg_notify.owner").fetchone(),
                    lambda row: row != (hanging,),
                )
                exporter.wait_ready()
            finally:
                os.kill(hanging, signal.SIGCONT)
        assert_exact(settled_page(exporter, connection, watch), connection)


def test_sigterm_while_the_database_hangs(installed: Database) -> None:
    with installed.connect() as connection, ExporterProcess(installed.dsn) as exporter:
        exporter.wait_ready()
        hanging = stop_backend(connection)
        try:
            assert exporter.terminate() == 0
        finally:
            os.kill(hanging, signal.SIGCONT)


def test_migrate_down_and_up_under_a_running_exporter(installed: Database) -> None:
    with installed.connect() as connection, ExporterProcess(installed.dsn) as exporter:
        exporter.wait_ready()
        migrations.down(connection, "public", print)
        eventually(lambda: "the triggers are not installed" in exporter.get("/-/ready").text)
        assert exporter.process.poll() is None
        migrations.up(connection, "public", print)
        exporter.wait_ready()
