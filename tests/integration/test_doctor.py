"""`mfg-notify doctor`: one test per finding; where the finding names a command, the test runs it and looks again."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest
from click.testing import CliRunner
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from tests.conftest import Database, Postgres, Roles, create_game_tables
from tests.game_rows import add_player, add_task, add_tasks
from tests.integration.pooler import pgbouncer
from tests.support import ExporterProcess, eventually, free_port, run_command

from mfg_notify.cli import main
from mfg_notify.diagnosis.doctor import DEFAULT_LIMITS, Finding, Limits, examine
from mfg_notify.postgres.connection import complete_conninfo
from mfg_notify.postgres.inspection import connect

EVERYTHING = [
    *("connection", "server", "primary", "clock", "delivery", "queue", "game", "installation", "rights"),
    *("excess", "version", "columns", "triggers", "policies", "publications", "notify", "exporter", "backlog"),
    *("snapshot", "losses", "books", "unreadable", "statuses", "idle"),
]

RIGHT = "r1ght-s3cr3t"


def examined(
    dsn: str, schema: str = "public", clock: Callable[[], float] = time.time, limits: Limits = DEFAULT_LIMITS
) -> dict[str, Finding]:
    """Return the findings by the name of their check."""
    conninfo = complete_conninfo(dsn, "mfg-notify doctor")
    return {finding.check: finding for finding in examine(conninfo, schema, clock, limits)}


def wrong(findings: dict[str, Finding]) -> set[str]:
    """Return the checks that failed."""
    return {finding.check for finding in findings.values() if finding.verdict == "failed"}


def migrate_up(dsn: str, *options: str) -> None:
    """Run the command that most findings name."""
    result = CliRunner().invoke(main, ["migrate", "up", "--dsn", dsn, *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output


# ----------------------------------------------------------------------------------------------- command --


def test_all_is_well_beside_a_running_exporter(exporter_dsn: str) -> None:
    with ExporterProcess(exporter_dsn) as exporter:
        exporter.wait_ready()
        result = CliRunner().invoke(main, ["doctor", "--dsn", exporter_dsn], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        lines = result.output.splitlines()
        assert [line.split()[1] for line in lines] == EVERYTHING
        assert all(line.startswith("✓ ") for line in lines), result.output
        assert f"(pid {exporter.process.pid})" in result.output
        # The doctor has not disturbed the exporter: it kept its connections and received no notification.
        assert "mfg_notify_notifications_received_total 0.0" in exporter.page()
        assert "level=warning" not in exporter.read_log()


def test_what_it_prints(installed: Database) -> None:
    with installed.connect() as connection:
        connection.execute("DROP TRIGGER mfg_notify_update ON manufacturing_tasks")
    result = CliRunner().invoke(main, ["doctor", "--dsn", installed.dsn], catch_exceptions=False)
    assert result.exit_code == 1
    assert (
        "✗ triggers     mfg_notify_update on manufacturing_tasks is missing\n  → mfg-notify migrate up, as postgres\n"
        in result.output
    )
    assert "! exporter     no exporter is active: events wait in the journal\n  → mfg-notify run\n" in result.output
    result = CliRunner().invoke(main, ["doctor", "--json", "--dsn", installed.dsn], catch_exceptions=False)
    assert result.exit_code == 1
    printed = json.loads(result.output)
    assert printed["ok"] is False
    assert [finding["check"] for finding in printed["findings"]] == EVERYTHING
    assert {
        "check": "triggers", "verdict": "failed", "message": "mfg_notify_update on manufacturing_tasks is missing",
        "remedy": "mfg-notify migrate up, as postgres",
    } in printed["findings"]  # fmt: skip
    migrate_up(installed.dsn)
    printed = json.loads(CliRunner().invoke(main, ["doctor", "--json", "--dsn", installed.dsn]).output)
    assert printed["ok"] is True


def test_the_server_would_not_let_it_write(installed: Database) -> None:
    with (
        connect(complete_conninfo(installed.dsn)) as connection,
        pytest.raises(psycopg.errors.ReadOnlySqlTransaction),
    ):
        connection.execute("UPDATE mfg_notify.lease SET generation = generation + 1")


# -------------------------------------------------------------------------------------------- connection --


def test_no_server() -> None:
    port = free_port()
    findings = examined(f"host=127.0.0.1 port={port} user=u dbname=d")
    assert list(findings) == ["connection"]
    assert findings["connection"].verdict == "failed"
    assert "refused" in findings["connection"].message
    assert f"pg_isready -h 127.0.0.1 -p {port} " in str(findings["connection"].remedy)


def test_no_such_database(installed: Database) -> None:
    findings = examined(make_conninfo(installed.dsn, dbname="nowhere"))
    assert list(findings) == ["connection"]
    assert "psql --list" in str(findings["connection"].remedy)


def test_wrong_password(postgres: Postgres) -> None:
    with postgres.make() as server:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE ROLE mfg_exporter LOGIN PASSWORD {}").format(RIGHT))
            (server.folder / "data" / "pg_hba.conf").write_text(
                "local all postgres trust\nlocal postgres all scram-sha-256\n"
            )
            connection.execute("SELECT pg_reload_conf()")
        for given, said in (({"password": "wr0ng-s3cr3t"}, "authentication failed"), ({}, "no password supplied")):
            dsn = server.dsn(user="mfg_exporter", **given)
            # The server does not reload its file at once.
            finding = eventually(lambda dsn=dsn: examined(dsn)["connection"], lambda found: found.verdict == "failed")  # type: ignore[misc]
            assert said in finding.message
            assert finding.remedy is not None
            assert 'ALTER ROLE "mfg_exporter" PASSWORD' in finding.remedy
            assert "s3cr3t" not in finding.message + finding.remedy
        assert examined(server.dsn(user="mfg_exporter", password=RIGHT))["connection"].verdict == "ok"
        elsewhere = examined(server.dsn("template1", user="mfg_exporter"))["connection"]
        assert 'add a line for database, "mfg_exporter" and this address to pg_hba.conf' in str(elsewhere.remedy)


def test_not_let_in(roles: Roles, installed: Database) -> None:
    barred, unknown, outside = roles.make("barred"), roles.name("unknown"), roles.make("outside")
    with installed.connect() as connection:
        connection.execute(sql.SQL("ALTER ROLE {} NOLOGIN").format(sql.Identifier(barred)))
        connection.execute(sql.SQL("REVOKE CONNECT ON DATABASE {} FROM PUBLIC").format(sql.Identifier(installed.name)))
        for role, said, remedy in (
            (barred, "not permitted to log in", "ALTER ROLE {} LOGIN"),
            (unknown, "does not exist", "mfg-notify migrate up --create-role {},"),
            (outside, "permission denied for database", "mfg-notify migrate up --create-role {},"),
        ):
            dsn = make_conninfo(installed.dsn, user=role)
            findings = examined(dsn)
            assert list(findings) == ["connection"]
            assert said in findings["connection"].message
            mending = remedy.format(sql.Identifier(role).as_string())
            assert str(findings["connection"].remedy).startswith(mending)
            if mending.startswith("ALTER"):
                connection.execute(mending.encode())
            migrate_up(installed.dsn, "--create-role", role)
            assert wrong(examined(dsn)) == set()


def test_one_connection_too_few(roles: Roles, installed: Database) -> None:
    name = roles.make("single", "CONNECTION LIMIT 1")
    findings = examined(make_conninfo(installed.dsn, user=name))
    assert list(findings) == ["connection"]
    assert "too many connections" in findings["connection"].message
    assert "CONNECTION LIMIT" in str(findings["connection"].remedy)


# ------------------------------------------------------------------------------------------------ server --


def test_standby(postgres: Postgres) -> None:
    with postgres.make() as server:
        create_game_tables(server.dsn())
        migrate_up(server.dsn())
        assert examined(server.dsn())["primary"].verdict == "ok"
        server.stop()
        (server.folder / "data" / "standby.signal").touch()
        server.start()
        findings = examined(server.dsn())
        assert wrong(findings) == {"primary"}
        assert "target_session_attrs=read-write" in str(findings["primary"].remedy)
        # The checks that need a primary are skipped, the others run.
        assert set(EVERYTHING) - set(findings) == {"delivery", "queue", "notify", "exporter", "backlog"}


@pytest.mark.parametrize(("hours", "said"), [(1, "60 min behind"), (-0.05, "3 min ahead of"), (0, "agree")])
def test_clock_skew(installed: Database, hours: float, said: str) -> None:
    finding = examined(installed.dsn, clock=lambda: time.time() + 3600 * hours)["clock"]
    assert said in finding.message
    assert finding.verdict == ("warning" if hours else "ok")
    assert finding.remedy is None or "set-ntp" in finding.remedy


@pytest.mark.slow
@pytest.mark.thorough
def test_pooler_in_transaction_mode(installed: Database, tmp_path: Path) -> None:
    with pgbouncer(installed.dsn, "transaction", tmp_path) as dsn:
        findings = examined(dsn)
        assert wrong(findings) == {"delivery"}
        assert "a pooler in transaction mode (PgBouncer) is in the way" in findings["delivery"].message
        assert "pool_mode=session" in str(findings["delivery"].remedy)
        # tail cannot work either, and says why.
        code, text = run_command("tail", "--dsn", dsn)
        assert code == 1
        assert "a pooler in transaction mode (PgBouncer) is in the way" in text


def test_pooler_in_session_mode(installed: Database, tmp_path: Path) -> None:
    with pgbouncer(installed.dsn, "session", tmp_path) as dsn:
        findings = examined(dsn)
        assert wrong(findings) == set()
        assert "through a pooler in session mode" in findings["delivery"].message


def test_queue_filling(postgres: Postgres) -> None:
    postgres.skip_before(17, "older ones cannot have so small a queue")
    with postgres.make({"max_notify_queue_pages": "64"}) as server:
        create_game_tables(server.dsn())
        migrate_up(server.dsn())
        with psycopg.connect(server.dsn()) as lazy, psycopg.connect(server.dsn(), autocommit=True) as loud:
            lazy.execute("LISTEN anything")
            lazy.commit()
            # A listener in a transaction keeps the queue from being emptied.
            lazy.execute("SELECT 1")
            for full, verdict, said in ((0.1, "warning", "filling up: "), (0.25, "failed", "stop notifying at 25%")):
                while loud.execute("SELECT pg_notification_queue_usage() < %s", (full,)).fetchone() == (True,):
                    loud.execute("SELECT pg_notify('anything', repeat('x', 7000))")
                finding = examined(server.dsn())["queue"]
                assert finding.verdict == verdict
                assert said in finding.message
                assert "pg_terminate_backend(PID)" in str(finding.remedy)
            # When the queue is full, the doctor's own notification does not fit either.
            with pytest.raises(psycopg.OperationalError):  # noqa: PT012 - any of them
                while True:
                    loud.execute("SELECT pg_notify('anything', repeat('x', 7000))")
            finding = examined(server.dsn())["delivery"]
            assert finding.verdict == "failed"
            assert "queue is full" in finding.message


# ---------------------------------------------------------------------------------------------- database --


def test_another_schema(installed: Database) -> None:
    findings = examined(installed.dsn, schema="game")
    assert wrong(findings) == {"game"}
    assert findings["game"].message == "the game's tables are in schema public, not in game"
    assert "--game-schema public" in str(findings["game"].remedy)


def test_one_table_was_renamed(installed: Database) -> None:
    with installed.connect() as connection:
        connection.execute("ALTER TABLE manufacturing_tasks RENAME TO tasks")
    finding = examined(installed.dsn)["game"]
    assert finding.message == "schema public has no table manufacturing_tasks, but others of the game"
    assert "undo the renaming" in str(finding.remedy)


def test_no_game(installed: Database) -> None:
    findings = examined(make_conninfo(installed.dsn, dbname="postgres"))
    assert wrong(findings) == {"game"}
    assert not {"installation", "rights", "triggers", "columns", "exporter"} & set(findings)


def test_not_installed(database: Database) -> None:
    findings = examined(database.dsn)
    assert wrong(findings) == {"installation"}
    assert not {"rights", "triggers", "columns", "exporter"} & set(findings)
    assert findings["installation"].remedy == "mfg-notify migrate up"
    migrate_up(database.dsn)
    assert wrong(examined(database.dsn)) == set()


def test_no_rights_at_all(roles: Roles, installed: Database) -> None:
    name = roles.make("stranger")
    dsn = make_conninfo(installed.dsn, user=name)
    findings = examined(dsn)
    assert wrong(findings) == {"rights"}
    assert "USAGE ON SCHEMA mfg_notify" in findings["rights"].message
    assert f"--create-role {sql.Identifier(name).as_string()}" in str(findings["rights"].remedy)
    assert not {"version", "columns", "exporter", "backlog", "snapshot", "losses"} & set(findings)
    migrate_up(installed.dsn, "--create-role", name)
    assert wrong(examined(dsn)) == set()


def test_every_missing_right_is_named(exporter_dsn: str, installed: Database) -> None:
    role = sql.Identifier(str(conninfo_to_dict(exporter_dsn)["user"]))
    assert examined(exporter_dsn)["rights"].verdict == "ok"
    with installed.connect() as connection:
        granted: list[tuple[str, str, str]] = connection.execute(
            """SELECT a.privilege_type,
                      format('ON %%s mfg_notify.%%s', CASE relkind WHEN 'S' THEN 'SEQUENCE' END, relname), c.relname
               FROM pg_class c, aclexplode(c.relacl) a
               WHERE c.relnamespace = 'mfg_notify'::regnamespace AND a.grantee = %(role)s::regrole
               UNION ALL
               SELECT 'EXECUTE', 'ON FUNCTION mfg_notify.' || p.proname, p.proname
               FROM pg_proc p, aclexplode(p.proacl) a
               WHERE p.pronamespace = 'mfg_notify'::regnamespace AND a.grantee = %(role)s::regrole
               UNION ALL
               SELECT format('SELECT (%%s)', t.attname), 'ON ' || t.attrelid::regclass, t.attname
               FROM pg_attribute t, aclexplode(t.attacl) a WHERE a.grantee = %(role)s::regrole
               UNION ALL VALUES ('USAGE', 'ON SCHEMA mfg_notify', 'mfg_notify')""",
            {"role": role.as_string()},
        ).fetchall()
        assert len(granted) > 40
        for right, thing, name in granted:
            what = sql.SQL(f"{right} {thing}")
            connection.execute(sql.SQL("REVOKE {} FROM {}").format(what, role))
            finding = examined(exporter_dsn)["rights"]
            optional = thing.removeprefix("ON ") in ("ships", "market_data", "players", "eras") or (
                # For the board alone.
                name == "created_at" or (thing, name) == ("ON manufacturing_tasks", "pipeline_id")
            )
            assert finding.verdict == ("warning" if optional else "failed"), what
            assert right in finding.message
            assert name in finding.message
            connection.execute(sql.SQL("GRANT {} TO {}").format(what, role))
        assert examined(exporter_dsn)["rights"].verdict == "ok"


@pytest.mark.parametrize(
    ("grant", "said"),
    [
        ("SELECT (credits) ON players", "can read credits of public.players, where the API tokens are"),
        ("SELECT ON players", "can read token, faction, credits"),
        ("UPDATE (status) ON manufacturing_tasks", "can write public.manufacturing_tasks"),
        ("TRUNCATE ON ships", "can write public.ships"),
        ("", ""),
    ],
)
def test_a_role_that_can_do_more_than_it_needs(
    exporter_dsn: str, installed: Database, grant: LiteralString, said: str
) -> None:
    role = sql.Identifier(str(conninfo_to_dict(exporter_dsn)["user"]))
    if grant:
        with installed.connect() as connection:
            connection.execute(sql.SQL("GRANT {} TO {}").format(sql.SQL(grant), role))
    finding = examined(exporter_dsn)["excess"]
    assert finding.verdict == ("warning" if grant else "ok")
    assert said in finding.message
    assert not grant or "--create-role" in str(finding.remedy)


def test_a_superuser(installed: Database) -> None:
    finding = examined(installed.dsn)["excess"]
    assert finding.verdict == "warning"
    assert "is a superuser" in finding.message


@pytest.mark.parametrize(
    ("damage", "check", "said", "remedy"),
    [
        ("UPDATE mfg_notify.settings SET version = 1", "version", "schema has version 1", "mfg-notify migrate up"),
        ("UPDATE mfg_notify.settings SET version = 99", "version", "schema has version 99", "pip install --upgrade"),
        ("DELETE FROM mfg_notify.settings", "version", "has lost its row", "mfg-notify migrate down, then"),
        ("DROP TABLE mfg_notify.latest", "version", "in schema mfg_notify: table latest", "mfg-notify migrate up"),
        ("DROP FUNCTION mfg_notify.write_events", "version", "function write_events", "mfg-notify migrate up"),
        (
            "CREATE OR REPLACE FUNCTION mfg_notify.backlog() RETURNS bigint LANGUAGE sql AS 'SELECT 0::bigint'",
            "version", "not as version 2 installs it: function backlog", "mfg-notify migrate up",
        ),
        (
            "ALTER TABLE mfg_notify.settings DROP objects, DROP applied",
            "version", "by an unreleased version", "mfg-notify migrate down, then mfg-notify migrate up",
        ),
        ("ALTER TABLE manufacturing_tasks DROP ready_at", "columns", "manufacturing_tasks.ready_at", "upgrade the bot"),
        (
            "DROP TRIGGER mfg_notify_statement ON manufacturing_pipelines",
            "triggers", "mfg_notify_statement on manufacturing_pipelines is missing", "mfg-notify migrate up",
        ),
        (
            "ALTER TABLE manufacturing_tasks DISABLE TRIGGER mfg_notify_insert",
            "triggers", "mfg_notify_insert on manufacturing_tasks is disabled", "mfg-notify migrate up",
        ),
        (
            "ALTER TABLE manufacturing_factory_states ENABLE REPLICA TRIGGER mfg_notify_delete",
            "triggers", "mfg_notify_delete on manufacturing_factory_states is disabled", "mfg-notify migrate up",
        ),
        (
            "CREATE TRIGGER mfg_notify_truncate AFTER TRUNCATE ON manufacturing_tasks"
            " EXECUTE FUNCTION mfg_notify.task_changed()",
            "triggers", "mfg_notify_truncate on manufacturing_tasks is of another version",
            "DROP TRIGGER mfg_notify_truncate ON public.manufacturing_tasks",
        ),
        (
            "ALTER TABLE mfg_notify.pending_commit DISABLE TRIGGER ALL",
            "triggers", "mfg_notify_flush on pending_commit is disabled", "mfg-notify migrate up",
        ),
        ("DELETE FROM mfg_notify.lease", "exporter", "lease has lost its row", "INSERT INTO mfg_notify.lease"),
    ],
)  # fmt: skip
def test_what_is_installed_is_damaged(
    installed: Database, damage: LiteralString, check: str, said: str, remedy: str
) -> None:
    with installed.connect() as connection:
        connection.execute(damage)
    findings = examined(installed.dsn)
    assert wrong(findings) == {check}
    assert said in findings[check].message
    assert str(findings[check].remedy).startswith(remedy)
    if remedy.startswith("mfg-notify migrate up"):
        migrate_up(installed.dsn)
    elif remedy.startswith(("DROP", "INSERT")):
        with installed.connect() as connection:
            connection.execute(str(findings[check].remedy).encode())
    else:
        return
    assert wrong(examined(installed.dsn)) == set()


def test_prepared_transactions(postgres: Postgres) -> None:
    with postgres.make({"max_prepared_transactions": "2"}) as server:
        create_game_tables(server.dsn())
        migrate_up(server.dsn())
        finding = examined(server.dsn())["notify"]
        assert finding.verdict == "warning"
        assert "the exporter polls once a second" in finding.message


def test_notify_switched_off(installed: Database) -> None:
    with installed.connect() as connection:
        connection.execute("UPDATE mfg_notify.settings SET notify = false")
        finding = examined(installed.dsn)["notify"]
        assert finding.verdict == "warning"
        assert finding.remedy == "UPDATE mfg_notify.settings SET notify = true"
        connection.execute(finding.remedy)
    assert examined(installed.dsn)["notify"].verdict == "ok"


def test_notify_disabled_under_load_is_ok(installed: Database) -> None:
    assert examined(installed.dsn)["notify"].message == "the triggers notify"
    with installed.connect() as connection:
        connection.execute("SELECT setval('mfg_notify.notify_disabled', 1)")
    finding = examined(installed.dsn)["notify"]
    assert finding.verdict == "ok"
    assert "NOTIFY is disabled (polling)" in finding.message


# ----------------------------------------------------------------------------------------------- journal --


@pytest.mark.parametrize(
    ("lease", "said"),
    [
        ("holder = NULL", "no exporter is active"),
        ("holder = 'forge:17:ab', renewed_at = now() - interval '10 minutes'", "(pid 17) has sent no heartbeat for 10"),
        ("holder = 'forge:17:ab', renewed_at = now() + interval '1 day'", "has sent no heartbeat for 24.0 h"),
    ],
)  # fmt: skip
def test_no_exporter(installed: Database, lease: LiteralString, said: str) -> None:
    with installed.connect() as connection:
        connection.execute(sql.SQL("UPDATE mfg_notify.lease SET {}").format(sql.SQL(lease)))
    finding = examined(installed.dsn)["exporter"]
    assert finding.verdict == "warning"
    assert said in finding.message
    assert finding.remedy == "mfg-notify run"
    with ExporterProcess(installed.dsn) as exporter:
        exporter.wait_ready()
        assert examined(installed.dsn)["exporter"].verdict == "ok"


def write_events(installed: Database, age: str, version: int = 1) -> None:
    with installed.connect() as connection:
        connection.execute(
            """INSERT INTO mfg_notify.event (at, version, body)
               SELECT now() - %s::interval, %s, '[]' FROM generate_series(1, 3)""",
            (age, version),
        )


@pytest.mark.parametrize(("age", "verdict"), [("1 second", "ok"), ("2 minutes", "warning"), ("6 minutes", "failed")])
def test_backlog(installed: Database, age: str, verdict: str) -> None:
    write_events(installed, age)
    finding = examined(installed.dsn)["backlog"]
    assert finding.verdict == verdict
    assert "3 events in the journal" in finding.message
    assert verdict == "ok" or "mfg-notify run" in str(finding.remedy)


def test_a_full_journal(installed: Database) -> None:
    write_events(installed, "1 second")
    finding = examined(installed.dsn, limits=Limits(journal_events=3))["backlog"]
    assert finding.verdict == "failed"
    assert "the triggers record no further changes" in finding.message


def test_events_of_a_newer_version(installed: Database) -> None:
    write_events(installed, "1 second", 9)
    finding = examined(installed.dsn)["backlog"]
    assert finding.verdict == "failed"
    assert "3 events in the journal are of a newer version" in finding.message
    assert finding.remedy == "pip install --upgrade mfg-notify"


def test_losses(installed: Database) -> None:
    # The game writes while another session locks the journal.
    with installed.connect() as connection, installed.connect() as other, other.transaction():
        other.execute("LOCK TABLE mfg_notify.event IN ACCESS EXCLUSIVE MODE")
        add_player(connection)
        add_task(connection)
    finding = examined(installed.dsn)["losses"]
    assert finding.verdict == "warning"
    assert "1 change was lost" in finding.message
    assert "mfg-notify did not record" in str(finding.remedy)


def test_idle_columns(installed: Database) -> None:
    assert "too few to tell" in examined(installed.dsn)["idle"].message
    with installed.connect() as connection:
        add_player(connection)
        add_tasks(connection, 1000)
        connection.execute("UPDATE manufacturing_tasks SET assigned_ship = 'S-1', status = 'ASSIGNED' WHERE id = 't1'")
        waiting = examined(installed.dsn)["idle"]
        assert (waiting.verdict, "1,001 events wait in the journal" in waiting.message) == ("ok", True)
        assert "unchanged" not in waiting.message
        with ExporterProcess(installed.dsn) as exporter:
            exporter.wait_ready()
    finding = examined(installed.dsn)["idle"]
    assert finding.verdict == "ok"
    assert "manufacturing_pipeline_completed_total (pipelines.status)" in finding.message
    assert "manufacturing_task_assignments_total" not in finding.message
