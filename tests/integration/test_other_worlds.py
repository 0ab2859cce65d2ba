"""What a database administrator may do around the game: the numbers stay exact, or somebody says why they are not.

docs/operations.md has the table of it, "In other surroundings".
"""

import time
from typing import LiteralString

import psycopg
from psycopg import sql
from tests.conftest import Database
from tests.game_rows import add_factory, add_pipeline, add_player, add_task, ago

from mfg_notify.diagnosis.doctor import Finding, examine

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


def test_a_buffer_is_written_whatever_strings_mean_to_the_session(installed: Database) -> None:
    """With standard_conforming_strings off, a regular expression in a function has another meaning."""
    with installed.connect(options="-c standard_conforming_strings=off") as game:
        add_player(game)
        with game.transaction():
            for number_ in range(3):
                add_task(game, f"t{number_}")
        assert game.execute("SELECT count(*) FROM mfg_notify.event").fetchone() == (3,)
        assert lost(game) == 0
