"""The game's own statements succeed, whatever is wrong with our schema, and what is lost is counted."""

from collections.abc import Iterator

import anyio
import psycopg
import pytest
from psycopg import sql
from tests import truth
from tests.conftest import Database, Postgres, Roles, create_game_tables
from tests.support import to_trigger_role

from mfg_notify.core.events import Change, FactoryChange, decode_change
from mfg_notify.core.ledger import Fold
from mfg_notify.core.live_state import LiveState
from mfg_notify.postgres import journal, lease, migrations
from mfg_notify.postgres.connection import connect
from mfg_notify.postgres.installation import read_settings
from mfg_notify.postgres.queries import QUERY

INSERT = (
    "INSERT INTO manufacturing_tasks (id, player_id, task_type, status, good) VALUES (%s, 1, 'SELL', 'PENDING', 'G')"
)
STATEMENTS = 20
CHANGES = 3 * STATEMENTS
"""Each row is inserted, updated and deleted."""


@pytest.fixture
def game(installed: Database) -> Iterator[psycopg.Connection]:
    with installed.connect() as connection:
        connection.execute("INSERT INTO players (agent_symbol, token) VALUES ('A', 'x')")
        connection.execute(INSERT, ("warm",))
        yield connection


def play(game: psycopg.Connection) -> None:
    """Play one transaction of many statements, all of which must succeed."""
    with game.transaction():
        for number in range(STATEMENTS):
            game.execute(INSERT, (f"t{number}",))
            game.execute("UPDATE manufacturing_tasks SET status = 'READY' WHERE id = %s", (f"t{number}",))
    assert game.execute("SELECT count(*) FROM manufacturing_tasks WHERE status = 'READY'").fetchone() == (STATEMENTS,)
    game.execute("DELETE FROM manufacturing_tasks WHERE id <> 'warm'")


def lost(game: psycopg.Connection) -> int:
    row = game.execute("SELECT CASE WHEN is_called THEN last_value + 1 ELSE 0 END FROM mfg_notify.lost").fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize(
    ("lock", "counted"),
    [
        ("LOCK TABLE mfg_notify.event IN ACCESS EXCLUSIVE MODE", CHANGES),
        ("LOCK TABLE mfg_notify.settings IN ACCESS EXCLUSIVE MODE", CHANGES),
        ("ALTER SEQUENCE mfg_notify.event_id_seq CYCLE", CHANGES),
        # The counter of losses is locked too: nothing can be counted, and nobody waits for it.
        ("ALTER SEQUENCE mfg_notify.lost CYCLE; LOCK TABLE mfg_notify.event IN ACCESS EXCLUSIVE MODE", 0),
        ("ALTER SEQUENCE mfg_notify.folded CYCLE", CHANGES),
        ("ALTER SEQUENCE mfg_notify.notify_disabled CYCLE", CHANGES),
        # What the triggers do not need: nothing is lost.
        ("ALTER SEQUENCE mfg_notify.lost CYCLE", 0),
        ("LOCK TABLE mfg_notify.total, mfg_notify.lease IN ACCESS EXCLUSIVE MODE", 0),
    ],
)
def test_locked(installed: Database, game: psycopg.Connection, lock: str, counted: int) -> None:
    notices: list[str | None] = []
    game.add_notice_handler(lambda notice: notices.append(notice.message_primary))
    with installed.connect() as other:
        with other.transaction():
            other.execute(lock.encode())
            play(game)
        # The breaker: one wait and one warning a transaction (the last DELETE is one of its own), not one a statement.
        assert len(notices) <= 2
        play(game)
    assert lost(game) == counted


