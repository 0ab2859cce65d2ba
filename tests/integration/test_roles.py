"""Rights: the exporter's least-privilege role, and an installation by a role with few rights."""

import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Literal, LiteralString

import psycopg
import pytest
from click.testing import CliRunner
from psycopg import errors, sql
from psycopg.conninfo import make_conninfo
from tests import truth
from tests.conftest import Database, Postgres, Roles, create_game_tables
from tests.game_rows import add_player, add_ship, add_task, insert
from tests.samples import value
from tests.support import ExporterProcess, eventually, run_command, simulated_game

from mfg_notify.cli import main
from mfg_notify.demo.game import create_tables, play
from mfg_notify.demo.world import GameOptions
from mfg_notify.diagnosis.doctor import examine
from mfg_notify.postgres import migrations
from mfg_notify.postgres.connection import quote_identifier
from mfg_notify.postgres.queries import QUERY

pytestmark = pytest.mark.slow

Connection = psycopg.Connection[Any]
OFTEN = ("--reconcile-interval", "200ms")
ELSEWHERE = "Game_2"


def as_role(dsn: str, role: str) -> str:
    return make_conninfo(dsn, user=role)


def migrate(*arguments: str) -> str:
    """Run the command; return what it printed. Fail if it failed."""
    result = CliRunner().invoke(main, ["migrate", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def execute(connection: Connection, statement: LiteralString, **names: str) -> None:
    """Execute a statement with identifiers filled in."""
    connection.execute(sql.SQL(statement).format(**{name: sql.Identifier(text) for name, text in names.items()}))


def rights(connection: Connection) -> set[tuple[str, ...]]:
    """Return every object of the database and every right on it, those of the cluster's bootstrap objects too."""
    return set(
        connection.execute(
            """SELECT kind, object, coalesce(g.rolname, 'PUBLIC'), privilege_type
               FROM (
                   SELECT 'relation', c.oid::regclass::text, coalesce(
                       relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner))
                   FROM pg_class c WHERE relnamespace::regnamespace::text !~ '^pg_toast'
                   UNION ALL SELECT 'column', attrelid::regclass || '.' || attname, attacl
                   FROM pg_attribute WHERE attacl IS NOT NULL
                   UNION ALL SELECT 'schema', nspname, coalesce(nspacl, acldefault('n', nspowner)) FROM pg_namespace
                   UNION ALL SELECT 'function', oid::regprocedure::text, coalesce(proacl, acldefault('f', proowner))
                   FROM pg_proc
                   UNION ALL SELECT 'trigger', tgrelid::regclass || '.' || tgname, acldefault('r', 10)
                   FROM pg_trigger WHERE NOT tgisinternal
                   UNION ALL SELECT 'database', datname, coalesce(datacl, acldefault('d', datdba))
                   FROM pg_database WHERE datname = current_database()
               ) o (kind, object, acl)
               CROSS JOIN LATERAL aclexplode(acl) a LEFT JOIN pg_roles g ON g.oid = a.grantee"""
        ).fetchall()
    )


def wait_exact(exporter: ExporterProcess, connection: Connection) -> str:
    """Wait until the page is what the recount of the audit says; return the page."""

    def ask() -> tuple[str, list[str]]:
        page = exporter.page()
        return page, truth.compare(page, connection)

    page, _ = eventually(ask, lambda answer: not answer[1])
    return page


def lost(connection: Connection) -> int:
    row = connection.execute(
        "SELECT CASE WHEN is_called THEN last_value + 1 ELSE 0 END FROM mfg_notify.lost"
    ).fetchone()
    assert row is not None
    return int(row[0])


# ------------------------------------------------------------------------------------- the exporter's role --


@pytest.fixture
def exporter_role(roles: Roles, installed: Database) -> str:
    """Return a role that the command has just made in the database `installed`."""
    name = roles.name("exporter")
    printed = migrate("up", "--dsn", installed.dsn, "--create-role", name)
    assert "nothing to do" in printed
    assert "PASSWORD" in printed
    return name


@pytest.mark.anyio
async def test_exporter_with_exactly_its_rights_is_exact(exporter_role: str, installed: Database) -> None:
    with (
        installed.connect() as connection,
        ExporterProcess(as_role(installed.dsn, exporter_role), *OFTEN) as exporter,
    ):
        exporter.wait_ready()
        await play(installed.dsn, GameOptions(seed=11, rate=0), statements=3000)
        add_ship(connection, "SPARE-1")
        page = wait_exact(exporter, connection)
        # These numbers need the right to read the table of ships.
        idle = connection.execute(
            """SELECT player_id, count(*) FROM ships s
               WHERE assignment_status = 'idle' AND cargo_capacity > 0 AND NOT EXISTS (
                   SELECT FROM manufacturing_tasks t WHERE t.assigned_ship = s.ship_symbol
                   AND t.player_id = s.player_id AND t.status IN ('ASSIGNED', 'EXECUTING')) GROUP BY 1"""
        ).fetchall()
        assert idle
        for player, count in idle:
            assert value(page, "manufacturing_ships_idle_total", player_id=str(player)) == count
        assert lost(connection) == 0
        assert "denied" not in exporter.read_log()
        assert exporter.terminate() == 0


IDS = count(2)


def parameters() -> dict[str, object]:
    given: dict[str, object] = {
        "holder": "me",
        "channel": "c",
        "ping": "p",
        "barrier": "f",
        "id": next(IDS),  # the sequence `folded` is set only if it rises
        "version": 1,
        "entry": "{}",
    }
    return defaultdict(lambda: None, given | {"chunk": 10, "schema": "public"})


def denied_statements(connection: Connection) -> list[str]:
    """Try every query and roll it back; return the names of those that need a right that the role lacks."""
    optional = ("pipeline_type", "construction_site", "materials", "actual_quantity")
    tables: dict[str, sql.Composable] = {column: sql.Identifier(column) for column in optional} | {
        "pipelines": sql.Identifier("public", "manufacturing_pipelines"),
        "tasks": sql.Identifier("public", "manufacturing_tasks"),
        "factories": sql.Identifier("public", "manufacturing_factory_states"),
        "ships": sql.Identifier("public", "ships"),
        "status": sql.Identifier("assignment_status"),
        "carries_cargo": sql.SQL("cargo_capacity > 0"),
        "players": sql.Identifier("public", "players"),
        "eras": sql.Identifier("public", "eras"),
        "market": sql.Identifier("public", "market_data"),
        "player": sql.Identifier("player_id"),
        "table": sql.Identifier("public", "manufacturing_tasks"),
        "names": sql.Literal(["public.manufacturing_tasks"]),
        "maximum": sql.Literal(1),
        "version": sql.Literal(1),
        "after": sql.Literal(-1),
        "at_most": sql.Literal(1),
    }
    denied = []
    for name, statement in QUERY.items():
        if name == "granted_roles":
            continue  # only `migrate` asks, as the owner
        composed = sql.SQL(statement).format(**tables) if "{" in statement else sql.SQL(statement)
        try:
            with connection.transaction(force_rollback=True):
                connection.execute(composed, parameters())
        except errors.InsufficientPrivilege:
            denied.append(name)
    return denied


def test_its_rights_are_sufficient_and_necessary(exporter_role: str, installed: Database) -> None:
    with installed.connect() as connection:
        add_player(connection)
        add_task(connection)
        granted = [
            (kind, thing, right) for kind, thing, grantee, right in rights(connection) if grantee == exporter_role
        ]
        assert len(granted) > 40
        idle = []
        for kind, thing, right in sorted(granted):
            match kind:
                case "column":
                    table, column = thing.split(".")
                    what = f"{right} ({column}) ON {table}"
                case "relation":
                    what = f"{right} ON {thing}"
                case _:
                    what = f"{right} ON {kind} {thing}"
            with connection.transaction(force_rollback=True):
                connection.execute(sql.SQL("REVOKE {} FROM {}").format(sql.SQL(what), sql.Identifier(exporter_role)))
                execute(connection, "SET LOCAL ROLE {role}", role=exporter_role)
                if not denied_statements(connection):
                    idle.append(what)
        assert idle == []
        execute(connection, "SET ROLE {role}", role=exporter_role)
        assert denied_statements(connection) == []


FORBIDDEN: tuple[LiteralString, ...] = (
    "SELECT token FROM players",
    "SELECT token, id FROM players",
    "SELECT credits FROM players",
    "SELECT * FROM players",
    "SELECT players FROM players",
    "SELECT id FROM players WHERE token = 'x'",
    "SELECT opened_at FROM eras",
    "SELECT error_message FROM manufacturing_tasks",
    "SELECT * FROM manufacturing_tasks",
    "SELECT * FROM manufacturing_pipelines",
    "SELECT expected_price FROM manufacturing_pipelines",
    "SELECT all_inputs_delivered FROM manufacturing_factory_states",
    "SELECT container_id FROM ships",
    "SELECT purchase_price FROM market_data",
    "SELECT waypoint_symbol FROM market_data",
    "SELECT id FROM manufacturing_tasks FOR UPDATE",
    "LOCK TABLE manufacturing_tasks IN ACCESS EXCLUSIVE MODE",
    "INSERT INTO manufacturing_tasks (id, player_id, task_type, good) VALUES ('x', 1, 'SELL', 'G')",
    "UPDATE manufacturing_tasks SET status = 'READY'",
    "UPDATE manufacturing_pipelines SET status = 'FAILED'",
    "DELETE FROM manufacturing_factory_states",
    "TRUNCATE manufacturing_factory_states",
    "UPDATE ships SET assignment_status = 'idle'",
    "DELETE FROM market_data",
    "INSERT INTO mfg_notify.event (body) VALUES ('[]')",
    "UPDATE mfg_notify.event SET body = '[]'",
    "DELETE FROM mfg_notify.event",
    "LOCK TABLE mfg_notify.event IN ROW EXCLUSIVE MODE",
    "LOCK TABLE mfg_notify.event IN ACCESS EXCLUSIVE MODE",
    "LOCK TABLE mfg_notify.pending_commit IN ROW EXCLUSIVE MODE",
    "LOCK TABLE mfg_notify.settings IN ROW EXCLUSIVE MODE",
    "SELECT nextval('mfg_notify.lost')",
    "SELECT setval('mfg_notify.lost', 1)",
    "TRUNCATE mfg_notify.event",
    "SELECT nextval('mfg_notify.event_id_seq')",
    "DELETE FROM mfg_notify.total",
    "TRUNCATE mfg_notify.total",
    "UPDATE mfg_notify.settings SET notify = false",
    "INSERT INTO mfg_notify.lease DEFAULT VALUES",
    "DELETE FROM mfg_notify.lease",
    "SELECT mfg_notify.write_events('x', 0)",
    "SELECT mfg_notify.backlog()",
    "SELECT * FROM mfg_notify.granted",
    "CREATE TABLE mfg_notify.mine ()",
    "CREATE TEMP TABLE mine (id text); CREATE TRIGGER forge AFTER INSERT ON mine REFERENCING NEW TABLE AS new_rows"
    " FOR EACH STATEMENT EXECUTE FUNCTION mfg_notify.task_changed()",
    "ALTER TABLE manufacturing_tasks DISABLE TRIGGER mfg_notify_insert",
    "DROP TRIGGER mfg_notify_insert ON manufacturing_tasks",
)


def allowed_of(statements: Sequence[LiteralString], connection: Connection) -> list[str]:
    """Return the statements that no missing right refuses."""
    allowed: list[str] = []
    for statement in statements:
        try:
            with connection.transaction(force_rollback=True):
                connection.execute(statement)
            allowed.append(statement)
        except errors.InsufficientPrivilege:
            pass
    return allowed


def test_an_ordinary_role_can_neither_read_nor_forge(roles: Roles, installed: Database) -> None:
    ordinary = roles.name("ordinary")
    with installed.connect() as connection:
        execute(connection, "CREATE ROLE {ordinary} LOGIN", ordinary=ordinary)
        # Even if the role can use the schema and create its own tables and triggers in it.
        execute(connection, "GRANT CREATE, USAGE ON SCHEMA public TO {ordinary}", ordinary=ordinary)
    try:
        with installed.connect(user=ordinary) as connection:
            everything = (*FORBIDDEN, "SELECT * FROM mfg_notify.settings", "SELECT * FROM mfg_notify.event",
                          "SELECT * FROM mfg_notify.total", "SELECT mfg_notify.take_events(1, 0, 1)",
                          "SELECT mfg_notify.count_abandoned()",
                          "UPDATE mfg_notify.lease SET holder = 'me'", "SELECT setval('mfg_notify.folded', 1)",
                          "SELECT nextval('mfg_notify.folded')",
                          "SELECT * FROM mfg_notify.lease")  # fmt: skip
            assert allowed_of(everything, connection) == []
            for owner in run_as(connection):
                with pytest.raises(errors.InsufficientPrivilege):
                    execute(connection, "SET ROLE {role}", role=owner)
    finally:
        with installed.connect() as connection:
            execute(connection, "DROP OWNED BY {ordinary}", ordinary=ordinary)
            execute(connection, "DROP ROLE {ordinary}", ordinary=ordinary)


def test_it_may_do_nothing_else(exporter_role: str, installed: Database) -> None:
    with installed.connect(user=exporter_role) as connection:
        assert allowed_of(FORBIDDEN, connection) == []
        attributes = "rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls OR NOT rolcanlogin"
        assert connection.execute(
            f"SELECT {attributes} FROM pg_roles WHERE rolname = current_user"  # noqa: S608
        ).fetchone() == (False,)


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        ("USAGE ON SCHEMA mfg_notify", "schema mfg_notify"),
        ("USAGE ON SCHEMA public", "schema public"),
        ("CONNECT ON DATABASE {database}", "permission denied for database"),
        ("SELECT ON mfg_notify.settings", "table settings"),
        ("UPDATE ON mfg_notify.lease", "table lease"),
        ("SELECT ON mfg_notify.event", "table event"),
        ("EXECUTE ON FUNCTION mfg_notify.take_events", "function take_events"),
        ("UPDATE ON SEQUENCE mfg_notify.folded", "sequence folded"),
        ("SELECT ON SEQUENCE mfg_notify.lost", "sequence lost"),
        ("EXECUTE ON FUNCTION mfg_notify.count_inputs", "function count_inputs"),
        ("EXECUTE ON FUNCTION mfg_notify.construction", "function construction"),
        ("SELECT (ready_at) ON manufacturing_tasks", "table manufacturing_tasks"),
        ("SELECT (materials) ON manufacturing_pipelines", "table manufacturing_pipelines"),
        ("SELECT (delivered_inputs) ON manufacturing_factory_states", "table manufacturing_factory_states"),
    ],
)
def test_missing_right_is_named_and_granted_again(
    exporter_role: str, installed: Database, missing: LiteralString, named: str
) -> None:
    with installed.connect() as connection:
        add_player(connection)
        add_task(connection)
        execute(connection, "REVOKE " + missing + " FROM PUBLIC, {role}", role=exporter_role, database=installed.name)
        with ExporterProcess(as_role(installed.dsn, exporter_role), *OFTEN) as exporter:
            log = eventually(exporter.read_log, lambda text: "access_denied" in text)
            assert named in log
            assert "--create-role" in log
            migrate("up", "--dsn", installed.dsn, "--create-role", exporter_role)
            exporter.wait_ready()


