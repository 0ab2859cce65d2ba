"""What a database administrator may do around the game: the numbers stay exact, or somebody says why they are not.

docs/reference/compatibility.md has the table of it, "In other surroundings".
"""

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import LiteralString

import anyio
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from tests import truth
from tests.conftest import Database, Postgres, Roles, Server, create_game_tables
from tests.game_rows import NOW, add_factory, add_pipeline, add_player, add_task, ago
from tests.integration.pooler import pgbouncer
from tests.samples import number, reconnects, total, value
from tests.support import (
    ExporterProcess,
    assert_exact,
    eventually,
    exporting,
    page_of,
    settled,
    settled_page,
    simulated_game,
)

from mfg_notify.demo.embedded import EmbeddedPostgres
from mfg_notify.demo.game import play
from mfg_notify.demo.world import GameOptions
from mfg_notify.diagnosis.doctor import Finding, examine
from mfg_notify.errors import AccessDenied, DatabaseError
from mfg_notify.postgres import migrations
from mfg_notify.postgres.connection import connect
from mfg_notify.postgres.journal import read_totals
from mfg_notify.postgres.snapshot import read_snapshot

pytestmark = pytest.mark.slow

GAME = ("manufacturing_pipelines", "manufacturing_tasks", "manufacturing_factory_states")
OURS = ("event", "total", "recent", "latest", "lease", "settings", "dead_letter", "pending_commit")
SOON = ("--reconcile-interval", "200ms")
TASK = {"player_id": "1", "task_type": "SELL"}
MOST = 2**63 - 1
"""The largest bigint."""


def findings(dsn: str) -> dict[str, Finding]:
    """Return what doctor finds, by the name of the check."""
    return {finding.check: finding for finding in examine(dsn, "public", time.time)}


def lost(connection: psycopg.Connection) -> int:
    [(changes,)] = connection.execute(
        "SELECT CASE WHEN is_called THEN last_value + 1 ELSE 0 END FROM mfg_notify.lost"
    ).fetchall()
    return int(changes)


def play_a_little(game: psycopg.Connection, key: str) -> None:
    """Write each table, and many rows in one transaction. Player 1 exists."""
    with game.transaction():
        add_pipeline(game, key, status="EXECUTING", started_at=ago("1 minute"))
        for number_ in range(4):
            add_task(game, f"{key} {number_}", total_cost=7)
        game.execute(
            "UPDATE public.manufacturing_tasks SET status = 'READY', ready_at = now() WHERE starts_with(id, %s)",
            (f"{key} ",),
        )
    factory = add_factory(game, key, pipeline_id=key, current_supply="SCARCE")
    for supply in ("LIMITED", "HIGH"):
        game.execute(
            "UPDATE public.manufacturing_factory_states SET current_supply = %s, ready_for_collection = true"
            " WHERE id = %s",
            (supply, factory),
        )
    game.execute(
        "UPDATE public.manufacturing_pipelines SET status = 'COMPLETED', completed_at = now(), total_cost = 3,"
        " total_revenue = 12, net_profit = 9 WHERE id = %s",
        (key,),
    )


def alter(connection: psycopg.Connection, statement: LiteralString, *names: str) -> None:
    """Run a statement with names in place of {}."""
    connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


# --------------------------------------------------------------------------------------- settings of sessions --


@pytest.mark.anyio
@pytest.mark.parametrize(
    "settings",
    [
        {"standard_conforming_strings": "off", "escape_string_warning": "on"},
        {"plpgsql.extra_errors": "all", "plpgsql.variable_conflict": "use_column", "check_function_bodies": "off"},
        {"plpgsql.variable_conflict": "use_variable", "array_nulls": "off", "transform_null_equals": "on"},
        {"datestyle": "German", "intervalstyle": "sql_standard", "timezone": "Asia/Kathmandu", "bytea_output": "escape",
         "extra_float_digits": "0", "xmloption": "document", "quote_all_identifiers": "on"},
        {"search_path": "", "default_transaction_read_only": "on", "default_transaction_isolation": "serializable"},
    ],
    ids=lambda settings: next(iter(settings)),
)  # fmt: skip
async def test_settings_of_the_database_change_no_number(database: Database, settings: dict[str, str]) -> None:
    """They hold for the game, for the migration and for the exporter."""
    usual = "-c search_path=public -c datestyle=ISO -c default_transaction_read_only=off -c timezone=UTC"
    with database.connect(options=usual) as game:
        truth.install(game)
        add_player(game)
        for name, value_ in settings.items():
            # The name of a setting with a dot is two identifiers.
            place = sql.SQL(".").join(map(sql.Identifier, name.split(".")))
            game.execute(sql.SQL("ALTER DATABASE {} SET {} TO {}").format(sql.Identifier(database.name), place, value_))
    with database.connect() as odd:
        migrations.up(odd, "public", print)
    notices: list[str | None] = []
    with database.connect(options=usual) as game:
        game.add_notice_handler(lambda notice: notices.append(notice.message_primary))
        async with exporting(database.dsn, reconcile_interval=0.2) as exporter:
            play_a_little(game, "p")
            play_a_little(game, "q")
            assert_exact(await settled(exporter, game), game)
        assert notices == []
        assert lost(game) == 0
    with database.connect() as odd:
        assert migrations.down(odd, "public", print)


