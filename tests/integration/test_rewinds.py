"""Databases that are replaced under a running exporter: triggers installed anew, copies, older copies of one name."""

from collections.abc import Sequence
from contextlib import contextmanager
from typing import LiteralString

import anyio
import psycopg
import pytest
from prometheus_client import CollectorRegistry
from psycopg import sql
from structlog.testing import capture_logs
from tests import truth
from tests.conftest import Database, Server
from tests.samples import Series, number, samples
from tests.support import PATIENCE, assert_exact, exporting, page_of, settled

from mfg_notify.core.catalogue import CATALOGUE, Kind
from mfg_notify.core.rules import SampleKey
from mfg_notify.core.tuning import Tuning
from mfg_notify.demo.game import play
from mfg_notify.demo.world import GameOptions
from mfg_notify.exporter.exporter import Exporter
from mfg_notify.exporter.health import HealthReporter
from mfg_notify.exposition import Telemetry
from mfg_notify.postgres import migrations
from mfg_notify.postgres.installation import Whereabouts

pytestmark = pytest.mark.anyio
COUNTED = tuple(metric.full_name for metric in CATALOGUE if metric.kind is not Kind.GAUGE)
QUICK = Tuning(retry_maximum=0.1)


def counters(page: str) -> dict[Series, float]:
    """Return the samples that never fall, which excludes the sum of profits."""
    return {
        key: n
        for key, n in samples(page).items()
        if key[0].startswith(COUNTED) and not key[0].endswith("credits_sum") and n
    }


def known(exporter: Exporter) -> dict[SampleKey, int]:
    """Return the totals that an exporter knows of, whether it shows them or not."""
    return exporter.ledger._counters.exposed()


async def until(exporter: Exporter, metric: str, n: float) -> None:
    """Wait until one of the exporter's own metrics has a value."""
    with anyio.fail_after(PATIENCE):
        await exporter.wait_until(lambda _: number(page_of(exporter), metric) == n)


async def test_totals_start_again_when_the_triggers_are_installed_anew(installed: Database) -> None:
    with installed.connect() as connection, capture_logs() as logs:
        async with exporting(installed.dsn, reconcile_interval=0.1, tuning=QUICK) as exporter:
            await play(installed.dsn, GameOptions(seed=1, rate=0), statements=800)
            before = counters(await settled(exporter, connection))
            migrations.down(connection, "public", print)
            await exporter.wait_until(lambda state: "the triggers are not installed" in state.status_text)
            migrations.up(connection, "public", print)
            await exporter.wait_until(lambda state: state.ready)
            await play(installed.dsn, GameOptions(seed=2, rate=0), statements=100)
            after = counters(await settled(exporter, connection))
            assert number(page_of(exporter), "mfg_notify_rewinds_total") == 0
        async with exporting(installed.dsn) as fresh:
            assert after == counters(page_of(fresh))
    assert any(after.get(key, 0) < n for key, n in before.items())
    assert "the triggers were installed anew: all totals start again" in {line["event"] for line in logs}


async def test_a_copy_of_a_database_has_an_exporter_of_its_own(installed: Database, server: Server) -> None:
    await play(installed.dsn, GameOptions(seed=1, rate=0), statements=300)
    with server.connect() as elsewhere:
        with installed.connect() as connection:
            # The copy says that an exporter holds the lease, and its process exists: in another database.
            connection.execute(
                "UPDATE mfg_notify.lease SET holder = 'a:1:b', renewed_at = clock_timestamp(), backend_pid = %s",
                (elsewhere.info.backend_pid,),
            )
        with contextmanager(server.clone)(installed.name) as copy:
            async with (
                exporting(installed.dsn, reconcile_interval=0.1) as first,
                exporting(copy.dsn, reconcile_interval=0.1) as second,
            ):
                # Enough for tasks to end, at different numbers.
                await play(copy.dsn, GameOptions(seed=2, rate=0), statements=1500)
                await play(installed.dsn, GameOptions(seed=3, rate=0), statements=1000)
                pages = []
                for database, exporter in ((installed, first), (copy, second)):
                    with database.connect() as connection:
                        pages.append(await settled(exporter, connection))
                        assert_exact(pages[-1], connection)
                        assert connection.execute("SELECT last_value FROM mfg_notify.lost").fetchone() == (0,)
                assert counters(pages[0]) != counters(pages[1])


