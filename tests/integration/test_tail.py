"""`mfg-notify tail`: what it shows, how it reports what it could not show, and how it ends."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from tests.conftest import Database, Postgres, create_game_tables
from tests.game_rows import add_pipeline, add_player, add_task, add_tasks
from tests.support import PATIENCE, ExporterProcess, Process, eventually, run_command, simulated_game

from mfg_notify.core.events import (
    Event,
    FactoryChange,
    FactoryImage,
    PipelineChange,
    PipelineImage,
    TaskChange,
    TaskImage,
    decode_change,
    decode_payload,
)
from mfg_notify.diagnosis.tail.gaps import Gap, ShownEvents
from mfg_notify.diagnosis.tail.output import format_json, format_line
from mfg_notify.postgres import migrations

pytestmark = pytest.mark.slow

PIPE_SIZE = 65536


@contextmanager
def tailing(dsn: str, *options: str, stdout: int | None = None) -> Iterator[Process]:
    """Run tail; it listens by the time the block begins. `stdout` is for the process alone, and closed here."""
    with Process([sys.executable, "-m", "mfg_notify", "tail", "--dsn", dsn, *options], stdout=stdout) as tail:
        if stdout is not None:
            os.close(stdout)
        tail.wait_for("following")
        yield tail


def objects(printed: str) -> list[dict[str, Any]]:
    """Return the JSON objects in the complete lines."""
    return [json.loads(line) for line in printed.split("\n")[:-1] if line.startswith("{")]


# ------------------------------------------------------------------------------------------------- shown --


def test_events_beside_an_exporter(exporter_dsn: str, installed: Database) -> None:
    with ExporterProcess(exporter_dsn) as exporter, tailing(exporter_dsn) as tail:
        exporter.wait_ready()
        with installed.connect() as game:
            add_player(game)
            add_task(game, "t-1", status="READY")
            with game.transaction():
                game.execute("UPDATE manufacturing_tasks SET status = 'ASSIGNED', assigned_ship = 'SHIP-1'")
                game.execute("UPDATE manufacturing_tasks SET status = 'COMPLETED', total_revenue = 12000")
        printed = tail.wait_for("COMPLETED")
        events = [line for line in printed.splitlines() if "player" in line]
        assert [re.sub(r"^\d\d:\d\d:\d\d\.\d{3}  ", "", line) for line in events] == [
            "player 1  task      t-1  SELL  new → READY",
            "player 1  task      t-1  SELL  READY → ASSIGNED  ship SHIP-1",
            "player 1  task      t-1  SELL  ASSIGNED → COMPLETED  ship SHIP-1  earned 12,000",
        ]
        assert tail.terminate(signal.SIGINT) == 0
        # The exporter has received the three notifications of the game, and nothing from tail.
        eventually(exporter.page, lambda page: "mfg_notify_notifications_received_total 3.0" in page)
        assert "level=warning" not in exporter.read_log()


def test_every_event_once_and_the_rest_counted(installed: Database) -> None:
    with installed.connect() as connection, tailing(installed.dsn, "--json") as tail:
        with simulated_game(installed.dsn, "--rate", "600", "--seed", "3"):
            eventually(lambda: len(objects(tail.read_log())) > 500)
        [(last,)] = connection.execute("SELECT last_value FROM mfg_notify.event_id_seq").fetchall()
        journal = {
            event_id: decode_change(body).key
            for event_id, body in connection.execute("SELECT id, body FROM mfg_notify.event").fetchall()
        }

        def accounted() -> int:
            found = objects(tail.read_log())
            return sum(item["not_shown"]["events"] if "not_shown" in item else 1 for item in found)

        eventually(accounted, lambda events: events >= last)
        # Without an exporter, the journal contains every committed event. Exactly these are shown, each once; the
        # missing ones were rolled back.
        assert accounted() == last
        shown = [(item["id"], item["key"]) for item in objects(tail.read_log()) if "not_shown" not in item]
        assert dict(shown) == journal
        assert len(shown) == len(journal)


def test_events_without_a_payload_are_read_in_the_journal(installed: Database) -> None:
    rows = 300
    with tailing(installed.dsn, "--json") as tail:
        with installed.connect() as game:
            add_player(game)
            with game.transaction():
                add_tasks(game, rows)
                add_pipeline(game, product_good="EISENTRÄGER")
        # Without an exporter, all of them stay in the journal.
        eventually(lambda: len(objects(tail.read_log())) > rows)
        shown = objects(tail.read_log())
        assert [item["id"] for item in shown] == list(range(1, rows + 2))
        assert shown[-1]["new"]["product_good"] == "EISENTRÄGER"


def test_events_that_are_folded_first_are_counted(installed: Database) -> None:
    with installed.connect() as folder, tailing(installed.dsn) as tail:
        # Like a fast exporter: the events are gone before tail can read them.
        with folder.transaction():
            add_player(folder)
            add_tasks(folder, 150, status="READY")
            folder.execute("SET CONSTRAINTS ALL IMMEDIATE")  # write the buffered events now, to delete them below
            folder.execute("DELETE FROM mfg_notify.event")
        tail.wait_for("t1  SELL  new → READY")
        printed = tail.wait_for("… 149 events are not shown (within numbers 2 to 150): ")
        assert "notified without content, and folded before they could be read" in printed
        # An event without any notification, as under load; the event after it is shown.
        with folder.transaction():
            folder.execute("UPDATE mfg_notify.settings SET notify = false")
            folder.execute("UPDATE manufacturing_tasks SET status = 'ASSIGNED' WHERE id = 't1'")
            folder.execute("DELETE FROM mfg_notify.event")
            folder.execute("UPDATE mfg_notify.settings SET notify = true")
        folder.execute("UPDATE manufacturing_tasks SET status = 'COMPLETED' WHERE id = 't1'")
        tail.wait_for("ASSIGNED → COMPLETED")
        tail.wait_for("… 1 event is not shown (number 151): ")


def test_notify_disabled_under_load(installed: Database) -> None:
    with installed.connect() as connection, tailing(installed.dsn) as tail:
        add_player(connection)
        connection.execute("SELECT setval('mfg_notify.notify_disabled', 1)")
        add_task(connection, "t-1", status="READY")
        tail.wait_for("t-1  SELL  new → READY")
        with connection.transaction():
            add_task(connection, "t-2", status="READY")
            connection.execute("DELETE FROM mfg_notify.event")
        printed = tail.wait_for("… 1 event is not shown (number 2): ")
        assert "NOTIFY is disabled while changes come fast, and an exporter folded them first" in printed
        connection.execute("SELECT setval('mfg_notify.notify_disabled', 0)")
        add_task(connection, "t-3", status="READY")
        tail.wait_for("t-3  SELL  new → READY")
        assert tail.read_log().count("t-1") == 1


def test_an_event_of_an_open_transaction_is_not_missing(installed: Database) -> None:
    with installed.connect() as slow, installed.connect() as quick, tailing(installed.dsn) as tail:
        add_player(slow)
        with slow.transaction():
            add_task(slow, "slow", status="READY")
            add_task(quick, "quick", status="READY")
            tail.wait_for("quick")
            # It has polled since then, and knows event 1 only by its id.
            wait_for_polls(quick)
            assert "not shown" not in tail.read_log()
        assert "not shown" not in tail.wait_for("slow")
        with slow.transaction(force_rollback=True):
            add_task(slow, "never", status="READY")
        assert "rolled back" in tail.wait_for("not shown (number")


def wait_for_polls(connection: psycopg.Connection) -> None:
    """Wait until tail has polled the journal a few more times."""
    polls: set[object] = set()

    def count() -> int:
        polls.update(
            connection.execute(
                """SELECT query_start FROM pg_stat_activity
                   WHERE datname = current_database() AND application_name = 'mfg-notify tail'
                     AND query ~ 'FROM mfg_notify.event WHERE'"""
            ).fetchall()
        )
        return len(polls)

    eventually(count, lambda found: found > 3)


def test_notify_switched_off(installed: Database) -> None:
    with installed.connect() as connection:
        connection.execute("UPDATE mfg_notify.settings SET notify = false")
        add_player(connection)
        with tailing(installed.dsn) as tail:
            assert "NOTIFY is switched off in this database" in tail.read_log()
            add_task(connection, "t-1", status="READY")
            tail.wait_for("t-1  SELL  new → READY")
            # When NOTIFY is switched on, tail connects again and goes on.
            connection.execute("UPDATE mfg_notify.settings SET notify = true")
            tail.wait_for("connected again")
            add_task(connection, "t-2", status="READY")
            tail.wait_for("t-2  SELL  new → READY")


# --------------------------------------------------------------------------------------------------- end --


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(installed: Database, number: signal.Signals) -> None:
    with tailing(installed.dsn) as tail:
        assert tail.terminate(number) == 0
        assert "Traceback" not in tail.read_log()


def test_the_pipe_closes(installed: Database) -> None:
    reading, writing = os.pipe()
    with tailing(installed.dsn, stdout=writing) as tail:
        with subprocess.Popen(["head", "-1"], stdin=reading, stdout=subprocess.PIPE, text=True) as head:
            os.close(reading)
            with installed.connect() as game:
                add_player(game)
                add_task(game, "t-1")
            output, _ = head.communicate(timeout=PATIENCE)
        assert "t-1" in output
        # It ends although the game changes nothing more.
        assert tail.process.wait(PATIENCE) == 0
        assert len(tail.read_log().splitlines()) == 1


def test_a_reader_that_does_not_read(installed: Database) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading), tailing(installed.dsn, "--json", stdout=writing) as tail:
        with installed.connect() as game:
            add_player(game)
            add_tasks(game, 1000)
        # The pipe is full, except for parts of its pages. A signal still ends the process while it waits to write.
        eventually(lambda: waiting_in(reading), lambda size: size > PIPE_SIZE - select.PIPE_BUF)
        assert tail.terminate(signal.SIGINT) == 0
        assert "Traceback" not in tail.read_log()


def waiting_in(pipe: int) -> int:
    """Return the number of unread bytes in a pipe."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4), sys.byteorder)