def test_a_buffer_is_written_whatever_strings_mean(installed: Database) -> None:
    """With standard_conforming_strings off, a regular expression in a function has another meaning."""
    with installed.connect(options="-c standard_conforming_strings=off") as game:
        add_player(game)
        with game.transaction():
            for number_ in range(3):
                add_task(game, f"t{number_}")
        assert game.execute("SELECT count(*) FROM mfg_notify.event").fetchone() == (3,)
        assert lost(game) == 0


def test_time_outs_of_the_role_do_not_disconnect_the_exporter(
    roles: Roles, exporter_dsn: str, installed: Database
) -> None:
    role = str(conninfo_to_dict(exporter_dsn)["user"])
    with installed.connect() as game:
        limits = {"idle_session_timeout": "300ms", "idle_in_transaction_session_timeout": "1ms"}
        if game.info.server_version >= 170000:
            limits["transaction_timeout"] = "1ms"
        for name, limit in limits.items():
            roles.connection.execute(
                sql.SQL("ALTER ROLE {} SET {} TO {}").format(sql.Identifier(role), sql.Identifier(name), limit)
            )
        with ExporterProcess(exporter_dsn, *SOON) as exporter:
            exporter.wait_ready()
            read = "mfg_notify_reconcile_duration_seconds_count"
            # Longer than the limit of an idle session; the connection that listens is idle all the time.
            page = eventually(exporter.page, lambda page: number(page, read) > 5)
            assert reconnects(page) == 0, exporter.read_log()


def test_a_migration_takes_the_time_that_it_needs(database: Database) -> None:
    """Its second file reads the whole history, and first waits for the lock on the lease."""
    waiting = """SELECT pid FROM pg_stat_activity
                 WHERE wait_event = 'relation' AND clock_timestamp() - query_start > interval '0.5 s'"""
    with (
        database.connect() as other,
        database.connect() as observer,
        database.connect(options="-c statement_timeout=300ms") as installer,
    ):
        other.execute(migrations.migrations()[0].up.encode())
        with other.transaction():
            other.execute("LOCK TABLE mfg_notify.lease")
            migrating = threading.Thread(target=migrations.up, args=(installer, "public", print))
            migrating.start()
            eventually(lambda: observer.execute(waiting).fetchall() or not migrating.is_alive())
        migrating.join()
        assert other.execute("SELECT version FROM mfg_notify.settings").fetchone() == (2,)


def test_a_role_whose_sessions_fire_no_triggers_is_named(roles: Roles, installed: Database) -> None:
    writer = roles.make("loader")
    with installed.connect() as connection:
        alter(connection, "ALTER ROLE {} SET session_replication_role TO replica", writer)
        found = findings(installed.dsn)["triggers"]
        assert found.verdict == "failed"
        assert f'role "{writer.replace(chr(34), chr(34) * 2)}"' in found.message
        alter(connection, "ALTER ROLE {} RESET session_replication_role", writer)
        alter(connection, "ALTER DATABASE {} SET session_replication_role TO replica", installed.name)
    found = findings(installed.dsn)["triggers"]
    assert "is replica for this session, " in found.message
    assert f"database {installed.name}" in found.message


# ------------------------------------------------------------------------------------------ logical replication --


@contextmanager
def publication(connection: psycopg.Connection) -> Iterator[None]:
    """Publish all tables of a database. Nobody subscribes, but the server checks each statement as if."""
    connection.execute("SET client_min_messages = error; CREATE PUBLICATION everything FOR ALL TABLES")
    yield
    connection.execute("DROP PUBLICATION everything")


@pytest.mark.anyio
async def test_a_publication_of_all_tables_fails_no_statement(installed: Database) -> None:
    """A published table without a replica identity refuses every UPDATE and DELETE."""
    with installed.connect() as game, publication(game):
        add_player(game)
        async with exporting(installed.dsn, reconcile_interval=0.2) as exporter:
            play_a_little(game, "p")
            await play(installed.dsn, GameOptions(seed=4, rate=0), statements=300)
            assert_exact(await settled(exporter, game), game)
        assert lost(game) == 0
        with game.transaction(force_rollback=True):
            for table in OURS:
                alter(game, "DELETE FROM mfg_notify.{}", table)
        found = findings(installed.dsn)["publications"]
        assert found.verdict == "warning"
        assert "publication everything is FOR ALL TABLES" in found.message


def test_a_publication_of_all_tables_is_refused(database: Database) -> None:
    with database.connect() as connection, publication(connection):
        with pytest.raises(DatabaseError, match="publication everything is FOR ALL TABLES"):
            migrations.up(connection, "public", print)
        assert connection.execute("SELECT to_regnamespace('mfg_notify')").fetchone() == (None,)
        with database.connect(options="-c mfg_notify.published=yes") as informed:
            migrations.up(informed, "public", print)
        # What is installed can be repaired and upgraded without asking again.
        connection.execute("DROP FUNCTION mfg_notify.backlog")
        assert migrations.up(connection, "public", print)


