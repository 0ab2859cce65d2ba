"""Every metric reaches /metrics with the value that an independent recount in SQL gives."""

import re
from typing import LiteralString

import anyio
import pytest
from tests.conftest import Database
from tests.game_rows import add_factory, add_pipeline, add_player, add_ship, add_task, ago
from tests.samples import PREFIX, samples, value
from tests.support import assert_exact, exporting, page_of, settled

from mfg_notify.core import catalogue
from mfg_notify.demo.game import play
from mfg_notify.demo.world import GameOptions

pytestmark = pytest.mark.anyio


async def test_simulated_game_is_counted_exactly(installed: Database) -> None:
    with installed.connect() as connection:
        async with exporting(installed.dsn, reconcile_interval=0.2) as exporter:
            await play(installed.dsn, GameOptions(seed=7, rate=0), statements=6000)
            assert_exact(await settled(exporter, connection), connection)


@pytest.mark.slow
async def test_every_metric_moves(installed: Database) -> None:
    moved: set[str] = set()
    async with exporting(installed.dsn, reconcile_interval=0.2) as exporter:

        def look(_: object) -> None:
            moved.update(name for (name, _), value in samples(page_of(exporter)).items() if value)

        await play(installed.dsn, GameOptions(seed=3, rate=0), statements=6000, on_progress=look)
    for metric in set(catalogue.CATALOGUE) - set(catalogue.MARKET):
        name = metric.full_name + ("_count" if metric.buckets else "")
        assert name in moved, name


async def test_an_idle_game_shows_every_specified_metric(installed: Database) -> None:
    with installed.connect() as connection:
        add_player(connection, token="secret")  # noqa: S106 - of nobody
        add_pipeline(connection, "p")
        add_task(connection, pipeline_id="p")
        add_factory(connection, pipeline_id="p")
        async with exporting(installed.dsn) as exporter:
            shown = {name for name, _ in samples(page_of(exporter))}
            page, content_type = exporter.page.render("application/openmetrics-text; version=1.0.0")
            openmetrics = page.decode()
    for metric in catalogue.SPECIFIED:
        # The margin is absent until there is revenue.
        if metric is not catalogue.MARGIN:
            assert metric.full_name + ("_count" if metric.buckets else "") in shown
        family = metric.full_name.removesuffix("_total") if metric.kind == "counter" else metric.full_name
        assert f"# TYPE {family} {metric.kind}\n" in openmetrics
    assert "openmetrics" in content_type
    assert "secret" not in openmetrics


@pytest.mark.slow
async def test_no_correction_without_a_fault(installed: Database) -> None:
    with installed.connect() as connection:
        async with exporting(installed.dsn, reconcile_interval=0.05) as exporter:
            seed = 9
            while exporter.state.reconciles <= 20:
                await play(installed.dsn, GameOptions(seed=seed, rate=0), statements=5000)
                seed += 1
            page = await settled(exporter, connection)
    corrections = {key: n for key, n in samples(page).items() if key[0] == "mfg_notify_reconcile_corrections_total"}
    assert corrections == {}


async def test_a_demoted_exporter_does_not_reconcile(installed: Database) -> None:
    """It led before its connection broke. Rows that it read now would be stale by the time it leads again."""
    reconciliations = "mfg_notify_reconcile_duration_seconds_count"
    pings = "mfg_notify_listener_roundtrip_seconds_count"
    with installed.connect() as other:
        add_player(other)
        async with exporting(installed.dsn, reconcile_interval=0.1) as exporter:
            other.execute(
                """WITH taken AS (
                       UPDATE mfg_notify.lease
                       SET holder = 'another', backend_pid = pg_backend_pid(), renewed_at = clock_timestamp()
                       RETURNING 1)
                   SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a, taken
                   WHERE a.application_name = 'mfg-notify' AND a.datname = current_database()"""
            )
            await exporter.wait_until(lambda state: state.standby)
            heartbeat: LiteralString = "UPDATE mfg_notify.lease SET renewed_at = clock_timestamp()"
            before = value(page_of(exporter), reconciliations), value(page_of(exporter), pings) or 0
            while (value(page_of(exporter), pings) or 0) < before[1] + 2:
                await anyio.to_thread.run_sync(other.execute, heartbeat)
            assert value(page_of(exporter), reconciliations) == before[0]