def rename(server: psycopg.Connection, pairs: Sequence[tuple[str, str]]) -> None:
    """Rename databases, one after another, while nobody can connect to them."""

    def execute(statement: LiteralString, *names: str) -> None:
        server.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))

    for name, _ in pairs:
        execute("ALTER DATABASE {} ALLOW_CONNECTIONS false", name)
        server.execute("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s", (name,))
    for name, becomes in pairs:
        execute("ALTER DATABASE {} RENAME TO {}", name, becomes)
    for _, name in pairs:
        execute("ALTER DATABASE {} ALLOW_CONNECTIONS true", name)


async def test_an_older_copy_is_found_whatever_its_generation(installed: Database, server: Server) -> None:
    await play(installed.dsn, GameOptions(seed=1, rate=0), statements=300)
    cloned = contextmanager(server.clone)(installed.name)
    with cloned as copy, server.connect() as maintenance, capture_logs() as logs:
        with copy.connect() as connection:
            connection.execute("UPDATE mfg_notify.lease SET generation = 1000000")
        async with exporting(installed.dsn, reconcile_interval=0.1, tuning=QUICK) as exporter:
            # Enough for tasks to end: the copy is recognized by totals that are lower.
            await play(installed.dsn, GameOptions(seed=2, rate=0), statements=1500)
            with installed.connect() as connection:
                shown = counters(await settled(exporter, connection))
            aside = f"{installed.name}_aside"
            rename(maintenance, [(installed.name, aside), (copy.name, installed.name)])
            try:
                await until(exporter, "mfg_notify_rewinds_total", 1)
                await play(installed.dsn, GameOptions(seed=3, rate=0), statements=200)
                with installed.connect() as connection:
                    now = counters(await settled(exporter, connection))
                    truly = truth.expected_samples(connection)
            finally:
                rename(maintenance, [(installed.name, copy.name), (aside, installed.name)])
        assert number(page_of(exporter), "mfg_notify_rewinds_total") == 1
    for key, n in now.items():
        # A histogram moves as a whole, so its parts may be those of before.
        if not key[0].endswith(("_bucket", "_sum", "_count")):
            assert n == max(shown.get(key, 0), truly.get(key, 0)), key
    events = [line["event"] for line in logs]
    assert "this is another database of the same name: restored, copied or renamed" in events
    assert any(event.startswith("the database was set back") for event in events)


@pytest.mark.parametrize("later", [0, 1_000_000], ids=["the generation is lower", "only totals are lower"])
async def test_a_standby_that_takes_over_an_older_copy_notices(
    exporter_dsn: str, installed: Database, server: Server, later: int
) -> None:
    await play(installed.dsn, GameOptions(seed=1, rate=0), statements=300)
    cloned = contextmanager(server.clone)(installed.name)
    with cloned as copy, server.connect() as maintenance, capture_logs() as logs:
        with copy.connect() as connection:
            connection.execute("UPDATE mfg_notify.lease SET generation = generation + %s", (later,))
        async with (
            exporting(exporter_dsn, reconcile_interval=0.1, tuning=QUICK) as active,
            exporting(exporter_dsn, reconcile_interval=0.1, tuning=QUICK) as standby,
        ):
            await play(installed.dsn, GameOptions(seed=2, rate=0), statements=1500)
            with installed.connect() as connection:
                shown = counters(await settled(active, connection))
            with anyio.fail_after(PATIENCE):
                await active.wait_until(lambda _: known(standby) == known(active))
            aside = f"{installed.name}_aside"
            rename(maintenance, [(installed.name, aside), (copy.name, installed.name)])
            try:
                active.stop()
                with anyio.fail_after(PATIENCE):
                    await standby.wait_until(lambda state: state.leader and state.ready)
                await play(installed.dsn, GameOptions(seed=3, rate=0), statements=200)
                with installed.connect() as connection:
                    now = counters(await settled(standby, connection))
                assert number(page_of(standby), "mfg_notify_rewinds_total") == 1
            finally:
                rename(maintenance, [(installed.name, copy.name), (aside, installed.name)])
    assert {key: now.get(key) for key, n in shown.items() if now.get(key, 0) < n} == {}
    assert [line["log_level"] for line in logs if line["event"].startswith("the database was set back")] == ["error"]


def test_another_server_or_timeline_is_reported_once() -> None:
    health = HealthReporter(Telemetry(CollectorRegistry()), Tuning())
    with capture_logs() as logs:
        for found in [(1, 1, 7), (1, 1, 7), (1, 2, 7), (1, 2, 7), (5, 1, 7), (5, 1, 8)]:
            health.report_whereabouts(Whereabouts(*found))
    assert [(line["event"].split(":")[0], line.get("before"), line.get("now")) for line in logs] == [
        ("the server has changed its timeline", 1, 2),
        ("this is another server", None, None),
        ("this is another database of the same name", None, None),
    ]