@pytest.mark.thorough
def test_an_exporter_on_a_subscriber_names_the_subscription(postgres: Postgres) -> None:
    with postgres.make({"wal_level": "logical", "fsync": "off"}) as server:
        for name in ("publisher", "subscriber"):
            with psycopg.connect(server.dsn(), autocommit=True) as connection:
                alter(connection, "CREATE DATABASE {}", name)
            create_game_tables(server.dsn(name))
        publisher, subscriber = Database(server.dsn("publisher")), Database(server.dsn("subscriber"))
        with publisher.connect() as game, subscriber.connect() as copy:
            for connection in (game, copy):
                migrations.up(connection, "public", print)
            truth.install(game)
            game.execute(
                "CREATE PUBLICATION game FOR TABLE players, manufacturing_pipelines, manufacturing_tasks,"
                " manufacturing_factory_states"
            )
            # On one server the slot has to be made first.
            game.execute("SELECT pg_create_logical_replication_slot('slot', 'pgoutput')")
            with ExporterProcess(publisher.dsn, *SOON) as exporter, ExporterProcess(subscriber.dsn, *SOON) as other:
                exporter.wait_ready()
                other.wait_ready()
                copy.execute(
                    sql.SQL(
                        "CREATE SUBSCRIPTION game CONNECTION {} PUBLICATION game"
                        " WITH (create_slot = false, slot_name = 'slot')"
                    ).format(publisher.dsn)
                )
                add_player(game)
                play_a_little(game, "p")
                arrived = "SELECT count(*) FROM manufacturing_pipelines WHERE status = 'COMPLETED'"
                eventually(lambda: copy.execute(arrived).fetchone(), lambda found: found == (1,))
                # The replicated rows have fired no trigger, and nobody shows numbers without them.
                assert copy.execute("SELECT count(*) FROM mfg_notify.event").fetchone() == (0,)
                named = "public.manufacturing_tasks is filled by the subscription game"
                eventually(lambda: other.get("/-/ready").text, lambda text: named in text)
                assert other.get("/-/ready").status_code == 503
                found = findings(subscriber.dsn)["game"]
                assert found.verdict == "failed"
                assert named in found.message
                assert str(found.remedy).startswith("run the exporter on the publisher")
                assert_exact(settled_page(exporter), game)
                # The switch-over to the subscriber.
                copy.execute("ALTER SUBSCRIPTION game DISABLE")
                copy.execute("ALTER SUBSCRIPTION game SET (slot_name = NONE)")
                copy.execute("DROP SUBSCRIPTION game")
                other.wait_ready()
                add_task(copy, "new", player_id=1, status="READY")
                eventually(other.page, lambda page: value(page, "manufacturing_tasks_ready_total", **TASK) == 5)
                assert findings(subscriber.dsn)["game"].verdict == "ok"


# ------------------------------------------------------------------------------------------- tables are rebuilt --

REBUILDS: tuple[LiteralString, ...] = (
    "VACUUM FULL {0}",
    "CLUSTER {0} USING {1}",
    "ALTER TABLE {0} SET UNLOGGED",
    "ALTER TABLE {0} SET LOGGED",
    "REINDEX TABLE CONCURRENTLY {0}",
)


@pytest.mark.anyio
async def test_the_games_tables_are_rebuilt_while_it_plays(installed: Database) -> None:
    with installed.connect() as game, installed.connect() as admin:
        add_player(game)
        async with exporting(installed.dsn, reconcile_interval=0.2) as exporter:
            for number_, rebuild in enumerate(REBUILDS):
                play_a_little(game, f"p{number_}")
                # A table that others refer to stays logged while they are.
                for table in ("manufacturing_factory_states",) if "LOGGED" in rebuild else GAME:
                    alter(admin, rebuild, table, f"{table}_pkey")
                game.execute("UPDATE manufacturing_tasks SET status = 'ASSIGNED' WHERE id = %s", (f"p{number_} 1",))
            assert_exact(await settled(exporter, game), game)
        assert lost(game) == 0


@pytest.mark.anyio
async def test_a_snapshot_from_before_a_rewrite_is_taken_again(installed: Database) -> None:
    """Such a snapshot shows the table as empty: ALTER TABLE and pg_repack write its rows anew."""
    found: list[set[str]] = []

    async def read_rows() -> None:
        found.append(set((await read_snapshot(connection, "public")).snapshot.rows.tasks))

    async def read_settled() -> None:
        totals = await read_totals(connection)
        found.append({metric for metric, _ in totals.counters.copy()})

    def wait_for_lock() -> None:
        waiting = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        eventually(lambda: observer.execute(waiting).fetchall())

    with installed.connect() as game, installed.connect() as observer:
        add_player(game)
        add_task(game, "t", status="READY")
        game.execute("INSERT INTO mfg_notify.total VALUES ('manufacturing_revenue_total', '{\"player_id\": \"1\"}', 5)")
        async with await connect(installed.dsn) as connection:
            for rewrite, read in (
                ("ALTER TABLE manufacturing_tasks ALTER COLUMN priority TYPE bigint", read_rows),
                ("ALTER TABLE mfg_notify.total ALTER COLUMN n TYPE numeric", read_settled),
            ):
                async with anyio.create_task_group() as tasks:
                    with game.transaction():
                        game.execute(rewrite.encode())
                        # It has read another table, and so has its snapshot, before it waits for this one.
                        tasks.start_soon(read)
                        await anyio.to_thread.run_sync(wait_for_lock)
    assert found == [{"t"}, {"manufacturing_revenue_total"}]


