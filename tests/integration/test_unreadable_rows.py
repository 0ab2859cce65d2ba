"""One bad row is one bad row: it is left out, counted and named, and everything else stays exact."""

import time
from typing import LiteralString

import psycopg
import pytest
from tests import truth
from tests.conftest import Database
from tests.game_rows import add_pipeline, add_player, add_ship, add_task
from tests.samples import value
from tests.support import ExporterProcess, eventually

from mfg_notify.diagnosis.doctor import examine
from mfg_notify.postgres.journal import DEAD_LETTERS_KEPT

OFTEN = ("--reconcile-interval", "200ms")
TASK = {"player_id": "1", "task_type": "SELL"}


def wait_for(exporter: ExporterProcess, name: str, wanted: float, **labels: str) -> str:
    """Wait until a sample has this value; return the page."""
    return eventually(exporter.page, lambda page: value(page, name, **labels) == wanted)


def finding(dsn: str) -> str:
    """Return what doctor says about rows that cannot be read."""
    return next(found.message for found in examine(dsn, "public", time.time) if found.check == "unreadable")


def play(game: psycopg.Connection) -> None:
    """Write good rows, one of each table that counts."""
    add_player(game)
    add_pipeline(game, "p", status="EXECUTING")
    add_task(game, "good", status="READY")
    game.execute("UPDATE manufacturing_tasks SET status = 'ASSIGNED', assigned_ship = 'S-1' WHERE id = 'good'")


def test_a_live_task_without_a_player(installed: Database) -> None:
    with installed.connect() as game:
        play(game)
        game.execute("ALTER TABLE manufacturing_tasks ALTER COLUMN player_id DROP NOT NULL")
        add_task(game, "bad", status="READY", player_id=None)
        with ExporterProcess(installed.dsn, *OFTEN) as exporter:
            exporter.wait_ready()
            page = wait_for(exporter, "mfg_notify_unreadable_rows", 1, table="manufacturing_tasks")
            assert value(page, "manufacturing_tasks_executing_total", **TASK) == 1
            assert value(page, "manufacturing_task_assignments_total", **TASK) == 1
            assert "manufacturing_tasks bad" in finding(installed.dsn)
            # Its event is not one either. It is kept where an operator can see it.
            [(body, reason)] = game.execute("SELECT body, reason FROM mfg_notify.dead_letter").fetchall()
            assert '"bad"' in body
            assert "got `null`" in reason
            game.execute("UPDATE manufacturing_tasks SET player_id = 1 WHERE id = 'bad'")
            wait_for(exporter, "mfg_notify_unreadable_rows", 0, table="manufacturing_tasks")
            wait_for(exporter, "manufacturing_tasks_ready_total", 1, **TASK)
            assert exporter.get("/-/ready").status_code == 200


@pytest.mark.parametrize(
    ("harm", "idle"),
    [
        ("ALTER TABLE ships DROP CONSTRAINT ships_pkey; ALTER TABLE ships ALTER player_id DROP NOT NULL;"
         " UPDATE ships SET player_id = NULL WHERE ship_symbol = 'S-2'", 1),
        ("ALTER TABLE ships DROP CONSTRAINT ships_assignment_status; ALTER TABLE ships"
         " ALTER assignment_status DROP DEFAULT,"
         " ALTER assignment_status TYPE boolean USING assignment_status = 'idle'", 0),
        ("ALTER TABLE ships DROP CONSTRAINT ships_pkey, DROP CONSTRAINT IF EXISTS ships_player_id_fkey,"
         " ALTER player_id TYPE text USING 'nobody'", 0),
    ],
)  # fmt: skip
def test_ships_that_cannot_be_read(installed: Database, harm: LiteralString, idle: int) -> None:
    with installed.connect() as game:
        play(game)
        for ship in ("S-1", "S-2", "S-3"):
            add_ship(game, ship)
        game.execute(harm)
        with ExporterProcess(installed.dsn, *OFTEN) as exporter:
            exporter.wait_ready()
            # Without the table, the ships are those that tasks name.
            page = wait_for(exporter, "manufacturing_ships_idle_total", idle, player_id="1")
            assert value(page, "manufacturing_tasks_executing_total", **TASK) == 1
            assert ("an optional table cannot be read" in exporter.read_log()) is ("'nobody'" in harm)


def test_journal_rows_that_are_no_events(installed: Database) -> None:
    def kept() -> tuple[int, bool]:
        [found] = game.execute("SELECT count(*), bool_or(body = 'one more') FROM mfg_notify.dead_letter").fetchall()
        return found

    with installed.connect() as game:
        truth.install(game)
        play(game)
        game.execute(
            "INSERT INTO mfg_notify.event (body) SELECT 'junk ' || n FROM generate_series(1, %s) AS n",
            (DEAD_LETTERS_KEPT + 500,),
        )
        with ExporterProcess(installed.dsn, *OFTEN) as exporter:
            wait_for(exporter, "mfg_notify_events_rejected_total", DEAD_LETTERS_KEPT + 500, reason="malformed")
            eventually(kept, lambda found: found == (DEAD_LETTERS_KEPT, False))
            assert truth.compare_totals(game) == []
            assert f"{DEAD_LETTERS_KEPT} rows of the journal could not be read" in finding(installed.dsn)
            game.execute("INSERT INTO mfg_notify.event (body) VALUES ('one more')")
            eventually(kept, lambda found: found == (DEAD_LETTERS_KEPT, True))