def test_the_database_goes_away_and_comes_back(postgres: Postgres) -> None:
    with postgres.make() as server:
        create_game_tables(server.dsn())
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            migrations.up(connection, "public", print)
            add_player(connection)
        with tailing(server.dsn()) as tail:
            with psycopg.connect(server.dsn()) as game:
                add_task(game, "before")
            tail.wait_for("before")
            server.restart("fast")
            # It may not have connected again yet; then it finds this event in the journal.
            with psycopg.connect(server.dsn()) as game:
                add_task(game, "meanwhile")
            tail.wait_for("connected again")
            tail.wait_for("meanwhile")
            with psycopg.connect(server.dsn()) as game:
                add_task(game, "after")
            tail.wait_for("after")
            assert tail.read_log().count("trying again") == 1
            assert tail.terminate(signal.SIGINT) == 0


def test_no_first_connection(database: Database) -> None:
    for dsn, said in (
        ("host=127.0.0.1 port=1 user=u dbname=d", "refused"),
        (database.dsn, "mfg-notify migrate up"),
        (make_conninfo(database.dsn, user="nobody here"), "does not exist"),
    ):
        code, text = run_command("tail", "--dsn", dsn)
        assert code == 1
        assert text.startswith("Error: ")
        assert said in text
        assert "Traceback" not in text