def programs_with_pg_repack() -> Path:
    """Return the folder of a PostgreSQL's programs that has pg_repack too; skip the test if there is none."""
    for program in sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_repack"), reverse=True):
        if (Path("/usr/share/postgresql") / program.parts[-3] / "extension" / "pg_repack.control").exists():
            return program.parent
    pytest.skip("there is no pg_repack")


def changes_of(game: psycopg.Connection) -> int:
    [(changes,)] = game.execute("SELECT count(*) FROM audit.change").fetchall()
    return int(changes)


@pytest.mark.thorough
def test_pg_repack_rewrites_the_tables_while_the_game_plays() -> None:
    """It copies a table, follows its changes with a trigger of its own, and swaps the files."""
    programs = programs_with_pg_repack()

    def repack(table: str) -> None:
        arguments = ["-h", str(server.folder), "-U", "postgres", "-d", "postgres", "-t", table]
        subprocess.run([programs / "pg_repack", *arguments], check=True, capture_output=True)

    with EmbeddedPostgres(settings={"fsync": "off", "track_commit_timestamp": "on"}, binaries=programs) as server:
        create_game_tables(server.dsn())
        with psycopg.connect(server.dsn(), autocommit=True) as game, ExporterProcess(server.dsn(), *SOON) as exporter:
            truth.install(game)
            migrations.up(game, "public", print)
            game.execute("CREATE EXTENSION pg_repack")
            exporter.wait_ready()
            with simulated_game(server.dsn(), "--rate", "200"):
                for _ in range(2):
                    before = changes_of(game)
                    eventually(lambda before=before: changes_of(game) > before + 50)  # type: ignore[misc]
                    for table in GAME:
                        repack(table)
                    for table in set(OURS) - {"pending_commit", "event", "settings"}:
                        repack(f"mfg_notify.{table}")
            # What the triggers use: a lock on it may last longer than they wait.
            for table in ("event", "settings"):
                repack(f"mfg_notify.{table}")
            page = settled_page(exporter)
            assert_exact(page, game)
            assert lost(game) == 0
            assert reconnects(page) == 0


@pytest.mark.anyio
async def test_our_own_tables_are_rebuilt_between_two_changes(installed: Database) -> None:
    """A lock on the journal while the game plays makes triggers give up; this is without it."""
    with installed.connect() as game:
        add_player(game)
        async with exporting(installed.dsn, reconcile_interval=0.2) as exporter:
            for key in ("p", "q"):
                play_a_little(game, key)
                await settled(exporter, game)
                for table in OURS:
                    alter(game, "VACUUM FULL mfg_notify.{}", table)
                alter(game, "REINDEX SCHEMA mfg_notify")
            assert_exact(await settled(exporter, game), game)
        assert lost(game) == 0


# ----------------------------------------------------------------------------------------------- partitioning --

PARTITIONING = """
ALTER TABLE manufacturing_tasks RENAME TO manufacturing_tasks_before;
CREATE TABLE manufacturing_tasks (LIKE manufacturing_tasks_before INCLUDING DEFAULTS) PARTITION BY LIST (status);
CREATE TABLE manufacturing_tasks_done PARTITION OF manufacturing_tasks FOR VALUES IN ('COMPLETED', 'FAILED');
"""


@pytest.mark.parametrize(
    ("then", "named"),
    [
        ("ALTER TABLE manufacturing_tasks ATTACH PARTITION manufacturing_tasks_before DEFAULT",
         "public.manufacturing_tasks_before is a partition"),
        ("CREATE TABLE manufacturing_tasks_live PARTITION OF manufacturing_tasks DEFAULT;"
         " INSERT INTO manufacturing_tasks SELECT * FROM manufacturing_tasks_before;"
         " DROP TABLE manufacturing_tasks_before CASCADE", "public.manufacturing_tasks is partitioned"),
    ],
)  # fmt: skip
def test_a_table_that_is_partitioned_later_is_named(installed: Database, then: LiteralString, named: str) -> None:
    """A row that moves to another partition is deleted and inserted for the triggers, and would be counted again."""
    with installed.connect() as game, ExporterProcess(installed.dsn, *SOON) as exporter:
        add_player(game)
        add_task(game, "t", status="READY")
        exporter.wait_ready()
        with game.transaction():
            game.execute(PARTITIONING)
            game.execute(then)
        # The game goes on, also with rows that move.
        for status in ("ASSIGNED", "EXECUTING", "COMPLETED"):
            game.execute("UPDATE manufacturing_tasks SET status = %s", (status,))
        eventually(lambda: exporter.get("/-/ready").text, lambda text: named in text)
        assert exporter.get("/-/ready").status_code == 503
        found = findings(installed.dsn)["game"]
        assert (found.verdict, named in found.message) == ("failed", True)
        with pytest.raises(DatabaseError, match=r"not on partitioned tables.*: .*manufacturing_tasks"):
            migrations.up(game, "public", print)
        assert migrations.down(game, "public", print)
        left = "SELECT count(*) FROM pg_trigger WHERE starts_with(tgname, 'mfg_notify')"
        assert game.execute(left).fetchone() == (0,)
        game.execute("INSERT INTO manufacturing_tasks SELECT * FROM manufacturing_tasks")
        assert game.execute("SELECT count(*) FROM manufacturing_tasks").fetchone() == (2,)