@pytest.mark.parametrize("table", ["ships", "ship_assignments"])
def test_ships_without_the_right_are_those_of_the_tasks(roles: Roles, installed: Database, table: str) -> None:
    role = roles.name("exporter")
    with installed.connect() as connection:
        if table == "ship_assignments":
            connection.execute(
                "ALTER TABLE ships RENAME TO ship_assignments;"
                "ALTER TABLE ship_assignments RENAME assignment_status TO status"
            )
        migrations.create_role(connection, "public", role, print)
        add_player(connection)
        for ship in ("S-1", "S-2"):
            insert(connection, table, player_id=1, ship_symbol=ship, cargo_capacity=40)

        def idle_ships() -> float | None:
            with ExporterProcess(as_role(installed.dsn, role), *OFTEN) as exporter:
                exporter.wait_ready()
                page = exporter.page()
                assert exporter.terminate() == 0
                return value(page, "manufacturing_ships_idle_total", player_id="1")

        assert idle_ships() == 2
        execute(connection, "REVOKE SELECT (ship_symbol) ON {ships} FROM {role}", ships=table, role=role)
        assert not idle_ships()


def test_an_existing_role_keeps_what_it_had(roles: Roles, database: Database) -> None:
    role = roles.make("reader")
    with database.connect() as connection:
        execute(connection, "GRANT SELECT (id, good) ON manufacturing_tasks TO {role}", role=role)
        execute(connection, "GRANT SELECT ON ships TO {role}", role=role)
        before = rights(connection)
        for _ in range(2):
            assert "granted" in migrate("up", "--dsn", database.dsn, "--create-role", role)
        assert len(rights(connection)) > len(before)
        assert "was not made by mfg-notify" in migrate("down", "--dsn", database.dsn)
        assert rights(connection) == before
        assert roles.exists(role)


