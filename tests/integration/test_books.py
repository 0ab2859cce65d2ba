"""The books: what `verify` and a running exporter find when rows, journal or totals are changed behind the triggers."""

import json
import time
from collections.abc import Callable
from typing import LiteralString

import anyio
import psycopg
import pytest
from tests.conftest import Database
from tests.game_rows import add_factory, add_pipeline, add_player, add_tasks
from tests.samples import number
from tests.support import PATIENCE, exporting, page_of, run_command, settled

from mfg_notify.demo.game import play
from mfg_notify.demo.world import GameOptions
from mfg_notify.diagnosis.doctor import examine
from mfg_notify.diagnosis.verify import Report, verify
from mfg_notify.postgres import migrations

PIPELINES, TASKS, FACTORIES = "manufacturing_pipelines", "manufacturing_tasks", "manufacturing_factory_states"


def balanced(database: Database) -> Report:
    """Check the books, which must balance."""
    report = verify(database.dsn, "public")
    assert report.balanced, (report.books.differences, report.books.changed_totals)
    return report


def missing(report: Report) -> dict[str, int]:
    """Return by `source player status` the rows that the books lack."""
    return {" ".join(map(str, found.account)).strip(): found.missing for found in report.books.differences}


def small_game(connection: psycopg.Connection) -> None:
    """Add one player with rows in all three tables."""
    player = add_player(connection)
    add_pipeline(connection, "p", player_id=player, status="EXECUTING")
    add_tasks(connection, 5, player_id=player, pipeline_id="p", status="READY")
    add_factory(connection, player_id=player, pipeline_id="p", current_supply="HIGH")


@pytest.mark.parametrize("exporter", ["none", "stopped", "running"])
@pytest.mark.anyio
async def test_a_whole_game_balances(installed: Database, exporter: str) -> None:
    with installed.connect() as connection:
        await play(installed.dsn, GameOptions(seed=7, rate=0), statements=800)
        if exporter == "none":
            assert balanced(installed).books.journal_events > 300
            return
        async with exporting(installed.dsn, reconcile_interval=0.1) as running:
            await play(installed.dsn, GameOptions(seed=8, rate=0), statements=800)
            if exporter == "running":
                await settled(running, connection)
                report = balanced(installed)
                assert report.books.journal_events == 0
                assert report.books.metrics > 10
                assert number(page_of(running), "mfg_notify_books_last_balanced_timestamp_seconds") > 0
                return
        await play(installed.dsn, GameOptions(seed=9, rate=0), statements=800)
        assert balanced(installed).books.journal_events > 0