# ------------------------------------------------------------------------------------------------- odd values --

NUMBERS = {
    "manufacturing_pipelines": ("total_cost", "total_revenue", "net_profit"),
    "manufacturing_tasks": ("total_cost", "total_revenue", "retry_count"),
}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("kind", "odd"), [("numeric", "NaN"), ("numeric", "-Infinity"), ("double precision", "NaN"), ("real", "Infinity")]
)
async def test_numbers_that_are_none_spoil_their_own_row_only(installed: Database, kind: str, odd: str) -> None:
    with installed.connect() as game:
        for table, columns in NUMBERS.items():
            for column in columns:
                alter(game, f"ALTER TABLE {{}} ALTER COLUMN {{}} TYPE {kind}", table, column)
        add_player(game)
        async with exporting(installed.dsn, reconcile_interval=0.2) as exporter:
            play_a_little(game, "p")
            before = await settled(exporter, game)
            game.execute("ALTER TABLE manufacturing_pipelines DISABLE TRIGGER audit_change")
            game.execute("ALTER TABLE manufacturing_tasks DISABLE TRIGGER audit_change")
            for column in NUMBERS["manufacturing_tasks"]:
                add_task(game, column, status="COMPLETED", completed_at=NOW, **{column: odd})
            for column in NUMBERS["manufacturing_pipelines"]:
                add_pipeline(game, column, status="COMPLETED", completed_at=NOW, **{column: odd})
            game.execute("ALTER TABLE manufacturing_pipelines ENABLE TRIGGER audit_change")
            game.execute("ALTER TABLE manufacturing_tasks ENABLE TRIGGER audit_change")
            page = await settled(exporter, game)
            assert_exact(page, game)
            name = "manufacturing_tasks_completed_total"
            assert value(page, name, status="success", **TASK) == value(before, name, status="success", **TASK)
            assert game.execute("SELECT count(*) FROM mfg_notify.dead_letter").fetchone() == (6,)
            play_a_little(game, "q")
            assert_exact(await settled(exporter, game), game)
        assert lost(game) == 0
        assert "6 rows of the journal could not be read" in findings(installed.dsn)["unreadable"].message


@pytest.mark.anyio
async def test_times_that_are_none_are_no_times(installed: Database) -> None:
    def start(odd: str) -> None:
        add_pipeline(game, odd, status="EXECUTING", started_at=odd)
        add_task(game, odd, status="READY", ready_at=odd)
        game.execute("UPDATE manufacturing_tasks SET status = 'ASSIGNED' WHERE id = %s", (odd,))
        game.execute("UPDATE manufacturing_tasks SET status = 'EXECUTING', started_at = %s WHERE id = %s", (odd, odd))

    with installed.connect() as game:
        add_player(game)
        async with exporting(installed.dsn, reconcile_interval=0.2) as exporter:
            for odd in ("infinity", "-infinity", "0001-01-01 00:00+00 BC"):
                start(odd)
            page = await settled(exporter, game)
            assert value(page, "manufacturing_tasks_executing_total", **TASK) == 3
            game.execute("UPDATE manufacturing_tasks SET status = 'COMPLETED', completed_at = now()")
            game.execute("UPDATE manufacturing_pipelines SET status = 'COMPLETED', completed_at = started_at")
            assert_exact(await settled(exporter, game), game)
            # PostgreSQL's last second, which Python's calendar does not have.
            start("294276-12-31 23:59:59+00")
            page = await settled(exporter, game)
            assert value(page, "manufacturing_tasks_executing_total", **TASK) == 1
        assert lost(game) == 0
        assert number(page, "mfg_notify_events_rejected_total", reason="malformed") == 0


HISTORY: dict[str, tuple[dict[str, object], bool]] = {
    "NaN": ({"total_revenue": "NaN"}, False),
    "infinite": ({"total_cost": "-Infinity"}, False),
    "too large": ({"total_revenue": "1e30"}, False),
    "no player": ({"player_id": None, "total_revenue": 5}, False),
    "no product": ({"product_good": None, "total_revenue": 5}, False),
    "in the future": ({"total_revenue": 5, "completed_at": sql.SQL("now() + interval '9 years'")}, True),
}


@pytest.mark.anyio
@pytest.mark.parametrize("history", HISTORY)
async def test_odd_rows_of_the_past_do_not_stop_the_installation(database: Database, history: str) -> None:
    columns, counted = HISTORY[history]
    with database.connect() as game:
        add_player(game)
        game.execute(
            "ALTER TABLE manufacturing_pipelines ALTER player_id DROP NOT NULL, ALTER product_good DROP NOT NULL,"
            " ALTER total_cost TYPE numeric, ALTER total_revenue TYPE numeric"
        )
        game.execute("ALTER TABLE manufacturing_tasks ALTER player_id DROP NOT NULL, ALTER task_type DROP NOT NULL")
        add_pipeline(game, "good", status="COMPLETED", completed_at=NOW, total_revenue=10, total_cost=4)
        add_pipeline(game, "odd", **{"status": "COMPLETED", "completed_at": NOW, **columns})
        add_task(game, "without", status="COMPLETED", player_id=None, started_at=NOW, assigned_ship="S-1")
        add_task(game, "no type", status="COMPLETED", task_type=None, started_at=NOW)
        add_task(game, "soon", status="READY", ready_at=NOW, started_at=sql.SQL("now() + interval '30 days'"))
        migrations.up(game, "public", print)
        async with exporting(database.dsn) as exporter:
            page = page_of(exporter)
        product = {"player_id": "1", "product_good": "IRON"}
        assert value(page, "manufacturing_pipeline_revenue_credits_total", **product) == (15 if counted else 10)
        assert value(page, "manufacturing_profit_rate", player_id="1") == 6
        [(latest,)] = game.execute("SELECT bool_and(at <= now()) FROM mfg_notify.latest").fetchall()
        assert latest