async def test_disabled_triggers_show_as_corrections(installed: Database) -> None:
    with installed.connect() as connection:
        async with exporting(installed.dsn, reconcile_interval=0.2) as exporter:
            await play(installed.dsn, GameOptions(seed=2, rate=0), statements=500)
            await settled(exporter, connection)
            connection.execute("SET session_replication_role = replica")
            connection.execute("UPDATE manufacturing_pipelines SET status = 'PLANNING' WHERE status = 'EXECUTING'")
            connection.execute("UPDATE manufacturing_tasks SET status = 'PENDING' WHERE status = 'READY'")
            connection.execute("SET session_replication_role = origin")
            connection.execute("ALTER TABLE manufacturing_tasks DISABLE TRIGGER mfg_notify_update")
            page = await settled(exporter, connection)
            assert value(page, "mfg_notify_triggers_installed", table="manufacturing_tasks") == 3
            for metric in (catalogue.PIPELINE_RUNNING, catalogue.TASKS_PENDING, catalogue.TASKS_READY):
                assert value(page, "mfg_notify_reconcile_corrections_total", metric=metric.name) is not None, metric
            # The audit recorded these changes too, so the gauges have been corrected.
            assert_exact(page, connection)


async def test_ships_do_not_wait_for_the_reconciliation(installed: Database) -> None:
    async with exporting(installed.dsn) as exporter:
        with installed.connect() as connection:
            add_player(connection)
            add_ship(connection, "A-1")
            add_ship(connection, "A-2")
            add_task(connection, status="EXECUTING", assigned_ship="A-1")
        await exporter.wait_until(
            lambda _: value(page_of(exporter), "manufacturing_ship_utilization_percent", player_id="1") == 50
        )
        assert exporter.state.reconciles == 1


async def test_a_row_does_not_count_again_under_another_key(installed: Database) -> None:
    with installed.connect() as connection:
        add_player(connection)
        async with exporting(installed.dsn, reconcile_interval=0.05) as exporter:
            add_pipeline(connection, "live", status="EXECUTING")
            add_pipeline(connection, "done", status="EXECUTING", started_at=ago("3 minutes"))
            add_task(connection, "live", status="READY", ready_at=ago("1 minute"))
            add_task(connection, "done", status="EXECUTING", started_at=ago("1 minute"), assigned_ship="S")
            add_factory(connection)
            completed = "SET status = 'COMPLETED', total_revenue = 100, total_cost = 30, completed_at = now()"
            connection.execute(f"UPDATE manufacturing_pipelines {completed} WHERE id = 'done'")
            connection.execute(f"UPDATE manufacturing_tasks {completed} WHERE id = 'done'")
            before = samples(await settled(exporter, connection))
            connection.execute("UPDATE manufacturing_pipelines SET id = id || ', renamed'")
            connection.execute("UPDATE manufacturing_tasks SET id = id || ', renamed'")
            connection.execute("UPDATE manufacturing_factory_states SET id = id + 100")
            page = await settled(exporter, connection)
            assert_exact(page, connection)
            # Starvation is a duration up to now, and the events are new.
            ours = {
                key: n
                for key, n in samples(page).items()
                if key[0].startswith(PREFIX) and not re.search("starv|last_event", key[0])
            }
            assert ours == {key: before[key] for key in ours}
            # Something new counts, in the same statement too.
            connection.execute("UPDATE manufacturing_tasks SET id = 'live', status = 'FAILED' WHERE status = 'READY'")
            connection.execute(
                "UPDATE manufacturing_pipelines SET id = 'x', total_cost = 90 WHERE status = 'COMPLETED'"
            )
            assert_exact(await settled(exporter, connection), connection)
