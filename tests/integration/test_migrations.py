"""`mfg-notify migrate`: installs, repeats, names what is missing, waits for locks, and leaves nothing behind."""

import re
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

import anyio
import psycopg
import pytest
from click.testing import CliRunner
from psycopg import pq
from tenacity import stop_after_attempt
from tests.conftest import Database
from tests.game_rows import add_pipeline, add_player, ago
from tests.samples import value
from tests.support import PATIENCE, ROOT, exporting, page_of, settled

from mfg_notify.cli import main
from mfg_notify.core.catalogue import PIPELINE_COST, PIPELINE_REVENUE
from mfg_notify.demo import embedded
from mfg_notify.demo.game import create_tables, play
from mfg_notify.demo.world import GameOptions
from mfg_notify.errors import SchemaNotReady, UsageError
from mfg_notify.postgres import migrations
from mfg_notify.postgres.installation import SCHEMA_VERSION, TRIGGERS, read_status


def migrate(*arguments: str) -> str:
    """Run the command; return what it printed. Fail if it failed."""
    result = CliRunner().invoke(main, ["migrate", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def objects(connection: psycopg.Connection) -> set[tuple[str, ...]]:
    """Return everything in the database that is not PostgreSQL's own, with the rights on it."""
    return set(
        connection.execute(
            """SELECT 'relation', n.nspname || '.' || c.relname,
                      -- no list of rights means the owner's own
                      coalesce(c.relacl, acldefault(
                          CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", c.relowner))::text, ''
               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
               WHERE n.nspname !~ '^pg_|^information_schema$'
               UNION ALL SELECT 'schema', nspname, nspacl::text, ''
               FROM pg_namespace WHERE nspname !~ '^pg_'
               UNION ALL SELECT 'function', oid::regprocedure::text, coalesce(proacl::text, ''), prosrc
               FROM pg_proc WHERE pronamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
               UNION ALL SELECT 'trigger', tgrelid::regclass || '.' || tgname, tgenabled::text, pg_get_triggerdef(oid)
               FROM pg_trigger WHERE NOT tgisinternal"""
        ).fetchall()
    )


def test_up_repeat_status_down_leaves_nothing(database: Database) -> None:
    with database.connect() as connection:
        before = objects(connection)
        assert "applied 0001" in migrate("up", "--dsn", database.dsn)
        installed = objects(connection)
        assert sum(kind == "trigger" for kind, *_ in installed) == len(migrations.triggers()) == TRIGGERS + 1
        assert "nothing to do" in migrate("up", "--dsn", database.dsn)
        assert objects(connection) == installed
        assert "notify    on" in migrate("status", "--dsn", database.dsn)
        assert "removed" in migrate("down", "--dsn", database.dsn)
        assert objects(connection) == before
        assert "nothing to remove" in migrate("down", "--dsn", database.dsn)
        result = CliRunner().invoke(main, ["migrate", "status", "--dsn", database.dsn])
        assert result.exit_code == 1
        assert "not installed" in result.output


def test_printed_sql_does_what_up_does(database: Database) -> None:
    with database.connect() as connection:
        before = objects(connection)
        for _ in range(2):  # safe to repeat
            for text in migrate("sql").split("COMMIT;")[:-1]:
                connection.execute(text.encode() + b"COMMIT;")
        by_hand = objects(connection)
        assert read_status(connection, "public").complete
        connection.execute(migrate("sql", "--down").encode())
        assert objects(connection) == before
        migrate("up", "--dsn", database.dsn)
        assert objects(connection) == by_hand


def send(connection: psycopg.Connection, file: Path) -> str:
    """Send a file as golang-migrate's driver does, whole and without parameters; return what the server objects to."""
    result = connection.pgconn.exec_(file.read_bytes())
    return "" if result.status == pq.ExecStatus.COMMAND_OK else result.get_error_message()


FILES = {direction: sorted((ROOT / "db" / "triggers").glob(f"*.{direction}.sql")) for direction in ("up", "down")}
"""In the order in which golang-migrate applies those up, and takes back those down from the end."""


def test_golang_migrate_can_apply_the_files(database: Database) -> None:
    assert all(re.fullmatch(r"([0-9]+)_(.*)\.(down|up)\.(.*)", file.name) for files in FILES.values() for file in files)
    with database.connect() as connection, database.connect() as game:
        before = objects(connection)
        # One session for all, with a lock of its own kind, as golang-migrate has it.
        connection.execute("SELECT pg_advisory_lock(1)")
        with game.transaction():
            game.execute("LOCK TABLE manufacturing_tasks IN ROW EXCLUSIVE MODE")
            assert "lock timeout" in send(connection, FILES["up"][0])
        connection.execute("ROLLBACK")
        assert objects(connection) == before
        for file in FILES["up"]:
            assert send(connection, file) == ""
            assert connection.info.transaction_status == pq.TransactionStatus.IDLE
        assert read_status(connection, "public").complete
        for file in reversed(FILES["down"]):
            assert send(connection, file) == ""
        assert objects(connection) == before


def test_psql_can_apply_the_files(database: Database) -> None:
    def psql(files: list[Path]) -> None:
        names = [word for file in files for word in ("-f", str(file))]
        command = [str(embedded._binaries(18) / "psql"), database.dsn, "-q", "-v", "ON_ERROR_STOP=1", *names]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    with database.connect() as connection:
        before = objects(connection)
        psql(FILES["up"])
        assert read_status(connection, "public").complete
        psql(FILES["down"][::-1])
        assert objects(connection) == before


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        ("ALTER TABLE manufacturing_tasks DROP COLUMN ready_at", "manufacturing_tasks.ready_at"),
        ("ALTER TABLE manufacturing_pipelines RENAME net_profit TO profit", "manufacturing_pipelines.net_profit"),
        (
            "ALTER TABLE manufacturing_factory_states RENAME TO factories",
            "manufacturing_factory_states (the table is missing)",
        ),
    ],
)
def test_missing_columns_are_named(database: Database, harm: str, named: str) -> None:
    with database.connect() as connection:
        connection.execute(harm.encode())
        before = objects(connection)
        with pytest.raises(SchemaNotReady, match=re.escape(named)):
            migrations.up(connection, "public", print)
        assert objects(connection) == before
    result = CliRunner().invoke(main, ["migrate", "up", "--dsn", database.dsn])
    assert result.exit_code == 1
    assert named in result.output


