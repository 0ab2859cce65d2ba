"""Large statements, and transactions with more notifications than the server's queue holds."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psycopg
from psycopg import errors, sql
from tests.faults.rig import Rig, fault
from tests.game_rows import add_player
from tests.samples import number
from tests.support import eventually, peak_memory

PIPELINES = """INSERT INTO manufacturing_pipelines (id, player_id, product_good, sell_market, expected_price, status,
                                                    started_at)
               SELECT 'many-' || i, %(player)s, 'GOOD_' || i %% 40, 'M', 1, 'EXECUTING', now()
               FROM generate_series(1, %(pipelines)s) i"""
FACTORIES = """INSERT INTO manufacturing_factory_states (factory_symbol, output_good, player_id, pipeline_id,
                                                         required_inputs, current_supply)
               SELECT 'F-' || i %% 50, 'GOOD_' || i %% 40, %(player)s, 'many-' || i, '["IRON"]', 'SCARCE'
               FROM generate_series(1, %(pipelines)s) i"""
TASKS = """INSERT INTO manufacturing_tasks (id, pipeline_id, player_id, task_type, status, good)
           SELECT 'many-' || i, 'many-' || 1 + i %% %(pipelines)s, %(player)s, 'COLLECT_SELL', 'PENDING', 'G'
           FROM generate_series(1, %(rows)s) i"""
STATEMENTS = (
    PIPELINES,
    FACTORIES,
    TASKS,
    "UPDATE manufacturing_tasks SET status = 'READY', ready_at = now() WHERE id LIKE 'many-%%'",
    # Half of these rows exist already.
    """INSERT INTO manufacturing_tasks (id, player_id, task_type, status, good)
       SELECT 'many-' || i + %(rows)s / 2, %(player)s, 'LIQUIDATE', 'READY', 'G' FROM generate_series(1, %(rows)s) i
       ON CONFLICT (id) DO UPDATE SET status = 'EXECUTING', assigned_ship = 'SHIP-1', started_at = now()""",
    "UPDATE manufacturing_factory_states SET current_supply = 'HIGH', ready_for_collection = true",
    # Makes finished pipelines.
    """UPDATE manufacturing_pipelines SET status = 'COMPLETED', completed_at = now(), total_revenue = 7
       WHERE id LIKE '%%7'""",
)
MERGE = """MERGE INTO manufacturing_tasks t
           USING (SELECT 'many-' || i + %(rows)s AS id FROM generate_series(1, %(rows)s) i) s ON s.id = t.id
           WHEN MATCHED AND t.id LIKE '%%3' THEN DELETE
           WHEN MATCHED THEN UPDATE SET status = 'COMPLETED', started_at = now() - interval '40 s',
                                        completed_at = now(), total_cost = 3, total_revenue = 5
           WHEN NOT MATCHED THEN INSERT (id, player_id, task_type, status, good)
                                 VALUES (s.id, %(player)s, 'DELIVER', 'FAILED', 'G')"""
DELETE = "DELETE FROM manufacturing_pipelines WHERE id ~ '^many-.*[0-4]$'"
TRUNCATE = "TRUNCATE manufacturing_pipelines CASCADE"
NOTIFICATIONS = 101
"""Most notifications of one transaction of the game: 100 payloads and one 'fold'."""


@contextmanager
def listening_session(rig: Rig) -> Iterator[psycopg.Connection]:
    """Listen to the triggers' channel on another connection."""
    with rig.connect() as connection:
        [(channel,)] = connection.execute("SELECT channel FROM mfg_notify.settings").fetchall()
        connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
        yield connection


def received_payloads(listening: psycopg.Connection) -> list[str]:
    """Return the triggers' payloads that came since the last call."""
    listening.execute("SELECT 1")  # the server sends notifications with the answer
    payloads = [notification.payload for notification in listening.notifies(timeout=0)]
    return [payload for payload in payloads if not payload.startswith(("ping ", "barrier "))]