CHANGES: dict[str, tuple[LiteralString, ...]] = {
    "truncate": ("TRUNCATE manufacturing_tasks CASCADE",),
    "truncate and fill again": (
        "BEGIN",
        "TRUNCATE manufacturing_tasks CASCADE",
        "INSERT INTO manufacturing_tasks (id, player_id, task_type, status, good)"
        " SELECT 'n' || n, 1, 'LIQUIDATE', 'READY', 'g' FROM generate_series(1, 200) n",
        "COMMIT",
    ),
    "truncate all": ("TRUNCATE manufacturing_pipelines CASCADE",),
    "truncate in an old snapshot": (
        "BEGIN ISOLATION LEVEL REPEATABLE READ",
        "SELECT 1",
        "TRUNCATE manufacturing_tasks CASCADE",
        "COMMIT",
    ),
    "delete": ("DELETE FROM manufacturing_tasks WHERE id = 't1'",),
    "cascade": ("DELETE FROM manufacturing_pipelines",),
    "changed key": ("UPDATE manufacturing_tasks SET id = 'another' WHERE id = 't1'",),
    "changed player": (
        "INSERT INTO players (agent_symbol, token) VALUES ('B', '')",
        "UPDATE manufacturing_tasks SET player_id = (SELECT max(id) FROM players)",
    ),
    "changed player by a cascade": ("UPDATE players SET id = 99",),
    "changed player and status": (
        "INSERT INTO players (agent_symbol, token) VALUES ('B', '')",
        "UPDATE manufacturing_tasks SET player_id = (SELECT max(id) FROM players), status = 'ASSIGNED' WHERE id = 't1'",
        "UPDATE manufacturing_factory_states SET player_id = (SELECT max(id) FROM players), current_supply = NULL",
    ),
    "reused id": (
        "DELETE FROM manufacturing_tasks WHERE id = 't1'",
        "INSERT INTO manufacturing_tasks (id, player_id, task_type, status, good)"
        " SELECT 't1', min(id), 'LIQUIDATE', 'PENDING', 'g' FROM players",
    ),
    "rolled back": ("BEGIN", "DELETE FROM manufacturing_tasks", "ROLLBACK"),
    "no player": (
        "ALTER TABLE manufacturing_tasks ALTER player_id DROP NOT NULL",
        "UPDATE manufacturing_tasks SET player_id = NULL WHERE id = 't1'",
        "UPDATE manufacturing_tasks SET status = 'ASSIGNED' WHERE id = 't1'",
        "UPDATE manufacturing_tasks SET player_id = 1, status = 'EXECUTING' WHERE id = 't1'",
        "UPDATE manufacturing_tasks SET player_id = NULL, status = 'READY' WHERE id = 't2'",
    ),
    "credits that no bigint holds": (
        "ALTER TABLE manufacturing_tasks ALTER total_cost TYPE numeric",
        "UPDATE manufacturing_tasks SET status = 'ASSIGNED', total_cost = 1e30 WHERE id = 't1'",
        "UPDATE manufacturing_tasks SET status = 'EXECUTING', total_cost = 1 WHERE id = 't2'",
    ),
    "an unknown status": (
        "ALTER TABLE manufacturing_tasks DROP CONSTRAINT manufacturing_tasks_status",
        "UPDATE manufacturing_tasks SET status = 'ready' WHERE id = 't1'",
    ),
}


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.anyio
async def test_every_recorded_change_balances(installed: Database, change: str, *, fold: bool) -> None:
    with installed.connect() as connection:
        small_game(connection)
        balanced(installed)
        if fold:
            async with exporting(installed.dsn, reconcile_interval=0.1) as exporter:
                for statement in CHANGES[change]:
                    connection.execute(statement)
                await settled(exporter, connection)
                assert not number(page_of(exporter), "mfg_notify_unrecorded_changes_total", table=TASKS)
        else:
            for statement in CHANGES[change]:
                connection.execute(statement)
        balanced(installed)


def test_a_trigger_that_changes_the_row_again_balances(installed: Database) -> None:
    with installed.connect() as connection:
        small_game(connection)
        connection.execute(
            "CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " IF NEW.status = 'ASSIGNED' THEN UPDATE manufacturing_tasks SET status = 'EXECUTING' WHERE id = NEW.id;"
            " ELSIF NEW.status = 'PENDING' THEN DELETE FROM manufacturing_tasks WHERE id = NEW.id; END IF;"
            " RETURN NULL; END $$"
        )
        connection.execute(
            "CREATE TRIGGER a_first AFTER UPDATE ON manufacturing_tasks FOR EACH ROW EXECUTE FUNCTION again()"
        )
        connection.execute("UPDATE manufacturing_tasks SET status = 'ASSIGNED' WHERE id = 't1'")
        connection.execute("UPDATE manufacturing_tasks SET status = 'PENDING' WHERE id = 't2'")
        assert connection.execute("SELECT count(*) FROM manufacturing_tasks").fetchone() == (4,)
        balanced(installed)


def test_installation_seeds_the_books_beside_a_running_game(database: Database) -> None:
    with database.connect() as connection:
        small_game(connection)
        migrations.up(connection, "public", print)
        report = balanced(database)
        assert sum(report.books.counted.values()) == 7


def disabled(connection: psycopg.Connection) -> None:
    """Change two tasks and delete one while the triggers are disabled."""
    connection.execute("ALTER TABLE manufacturing_tasks DISABLE TRIGGER USER")
    connection.execute("UPDATE manufacturing_tasks SET status = 'ASSIGNED' WHERE id IN ('t1', 't2')")
    connection.execute("DELETE FROM manufacturing_tasks WHERE id = 't3'")
    connection.execute("ALTER TABLE manufacturing_tasks ENABLE TRIGGER USER")


def as_replica(connection: psycopg.Connection) -> None:
    """End a pipeline and change a factory in a session in which triggers do not fire."""
    connection.execute("SET session_replication_role = replica")
    connection.execute("UPDATE manufacturing_pipelines SET status = 'COMPLETED'")
    connection.execute("UPDATE manufacturing_factory_states SET current_supply = 'SCARCE'")
    connection.execute("RESET session_replication_role")