def test_printed_sql_makes_the_same_role(roles: Roles, database: Database) -> None:
    role = roles.name("printed")
    with database.connect() as connection:
        before = rights(connection)
        for text in migrate("sql", "--create-role", role).split("COMMIT;")[:-1]:
            connection.execute(text.encode() + b"COMMIT;")
        by_hand = rights(connection)
        connection.execute(migrate("sql", "--down").encode())
        assert rights(connection) == before
        assert not roles.exists(role)
        migrate("up", "--dsn", database.dsn, "--create-role", role)
        assert rights(connection) == by_hand


@pytest.mark.parametrize(
    "name",
    ["x$$; DROP TABLE players; DO $$", "a'; DROP TABLE players; --", "two\nlines; DROP TABLE players", "é{}%s\\"],
)
def test_odd_names_are_only_names(roles: Roles, installed: Database, name: str) -> None:
    name += secrets.token_hex(4)
    roles.made.append(name)
    with installed.connect() as connection:
        assert migrations.create_role(connection, "public", name, print)
        assert not migrations.create_role(connection, "public", name, print)
        assert connection.execute("SELECT count(*) FROM players").fetchone() == (0,)
        migrations.down(connection, "public", print)
    assert not roles.exists(name)


@pytest.mark.parametrize("name", ["", "x" * 64, "a\0b", "public", "none"])
def test_impossible_names_are_refused(installed: Database, name: str) -> None:
    result = CliRunner().invoke(main, ["migrate", "up", "--dsn", installed.dsn, "--create-role", name])
    # What looks like a name is refused by the server.
    assert result.exit_code == (1 if name in ("public", "none") else 2)
    assert result.output.splitlines()[-1].startswith("Error: ")


