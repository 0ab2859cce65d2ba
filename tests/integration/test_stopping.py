"""Starting, stopping and waiting: an exporter without a database, and one that is asked to end."""

import os
import signal

import psycopg
import pytest
from tests.conftest import Database, Postgres, create_game_tables
from tests.samples import applied, samples
from tests.support import ExporterProcess, assert_exact, eventually, settled_page, simulated_game, stop_backend

from mfg_notify.postgres import migrations

pytestmark = pytest.mark.slow


def test_sigterm_folds_and_ends_well(installed: Database) -> None:
    with installed.connect() as connection:
        with simulated_game(installed.dsn, "--rate", "600", "--seed", "6"), ExporterProcess(installed.dsn) as exporter:
            exporter.wait_ready()
            eventually(lambda: applied(exporter.page()), lambda events: events > 200)
            assert exporter.terminate() == 0, exporter.read_log()
            # The lease is free at once.
            assert connection.execute("SELECT holder FROM mfg_notify.lease").fetchone() == (None,)
        with ExporterProcess(installed.dsn, "--reconcile-interval", "200ms") as exporter:
            assert_exact(settled_page(exporter), connection)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_while_there_is_no_database(number: signal.Signals) -> None:
    with ExporterProcess("host=/nonexistent dbname=nothing") as exporter:
        eventually(lambda: "waiting for the database" in exporter.read_log())
        exporter.process.send_signal(number)
        assert exporter.process.wait(10) == 0


def test_database_comes_up_later(postgres: Postgres) -> None:
    with postgres.make() as server:
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