@pytest.mark.parametrize(
    ("harm", "counted"),
    [
        ("DROP SCHEMA mfg_notify CASCADE", False),
        ("DROP TABLE mfg_notify.event CASCADE", True),
        ("DROP SEQUENCE mfg_notify.lost; DROP TABLE mfg_notify.event", False),
        ("DROP TABLE mfg_notify.settings CASCADE", True),
        ("DROP FUNCTION mfg_notify.write_events", True),
        (to_trigger_role("REVOKE ALL ON ALL TABLES IN SCHEMA mfg_notify FROM %1$s"), True),
        (to_trigger_role("REVOKE ALL ON SCHEMA mfg_notify FROM %1$s"), False),
        ("ALTER TABLE mfg_notify.event ADD CHECK (false) NOT VALID", True),
        ("ALTER TABLE mfg_notify.event RENAME TO elsewhere", True),
    ],
)
def test_dropped_or_forbidden(installed: Database, game: psycopg.Connection, harm: str, counted: bool) -> None:
    with installed.connect() as other:
        other.execute(harm.encode())
    play(game)
    with installed.connect() as fresh:  # no plan kept from before
        play(fresh)
        if counted:
            assert lost(fresh) >= CHANGES


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE manufacturing_tasks ADD COLUMN more text DEFAULT 'x'",
        "ALTER TABLE manufacturing_tasks DROP COLUMN quantity",
        "ALTER TABLE manufacturing_tasks ALTER COLUMN status TYPE text",
        "ALTER TABLE manufacturing_tasks RENAME COLUMN good TO product",
        "ALTER TABLE manufacturing_tasks DROP COLUMN assigned_ship",
        "ALTER TABLE manufacturing_tasks RENAME COLUMN ready_at TO was_ready_at",
        "VACUUM FULL manufacturing_tasks",
    ],
)
def test_the_game_changes_its_own_tables(game: psycopg.Connection, change: str) -> None:
    game.execute("UPDATE manufacturing_tasks SET status = 'READY'")
    game.execute(change.encode())
    game.execute("UPDATE manufacturing_tasks SET status = 'PENDING'")
    recorded = game.execute("SELECT count(*) FROM mfg_notify.event WHERE body LIKE '%READY%PENDING%'").fetchone()
    # Either counted or lost and counted as lost.
    assert recorded == ((0 if lost(game) else 1),)


@pytest.mark.parametrize(
    ("harm", "counted", "recorded"),
    [
        ("LOCK TABLE mfg_notify.pending_commit IN ACCESS EXCLUSIVE MODE", 3, 1),
        ("SELECT setval('mfg_notify.event_id_seq', 5000002)", 3, 1),
        # The counter too: nothing can be counted.
        ("SELECT setval('mfg_notify.event_id_seq', 5000002); ALTER SEQUENCE mfg_notify.lost CYCLE", 0, 1),
        ("ALTER SEQUENCE mfg_notify.lost CYCLE", 0, 4),
    ],
)
def test_what_a_transaction_keeps_cannot_be_written(
    installed: Database, game: psycopg.Connection, harm: str, counted: int, recorded: int
) -> None:
    game.execute("TRUNCATE mfg_notify.event")
    notices: list[str | None] = []
    game.add_notice_handler(lambda notice: notices.append(notice.message_primary))
    with installed.connect() as other, other.transaction():
        with game.transaction():
            game.execute(INSERT, ("t0",))
            other.execute(harm.encode())
            for number in range(1, 4):
                game.execute(INSERT, (f"t{number}",))
        assert len(notices) == (recorded < 4)
    assert game.execute("SELECT count(*) FROM manufacturing_tasks").fetchone() == (5,)
    assert game.execute("SELECT count(*) FROM mfg_notify.event").fetchone() == (recorded,)
    assert lost(game) == counted


def test_settings_reset_in_mid_transaction_are_a_counted_loss(game: psycopg.Connection) -> None:
    game.execute("TRUNCATE mfg_notify.event")
    with game.transaction():
        for number in range(3):
            game.execute(INSERT, (f"t{number}",))
        game.execute("RESET ALL")
        for number in range(3, 6):
            game.execute(INSERT, (f"t{number}",))
    kept = game.execute("SELECT array_agg(body::json #>> '{2,2}' ORDER BY id) FROM mfg_notify.event").fetchone()
    assert kept == (["t0", "t3", "t4", "t5"],)
    assert lost(game) >= 2


def count_abandoned(connection: psycopg.Connection) -> None:
    """Count buffers that were never written, as the exporter does at every reconciliation."""
    connection.execute(QUERY["count_abandoned"])