@pytest.mark.anyio
async def test_totals_stop_at_the_end_of_bigint(installed: Database) -> None:
    """A sum that no bigint holds must not fail every fold from then on."""
    with installed.connect() as game:
        for table in ("manufacturing_pipelines", "manufacturing_tasks"):
            alter(game, "ALTER TABLE {} ALTER total_revenue TYPE bigint, ALTER total_cost TYPE bigint", table)
        alter(game, "ALTER TABLE manufacturing_pipelines ALTER net_profit TYPE bigint")
        add_player(game)
        async with exporting(installed.dsn, reconcile_interval=0.2) as exporter:
            for key, profit in (("p", MOST), ("q", -MOST), ("r", MOST)):
                add_pipeline(
                    game, key, status="COMPLETED", completed_at=NOW, total_revenue=MOST, total_cost=5, net_profit=profit
                )
                add_task(game, key, status="COMPLETED", total_revenue=MOST, total_cost=MOST)
                await settled(exporter, game)
            page = await settled(exporter, game)
            product = {"player_id": "1", "product_good": "IRON"}
            # Also what payloads have announced and no fold has confirmed: a restart must not show less.
            assert value(page, "manufacturing_pipeline_revenue_credits_total", **product) == float(MOST)
            assert value(page, "manufacturing_revenue_total", player_id="1") == float(MOST)
            assert value(page, "manufacturing_tasks_completed_total", status="success", **TASK) == 3
        assert game.execute("SELECT max(n) FROM mfg_notify.total").fetchone() == (MOST,)
        assert game.execute("SELECT count(*) FROM mfg_notify.event").fetchone() == (0,)
        async with exporting(installed.dsn) as exporter:
            page = page_of(exporter)
            assert value(page, "manufacturing_revenue_total", player_id="1") == float(MOST)


@pytest.mark.anyio
async def test_statuses_in_lower_case_are_no_statuses(installed: Database) -> None:
    """The game never writes them. They count as nothing, and doctor says so."""
    with installed.connect() as game:
        for table in ("pipelines", "tasks"):
            game.execute(f"ALTER TABLE manufacturing_{table} DROP CONSTRAINT manufacturing_{table}_status".encode())
        add_player(game)
        assert findings(installed.dsn)["statuses"].verdict == "ok"
        async with exporting(installed.dsn, reconcile_interval=0.2) as exporter:
            play_a_little(game, "p")
            add_pipeline(game, "lower", status="completed", completed_at=NOW, total_revenue=100)
            add_task(game, "lower", status="ready")
            game.execute("UPDATE manufacturing_tasks SET status = 'completed' WHERE id = 'p 1'")
            page = await settled(exporter, game)
            assert_exact(page, game)
            assert value(page, "manufacturing_tasks_ready_total", **TASK) == 3
        found = findings(installed.dsn)["statuses"]
        assert found.verdict == "warning"
        for named in ("manufacturing_pipelines 'completed'", "manufacturing_tasks 'completed'", "tasks 'ready'"):
            assert named in found.message


# ---------------------------------------------------------------------------------------------- row security --


def test_forced_row_level_security_is_named_and_its_remedy_works(roles: Roles, database: Database) -> None:
    owner = roles.make("owner", "CREATEROLE")
    with database.connect() as admin:
        alter(admin, "GRANT CREATE ON DATABASE {} TO {}", database.name, owner)
        alter(admin, "GRANT ALL ON SCHEMA public TO {}", owner)
        for table in ("players", *GAME):
            alter(admin, "ALTER TABLE {} OWNER TO {}", table, owner)
        mine = make_conninfo(database.dsn, user=owner)
        with database.connect(user=owner) as game:
            migrations.up(game, "public", print)
            add_player(game)
            play_a_little(game, "p")
            for table in GAME:
                alter(game, "ALTER TABLE {} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY", table)
                alter(game, "CREATE POLICY everything ON {} USING (true)", table)
            before = lost(game)
            play_a_little(game, "q")  # without an error
            assert lost(game) == before + 2  # the changes of supply
            with ExporterProcess(mine, *SOON) as exporter:
                said = eventually(lambda: exporter.get("/-/ready").text, lambda text: "row-level security" in text)
                assert "`mfg-notify doctor` says what to do" in said
                found = findings(mine)["policies"]
                assert found.verdict == "failed"
                assert "from role" in found.message
                # As it stands in the remedy: for the exporter's role, and for the one that the triggers run as.
                admin.execute(str(found.remedy).removeprefix("as a superuser: ").encode())
                assert findings(mine)["policies"].verdict == "ok"
                exporter.wait_ready()
                before = lost(game)
                play_a_little(game, "r")
                assert lost(game) == before
                page = settled_page(exporter)
                assert value(page, "manufacturing_pipeline_completed_total", status="COMPLETED",
                             player_id="1", product_good="IRON") == 3  # fmt: skip
            # A repair keeps what the superuser has granted.
            game.execute("DROP FUNCTION mfg_notify.backlog")
            migrations.up(game, "public", print)
            assert findings(mine)["policies"].verdict == "ok"
            migrations.down(game, "public", print)
            for table in GAME:
                alter(admin, "ALTER TABLE {} OWNER TO CURRENT_USER", table)