def restored(connection: psycopg.Connection) -> None:
    """Restore data as `pg_restore --data-only --disable-triggers` does."""
    connection.execute("ALTER TABLE manufacturing_tasks DISABLE TRIGGER ALL")
    with connection.cursor().copy(
        "COPY manufacturing_tasks (id, player_id, task_type, status, good) FROM STDIN"
    ) as copy:
        for number_ in range(3):
            copy.write_row((f"r{number_}", 1, "DELIVER", "PENDING", "IRON"))
        copy.write_row(("done", 1, "DELIVER", "COMPLETED", "IRON"))
    connection.execute("ALTER TABLE manufacturing_tasks ENABLE TRIGGER ALL")


UNSEEN: dict[str, tuple[Callable[[psycopg.Connection], None], dict[str, int], dict[str, int]]] = {
    "disabled": (disabled, {"task 1 ASSIGNED": 2, "task 1 READY": -3}, {"task": 3}),
    "replica": (
        as_replica,
        {"pipeline 1 EXECUTING": -1, "factory 1 HIGH": -1, "factory 1 SCARCE": 1},
        {"pipeline": 1, "factory": 1},
    ),
    "restore": (restored, {"task 1 PENDING": 3}, {"task": 3}),
}


@pytest.mark.parametrize("case", UNSEEN)
def test_unseen_changes_are_measured_without_an_exporter(installed: Database, case: str) -> None:
    change, expected, rows = UNSEEN[case]
    with installed.connect() as connection:
        small_game(connection)
        change(connection)
    report = verify(installed.dsn, "public")
    assert missing(report) == expected
    accepted = verify(installed.dsn, "public", accept=True)
    assert missing(accepted) == expected
    assert accepted.unrecorded == rows
    assert balanced(installed).unrecorded == rows


@pytest.mark.parametrize("case", UNSEEN)
@pytest.mark.anyio
async def test_a_running_exporter_enters_unseen_changes_once(installed: Database, case: str) -> None:
    change, _, rows = UNSEEN[case]
    tables = {"pipeline": PIPELINES, "task": TASKS, "factory": FACTORIES}
    with installed.connect() as connection:
        small_game(connection)
        async with exporting(installed.dsn, reconcile_interval=0.1) as exporter:
            await settled(exporter, connection)
            change(connection)

            def counted(page: str) -> bool:
                return all(
                    number(page, "mfg_notify_unrecorded_changes_total", table=tables[source]) == n
                    for source, n in rows.items()
                )

            with anyio.fail_after(PATIENCE):
                await exporter.wait_until(lambda _: counted(page_of(exporter)))
                # The factories are counted less often than every reconciliation.
                await exporter.wait_until(
                    lambda _: (
                        not any(number(page_of(exporter), "mfg_notify_imbalance_rows", table=tables[s]) for s in rows)
                    )
                )
            assert counted(page_of(exporter))
        assert balanced(installed).unrecorded == rows


def test_a_journal_row_deleted_by_hand_is_found(installed: Database) -> None:
    with installed.connect() as connection:
        small_game(connection)
        connection.execute("DELETE FROM mfg_notify.event WHERE body LIKE '[\"pipeline\"%'")
        assert missing(verify(installed.dsn, "public")) == {"pipeline 1 EXECUTING": 1}


@pytest.mark.anyio
async def test_a_total_changed_by_hand_is_found(installed: Database) -> None:
    with installed.connect() as connection:
        small_game(connection)
        async with exporting(installed.dsn, reconcile_interval=0.1) as exporter:
            connection.execute("UPDATE manufacturing_tasks SET status = 'COMPLETED', total_cost = 100")
            await settled(exporter, connection)
        balanced(installed)
        connection.execute("UPDATE mfg_notify.total SET n = n + 7 WHERE metric = 'manufacturing_cost_total'")
        connection.execute("DELETE FROM mfg_notify.total WHERE metric = 'manufacturing_tasks_completed_total'")
        found = verify(installed.dsn, "public", accept=True).books.changed_totals
        assert [(total.metric, total.added, total.stored) for total in found] == [
            ("manufacturing_cost_total", 500, 507),
            ("manufacturing_tasks_completed_total", 5, 0),
        ]
        async with exporting(installed.dsn, reconcile_interval=0.1) as exporter:
            await exporter.wait_until(lambda state: state.reconciles > 1)
        # It says so for good, although the books balance.
        changed = {"manufacturing_cost_total": 7, "manufacturing_tasks_completed_total": -5}
        assert balanced(installed).accepted_totals == changed
        assert (
            "manufacturing_cost_total +7, manufacturing_tasks_completed_total -5"
            in run_command("verify", "--dsn", installed.dsn)[1]
        )