def test_partitioned_table_is_refused(database: Database) -> None:
    with database.connect() as connection:
        connection.execute(
            """ALTER TABLE manufacturing_factory_states RENAME TO plain;
               CREATE TABLE manufacturing_factory_states (LIKE plain) PARTITION BY LIST (player_id)"""
        )
        with pytest.raises(Exception, match="not on partitioned tables"):
            migrations.up(connection, "public", print)


def test_waits_for_a_lock_without_queueing(database: Database) -> None:
    reported = threading.Event()
    reasons: list[str] = []

    def on_wait(reason: str) -> None:
        reasons.append(reason)
        reported.set()

    with database.connect() as connection, database.connect(application_name="slow game") as game:
        with game.transaction():
            game.execute("LOCK TABLE manufacturing_tasks IN ROW EXCLUSIVE MODE")
            thread = threading.Thread(target=migrations.up, args=(connection, "public", on_wait))
            thread.start()
            assert reported.wait(30)
        thread.join(30)
        assert read_status(connection, "public").complete
    assert "slow game" in reasons[0]


def test_what_the_database_says_is_no_markup(database: Database) -> None:
    with database.connect() as connection, database.connect(application_name="[/red]boom") as game:
        with game.transaction():
            game.execute("LOCK TABLE manufacturing_tasks IN ROW EXCLUSIVE MODE")
            with pytest.MonkeyPatch.context() as patch:
                # Attempts, not seconds: on a busy machine the first attempt alone may outlast a short timeout.
                patch.setattr(migrations, "stop_after_delay", lambda _seconds: stop_after_attempt(2))
                result = CliRunner().invoke(main, ["migrate", "up", "--dsn", database.dsn])
        assert result.exit_code == 1
        assert "waiting: " in result.output
        assert "[/red]boom" in result.output
        assert not read_status(connection, "public").complete


def test_dropped_trigger_comes_back(database: Database) -> None:
    with database.connect() as connection:
        migrations.up(connection, "public", print)
        installed = objects(connection)
        connection.execute("DROP TRIGGER mfg_notify_update ON manufacturing_tasks")
        connection.execute("ALTER TABLE manufacturing_pipelines DISABLE TRIGGER mfg_notify_insert")
        assert not read_status(connection, "public").complete
        assert migrate("up", "--dsn", database.dsn).splitlines() == [
            "repaired trigger mfg_notify_update on manufacturing_tasks",
            "enabled the triggers of manufacturing_pipelines",
            "the totals continue",
        ]
        assert objects(connection) == installed