@pytest.mark.parametrize(
    ("harm", "missing"),
    [
        ("RESET ALL", 5),
        ("SET TRANSACTION READ ONLY", 5),
        ("SET LOCAL mfg_notify.buffered = ''", 5),
        ("SET LOCAL mfg_notify.buffered = '+'", 5),
        ("SET LOCAL mfg_notify.buffered = '-1'", 5),
        ("SET LOCAL mfg_notify.buffered = '-99999999999999999999'", 5),
        ("SELECT set_config('mfg_notify.buffered', '+' || pg_current_xact_id()::text || ' 1' || chr(10), true)", 5),
        ("SET mfg_notify.circuit_open = 'rubbish'; SET mfg_notify.buffered = 'rubbish'", 5),
        ("SELECT set_config('mfg_notify.circuit_open', pg_current_xact_id()::text || ' count', true)", 5),
    ],
)
def test_a_buffer_that_is_lost_before_the_commit_is_counted(
    installed: Database, game: psycopg.Connection, harm: str, missing: int
) -> None:
    game.execute("TRUNCATE mfg_notify.event")
    with game.transaction():
        for number in range(6):
            game.execute(INSERT, (f"t{number}",))
        game.execute(harm.encode())
    assert game.execute("SELECT count(*) FROM mfg_notify.event").fetchone() == (1,)
    with installed.connect() as exporter:
        count_abandoned(exporter)
        assert lost(exporter) >= missing
        assert exporter.execute("SELECT count(*) FROM mfg_notify.pending_commit").fetchone() == (0,)


def test_a_buffer_that_was_written_is_no_loss(installed: Database, game: psycopg.Connection) -> None:
    play(game)
    with installed.connect() as exporter:
        count_abandoned(exporter)
        assert lost(exporter) == 0


@pytest.mark.parametrize("setting", ["-1", "+1 1\n[]", "+\n[]", "rubbish"])
def test_settings_of_a_whole_session_do_no_harm(game: psycopg.Connection, setting: str) -> None:
    game.execute("TRUNCATE mfg_notify.event")
    game.execute("SELECT set_config('mfg_notify.buffered', %s, false)", (setting,))
    for number in range(3):
        game.execute(INSERT, (f"t{number}",))
    with game.transaction():
        for number in range(3, 6):
            game.execute(INSERT, (f"t{number}",))
    assert game.execute("SELECT count(*) FROM mfg_notify.event").fetchone() == (6,)
    assert lost(game) == 0


@pytest.mark.parametrize("force", ["", "FORCE"])
def test_row_level_security_is_no_silent_loss(roles: Roles, database: Database, force: str) -> None:
    """Policies may hide rows from our functions: either all is exact, or the change is counted as lost."""
    owner = roles.make("owner")
    with database.connect() as admin:
        for statement in (
            "GRANT CREATE ON DATABASE {} TO {}", "ALTER TABLE manufacturing_pipelines OWNER TO {1}",
            "ALTER TABLE manufacturing_tasks OWNER TO {1}", "ALTER TABLE manufacturing_factory_states OWNER TO {1}",
            "GRANT USAGE, CREATE ON SCHEMA public TO {1}", "GRANT SELECT, INSERT ON players TO {1}",
        ):  # fmt: skip
            admin.execute(sql.SQL(statement).format(sql.Identifier(database.name), sql.Identifier(owner)))
        migrations.up(admin, "public", print)
        admin.execute("INSERT INTO players (agent_symbol, token) VALUES ('A', 'x')")
        for table in ("manufacturing_pipelines", "manufacturing_tasks", "manufacturing_factory_states"):
            admin.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY".encode())
            if force:
                admin.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY".encode())
            # Only the game's role sees the rows.
            admin.execute(
                sql.SQL("CREATE POLICY own ON {} TO {} USING (true)").format(
                    sql.Identifier(table), sql.Identifier(owner)
                )
            )
        for number in (1, 2):
            admin.execute(
                """INSERT INTO manufacturing_pipelines (id, player_id, product_good, sell_market, expected_price,
                                                        status)
                   VALUES (%s, 1, 'G', 'M', 1, 'EXECUTING')""", (f"p{number}",),
            )  # fmt: skip
            admin.execute(
                """INSERT INTO manufacturing_factory_states (factory_symbol, output_good, player_id, pipeline_id,
                                                             required_inputs, current_supply)
                   VALUES ('F', 'G', 1, %s, '[]', 'LIMITED')""", (f"p{number}",),
            )  # fmt: skip
        admin.execute("TRUNCATE mfg_notify.event")
    with database.connect(user=owner) as game:
        game.execute("UPDATE manufacturing_factory_states SET current_supply = 'HIGH' WHERE pipeline_id = 'p2'")
        game.execute("UPDATE manufacturing_pipelines SET status = 'COMPLETED' WHERE id = 'p1'")
    with database.connect() as admin:
        bodies = [body for (body,) in admin.execute("SELECT body FROM mfg_notify.event ORDER BY id").fetchall()]
        events = [decode_change(body) for body in bodies]
        told = [event.new for event in events if isinstance(event, FactoryChange)]
        assert len(events) + lost(admin) == 2
        assert all(row is not None and row.is_current for row in told)