# ------------------------------------------------------------------------------------------------- looks --


def test_colours_on_a_terminal(installed: Database) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal, tailing(installed.dsn, stdout=theirs):
        with installed.connect() as game:
            add_player(game)
            add_pipeline(game, product_good="\x1b[2J\x07IRON")
            game.execute("UPDATE manufacturing_pipelines SET status = 'FAILED'")
        printed = b""
        while b"FAILED" not in printed:
            printed += terminal.read(65536) or b""
        assert b"\x1b[31m" in printed
        # Control characters that the game wrote do not reach the terminal.
        assert b"\x1b[2J" not in printed
        assert "\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}IRON".encode() in printed


AT = 1_700_000_000_000_000


def line(change: PipelineChange | TaskChange | FactoryChange) -> str:
    return format_line(Event(1, 2, AT, change)).plain.split("  ", 1)[1]


def test_lines() -> None:
    planned = PipelineImage(1, "IRON", "EXECUTING", 100, 0, 0, AT, None)
    done = PipelineImage(1, "IRON", "COMPLETED", 1200, 3400, 2200, AT, AT)
    assert line(PipelineChange("U", "p", planned, done)) == (
        "player 1  pipeline  p  IRON  EXECUTING → COMPLETED  profit +2,200"
    )
    assert line(PipelineChange("D", "p", planned, None)) == "player 1  pipeline  p  IRON  EXECUTING → deleted"
    tried = TaskImage(2, "SELL", "EXECUTING", "SHIP-1", 0, 0, 0, None, None, None)
    again = TaskImage(2, "SELL", "EXECUTING", "SHIP-1", 1, 500, 0, None, None, None)
    assert line(TaskChange("U", "t", tried, again)) == (
        "player 2  task      t  SELL  EXECUTING  ship SHIP-1  retry 1, spent 500"
    )
    assert line(TaskChange("T", "", None, None)) == "task  all rows removed"
    short = FactoryImage(3, "X1-A", "IRON", None, 1, 3, None, False, None)
    full = FactoryImage(3, "X1-A", "IRON", None, 3, 3, "HIGH", True, True)
    assert line(FactoryChange("U", "7", short, full)) == (
        "player 3  factory   7  X1-A IRON  supply unknown → HIGH  ready for collection, 3 of 3 inputs"
    )
    assert line(FactoryChange("I", "7", None, full)) == "player 3  factory   7  X1-A IRON  supply new → HIGH"