def test_readable_tokens_are_pointed_out(roles: Roles, installed: Database) -> None:
    role = roles.make("reader")
    with installed.connect() as connection:
        execute(connection, "GRANT SELECT (token) ON players TO {role}", role=role)
    assert "more of public.players than id and agent_symbol" in migrate(
        "up", "--dsn", installed.dsn, "--create-role", role
    )


def test_down_and_up_under_its_exporter(roles: Roles, database: Database) -> None:
    role = roles.name("exporter")
    migrate("up", "--dsn", database.dsn, "--create-role", role)
    with ExporterProcess(as_role(database.dsn, role), *OFTEN) as exporter:
        exporter.wait_ready()
        migrate("down", "--dsn", database.dsn)
        assert not roles.exists(role)
        eventually(lambda: exporter.get("/-/ready"), lambda answer: answer.status_code == 503)
        migrate("up", "--dsn", database.dsn, "--create-role", role)
        exporter.wait_ready()
        assert exporter.terminate() == 0


# ---------------------------------------------------------------------------------------------- installing --

Installer = Literal["owner", "owner with CREATEROLE", "superuser"]
ATTRIBUTES: dict[Installer, LiteralString] = {"owner": "", "owner with CREATEROLE": "CREATEROLE", "superuser": ""}


def hand_over(connection: Connection, database: str, owner: str, schema: LiteralString = "public") -> None:
    """Give the game's tables to a role that may also make schemas in the database, and no more."""
    tables = connection.execute("SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = %s::regnamespace",
                                (f'"{schema}"',)).fetchall()  # fmt: skip
    for (table,) in tables:
        connection.execute(
            sql.SQL("ALTER TABLE {} OWNER TO {}").format(sql.Identifier(schema, table), sql.Identifier(owner))
        )
    execute(connection, "GRANT CREATE ON DATABASE {database} TO {owner}", database=database, owner=owner)


def run_as(connection: Connection) -> list[str]:
    """Return the roles with whose rights the triggers work."""
    owners = connection.execute(
        "SELECT DISTINCT r.rolname FROM pg_proc p JOIN pg_roles r ON r.oid = p.proowner"
        " WHERE p.prosecdef AND p.prorettype = 'trigger'::regtype AND p.pronamespace = 'mfg_notify'::regnamespace"
    )
    return [name for (name,) in owners]


def trigger_role(connection: Connection) -> str:
    """Return the name of the role that owns the trigger functions, if the installer may create it."""
    row = connection.execute("SELECT oid FROM pg_database WHERE datname = current_database()").fetchone()
    assert row is not None
    return f"mfg_notify_owner_{row[0]}"