@pytest.mark.anyio
async def test_a_balance_changed_by_hand_is_found(installed: Database) -> None:
    with installed.connect() as connection:
        small_game(connection)
        async with exporting(installed.dsn, reconcile_interval=0.1) as exporter:
            await settled(exporter, connection)
        connection.execute("INSERT INTO mfg_notify.entry (body) VALUES (%s)", ('{"rows": [["task", 1, "READY", -2]]}',))
    assert missing(verify(installed.dsn, "public")) == {"task 1 READY": 2}


@pytest.mark.anyio
async def test_a_spoiled_entry_is_found_and_entered(installed: Database) -> None:
    with installed.connect() as connection:
        small_game(connection)
        async with exporting(installed.dsn, reconcile_interval=0.1) as exporter:
            await settled(exporter, connection)
        connection.execute("UPDATE mfg_notify.entry SET body = '{'")
        assert missing(verify(installed.dsn, "public"))["task 1 READY"] == 5
        async with exporting(installed.dsn, reconcile_interval=0.1) as exporter:
            await settled(exporter, connection)
            assert number(page_of(exporter), "mfg_notify_unrecorded_changes_total", table=TASKS) == 5
        balanced(installed)


@pytest.mark.anyio
async def test_totals_at_the_end_of_bigint_stop_nothing(installed: Database) -> None:
    with installed.connect() as connection:
        small_game(connection)
        connection.execute("ALTER TABLE manufacturing_tasks ALTER total_revenue TYPE bigint")
        async with exporting(installed.dsn, reconcile_interval=0.1) as exporter:
            for _ in range(3):
                connection.execute("UPDATE manufacturing_tasks SET total_revenue = 9223372036854775807")
                connection.execute("UPDATE manufacturing_tasks SET total_revenue = 0")
                await settled(exporter, connection)
        report = verify(installed.dsn, "public")
        assert not report.books.differences
        assert not report.books.changed_totals


def doctor(database: Database) -> tuple[str, str]:
    """Return what the doctor says of the books."""
    return next((f.verdict, f.message) for f in examine(database.dsn, "public", time.time) if f.check == "books")


def test_the_command_says_what_was_proved(installed: Database) -> None:
    with installed.connect() as connection:
        small_game(connection)
        code, text = run_command("verify", "--dsn", installed.dsn)
        assert code == 0
        assert "✓ balanced: the recorded events explain every row and every total" in text
        assert "manufacturing_tasks            5 live rows, 1 player, 1 live status\n" in text
        disabled(connection)
    code, text = run_command("verify", "--dsn", installed.dsn)
    assert code == 1
    assert "manufacturing_tasks: at least 3 rows were changed without an event" in text
    assert "task     player 1, READY: 5 rows according to the events, 2 in the table (-3)" in text
    code, text = run_command("verify", "--json", "--dsn", installed.dsn)
    assert code == 1
    assert json.loads(text)["changed_rows"] == {PIPELINES: 0, TASKS: 3, FACTORIES: 0}
    assert doctor(installed) == ("failed", "at least 3 rows were changed without an event")
    assert run_command("verify", "--accept", "--dsn", installed.dsn)[0] == 1
    assert doctor(installed)[0] == "warning"
    code, text = run_command("verify", "--dsn", installed.dsn)
    assert code == 0
    assert "3 of manufacturing_tasks" in text


def test_the_command_says_what_was_lost(installed: Database) -> None:
    with installed.connect() as connection:
        small_game(connection)
        assert "lost" not in run_command("verify", "--dsn", installed.dsn)[1]
        assert json.loads(run_command("verify", "--json", "--dsn", installed.dsn)[1])["lost"] == 0
        connection.execute("SELECT nextval('mfg_notify.lost') FROM generate_series(1, 50)")
    code, text = run_command("verify", "--dsn", installed.dsn)
    assert (code, "lost                           50 changes" in text) == (0, True)
    assert json.loads(run_command("verify", "--json", "--dsn", installed.dsn)[1])["lost"] == 50


def test_the_command_refuses_a_database_without_triggers(database: Database) -> None:
    code, text = run_command("verify", "--dsn", database.dsn)
    assert code == 1
    assert "mfg-notify migrate up" in text