def test_json() -> None:
    task = TaskImage(2, "SELL", "READY", None, 1, 0, 0, AT, None, None)
    assert json.loads(format_json(Event(1, 2, AT, TaskChange("I", "t", None, task)))) == {
        "id": 1, "xid": 2, "at": "2023-11-14T22:13:20.000000+00:00", "table": "task", "operation": "insert",
        "key": "t", "player_id": 2, "old": None,
        "new": {
            "player_id": 2, "task_type": "SELL", "status": "READY", "assigned_ship": None, "retry_count": 1,
            "total_cost": 0, "total_revenue": 0, "ready_at": "2023-11-14T22:13:20.000000+00:00", "started_at": None,
            "completed_at": None, "actual_quantity": None,
        },
    }  # fmt: skip
    printed = json.loads(format_json(Event(1, 2, AT, TaskChange("U", "t", task, task))))
    assert printed["old"].items() <= printed["new"].items()
    assert printed["new"].keys() - printed["old"].keys() == {"ready_at", "started_at", "completed_at"}
    assert json.loads(format_json(Gap(3, 1, 7, "why"))) == {
        "not_shown": {"events": 3, "first_id": 1, "last_id": 7, "reason": "why"}
    }


@pytest.fixture(params=["Asia/Tokyo", "America/Los_Angeles"])
def _zone(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", request.param)
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("_zone")
@pytest.mark.parametrize(
    "at",
    ["9999-12-31T23:59:59.999999+00:00", "9999-12-31T23:59:59.999999-15:59", "1970-01-01T00:00:00.000000+00:00"],
)
def test_times_at_the_ends_of_the_calendar(at: str) -> None:
    """Anyone who knows the channel may send such a time, and must not end `tail` with it."""
    event = decode_payload(
        f'[1,1,1,"{at}",["task","I",[null,null,"t","SELL","READY",null],[null,null,null,null,1,0,0,0,null],["{at}",null,null]]]'
    )
    printed = json.loads(format_json(event))
    assert printed["at"] == printed["new"]["ready_at"] == at.replace("-15:59", "+00:00")
    assert "player 1  task" in format_line(event).plain


def test_gaps_are_found_once_their_transactions_have_ended() -> None:
    shown = ShownEvents(10)
    assert shown.add(11)
    assert not shown.add(11)
    shown.observe(14, 100)
    # Transaction 99 is still open: nothing is known to be missing.
    assert shown.settle(99, "why") is None
    assert shown.add(13)
    shown.observe(20, 105)
    assert shown.settle(100, "why") == Gap(2, 12, 14, "why")
    assert shown.settle(104, "why") is None
    for number in range(15, 21):
        assert shown.add(number)
    assert shown.settle(105, "why") is None
    assert shown.floor == 20