def test_five_million_ids_that_were_rolled_back_are_no_backlog(installed: Database, game: psycopg.Connection) -> None:
    """Ids are handed out, and their events rolled back: the journal is empty, whatever the sequence says."""
    fold_once(installed)
    game.execute("SELECT setval('mfg_notify.event_id_seq', 6000000)")
    game.execute(INSERT, ("given up",))
    assert lost(game) == 1
    fold_once(installed)
    game.execute(INSERT, ("recorded",))
    assert lost(game) == 1
    assert game.execute("SELECT count(*) FROM mfg_notify.event").fetchone() == (1,)


def test_an_old_transaction_takes_nothing_back(installed: Database, game: psycopg.Connection) -> None:
    with installed.connect() as slow:
        with slow.transaction():
            slow.execute(INSERT, ("slow",))
            game.execute("SELECT setval('mfg_notify.event_id_seq', 6000000)")
            fold_once(installed)
        fold_once(installed)
    game.execute(INSERT, ("recorded",))
    assert lost(game) == 0


def fold_once(installed: Database) -> Fold:
    """Fold as an exporter does that has just started."""

    async def fold() -> Fold:
        connection = await connect(installed.dsn)
        async with connection:
            assert await lease.acquire(connection, "test", 5, from_the_dead=True)
            done = await journal.fold(connection, "test", "test", 1000)
            assert done is not None
            return done

    return anyio.run(fold)


@pytest.mark.parametrize(
    "body",
    [
        '["task","U",["READY",null,"t\\u0000","SELL","COMPLETED",null],[0,0,0,1,0,0,0],[null,null,null]]',
        '["pipeline","U",["READY","p","G","COMPLETED"],[0,0,0,1,0,0,0],[null,"292277-01-09T04:00:54+00:00"]]',
        '["pipeline","U",["READY","p","G","COMPLETED"],[0,0,0,1,0,9223372036854775807,0],[null,"2026-01-01T00:00:00Z"]]',
        '["task","U",["READY",null,"t","SELL","COMPLETED",null],[0,0,0,1,0,1e30,0],[null,null,null]]',
        "rubbish",
    ],
)
def test_a_buffer_filled_by_hand_does_not_stop_a_fold(installed: Database, game: psycopg.Connection, body: str) -> None:
    fold_once(installed)
    with game.transaction():
        game.execute(INSERT, ("first",))
        game.execute(INSERT, ("second",))
        for _ in range(3):
            game.execute(
                """SELECT set_config('mfg_notify.buffered',
                                     current_setting('mfg_notify.buffered') || chr(10) || %s, true)""",
                (body,),
            )
    done = fold_once(installed)
    assert done.drained
    assert len(done.events) + done.malformed == 5
    assert game.execute("SELECT count(*) FROM mfg_notify.event").fetchone() == (0,)


