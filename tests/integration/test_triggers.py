"""What the triggers write and notify, statement by statement, and what they never do."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from tests.conftest import Database

from mfg_notify.core.events import Event, FactoryImage, TaskImage, decode_change, decode_payload

PIPELINE = """INSERT INTO manufacturing_pipelines (id, player_id, product_good, sell_market, expected_price, status)
              VALUES (%s, 1, 'LASER_RIFLES', 'M', 1, %s)"""
TASK = (
    "INSERT INTO manufacturing_tasks (id, player_id, task_type, status, good) VALUES (%s, 1, 'COLLECT_SELL', %s, 'G')"
)
TASKS = """INSERT INTO manufacturing_tasks (id, player_id, task_type, status, good)
           SELECT 't' || i, 1, 'COLLECT_SELL', 'PENDING', 'G' FROM generate_series(1, %s) i"""
FACTORY = """INSERT INTO manufacturing_factory_states (id, factory_symbol, output_good, player_id, pipeline_id,
                                                       required_inputs, delivered_inputs, current_supply)
             VALUES (%s, 'X1-F', 'LASER_RIFLES', 1, %s, %s, %s, %s)"""


class Bench:
    """One writer, one listener, one look into the journal."""

    def __init__(self, database: Database) -> None:
        self.game = database.connect()
        self.listening = database.connect()
        row = self.game.execute("SELECT channel FROM mfg_notify.settings").fetchone()
        assert row is not None
        self.channel = row[0]
        self.listening.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self.channel)))
        self.game.execute("INSERT INTO players (agent_symbol, token) VALUES ('A', 'x')")

    def write(self, query: str, *values: object) -> list[Event]:
        """Execute one statement of the game; return the events that it wrote."""
        self.game.execute("DELETE FROM mfg_notify.event")
        self.notified()
        self.game.execute(query.encode(), values or None)
        return self.journal()

    def journal(self) -> list[Event]:
        """Return the events in the journal."""
        rows = self.game.execute(
            """SELECT id, xid::text::bigint, (extract(epoch FROM at) * 1000000)::bigint, body
               FROM mfg_notify.event ORDER BY id"""
        ).fetchall()
        return [Event(number, xid, at, decode_change(body)) for number, xid, at, body in rows]

    def notified(self) -> list[str]:
        """Return the payloads that have come since the last call."""
        self.listening.execute("SELECT 1")  # notifications come with its answer
        return [notification.payload for notification in self.listening.notifies(timeout=0)]

    def lost(self) -> int:
        """Return how many changes were given up."""
        row = self.game.execute(
            "SELECT CASE WHEN is_called THEN last_value + 1 ELSE 0 END FROM mfg_notify.lost"
        ).fetchone()
        assert row is not None
        return int(row[0])


@pytest.fixture
def bench(installed: Database) -> Iterator[Bench]:
    bench = Bench(installed)
    yield bench
    bench.game.close()
    bench.listening.close()


def images(event: Event) -> tuple[Any, Any]:
    return event.change.old, event.change.new


def test_payload_is_the_journal_row(bench: Bench) -> None:
    bench.write(TASK, "t", "PENDING")
    [event] = bench.write("UPDATE manufacturing_tasks SET status = 'READY', ready_at = now()")
    [payload] = bench.notified()
    assert decode_payload(payload) == event
    old, new = images(event)
    assert (old.status, new.status, old.ready_at) == ("PENDING", "READY", None)
    row = bench.game.execute(
        "SELECT (extract(epoch FROM ready_at) * 1000000)::bigint FROM manufacturing_tasks"
    ).fetchone()
    assert row == (new.ready_at,)
    [event] = bench.write("UPDATE manufacturing_tasks SET status = 'ASSIGNED'")
    # No number asks for the times of an old image.
    assert [image.ready_at for image in images(event)] == [None, new.ready_at]


def test_save_that_changes_nothing_writes_nothing(bench: Bench) -> None:
    bench.write(TASK, "t", "PENDING")
    assert bench.write("UPDATE manufacturing_tasks SET status = status, good = 'H', priority = 9") == []
    assert bench.write("UPDATE manufacturing_tasks SET status = 'READY' WHERE id = 'nobody'") == []
    assert bench.notified() == []


def test_upsert_is_one_event(bench: Bench) -> None:
    upsert = TASK + " ON CONFLICT (id) DO UPDATE SET status = excluded.status"
    assert [event.change.operation for event in bench.write(upsert, "t", "PENDING")] == ["I"]
    assert [event.change.operation for event in bench.write(upsert, "t", "READY")] == ["U"]


def test_a_row_under_another_key_goes_on(bench: Bench) -> None:
    bench.write(TASK, "t", "PENDING")
    events = bench.write("UPDATE manufacturing_tasks SET id = 'u', status = 'READY'")
    assert [(event.change.operation, event.change.key) for event in events] == [("D", "t"), ("U", "u")]
    assert isinstance(events[1].change.old, TaskImage)
    assert events[1].change.old.status == "PENDING"


def test_cascaded_delete_and_truncate(bench: Bench) -> None:
    bench.write(PIPELINE, "p", "EXECUTING")
    bench.write(FACTORY, 1, "p", "[]", "{}", None)
    bench.write(TASK, "done", "COMPLETED")
    bench.write(TASK, "live", "READY")
    bench.write("UPDATE manufacturing_tasks SET pipeline_id = 'p'")
    events = bench.write("DELETE FROM manufacturing_pipelines")
    # The end of a finished row changes no number, and is not worth an event.
    assert sorted((event.table, event.change.operation, event.change.key) for event in events) == [
        ("factory", "D", "1"),
        ("pipeline", "D", "p"),
        ("task", "D", "live"),
    ]
    events = bench.write("TRUNCATE manufacturing_pipelines CASCADE")
    assert {(event.table, event.change.operation) for event in events} == {
        (table, "T") for table in ("pipeline", "task", "factory")
    }


def test_many_rows_are_two_notifications(bench: Bench) -> None:
    assert len(bench.write(TASKS, 12)) == 12
    assert len(bench.notified()) == 12
    assert len(bench.write("UPDATE manufacturing_tasks SET status = 'READY'")) == 12
    bench.write("DELETE FROM manufacturing_tasks")
    bench.notified()
    assert len(bench.write(TASKS, 1001)) == 1001
    # The first was announced before anyone knew that there are so many.
    first, rest = bench.notified()
    assert '"t1"' in first
    assert rest == "fold"


def test_many_statements_in_a_transaction_are_two_notifications(bench: Bench) -> None:
    bench.write(TASKS, 12)
    bench.notified()

    def save(retries: int) -> None:
        bench.game.execute("UPDATE manufacturing_tasks SET retry_count = %s", (retries,))

    with bench.game.transaction():
        save(1)
        with bench.game.transaction(force_rollback=True):
            save(2)  # what was not done is not announced
        bench.game.execute("UPDATE manufacturing_tasks SET status = 'READY' WHERE id = 't1'")
        for number in range(3, 13):
            save(number)
    first, rest = bench.notified()
    assert '"t1"' in first
    assert rest == "fold"
    save(13)
    assert len(bench.notified()) == 12
    events = bench.journal()
    assert len(events) == 12 + 12 + 1 + 10 * 12 + 12
    # Whatever was written at once, kept, or written before the end: in the order in which it was done.
    retries = [images(event)[1].retry_count for event in events if event.change.key == "t7"]
    assert retries == [0, 1, *range(3, 14)]


def test_savepoints(bench: Bench) -> None:
    def insert(key: str) -> None:
        bench.game.execute(TASK, (key, "PENDING"))

    bench.write("SELECT 1")
    with bench.game.transaction():
        with bench.game.transaction(force_rollback=True):
            insert("gone with the first of all")
        insert("a")
        with bench.game.transaction(force_rollback=True):
            insert("gone with the first that is kept")
            insert("gone")
        insert("b")
        with bench.game.transaction():
            insert("c")
            with bench.game.transaction(force_rollback=True):
                for number in range(100):
                    insert(f"gone when written before the end {number}")
        insert("d")
    assert [event.change.key for event in bench.journal()] == ["a", "b", "c", "d"]
    assert len(bench.notified()) == 4
    with bench.game.transaction(force_rollback=True):
        insert("e")
        insert("f")
    assert len(bench.journal()) == 4
    assert bench.lost() == 0


def test_truncate_comes_after_what_was_before_it(bench: Bench) -> None:
    bench.write("SELECT 1")
    with bench.game.transaction():
        for key in ("a", "b"):
            bench.game.execute(TASK, (key, "PENDING"))
        bench.game.execute("TRUNCATE manufacturing_tasks CASCADE")
        bench.game.execute(TASK, ("c", "PENDING"))
    assert [event.change.operation for event in bench.journal()] == ["I", "I", "T", "I"]


def test_constraints_that_are_checked_at_once(bench: Bench) -> None:
    """The game may ask for it; then the end of a transaction is that of each statement, and 100 payloads are enough."""
    bench.write("SELECT 1")
    with bench.game.transaction():
        for number in range(10):
            bench.game.execute(TASK, (f"a{number}", "PENDING"))
        bench.game.execute("SET CONSTRAINTS ALL IMMEDIATE")
        for number in range(100):
            bench.game.execute(TASK, (f"b{number}", "PENDING"))
    assert len(bench.journal()) == 110
    assert len(bench.notified()) == 100 + 1
    assert bench.lost() == 0


def test_the_games_own_settings_do_no_harm(bench: Bench) -> None:
    bench.game.execute(
        "SET mfg_notify.announced = 'rubbish'; SET mfg_notify.circuit_open = 'rubbish';"
        "SET mfg_notify.buffered = 'rubbish'"
    )
    assert len(bench.write(TASKS, 3)) == 3
    assert len(bench.notified()) == 3
    assert bench.lost() == 0


def test_payload_that_cannot_travel_says_fold(bench: Bench) -> None:
    bench.game.execute("ALTER TABLE manufacturing_tasks ALTER assigned_ship TYPE text")
    bench.game.execute(
        "ALTER TABLE manufacturing_tasks ALTER task_type TYPE text, DROP CONSTRAINT manufacturing_tasks_type"
    )
    bench.write(TASK, "t", "PENDING")
    [event] = bench.write("UPDATE manufacturing_tasks SET assigned_ship = 'Ümläut'")
    assert images(event)[1].assigned_ship == "Ümläut"
    [payload] = bench.notified()
    assert decode_payload(payload) == event
    [event] = bench.write("UPDATE manufacturing_tasks SET assigned_ship = repeat('x', 100000)")
    assert images(event)[1].assigned_ship == "x" * 128
    # JSON writes each of these as six characters: many such payloads would fill the queue.
    controls = "UPDATE manufacturing_tasks SET assigned_ship = repeat(chr(%s), 128), task_type = repeat(chr(%s), 128)"
    bench.write(controls, 1, 1)
    [event] = bench.write(controls, 2, 2)
    assert images(event)[1].task_type == "\2" * 128
    assert bench.notified() == ["fold"]
    [event] = bench.write("UPDATE manufacturing_tasks SET assigned_ship = ''")
    assert images(event)[1].assigned_ship is None


def test_times_that_are_none(bench: Bench) -> None:
    bench.write(TASK, "t", "PENDING")
    [event] = bench.write(
        """UPDATE manufacturing_tasks SET ready_at = 'infinity', started_at = '0001-01-01 00:00:00Z',
           completed_at = '294276-12-31 23:59:59Z', retry_count = NULL, total_cost = NULL, status = 'READY'"""
    )
    new = images(event)[1]
    assert (new.ready_at, new.started_at, new.completed_at) == (None, None, None)
    assert (new.retry_count, new.total_cost) == (0, 0)


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kathmandu", "America/St_Johns"])
@pytest.mark.parametrize("style", ["ISO, MDY", "German", "SQL, DMY"])
def test_times_do_not_depend_on_the_session(bench: Bench, zone: str, style: str) -> None:
    bench.game.execute("SELECT set_config('timezone', %s, false), set_config('datestyle', %s, false)", (zone, style))
    [event] = bench.write(
        """INSERT INTO manufacturing_tasks (id, player_id, task_type, status, good, ready_at)
           VALUES ('t', 1, 'SELL', 'READY', 'G', '2026-03-29 01:59:59.999999+00')"""
    )
    assert images(event)[1].ready_at == 1774749599999999


def test_microseconds_are_exact_to_the_last(bench: Bench) -> None:
    rows = bench.game.execute(
        """SELECT format('["task","I",[null,null,"t","SELL","READY",null],[0,0,0,0,1,0,0,0,0],[%s,null,null]]',
                         to_json(t)),
                  (extract(epoch FROM t) * 1000000)::bigint
           FROM (SELECT timestamptz '1970-01-01 00:00:00Z' + interval '1 day 7919 microseconds' * i
                 FROM generate_series(0, 40000) i) s (t)"""
    ).fetchall()
    changes = [(decode_change(body).new, expected) for body, expected in rows]
    assert len(changes) == 40001
    assert all(isinstance(new, TaskImage) and new.ready_at == expected for new, expected in changes)


@pytest.mark.parametrize(
    ("required", "delivered", "expected"),
    [
        ('["A", "B"]', '{"A": {"delivered": true}, "B": {"delivered": false}, "C": {"delivered": true}}', (1, 2)),
        ("[]", "{}", (0, 0)),
        ('["A"]', None, (0, 1)),
        ('{"odd": 1}', '["odd"]', (0, 0)),
        ("null", "null", (0, 0)),
    ],
)
def test_inputs_count_by_delivered(
    bench: Bench, required: str, delivered: str | None, expected: tuple[int, int]
) -> None:
    [event] = bench.write(FACTORY, 1, None, required, delivered, None)
    new = images(event)[1]
    assert (new.inputs_delivered, new.inputs_required) == expected


def test_only_the_newest_live_row_speaks(bench: Bench) -> None:
    for name, status in (("old", "EXECUTING"), ("new", "PLANNING"), ("gone", "COMPLETED")):
        bench.write(PIPELINE, name, status)
    bench.write(FACTORY, 1, None, "[]", "{}", "LIMITED")
    for number, name in ((2, "old"), (3, "new"), (4, "gone")):
        bench.write(FACTORY, number, name, "[]", "{}", "LIMITED")
    bench.game.execute(
        """INSERT INTO players (agent_symbol, token) VALUES ('B', 'y');
           INSERT INTO manufacturing_factory_states (id, factory_symbol, output_good, player_id, required_inputs)
           VALUES (9, 'X1-F', 'LASER_RIFLES', 2, '[]')"""
    )

    def speakers() -> dict[str, bool | None]:
        events = bench.write(
            "UPDATE manufacturing_factory_states SET current_supply = current_supply || '!' WHERE id < 9"
        )
        news = [(event.change.key, event.change.new) for event in events]
        return {key: new.is_current for key, new in news if isinstance(new, FactoryImage)}

    assert speakers() == {"1": False, "2": False, "3": True, "4": False}
    bench.write("UPDATE manufacturing_pipelines SET status = 'FAILED' WHERE id = 'new'")
    assert speakers() == {"1": False, "2": True, "3": False, "4": False}
    bench.write("UPDATE manufacturing_pipelines SET status = 'FAILED' WHERE id = 'old'")
    assert speakers() == {"1": True, "2": False, "3": False, "4": False}
    [event] = bench.write("UPDATE manufacturing_factory_states SET delivered_inputs = '{\"A\": 1}' WHERE id = 1")
    assert images(event)[1].is_current is None


def test_no_notification_where_it_is_off(bench: Bench) -> None:
    bench.game.execute("UPDATE mfg_notify.settings SET notify = false")
    assert len(bench.write(TASK, "t", "PENDING")) == 1
    assert bench.notified() == []


def test_journal_without_an_exporter_does_not_grow_for_ever(bench: Bench) -> None:
    bench.game.execute("SELECT setval('mfg_notify.event_id_seq', 5000002)")
    assert bench.write(TASK, "t", "PENDING") == []
    assert bench.lost() == 1
    bench.game.execute("SELECT setval('mfg_notify.folded', 5000000)")
    assert len(bench.write(TASK, "u", "PENDING")) == 1
    assert bench.lost() == 1


def test_ordinary_role_cannot_use_our_functions(bench: Bench, installed: Database) -> None:
    bench.game.execute(
        """DO $$ BEGIN CREATE ROLE mfg_test_ordinary LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
           CREATE SCHEMA own AUTHORIZATION mfg_test_ordinary"""
    )
    with installed.connect(user="mfg_test_ordinary") as ordinary:
        ordinary.execute("CREATE TABLE own.bait (id text)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            ordinary.execute(
                """CREATE TRIGGER t AFTER INSERT ON own.bait REFERENCING NEW TABLE AS new_rows
                   FOR EACH STATEMENT EXECUTE FUNCTION mfg_notify.task_changed()"""
            )
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            ordinary.execute("SELECT channel FROM mfg_notify.settings")
