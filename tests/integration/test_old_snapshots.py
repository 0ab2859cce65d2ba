"""A snapshot that somebody holds open: who holds it is shown, and folds that have become slow still get through."""

import time

import anyio
import anyio.lowlevel
import psycopg
import pytest
from psycopg import sql
from tests import truth
from tests.conftest import Database
from tests.game_rows import add_player, add_tasks
from tests.samples import reconnects, value
from tests.support import PATIENCE, exporting, page_of, settled

from mfg_notify.core.tuning import Tuning
from mfg_notify.diagnosis.doctor import Limits, examine

SELL = {"player_id": "1", "task_type": "SELL"}


def hold_snapshot(connection: psycopg.Connection) -> str:
    """Open a transaction with a snapshot; return the process id of its session."""
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    connection.execute("SELECT 1")
    return str(connection.info.backend_pid)


def finding(dsn: str, limits: Limits) -> tuple[str, str | None]:
    """Return what doctor says about old snapshots, and the remedy."""
    found = next(found for found in examine(dsn, "public", time.time, limits) if found.check == "snapshot")
    return found.message, found.remedy


def test_doctor_names_who_holds_a_snapshot(exporter_dsn: str, installed: Database) -> None:
    with installed.connect() as holder:
        holder.execute("SET application_name = 'forgotten'")
        assert "nobody holds an old snapshot" in finding(installed.dsn, Limits())[0]
        process = hold_snapshot(holder)
        # The exporter's role may see neither the age nor the statement, but who it is and how much has gone on.
        by_transactions, by_age = Limits(snapshot_transactions=0), Limits(snapshot_age=0)
        for dsn, limits in ((exporter_dsn, by_transactions), (installed.dsn, by_age)):
            message, remedy = finding(dsn, limits)
            assert f"session {process} (role " in message
            assert "application forgotten) has held a snapshot for " in message
            assert remedy is not None
            assert f"pg_terminate_backend({process})" in remedy
        assert finding(installed.dsn, Limits())[1] is None


@pytest.mark.anyio
async def test_a_fold_that_times_out_is_repeated_with_a_smaller_chunk(installed: Database) -> None:
    tuning = Tuning(answer_timeout=0.5, fold_timeout_maximum=0.5, retry_maximum=0.1)
    with installed.connect() as game, installed.connect() as blocker:
        truth.install(game)
        add_player(game)
        async with exporting(installed.dsn, reconcile_interval=0.1, tuning=tuning) as exporter:
            pace = exporter._services.fold_pace
            blocker.execute("BEGIN")
            blocker.execute("LOCK TABLE mfg_notify.total IN EXCLUSIVE MODE")
            add_tasks(game, 3, status="COMPLETED", total_cost=5, id=sql.SQL("'done ' || n"))
            with anyio.fail_after(PATIENCE):
                await exporter.wait_until(lambda _: pace.chunk <= tuning.fold_chunk // 8)
            blocker.rollback()
            page = await settled(exporter, game)
            assert truth.compare(page, game) == []
            with anyio.fail_after(PATIENCE):
                await exporter.wait_until(lambda _: pace.chunk == tuning.fold_chunk)


@pytest.mark.anyio
@pytest.mark.slow
async def test_a_slow_reconciliation_keeps_connection_and_lead(installed: Database) -> None:
    """Reading players and ships takes longer than the answer to a ping may, together longer than the lease lasts."""
    tuning = Tuning(answer_timeout=2.0, lease_duration=4.0, retry_maximum=0.1)
    with installed.connect() as game:
        add_player(game)
        add_tasks(game, 3)
        for table in ("players", "ships"):
            renamed, slow = sql.Identifier(f"all_{table}"), sql.SQL("SELECT a.* FROM {} a, pg_sleep(2.5)")
            game.execute(sql.SQL("ALTER TABLE {} RENAME TO {}").format(sql.Identifier(table), renamed))
            game.execute(sql.SQL("CREATE VIEW {} AS ").format(sql.Identifier(table)) + slow.format(renamed))
        async with exporting(installed.dsn, reconcile_interval=0.1, tuning=tuning) as exporter:
            shown, reconciles = set(), exporter.state.reconciles
            with anyio.fail_after(PATIENCE):
                while exporter.state.reconciles < reconciles + 2:
                    shown.add(value(page_of(exporter), "manufacturing_tasks_pending_total", **SELL))
                    await anyio.lowlevel.checkpoint()  # the exporter goes on between two pages
            assert (shown, reconnects(page_of(exporter))) == ({3}, 0)