def test_what_the_documents_say_turns_the_triggers_off_and_on(database: Database) -> None:
    page = (ROOT / "docs" / "how-to" / "turn-off.md").read_text(encoding="utf-8")
    [said] = re.findall(r"^```sql\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    with database.connect() as connection:
        migrations.up(connection, "public", print)
        connection.execute(said.encode())
        assert set(read_status(connection, "public").triggers.values()) == {0}
        printed = migrate("up", "--dsn", database.dsn)
        assert printed.splitlines() == [
            "enabled the triggers of manufacturing_factory_states, manufacturing_pipelines, manufacturing_tasks",
            "the totals continue",
        ]
        assert read_status(connection, "public").complete


OTHERWISE = (
    "CREATE OR REPLACE FUNCTION mfg_notify.backlog() RETURNS bigint LANGUAGE sql AS 'SELECT 0::bigint'",
    "ALTER FUNCTION mfg_notify.task_changed() SECURITY INVOKER",
    "ALTER FUNCTION mfg_notify.flush_at_commit() RESET lock_timeout",
    "CREATE OR REPLACE TRIGGER mfg_notify_update AFTER UPDATE ON manufacturing_tasks FOR EACH ROW"
    " WHEN (NEW.status = 'READY') EXECUTE FUNCTION mfg_notify.task_changed()",
)


def test_what_was_changed_is_named_and_repaired(database: Database) -> None:
    with database.connect() as connection:
        migrations.up(connection, "public", print)
        fresh = objects(connection)
        for statement in OTHERWISE:
            connection.execute(statement.encode())
        changed = {"function backlog", "function task_changed", "function flush_at_commit",
                   "trigger mfg_notify_update on manufacturing_tasks"}  # fmt: skip
        assert set(read_status(connection, "public").changed) == changed
        result = CliRunner().invoke(main, ["migrate", "status", "--dsn", database.dsn])
        assert result.exit_code == 1
        assert all(name in result.output for name in changed)
        printed = migrate("up", "--dsn", database.dsn)
        assert all(f"repaired {name}" in printed for name in changed)
        assert "applied" not in printed
        assert objects(connection) == fresh
        assert "nothing to do" in migrate("up", "--dsn", database.dsn)


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
def test_an_upgrade_installs_what_a_fresh_installation_does(database: Database, version: int) -> None:
    def dump() -> tuple[set[tuple[str, ...]], object]:
        settings = connection.execute("SELECT version, notify, seeded, applied, objects FROM mfg_notify.settings")
        return objects(connection), settings.fetchall()

    with database.connect() as connection:
        migrations.up(connection, "public", print)
        fresh = dump()
        migrations.down(connection, "public", print)
        for migration in migrations.migrations()[:version]:
            connection.execute(migration.up.encode())
        assert [migration.number for migration in migrations.up(connection, "public", print)] == [
            *range(version + 1, SCHEMA_VERSION + 1)
        ]
        assert dump() == fresh


@pytest.mark.parametrize(
    "unreleased",
    [
        "ALTER TABLE mfg_notify.settings DROP applied, DROP objects",
        """UPDATE mfg_notify.settings SET applied = applied || '{"1": "0"}'""",
    ],
)
def test_an_unreleased_version_is_refused(database: Database, unreleased: str) -> None:
    with database.connect() as connection:
        before = objects(connection)
        migrations.up(connection, "public", print)
        # As an early version had it.
        connection.execute(
            "CREATE TRIGGER mfg_notify_truncate AFTER TRUNCATE ON manufacturing_tasks"
            " EXECUTE FUNCTION mfg_notify.table_truncated('task')"
        )
        connection.execute(unreleased.encode())
        for command in ("up", "status"):
            result = CliRunner().invoke(main, ["migrate", command, "--dsn", database.dsn])
            assert result.exit_code == 1
            assert "unreleased" in result.output
            assert "mfg-notify migrate down, then mfg-notify migrate up" in result.output
        if "DROP" in unreleased:
            assert "unreleased version of mfg-notify" in send(connection, FILES["up"][0])
            connection.execute("ROLLBACK")
        migrate("down", "--dsn", database.dsn)
        assert objects(connection) == before
        migrate("up", "--dsn", database.dsn)
        assert read_status(connection, "public").complete


def names(connection: psycopg.Connection) -> set[str]:
    """Return the names of everything in our schema that a migration makes by name."""
    return {
        name
        for (name,) in connection.execute(
            """SELECT relname FROM pg_class WHERE relnamespace = 'mfg_notify'::regnamespace AND relkind IN ('r', 'S')
               UNION SELECT proname FROM pg_proc WHERE pronamespace = 'mfg_notify'::regnamespace"""
        )
    } - {"total_arrival_seq", "event_id_seq", "entry_id_seq"}  # which go with their tables


def test_dropped_objects_come_back(database: Database) -> None:
    with database.connect() as connection:
        migrations.up(connection, "public", print)
        installed = objects(connection)
        for name in sorted(names(connection)):
            with connection.transaction(force_rollback=True):
                for kind in ("TABLE", "SEQUENCE", "FUNCTION"):
                    # It is one of these, and the others complain.
                    with suppress(psycopg.errors.ProgrammingError), connection.transaction():
                        connection.execute(f"DROP {kind} mfg_notify.{name} CASCADE".encode())
                assert not read_status(connection, "public").complete, name
        for dropped in ("FUNCTION mfg_notify.write_events", "TABLE mfg_notify.event", "SEQUENCE mfg_notify.lost"):
            connection.execute(f"DROP {dropped}".encode())
            assert migrations.up(connection, "public", print)
            assert read_status(connection, "public").complete
        assert objects(connection) == installed


@pytest.mark.anyio
async def test_recreated_settings_are_noticed(installed: Database) -> None:
    """They have a new channel. An exporter that still listened on the old one would be late from then on."""
    with installed.connect() as connection:
        async with exporting(installed.dsn, reconcile_interval=0.1) as exporter:
            connection.execute("DROP TABLE mfg_notify.settings")
            with anyio.fail_after(PATIENCE):
                await exporter.wait_until(lambda state: not state.ready and state.problem is not None)
                migrations.up(connection, "public", print)
                await exporter.wait_until(lambda state: state.ready)
            [(channel,)] = connection.execute("SELECT channel FROM mfg_notify.settings").fetchall()
            listening = connection.execute(
                "SELECT query FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"
            ).fetchall()
            assert [query for (query,) in listening] == [f'LISTEN "{channel}"']


def test_newer_schema_is_left_alone(database: Database) -> None:
    with database.connect() as connection:
        migrations.up(connection, "public", print)
        connection.execute("UPDATE mfg_notify.settings SET version = 99")
        with pytest.raises(UsageError, match="upgrade mfg-notify"):
            migrations.up(connection, "public", print)


def test_odd_schema_name_is_refused() -> None:
    with pytest.raises(UsageError, match="not a plain name"):
        migrations.render("", "a; DROP TABLE players")


ELSEWHERE = "Game_2"
"""A schema with a capital letter."""


@pytest.mark.anyio
async def test_another_game_schema(database: Database) -> None:
    async with await psycopg.AsyncConnection.connect(database.dsn, autocommit=True) as connection:
        await create_tables(connection, ELSEWHERE)
    migrate("up", "--dsn", database.dsn, "--game-schema", ELSEWHERE)
    with database.connect() as connection:
        assert read_status(connection, ELSEWHERE).complete
        assert not read_status(connection, "public").complete
    played = await play(database.dsn, GameOptions(rate=0), schema=ELSEWHERE, statements=300)
    with database.connect() as connection:
        counted = connection.execute("SELECT count(*) FROM mfg_notify.event WHERE body LIKE '%\"task\"%'").fetchone()
        assert counted is not None
        assert counted[0] > 0
    assert played.statements >= 300
    migrate("down", "--dsn", database.dsn, "--game-schema", ELSEWHERE)


@pytest.mark.anyio
async def test_history_before_the_installation_is_seeded(database: Database) -> None:
    with database.connect() as connection:
        add_player(connection)

        def pipeline(name: str, status: str, cost: int, revenue: int, since: str) -> None:
            sums = {"total_cost": cost, "total_revenue": revenue}
            add_pipeline(connection, name, status=status, completed_at=ago(since), **sums)

        pipeline("old", "COMPLETED", 100, 1000, "3 days")
        pipeline("new", "COMPLETED", 50, 500, "10 minutes")
        pipeline("bad", "FAILED", 7, 7, "10 minutes")
        migrations.up(connection, "public", print)
        # Between the two halves of an installation: once in the journal, and not twice in the sum.
        connection.execute("UPDATE mfg_notify.settings SET version = 1, seeded = false; TRUNCATE mfg_notify.total")
        connection.execute("DELETE FROM mfg_notify.recent")
        pipeline("later", "COMPLETED", 1, 10, "1 minute")
        migrations.up(connection, "public", print)
        connection.execute("DELETE FROM manufacturing_pipelines WHERE id = 'old'")
        async with exporting(database.dsn, reconcile_interval=0.2) as exporter:
            page = await settled(exporter, connection)
        product = {"player_id": "1", "product_good": "IRON"}
        assert value(page, PIPELINE_REVENUE.name, **product) == 1510
        assert value(page, PIPELINE_COST.name, **product) == 151
        assert value(page, "manufacturing_margin_percent", **product) == pytest.approx(90)
        assert value(page, "manufacturing_profit_rate", player_id="1") == 459
        assert value(page, "manufacturing_pipeline_completed_total", **product, status="COMPLETED") == 1
        assert "later" not in page_of(exporter)
