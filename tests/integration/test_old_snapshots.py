"""A snapshot that somebody holds open: who holds it is shown, and folds that have become slow still get through."""

import time

import anyio
import psycopg
import pytest
from psycopg import sql
from tests import truth
from tests.conftest import Database
from tests.game_rows import add_player, add_tasks
from tests.support import PATIENCE, exporting, settled

from mfg_notify.core.tuning import Tuning
from mfg_notify.diagnosis.doctor import Limits, examine


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