@pytest.mark.parametrize("exempt", [True, False])
def test_installing_under_forced_row_level_security(roles: Roles, database: Database, exempt: bool) -> None:
    owner = roles.make("owner", "BYPASSRLS" if exempt else "")
    with database.connect() as admin:
        alter(admin, "GRANT CREATE ON DATABASE {} TO {}", database.name, owner)
        for table in GAME:
            alter(admin, "ALTER TABLE {} OWNER TO {}", table, owner)
            alter(admin, "ALTER TABLE {} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY", table)
        with database.connect(user=owner) as installer:
            if exempt:
                migrations.up(installer, "public", print)
                return
            with pytest.raises(AccessDenied, match=r"row-level security .*`mfg-notify doctor` says what to do"):
                migrations.up(installer, "public", print)


# -------------------------------------------------------------------------------------- names and ownership --


def test_a_renamed_database_is_missed_by_its_name(server: Server, installed: Database) -> None:
    elsewhere = f"{installed.name}_renamed"

    def rename(old: str, new: str) -> None:
        # Sessions must end first, and the exporter's come back at once.
        alter(admin, "ALTER DATABASE {} ALLOW_CONNECTIONS false", old)
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (old,))

        def renamed() -> bool:
            try:
                alter(admin, "ALTER DATABASE {} RENAME TO {}", old, new)
            except psycopg.errors.ObjectInUse:
                return False
            return True

        eventually(renamed)
        alter(admin, "ALTER DATABASE {} ALLOW_CONNECTIONS true", new)

    with server.connect() as admin, ExporterProcess(installed.dsn, *SOON) as exporter:
        with installed.connect() as game:
            add_player(game)
            play_a_little(game, "p")
            settled_page(exporter)
        rename(installed.name, elsewhere)
        said = eventually(lambda: exporter.get("/-/ready"), lambda got: "does not exist" in got.text)
        assert said.status_code == 503
        assert "check the database's name" in said.text
        with psycopg.connect(server.dsn_of(elsewhere), autocommit=True) as game:
            play_a_little(game, "q")
            with ExporterProcess(server.dsn_of(elsewhere), *SOON) as another:
                assert_exact(settled_page(another), game)
            play_a_little(game, "r")
        rename(elsewhere, installed.name)
        exporter.wait_ready()
        with installed.connect() as game:
            play_a_little(game, "s")
            assert_exact(settled_page(exporter), game)
            assert lost(game) == 0


def test_the_games_tables_move_to_another_schema(installed: Database) -> None:
    with installed.connect() as game, ExporterProcess(installed.dsn, *SOON) as exporter:
        add_player(game)
        exporter.wait_ready()
        game.execute("CREATE SCHEMA moved")
        for table in (*GAME, "players"):
            alter(game, "ALTER TABLE {} SET SCHEMA moved", table)
        game.execute("SET search_path = moved")
        add_task(game, "t", status="READY")  # the triggers have moved with the table
        eventually(lambda: exporter.get("/-/ready").text, lambda text: "the table is missing" in text)
        assert findings(installed.dsn)["game"].remedy == ("use --game-schema moved, or set MFG_NOTIFY_GAME_SCHEMA")
        exporter.terminate()
        migrations.up(game, "moved", print)
        with ExporterProcess(installed.dsn, "--game-schema", "moved", *SOON) as another:
            page = settled_page(another)
            assert value(page, "manufacturing_tasks_ready_total", **TASK) == 1
        assert lost(game) == 0


@pytest.mark.anyio
async def test_ownership_moves_to_another_role(roles: Roles, database: Database) -> None:
    before, after = roles.make("before"), roles.make("after")
    with database.connect() as admin:
        alter(admin, "GRANT CREATE ON DATABASE {} TO {}, {}", database.name, before, after)
        alter(admin, "GRANT ALL ON SCHEMA public TO {}, {}", before, after)
        for table in ("players", *GAME):
            alter(admin, "ALTER TABLE {} OWNER TO {}", table, before)
        with database.connect(user=before) as game:
            migrations.up(game, "public", print)
        alter(admin, "REASSIGN OWNED BY {} TO {}", before, after)
        alter(admin, "DROP OWNED BY {}", before)
        with database.connect(user=after) as game:
            add_player(game)
            play_a_little(game, "p")
            assert lost(game) == 0
            # The functions belong to another role than they were installed for; repeated, they are as they were.
            migrations.up(game, "public", print)
            assert migrations.up(game, "public", print) == []
            async with exporting(make_conninfo(database.dsn, user=after)) as exporter:
                page = page_of(exporter)
            assert value(page, "manufacturing_tasks_ready_total", **TASK) == 4
            migrations.down(game, "public", print)