@fault("one statement, many rows")
def one_statement_many_rows(rig: Rig) -> None:
    rows = rig.rounds(5_000, 100_000)
    with rig.exporter("--notify", "always") as exporter, listening_session(rig) as listening, rig.connect() as game:
        exporter.wait_ready()
        before = peak_memory(exporter)
        player = add_player(game, "MANY")
        merges = (MERGE,) if game.info.server_version >= 150000 else ()
        for statement in (*STATEMENTS, *merges, DELETE, TRUNCATE):
            game.execute(statement, {"rows": rows, "pipelines": rows // 100, "player": player})
            rig.harm("large statements")
            sent = len(received_payloads(listening))
            rig.report.figure("notifications of a statement", sent)
            if not 0 < sent <= NOTIFICATIONS:
                rig.violation(f"I4: {sent} notifications of one statement: {statement}")
        rig.check(exporter)
        rig.report.figure("growth of the exporter's memory in MiB", peak_memory(exporter) - before)


@fault("notification queue full", settings={"max_notify_queue_pages": "64"}, version=17)
def notification_queue_full(rig: Rig) -> None:
    with rig.exporter("--notify", "always") as exporter:
        exporter.wait_ready()
        with rig.game(), rig.connect() as game:
            player = add_player(game, "MANY")
            parameters = {"rows": 400, "pipelines": 40, "player": player}
            for statement in (PIPELINES, TASKS):
                game.execute(statement, parameters)
            for _ in range(rig.rounds(1, 6)):
                with rig.connect() as stuck:
                    # A listener that stays in a transaction prevents the server from emptying the queue.
                    stuck.execute("LISTEN elsewhere")
                    stuck.execute("BEGIN")
                    stuck.execute("SELECT 1")
                    rig.wait_for_events(exporter, 20)
                    _many_statements_in_a_transaction(rig, game)
                    while queue_usage(game) < 0.25:
                        game.execute(
                            "UPDATE manufacturing_tasks SET priority = priority + 1, retry_count = retry_count + 1"
                            " WHERE id IN (SELECT 'many-' || i FROM generate_series(1, 90) i)"
                        )
                    _many_statements_in_a_transaction(rig, game)
                    rig.wait_for_events(exporter, 20)  # the journal works without notifications
                    # Any client may fill the rest of the queue. The game does not need it.
                    fill_queue(rig)
                    rig.report.figure("queue usage in %", 100 * queue_usage(game))
                    _many_statements_in_a_transaction(rig, game)
                    rig.harm("queues filled")
                eventually(lambda: queue_usage(game), lambda usage: usage < 0.25)
                exporter.wait_ready()
                with listening_session(rig) as listening:
                    eventually(lambda listening=listening: len(received_payloads(listening)) > 0)  # type: ignore[misc]
                rig.wait_for_events(exporter, 20)
        rig.check(exporter)
        assert number(exporter.page(), "mfg_notify_lost_changes_total") == 0


def _many_statements_in_a_transaction(rig: Rig, game: psycopg.Connection) -> None:
    """Play one transaction with more changes than the queue could hold, and one statement of 400 rows."""
    with game.transaction():
        for number_of_statement in range(rig.rounds(25, 300)):
            game.execute(
                "UPDATE manufacturing_tasks SET status = %s, retry_count = retry_count + 1"
                " WHERE id IN (SELECT 'many-' || i FROM generate_series(1, 90) i)",
                ("READY" if number_of_statement % 2 else "PENDING",),
            )
    game.execute("UPDATE manufacturing_tasks SET total_revenue = total_revenue + 1 WHERE id LIKE 'many-%'")
    rig.harm("transactions larger than the queue")


def fill_queue(rig: Rig) -> None:
    """Notify until the server refuses more."""
    with rig.connect() as connection, suppress(errors.ProgramLimitExceeded):
        while True:
            connection.execute(sql.SQL("NOTIFY elsewhere, {}").format(sql.Literal("x" * 7999)))


def queue_usage(connection: psycopg.Connection) -> float:
    """Return the usage of the server's notification queue, 0 to 1."""
    [(usage,)] = connection.execute("SELECT pg_notification_queue_usage()").fetchall()
    return float(usage)
