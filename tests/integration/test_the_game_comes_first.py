"""The game's own statements succeed, whatever is wrong with our schema, and what is lost is counted."""

from collections.abc import Iterator

import psycopg
import pytest
from tests.conftest import Database, Postgres, create_game_tables

from mfg_notify.postgres import migrations
from mfg_notify.postgres.installation import read_settings

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
        ("REVOKE ALL ON ALL TABLES IN SCHEMA mfg_notify FROM mfg_notify_owner", True),
        ("REVOKE ALL ON SCHEMA mfg_notify FROM mfg_notify_owner", False),
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


def test_settings_that_are_reset_in_mid_transaction_are_a_loss_that_is_counted(game: psycopg.Connection) -> None:
    game.execute("TRUNCATE mfg_notify.event")
    with game.transaction():
        for number in range(3):
            game.execute(INSERT, (f"t{number}",))
        game.execute("RESET ALL")
        for number in range(3, 6):
            game.execute(INSERT, (f"t{number}",))
    kept = game.execute("SELECT array_agg(substr(body, 16, 2) ORDER BY id) FROM mfg_notify.event").fetchone()
    assert kept == (["t0", "t3", "t4", "t5"],)
    assert lost(game) == 1


def test_the_game_changes_a_table_in_the_transaction_that_writes_it(game: psycopg.Connection) -> None:
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


def test_a_warning_that_the_game_cannot_read(installed: Database, game: psycopg.Connection) -> None:
    """What its encoding has no letters for is an error to a client, in a warning as well."""
    game.execute('ALTER TABLE mfg_notify.event ADD CONSTRAINT "журнал" CHECK (false) NOT VALID')
    with installed.connect(client_encoding="latin1") as old_fashioned:
        play(old_fashioned)
    assert lost(game) == CHANGES


def test_serializable_transactions_on_rows_of_their_own_are_not_refused(
    installed: Database, game: psycopg.Connection
) -> None:
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


@pytest.mark.parametrize(
    "alteration",
    [
        "ALTER TABLE manufacturing_tasks ALTER COLUMN {} TYPE {}".format(*change)
        for change in (
            ("id", "text"), ("status", "text"), ("player_id", "bigint"), ("total_revenue", "numeric"),
            ("assigned_ship", "text"), ("completed_at", "timestamp"),
        )
    ]
    + [
        "ALTER TABLE manufacturing_pipelines ALTER COLUMN status TYPE text",
        "ALTER TABLE manufacturing_pipelines ALTER COLUMN net_profit TYPE bigint",
        "ALTER TABLE manufacturing_factory_states ALTER COLUMN id TYPE bigint",
        "ALTER TABLE manufacturing_factory_states ALTER COLUMN required_inputs TYPE json",
        "ALTER TABLE manufacturing_factory_states ALTER COLUMN current_supply TYPE text",
    ],
)  # fmt: skip
def test_a_session_that_was_there_before_a_column_got_another_type(
    installed: Database, game: psycopg.Connection, alteration: str
) -> None:
    def live(round_: str) -> list[str]:
        """Write each table in every way; return the events."""
        game.execute("TRUNCATE mfg_notify.event")
        game.execute(
            """INSERT INTO manufacturing_pipelines (id, player_id, product_good, sell_market, expected_price)
               VALUES ('p', 1, 'G', 'M', 1)"""
        )
        game.execute(INSERT, ("t",))
        game.execute(
            """INSERT INTO manufacturing_factory_states (id, factory_symbol, output_good, player_id, pipeline_id,
                                                         required_inputs, delivered_inputs)
               VALUES (7, 'F', 'G', 1, 'p', '["IRON"]', '{"IRON": {"delivered": true}}')"""
        )
        for statement in (
            "UPDATE manufacturing_pipelines SET status = 'EXECUTING', started_at = '2026-01-01 00:00+00'",
            "UPDATE manufacturing_pipelines SET expected_price = 2",
            "UPDATE manufacturing_tasks SET status = 'READY', ready_at = '2026-01-01 00:00:01.5+00' WHERE id = 't'",
            "UPDATE manufacturing_tasks SET assigned_ship = 'S-1', total_revenue = 5 WHERE id = 't'",
            "UPDATE manufacturing_tasks SET priority = 5",
            "UPDATE manufacturing_factory_states SET current_supply = 'HIGH', ready_for_collection = true",
            """UPDATE manufacturing_factory_states
               SET delivered_inputs = '{"IRON": {"delivered": true, "quantity": 5}}'""",
            "UPDATE manufacturing_factory_states SET ready_at = now()",
            "UPDATE manufacturing_tasks SET id = 'u' WHERE id = 't'",
            "DELETE FROM manufacturing_tasks WHERE id = 'u'",
            "DELETE FROM manufacturing_pipelines",
        ):
            game.execute(statement.encode())
        assert lost(game) == 0, round_
        return [body for (body,) in game.execute("SELECT body FROM mfg_notify.event ORDER BY id").fetchall()]

    before = live("before")
    assert len(before) == 13
    with installed.connect() as other:
        other.execute(alteration.encode())
    assert live("after") == before


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