def let_write(connection: Connection, role: str) -> None:
    """Let a role do with the game's rows what the game does, and nothing with its tables."""
    execute(
        connection,
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role};"
        "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}",
        role=role,
    )


@pytest.mark.anyio
@pytest.mark.parametrize("kind", list(ATTRIBUTES))
async def test_installing(roles: Roles, database: Database, kind: Installer) -> None:
    owner, writer = roles.make("game", ATTRIBUTES[kind]), roles.make("writer")
    installer = roles.make("installer", "SUPERUSER") if kind == "superuser" else owner
    exporter_role = roles.name("exporter")
    as_installer = as_role(database.dsn, installer)
    with database.connect() as connection:
        hand_over(connection, database.name, owner)
        let_write(connection, writer)
        truth.install(connection)
        before = rights(connection)

        if kind == "owner":
            result = CliRunner().invoke(main, ["migrate", "up", "--dsn", as_installer, "--create-role", exporter_role])
            assert result.exit_code == 1
            assert rights(connection) == before
            assert f": CREATE ROLE {quote_identifier(exporter_role)} LOGIN\n" in result.output
            execute(connection, "CREATE ROLE {role} LOGIN", role=exporter_role)
        for _ in range(2):
            migrate("up", "--dsn", as_installer, "--create-role", exporter_role)
        # Everything again, as after an upgrade.
        connection.execute("DROP TRIGGER mfg_notify_statement ON manufacturing_tasks")
        assert "repaired trigger mfg_notify_statement" in migrate("up", "--dsn", as_installer)
        if kind == "owner":
            assert run_as(connection) == [owner]
        elif kind == "superuser":
            assert run_as(connection) == [trigger_role(connection)]

        with ExporterProcess(as_role(database.dsn, exporter_role), *OFTEN) as exporter:
            exporter.wait_ready()
            for seed, role in enumerate((owner, writer)):
                await play(as_role(database.dsn, role), GameOptions(seed=seed, rate=0), statements=700)
            wait_exact(exporter, connection)
            assert lost(connection) == 0
            assert exporter.terminate() == 0

        printed = migrate("down", "--dsn", as_installer)
        assert rights(connection) == before
        assert roles.exists(exporter_role) == (kind == "owner")
        assert ("was not made by mfg-notify" in printed) == (kind == "owner")


@pytest.mark.anyio
async def test_installing_first_in_a_cluster_with_createrole(postgres: Postgres) -> None:
    """Nothing of ours is in the cluster: the roles are made, shared by two databases, and gone with the last one."""
    with postgres.make({"fsync": "off"}) as server:
        superuser = server.dsn()
        with psycopg.connect(superuser, autocommit=True) as connection:
            connection.execute("CREATE ROLE game LOGIN CREATEROLE")
            connection.execute("CREATE DATABASE one OWNER game")
            connection.execute("CREATE DATABASE two OWNER game")
            first, second = (server.dsn(name, user="game") for name in ("one", "two"))
            for dsn in (first, second):
                async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as making:
                    await create_tables(making)
                for _ in range(2):
                    migrate("up", "--dsn", dsn, "--create-role", "exporter")
            for dsn in (first, second):
                await play(dsn, GameOptions(rate=0), statements=300)
                with psycopg.connect(dsn) as game:
                    assert lost(game) == 0
                    assert game.execute("SELECT EXISTS (SELECT FROM mfg_notify.event)").fetchone() == (True,)
                    assert run_as(game) == [trigger_role(game)]
                with ExporterProcess(make_conninfo(dsn, user="exporter")) as exporter:
                    exporter.wait_ready()
            printed = migrate("down", "--dsn", first)
            assert "role exporter stays" in printed
            assert "role mfg_notify_owner" not in printed
            printed = migrate("down", "--dsn", second)
            assert "stays" not in printed
            assert connection.execute("SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_' ORDER BY 1").fetchall() == [
                ("game",),
                ("postgres",),
            ]


@pytest.mark.anyio
async def test_installing_without_the_right_to_share_it(postgres: Postgres) -> None:
    """What the installer may not grant to the role of the triggers, they do with the installer's own rights."""
    with postgres.make({"fsync": "off"}) as server:
        superuser = server.dsn()
        async with await psycopg.AsyncConnection.connect(superuser, autocommit=True) as making:
            await create_tables(making)
        with psycopg.connect(superuser, autocommit=True) as connection:
            connection.execute("CREATE ROLE game LOGIN CREATEROLE")
            hand_over(connection, "postgres", "game")
            connection.execute("REVOKE USAGE ON SCHEMA public FROM PUBLIC; GRANT USAGE ON SCHEMA public TO game")
            dsn = as_role(superuser, "game")
            before = rights(connection)
            migrate("up", "--dsn", dsn)
            await play(dsn, GameOptions(rate=0), statements=600)
            assert lost(connection) == 0
            assert run_as(connection) == ["game"]
            migrate("down", "--dsn", dsn)
            assert rights(connection) == before