def test_an_exporter_that_loses_all_its_rights_says_so(exporter_dsn: str, installed: Database) -> None:
    role = str(conninfo_to_dict(exporter_dsn)["user"])
    with installed.connect() as game, ExporterProcess(exporter_dsn, *SOON) as exporter:
        add_player(game)
        exporter.wait_ready()
        alter(game, "DROP OWNED BY {}", role)
        eventually(lambda: exporter.get("/-/ready").text, lambda text: "permission denied" in text)
        play_a_little(game, "p")
        migrations.create_role(game, "public", role, print)
        assert_exact(settled_page(exporter), game)
        assert lost(game) == 0


# -------------------------------------------------------------------------------------------- two versions --


def test_an_exporter_meets_another_version_of_the_schema(installed: Database) -> None:
    """Before and after `migrate up`: neither an older nor a newer exporter counts what it does not understand."""
    with installed.connect() as game, ExporterProcess(installed.dsn, *SOON) as exporter:
        add_player(game)
        exporter.wait_ready()
        for other, said in ((99, "upgrade mfg-notify"), (1, "run `mfg-notify migrate up`")):
            [(version,)] = game.execute("SELECT version FROM mfg_notify.settings").fetchall()
            game.execute("UPDATE mfg_notify.settings SET version = %s", (other,))
            eventually(lambda: exporter.get("/-/ready").text, lambda text, said=said: said in text)  # type: ignore[misc]
            assert exporter.get("/-/ready").status_code == 503
            play_a_little(game, f"during {other}")
            game.execute("UPDATE mfg_notify.settings SET version = %s", (version,))
            exporter.wait_ready()
        assert_exact(settled_page(exporter), game)
        assert lost(game) == 0


# --------------------------------------------------------------------------------------------------- PgBouncer --


@pytest.mark.thorough
@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_a_pooler_that_resets_its_sessions(installed: Database, tmp_path: Path, mode: str) -> None:
    """The game comes through it too, and one server connection serves one client after the other."""
    reset = ("server_reset_query = DISCARD ALL", "server_reset_query_always = 1", "default_pool_size = 4")
    with pgbouncer(installed.dsn, mode, tmp_path, *reset) as dsn, installed.connect() as direct:
        add_player(direct)
        for round_ in range(2):
            with ExporterProcess(dsn if mode == "session" else installed.dsn, *SOON) as exporter:
                exporter.wait_ready()
                with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as other:
                    for client in range(3):
                        with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as game:
                            play_a_little(game, f"{round_} {client}")
                            play_a_little(other, f"{round_} {client} other")
                page = settled_page(exporter)
                assert_exact(page, direct)
                assert reconnects(page) == 0
                # It ends as a crash would: its server connections go back to the pool.
                exporter.kill()
        assert lost(direct) == 0


# ----------------------------------------------------------------------------------------- transaction ids --

BEFORE_THE_END = 2**32 - 300
"""A transaction id that many transactions before the number starts again."""


@pytest.mark.thorough
def test_transaction_ids_start_again_under_an_exporter(postgres: Postgres) -> None:
    """An event has a transaction id of 64 bits, and the game's rows ids of 32."""
    with postgres.make({"autovacuum": "off", "fsync": "off", "track_commit_timestamp": "on"}) as server:
        create_game_tables(server.dsn())
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            truth.install(connection)
            migrations.up(connection, "public", print)
        near_the_end(server)
        with psycopg.connect(server.dsn(), autocommit=True) as game, ExporterProcess(server.dsn(), *SOON) as exporter:
            exporter.wait_ready()
            add_player(game)
            round_ = 0
            while current_id(game) < 2**32 + 300:
                play_a_little(game, f"p{round_}")
                round_ += 1
                if round_ % 5 == 0:
                    exporter.page()
            page = settled_page(exporter)
            assert_exact(page, game)
            assert lost(game) == 0
            assert total(page, "mfg_notify_reconcile_corrections_total") == 0
            assert reconnects(page) == 0


def current_id(connection: psycopg.Connection) -> int:
    [(number_,)] = connection.execute("SELECT pg_current_xact_id()::text::bigint").fetchall()
    return int(number_)


def near_the_end(server: EmbeddedPostgres) -> None:
    """Make a transaction id just before the number starts again the next one of a server."""
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("VACUUM (FREEZE)")
    server.stop()
    data = server.folder / "data"
    # Ids of 2 bits each: which transactions have committed. The server makes only the pages that it gets to.
    segment = data / "pg_xact" / f"{BEFORE_THE_END >> 20:04X}"
    segment.write_bytes(bytes(32 * 8192))
    shutil.chown(segment, (data / "PG_VERSION").owner(), (data / "PG_VERSION").group())
    server._run(
        "pg_resetwal", f"--next-transaction-id={BEFORE_THE_END}", f"--oldest-transaction-id={BEFORE_THE_END - 1000}",
        "-D", str(data),
    )  # fmt: skip
    server.start()
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("SET allow_system_table_mods = on")
        for statement in (
            "UPDATE pg_class SET relfrozenxid = {} WHERE relfrozenxid <> '0'",
            "UPDATE pg_database SET datfrozenxid = {}",
        ):
            connection.execute(sql.SQL(statement).format(sql.Literal(str(BEFORE_THE_END - 1000))))