@pytest.mark.parametrize("goods", [4_000, 40_000])
def test_a_factory_with_many_inputs_is_no_stall(game: psycopg.Connection, goods: int) -> None:
    game.execute("SET statement_timeout = '5s'")
    game.execute(
        """INSERT INTO manufacturing_factory_states (factory_symbol, output_good, player_id, required_inputs,
                                                     delivered_inputs)
           SELECT 'F', 'G', 1, jsonb_agg('GOOD_' || i),
                  jsonb_object_agg('GOOD_' || i, jsonb_build_object('delivered', i %% 2 = 0, 'ship', md5(i::text)))
           FROM generate_series(1, %s) i""",
        (goods,),
    )
    row = game.execute("SELECT body FROM mfg_notify.event ORDER BY id DESC LIMIT 1").fetchone()
    assert row is not None
    change = decode_change(row[0])
    assert isinstance(change, FactoryChange)
    assert change.new is not None
    assert (change.new.inputs_delivered, change.new.inputs_required) == (goods // 2, goods)
    assert len(row[0]) < 200


TOUCH = """
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    {}
    RETURN NULL;
END $$;
CREATE TRIGGER {} AFTER INSERT OR UPDATE ON {} FOR EACH ROW EXECUTE FUNCTION touch({});
"""


@pytest.mark.parametrize("name", ["a_touch", "z_touch"])
@pytest.mark.parametrize("status", ["COMPLETED", "FAILED"])
def test_a_trigger_of_the_game_that_changes_the_same_row_again(
    installed: Database, game: psycopg.Connection, name: str, status: str
) -> None:
    """Its event may stand before that of the change that fired it; the row's last image is the last one told."""
    game.execute(
        TOUCH.format(
            """IF NEW.status = 'COMPLETED' AND NEW.total_revenue = 0 THEN
                UPDATE manufacturing_pipelines SET total_revenue = 1000, status = TG_ARGV[0] WHERE id = NEW.id;
            END IF;""", name, "manufacturing_pipelines", f"'{status}'",
        ).encode()
    )  # fmt: skip
    for key, begins_as in (("p", "EXECUTING"), ("q", "COMPLETED")):
        game.execute(
            """INSERT INTO manufacturing_pipelines (id, player_id, product_good, sell_market, expected_price, status,
                                                    started_at, completed_at)
               VALUES (%s, 1, 'G', 'M', 1, %s, now(), now())""",
            (key, begins_as),
        )
    game.execute("UPDATE manufacturing_pipelines SET status = 'COMPLETED' WHERE id = 'p'")
    done = fold_once(installed)
    state = LiveState()
    for event in done.events:
        state.apply(event)
    assert not state.gauges().products
    profits = {key: row.profit for key, row in done.settlement.completions.items()}
    assert profits == ({"p": 1000, "q": 1000} if status == "COMPLETED" else {"p": None, "q": None})
    assert truth.compare_totals(game) == []
    assert lost(game) == 0


def test_a_game_trigger_changes_other_rows_of_the_statement(installed: Database, game: psycopg.Connection) -> None:
    game.execute(
        TOUCH.format(
            """IF NEW.id = 't1' AND NEW.status = 'READY' THEN
                UPDATE manufacturing_tasks SET status = 'ASSIGNED', assigned_ship = 'S' WHERE id = 't2';
                DELETE FROM manufacturing_tasks WHERE id = 't3';
            END IF;""", "z_touch", "manufacturing_tasks", "",
        ).encode()
    )  # fmt: skip
    game.execute("DELETE FROM manufacturing_tasks")
    for number in (1, 2, 3):
        game.execute(INSERT, (f"t{number}",))
    game.execute("UPDATE manufacturing_tasks SET status = 'READY'")
    done = fold_once(installed)
    state = LiveState()
    for event in done.events:
        state.apply(event)
    gauges = state.gauges().samples
    assert gauges["manufacturing_tasks_executing_total"] == {("1", "SELL"): 1}
    assert gauges["manufacturing_tasks_ready_total"] == {("1", "SELL"): 1}
    assert truth.compare_totals(game) == []


def test_the_game_alters_a_table_that_it_has_just_written(game: psycopg.Connection) -> None:
    """Triggers that wait for the COMMIT would forbid it, if they were on the game's own tables."""
    with game.transaction():
        for number in range(3):
            game.execute(INSERT, (f"t{number}",))
        game.execute("ALTER TABLE manufacturing_tasks ADD COLUMN more text DEFAULT 'x'")
        game.execute("UPDATE manufacturing_tasks SET status = 'READY'")
    assert game.execute("SELECT count(*) FROM mfg_notify.event").fetchone() == (1 + 3 + 4,)
    assert lost(game) == 0


def test_prepared_transactions_still_work(postgres: Postgres) -> None:
    with postgres.make({"max_prepared_transactions": "5"}) as server:
        create_game_tables(server.dsn())
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            migrations.up(connection, "public", print)
            installed = read_settings(connection)
            assert installed is not None
            assert not installed.notify
            connection.execute("INSERT INTO players (agent_symbol, token) VALUES ('A', 'x')")
            connection.execute("BEGIN")
            for key in ("t", "u", "v"):
                connection.execute(INSERT, (key,))
            connection.execute("PREPARE TRANSACTION 'two phases'")
            connection.execute("COMMIT PREPARED 'two phases'")
            assert connection.execute("SELECT count(*) FROM mfg_notify.event").fetchone() == (3,)
            # Installed by a version of ours that did not ask, or before the setting was raised.
            connection.execute("UPDATE mfg_notify.settings SET notify = true")
            raised = read_settings(connection)
            assert raised is not None
            assert not raised.notify
            connection.execute("BEGIN")
            connection.execute(INSERT, ("w",))
            connection.execute("PREPARE TRANSACTION 'raised'")
            connection.execute("COMMIT PREPARED 'raised'")


def test_a_warning_that_the_game_cannot_read(installed: Database, game: psycopg.Connection) -> None:
    """What its encoding has no letters for is an error to a client, in a warning as well."""
    game.execute('ALTER TABLE mfg_notify.event ADD CONSTRAINT "журнал" CHECK (false) NOT VALID')
    with installed.connect(client_encoding="latin1") as old_fashioned:
        play(old_fashioned)
    assert lost(game) == CHANGES


def test_serializable_transactions_on_own_rows_pass(installed: Database, game: psycopg.Connection) -> None:
    play(game)
    insert = """INSERT INTO manufacturing_tasks (id, player_id, task_type, status, good)
                SELECT %s, id, 'SELL', 'PENDING', 'G' FROM players LIMIT 1"""
    with installed.connect() as other:
        for number in range(20):
            with game.transaction(), other.transaction():
                for connection, key in ((game, f"a{number}"), (other, f"b{number}")):
                    connection.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
                    connection.execute(insert, (key,))
                for connection, key in ((other, f"b{number}"), (game, f"a{number}")):
                    connection.execute("UPDATE manufacturing_tasks SET status = 'READY' WHERE id = %s", (key,))
    assert lost(game) == 0


def alter(table: str, column: str, kind: str, using: str = "") -> str:
    """Return the statement that gives a column of the game another type."""
    return f"ALTER TABLE manufacturing_{table} ALTER COLUMN {column} TYPE {kind} {using}"


def enum(table: str, column: str, labels: str) -> str:
    """Return the statements that make a column of the game an enum."""
    return (
        f"DROP INDEX IF EXISTS manufacturing_tasks_to_assign; CREATE TYPE game_{column} AS ENUM ({labels});"
        f" ALTER TABLE manufacturing_{table} DROP CONSTRAINT IF EXISTS manufacturing_{table}_status,"
        f" ALTER COLUMN {column} DROP DEFAULT,"
        f" ALTER COLUMN {column} TYPE game_{column} USING {column}::text::game_{column}"
    )


UUIDS = """ALTER TABLE manufacturing_tasks DROP CONSTRAINT manufacturing_tasks_pipeline_id_fkey;
ALTER TABLE manufacturing_factory_states DROP CONSTRAINT manufacturing_factory_states_pipeline_id_fkey;
ALTER TABLE manufacturing_pipelines ALTER COLUMN id TYPE uuid USING id::uuid;
ALTER TABLE manufacturing_factory_states ALTER COLUMN pipeline_id TYPE uuid USING pipeline_id::uuid;
ALTER TABLE manufacturing_tasks ALTER COLUMN pipeline_id TYPE uuid USING pipeline_id::uuid;
ALTER TABLE manufacturing_factory_states ADD FOREIGN KEY (pipeline_id) REFERENCES manufacturing_pipelines (id)
    ON DELETE CASCADE"""


@pytest.mark.parametrize(
    "alteration",
    [
        alter("tasks", "id", "text"), alter("tasks", "status", "text"), alter("tasks", "player_id", "bigint"),
        alter("tasks", "total_revenue", "numeric"), alter("tasks", "total_revenue", "numeric(14,2)"),
        alter("tasks", "assigned_ship", "text"), alter("tasks", "completed_at", "timestamp"),
        alter("tasks", "ready_at", "timestamptz(3)"),
        enum("tasks", "status", "'PENDING', 'READY', 'ASSIGNED', 'EXECUTING', 'COMPLETED', 'FAILED'"),
        UUIDS, alter("pipelines", "status", "text"), alter("pipelines", "net_profit", "bigint"),
        alter("pipelines", "total_cost", "numeric"), alter("pipelines", "started_at", "timestamp"),
        enum("pipelines", "status", "'PLANNING', 'EXECUTING', 'COMPLETED', 'FAILED', 'CANCELLED'"),
        alter("factory_states", "id", "bigint"), alter("factory_states", "required_inputs", "json"),
        alter("factory_states", "delivered_inputs", "json"), alter("factory_states", "current_supply", "text"),
        enum("factory_states", "current_supply", "'SCARCE', 'LIMITED', 'MODERATE', 'HIGH', 'ABUNDANT'"),
        alter("factory_states", "required_inputs", "text"),
    ],
)  # fmt: skip
def test_columns_of_another_type_are_recorded_as_before(
    installed: Database, game: psycopg.Connection, alteration: str
) -> None:
    """In the session that was there before, in one that begins afterwards, and after the triggers are made anew."""
    pipeline = "5f0e8c6a-3b5f-4a51-9d39-3b8f2a7b1c11"
    live = (
        ("""INSERT INTO manufacturing_pipelines (id, player_id, product_good, sell_market, expected_price, status)
            VALUES (%s, 1, 'G', 'M', 1, 'PLANNING')""", (pipeline,)),
        ("""INSERT INTO manufacturing_tasks (id, player_id, task_type, status, good)
            VALUES ('t', 1, 'SELL', 'PENDING', 'G')""", ()),
        ("""INSERT INTO manufacturing_factory_states (id, factory_symbol, output_good, player_id, pipeline_id,
                                                      required_inputs, delivered_inputs)
            VALUES (7, 'F', 'G', 1, %s, '["IRON"]', '{"IRON": {"delivered": true}}')""", (pipeline,)),
        ("UPDATE manufacturing_pipelines SET status = 'EXECUTING', started_at = '2026-01-01 00:00+00'", ()),
        ("UPDATE manufacturing_pipelines SET expected_price = 2", ()),
        ("UPDATE manufacturing_pipelines SET total_cost = 3, total_revenue = 9, net_profit = 6", ()),
        ("UPDATE manufacturing_tasks SET status = 'READY', ready_at = '2026-01-01 00:00:01.5+00' WHERE id = 't'", ()),
        ("UPDATE manufacturing_tasks SET assigned_ship = 'S-1', total_revenue = 5 WHERE id = 't'", ()),
        ("UPDATE manufacturing_tasks SET priority = 5", ()),
        ("UPDATE manufacturing_factory_states SET current_supply = 'HIGH', ready_for_collection = true", ()),
        ("""UPDATE manufacturing_factory_states
            SET delivered_inputs = '{"IRON": {"delivered": true, "quantity": 5}}'""", ()),
        ("UPDATE manufacturing_factory_states SET ready_at = now()", ()),
        ("UPDATE manufacturing_tasks SET id = 'u' WHERE id = 't'", ()),
        ("DELETE FROM manufacturing_tasks WHERE id = 'u'", ()),
        ("DELETE FROM manufacturing_pipelines", ()),
    )  # fmt: skip

    def play_in(session: psycopg.Connection) -> list[Change]:
        """Write each table in every way; return the changes that were recorded."""
        session.execute("TRUNCATE mfg_notify.event")
        for statement, values in live:
            session.execute(statement.encode(), values or None)
        assert lost(session) == 0
        rows = session.execute("SELECT body FROM mfg_notify.event ORDER BY id").fetchall()
        return [decode_change(body) for (body,) in rows]

    game.execute("SET timezone = 'UTC'")
    before = play_in(game)
    assert len(before) == 14
    with installed.connect() as other:
        other.execute(f"SET timezone = 'UTC'; {alteration}".encode())
    assert play_in(game) == before
    assert play_in(game) == before
    with installed.connect(options="-c timezone=UTC") as newcomer:
        assert play_in(newcomer) == before
        newcomer.execute(migrations.migrations()[0].up.encode())
        assert play_in(newcomer) == before
    assert play_in(game) == before


@pytest.mark.parametrize("harm", ["DROP COLUMN total_cost", "RENAME COLUMN total_cost TO cost"])
@pytest.mark.parametrize("warm", [True, False])
def test_a_watched_column_that_is_gone_is_a_loss_that_is_counted(
    installed: Database, game: psycopg.Connection, harm: str, *, warm: bool
) -> None:
    with installed.connect() as other:
        if not warm:
            other.execute(f"ALTER TABLE manufacturing_tasks {harm}".encode())
            game = other
        for number, status in enumerate(("READY", "ASSIGNED", "EXECUTING", "PENDING")):
            if warm and number == 2:
                other.execute(f"ALTER TABLE manufacturing_tasks {harm}".encode())
            game.execute("UPDATE manufacturing_tasks SET status = %s", (status,))
        assert lost(other) == (2 if warm else 4)