def test_a_role_that_stays_is_one_that_can_be_dropped(postgres: Postgres) -> None:
    """An owner that has lost CREATEROLE since the installation cannot drop the roles, but takes their rights away."""
    with postgres.make({"fsync": "off"}) as server:
        superuser = server.dsn()
        create_game_tables(superuser)
        with psycopg.connect(superuser, autocommit=True) as connection:
            connection.execute("CREATE ROLE game LOGIN CREATEROLE")
            hand_over(connection, "postgres", "game")
            connection.execute("ALTER SCHEMA public OWNER TO game")
            dsn = as_role(superuser, "game")
            before = rights(connection)
            migrate("up", "--dsn", dsn, "--create-role", "exporter")
            owner = trigger_role(connection)
            assert run_as(connection) == [owner]
            connection.execute("ALTER ROLE game NOCREATEROLE")
            printed = migrate("down", "--dsn", dsn)
            assert rights(connection) == before
            for role in ("exporter", owner):
                assert f"let an administrator run DROP ROLE {role}" in printed
                execute(connection, "DROP ROLE {role}", role=role)


def test_what_an_administrator_has_to_grant_is_printed(roles: Roles, database: Database) -> None:
    """In a hardened database an owner of tables may neither create a role nor let one in."""
    owner, role = roles.make("game"), roles.name("exporter")
    quoted = quote_identifier(role)
    with database.connect() as connection:
        hand_over(connection, database.name, owner)
        execute(connection, "REVOKE CONNECT ON DATABASE {database} FROM PUBLIC", database=database.name)
        execute(connection, "REVOKE ALL ON SCHEMA public FROM PUBLIC")
        execute(connection, "GRANT CONNECT ON DATABASE {database} TO {owner}", database=database.name, owner=owner)
        execute(connection, "GRANT USAGE ON SCHEMA public TO {owner}", owner=owner)
        before = rights(connection)
        up = ("migrate", "up", "--dsn", as_role(database.dsn, owner), "--create-role", role)
        code, text = run_command(*up)
        assert (code, rights(connection) == before) == (1, True)
        statements = text.strip().rpartition(": ")[2]
        assert statements == (
            f"CREATE ROLE {quoted} LOGIN; GRANT CONNECT ON DATABASE {database.name} TO {quoted}; "
            f"GRANT USAGE ON SCHEMA public TO {quoted}"
        )
        connection.execute(statements.encode())
        code, text = run_command(*up)
        assert (code, f"granted to role {quoted} what an exporter needs" in text) == (0, True)
        assert run_command("doctor", "--dsn", as_role(database.dsn, role))[0] == 0


def test_the_owner_is_named_to_others(roles: Roles, database: Database) -> None:
    """Nobody is told to drop a schema that is in order."""
    owner, rogue, exporter = roles.make("game"), roles.make("rogue"), roles.name("exporter")
    with database.connect() as connection:
        hand_over(connection, database.name, owner)
        execute(connection, "GRANT CREATE ON DATABASE {database} TO {rogue}", database=database.name, rogue=rogue)
        code, text = run_command("migrate", "up", "--dsn", as_role(database.dsn, rogue))
        named = quote_identifier(owner)
        assert (code, f"owns the game's tables, {named}; {quote_identifier(rogue)} does not" in text) == (1, True)
        migrate("up", "--dsn", as_role(database.dsn, owner))
        connection.execute("ALTER TABLE manufacturing_tasks DISABLE TRIGGER mfg_notify_update")
        for dsn in (as_role(database.dsn, rogue), database.dsn):
            for command in (("up",), ("up", "--create-role", exporter), ("down",)):
                code, text = run_command("migrate", *command, "--dsn", dsn)
                assert (code, f"migrate as {named}, not as" in text, "DROP SCHEMA" in text) == (1, True, False), text
        [remedy] = [f.remedy for f in examine(database.dsn, "public", time.time) if f.check == "triggers"]
        assert remedy == f"mfg-notify migrate up, as {named}"


def test_who_could_not_remove_it_may_not_install_it(roles: Roles, database: Database) -> None:
    user = roles.make("user")
    with database.connect() as connection:
        for statement in (
            "GRANT CREATE ON DATABASE {database} TO {user}",
            "GRANT ALL ON ALL TABLES IN SCHEMA public TO {user}",
        ):
            execute(connection, statement, database=database.name, user=user)
        before = rights(connection)
        result = CliRunner().invoke(main, ["migrate", "up", "--dsn", as_role(database.dsn, user)])
        assert (result.exit_code, "install as the role that owns" in result.output) == (1, True)
        assert rights(connection) == before


PLANTED: tuple[LiteralString, ...] = (
    """CREATE SCHEMA mfg_notify;
       CREATE TABLE mfg_notify.lease (only_row boolean PRIMARY KEY, generation bigint, holder text, backend_pid integer,
                                      renewed_at timestamptz);
       CREATE FUNCTION mfg_notify.attack() RETURNS trigger LANGUAGE plpgsql AS
           $$ BEGIN EXECUTE 'CREATE TABLE public.attacked ()'; RETURN NEW; END $$;
       CREATE TRIGGER attack BEFORE INSERT ON mfg_notify.lease FOR EACH ROW EXECUTE FUNCTION mfg_notify.attack()""",
    """CREATE SCHEMA mfg_notify;
       CREATE TABLE mfg_notify.granted (role name, schema name, relation name, col name);
       CREATE FUNCTION mfg_notify.attack() RETURNS trigger LANGUAGE plpgsql AS
           $$ BEGIN EXECUTE 'CREATE TABLE public.attacked ()'; RETURN NEW; END $$;
       CREATE TRIGGER attack BEFORE INSERT ON mfg_notify.granted FOR EACH ROW EXECUTE FUNCTION mfg_notify.attack()""",
    """CREATE SCHEMA mfg_notify;
       CREATE FUNCTION mfg_notify.object_hashes() RETURNS jsonb LANGUAGE plpgsql AS
           $$ BEGIN EXECUTE 'CREATE TABLE public.attacked ()'; RETURN '{}'; END $$;
       CREATE TABLE mfg_notify.settings AS
           SELECT 2 AS version, 'c' AS channel, true AS notify, '{}'::jsonb AS applied, '{}'::jsonb AS objects""",
)


def plant(roles: Roles, database: Database, statements: LiteralString) -> str:
    """Execute statements as a role that may create schemas; return the role."""
    attacker = roles.make("attacker")
    with database.connect() as connection:
        execute(connection, "GRANT CREATE ON DATABASE {database} TO {role}", database=database.name, role=attacker)
    with database.connect(user=attacker) as session:
        session.execute(statements)
    return attacker


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_schema_is_refused(roles: Roles, database: Database, planted: LiteralString) -> None:
    attacker = plant(roles, database, planted)
    with database.connect() as connection:
        before = rights(connection)
        role = roles.name("exporter")
        for arguments in (("up",), ("up", "--create-role", role), ("down",)):
            result = CliRunner().invoke(main, ["migrate", *arguments, "--dsn", database.dsn])
            assert result.exit_code == 1
            assert f"belongs to role {attacker}" in result.output.replace("\n", " ")
            assert "DROP SCHEMA mfg_notify CASCADE" in result.output.replace("\n", " ")
        CliRunner().invoke(main, ["migrate", "status", "--dsn", database.dsn])
        [found] = [finding for finding in examine(database.dsn, "public", time.time) if finding.check == "installation"]
        assert (found.verdict, "belongs to a role" in found.message) == ("failed", True)
        with pytest.raises(errors.InsufficientPrivilege, match="belongs to role"):
            connection.execute(migrations.render_role(role, "public").encode())
        connection.execute("ROLLBACK")
        assert rights(connection) == before
        assert connection.execute("SELECT to_regclass('public.attacked')").fetchone() == (None,)
        connection.execute("DROP SCHEMA mfg_notify CASCADE")
        migrate("up", "--dsn", database.dsn)
        migrate("down", "--dsn", database.dsn)


PLANTED_VIEW: LiteralString = """
    CREATE SCHEMA mfg_notify;
    CREATE FUNCTION mfg_notify.attack() RETURNS integer LANGUAGE plpgsql AS
        $$ BEGIN EXECUTE 'CREATE TABLE public.attacked ()'; RETURN 2; END $$;
    CREATE VIEW mfg_notify.settings AS SELECT mfg_notify.attack() AS version, 'c' AS channel, true AS notify,
                                              '{}'::jsonb AS applied, '{}'::jsonb AS objects
"""


def test_nobody_reads_a_planted_schema(roles: Roles, database: Database, tmp_path: Path) -> None:
    plant(roles, database, PLANTED_VIEW)
    with database.connect() as connection:
        for arguments in (["verify"], ["tail"], ["backfill", "--output", str(tmp_path / "past")]):
            code, said = run_command(*arguments, "--dsn", database.dsn)
            assert (code, "belongs to a role that does not own" in said) == (1, True), said
        with ExporterProcess(database.dsn) as exporter:
            eventually(exporter.read_log, lambda log: "belongs to a role that does not own" in log)
        assert connection.execute("SELECT to_regclass('public.attacked')").fetchone() == (None,)


def test_a_member_of_the_owner_may_install_it(roles: Roles, database: Database) -> None:
    owner, member, reader = roles.make("owner"), roles.make("member", "CREATEROLE"), roles.name("reader")
    with database.connect() as connection:
        for table in ("manufacturing_pipelines", "manufacturing_tasks", "manufacturing_factory_states"):
            execute(connection, "ALTER TABLE {table} OWNER TO {owner}", table=table, owner=owner)
        for statement in (
            "GRANT {owner} TO {member}",
            "GRANT CREATE ON DATABASE {database} TO {member}",
            "GRANT SELECT ON ALL TABLES IN SCHEMA public TO {member} WITH GRANT OPTION",
        ):
            execute(connection, statement, database=database.name, owner=owner, member=member)
    migrate("up", "--dsn", as_role(database.dsn, member), "--create-role", reader)
    exporter_dsn = as_role(database.dsn, reader)
    [found] = [finding for finding in examine(exporter_dsn, "public", time.time) if finding.check == "installation"]
    assert found.verdict == "ok", found
    with ExporterProcess(exporter_dsn) as exporter:
        exporter.wait_ready()


@pytest.mark.parametrize("comment", [False, True])
def test_a_planted_owner_of_the_trigger_functions_is_not_used(
    roles: Roles, database: Database, *, comment: bool
) -> None:
    """Who remains a member of it could read the channel and change functions that the game runs."""
    attacker = roles.make("attacker", "CREATEROLE")
    with database.connect() as connection:
        owner = trigger_role(connection)
        try:
            with database.connect(user=attacker) as session:
                execute(session, "CREATE ROLE {owner}", owner=owner)
                if comment:
                    text = "owner of the trigger functions of mfg-notify, made by its migration"
                    session.execute(
                        sql.SQL("COMMENT ON ROLE {} IS {}").format(sql.Identifier(owner), sql.Literal(text))
                    )
                execute(session, "GRANT {owner} TO {attacker}", owner=owner, attacker=attacker)
            printed = migrate("up", "--dsn", database.dsn)
            [(installer,)] = connection.execute("SELECT current_user").fetchall()
            assert run_as(connection) == [installer]
            assert f"the trigger functions run as {installer}, and everything works" in printed
            assert f"role {owner} has other members" in printed
            with database.connect(user=attacker) as session:
                execute(session, "SET ROLE {owner}", owner=owner)
                assert allowed_of(("SELECT channel FROM mfg_notify.settings",), session) == []
            # A member who joins later is found by the next migration.
            execute(connection, "DROP OWNED BY {owner}", owner=owner)
            execute(connection, "DROP ROLE {owner}", owner=owner)
            connection.execute("DROP FUNCTION mfg_notify.backlog")
            migrate("up", "--dsn", database.dsn)
            assert run_as(connection) == [owner]
            execute(connection, "GRANT {owner} TO {attacker}", owner=owner, attacker=attacker)
            connection.execute("DROP FUNCTION mfg_notify.backlog")
            migrate("up", "--dsn", database.dsn)
            assert run_as(connection) == [installer]
        finally:
            migrate("down", "--dsn", database.dsn)


@pytest.mark.anyio
async def test_another_game_schema(roles: Roles, database: Database) -> None:
    owner, writer, role = roles.make("game", "CREATEROLE"), roles.make("writer"), roles.name("exporter")
    async with await psycopg.AsyncConnection.connect(database.dsn, autocommit=True) as making:
        await create_tables(making, ELSEWHERE)
    with database.connect() as connection:
        # Nobody may connect without an explicit grant.
        for statement in (
            "ALTER SCHEMA {schema} OWNER TO {owner}",
            "ALTER DATABASE {database} OWNER TO {owner}",
            "REVOKE CONNECT ON DATABASE {database} FROM PUBLIC",
            "GRANT CONNECT ON DATABASE {database} TO {writer}",
        ):
            execute(connection, statement, schema=ELSEWHERE, database=database.name, owner=owner, writer=writer)
        hand_over(connection, database.name, owner, ELSEWHERE)
        for statement in (
            "GRANT USAGE ON SCHEMA {schema} TO {role}",
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}",
            "GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {role}",
        ):
            execute(connection, statement, schema=ELSEWHERE, role=writer)
        before = rights(connection)
        options = ("--dsn", as_role(database.dsn, owner), "--game-schema", ELSEWHERE)
        migrate("up", *options, "--create-role", role)
        with ExporterProcess(as_role(database.dsn, role), "--game-schema", ELSEWHERE, *OFTEN) as exporter:
            exporter.wait_ready()
            await play(as_role(database.dsn, writer), GameOptions(rate=0), schema=ELSEWHERE, statements=1000)
            assert lost(connection) == 0
            utilization = "manufacturing_ship_utilization_percent"
            eventually(lambda: value(exporter.page(), utilization, player_id="1"), lambda n: n is not None)
            depth = connection.execute(
                sql.SQL("SELECT count(*) FROM {} WHERE player_id = 1 AND status IN ('PLANNING', 'EXECUTING')").format(
                    sql.Identifier(ELSEWHERE, "manufacturing_pipelines")
                )
            ).fetchone()
            assert depth is not None
            queue = "manufacturing_pipeline_queue_depth"
            eventually(lambda: value(exporter.page(), queue, player_id="1"), lambda n: n == depth[0])
            assert exporter.terminate() == 0
        migrate("down", *options)
        assert rights(connection) == before
        assert not roles.exists(role)


# ----------------------------------------------------------------------------- migrating under an exporter --


@pytest.mark.anyio
async def test_up_from_version_1_under_an_exporter(roles: Roles, database: Database) -> None:
    role = roles.name("exporter")
    with database.connect() as connection:
        truth.install(connection)
        connection.execute(migrations.migrations()[0].up.encode())
        migrations.create_role(connection, "public", role, print)
        with ExporterProcess(as_role(database.dsn, role), *OFTEN) as exporter:
            refusal = eventually(lambda: exporter.get("/-/ready").text, lambda text: "version 1" in text)
            assert "run `mfg-notify migrate up`" in refusal
            await play(database.dsn, GameOptions(seed=5, rate=0), statements=800)
            assert "applied 0002" in migrate("up", "--dsn", database.dsn, "--create-role", role)
            exporter.wait_ready()
            await play(database.dsn, GameOptions(seed=6, rate=0), statements=800)
            wait_exact(exporter, connection)
            assert lost(connection) == 0
            assert exporter.terminate() == 0


def test_up_under_load_loses_nothing(exporter_role: str, installed: Database) -> None:
    with (
        installed.connect() as connection,
        ExporterProcess(as_role(installed.dsn, exporter_role), *OFTEN) as exporter,
    ):
        exporter.wait_ready()
        with simulated_game(installed.dsn, "--rate", "400", "--seed", "9") as game:
            for _ in range(4):
                folded = _folded(connection)
                eventually(lambda: _folded(connection), _above(folded + 50))
                # The one trigger whose absence loses nothing here: a factory row that goes changes gauges only.
                connection.execute("DROP TRIGGER mfg_notify_delete ON manufacturing_factory_states")
                assert len(migrations.up(connection, "public", print)) == len(migrations.migrations())
            assert game.poll() is None
        wait_exact(exporter, connection)
        assert lost(connection) == 0
        assert "waiting for the database" not in exporter.read_log()


def _folded(connection: Connection) -> int:
    row = connection.execute("SELECT last_value FROM mfg_notify.folded").fetchone()
    assert row is not None
    return int(row[0])


def _above(bound: int) -> Callable[[int], bool]:
    return lambda number: number > bound
