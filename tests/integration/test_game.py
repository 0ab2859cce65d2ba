"""The simulated game on a real database."""

import math
from typing import Any, Protocol

import anyio
import psycopg
import pytest

from mfg_notify.demo.game import GameProgress, create_tables, play
from mfg_notify.demo.world import Daemon, GameOptions

AS_FAST_AS_POSSIBLE = GameOptions(players=2, rate=math.inf)


class Database(Protocol):
    """The fixture: a fresh database that has the game's tables."""

    @property
    def dsn(self) -> str:
        """Its connection string."""


def one(database: Database, query: str) -> Any:  # noqa: ANN401 - whatever the query returns
    with psycopg.connect(database.dsn) as connection:
        row = connection.execute(query.encode()).fetchone()
        assert row is not None
        return row[0]


def test_rows_read_as_a_game(database: Database) -> None:
    progress = anyio.run(lambda: play(database.dsn, AS_FAST_AS_POSSIBLE, statements=4000))

    assert progress.statements >= 4000
    assert progress.moves["pipeline EXECUTING → COMPLETED"] > 5
    assert one(database, "SELECT count(*) FROM manufacturing_pipelines WHERE status = 'COMPLETED'") > 5
    assert one(database, "SELECT count(*) FROM manufacturing_tasks WHERE completed_at < started_at") == 0
    assert one(database, "SELECT count(*) FROM manufacturing_tasks WHERE started_at < ready_at") == 0
    assert one(database, "SELECT count(*) FROM manufacturing_tasks WHERE created_at > now() + interval '1 s'") == 0
    average = "SELECT extract(epoch FROM avg(completed_at - started_at)) FROM {} WHERE status = 'COMPLETED'"
    assert 40 < one(database, average.format("manufacturing_tasks")) < 300
    assert 120 < one(database, average.format("manufacturing_pipelines")) < 3600
    assert (
        one(
            database,
            "SELECT count(*) FROM (SELECT 1 FROM manufacturing_tasks WHERE status IN ('ASSIGNED', 'EXECUTING')"
            " GROUP BY player_id, assigned_ship HAVING count(*) > 1) AS booked_twice",
        )
        == 0
    )


def test_the_sums_of_a_pipeline_are_those_of_its_tasks(database: Database) -> None:
    anyio.run(lambda: play(database.dsn, AS_FAST_AS_POSSIBLE, statements=3000))

    assert (
        one(
            database,
            "SELECT count(*) FROM manufacturing_pipelines AS p"
            " WHERE status = 'COMPLETED' AND (total_cost, total_revenue)"
            " <> (SELECT sum(total_cost), sum(total_revenue) FROM manufacturing_tasks WHERE pipeline_id = p.id)",
        )
        == 0
    )


MISMATCHED_MATERIALS = """
SELECT count(*) FROM manufacturing_pipelines AS p
CROSS JOIN jsonb_to_recordset(materials) AS m ("tradeSymbol" text, "targetQuantity" int, "deliveredQuantity" int)
WHERE pipeline_type = 'CONSTRUCTION' AND (
    "deliveredQuantity" > "targetQuantity"
    OR status = 'COMPLETED' AND "deliveredQuantity" < "targetQuantity"
    OR "deliveredQuantity" <> (
        SELECT coalesce(sum(actual_quantity), 0) FROM manufacturing_tasks
        WHERE pipeline_id = p.id AND task_type = 'DELIVER_TO_CONSTRUCTION' AND status = 'COMPLETED'
            AND good = "tradeSymbol"
    )
)
"""


@pytest.mark.slow
@pytest.mark.parametrize("daemon", ["classic", "construction"])
def test_the_materials_of_a_site_are_those_that_were_delivered(database: Database, daemon: Daemon) -> None:
    options = GameOptions(players=1, rate=math.inf, daemon=daemon)
    anyio.run(lambda: play(database.dsn, options, statements=8000))

    sites = "SELECT count(*) FROM manufacturing_pipelines WHERE pipeline_type = 'CONSTRUCTION' AND status = 'COMPLETED'"
    assert one(database, sites) > 0
    assert one(database, MISMATCHED_MATERIALS) == 0


def test_construction_saves_only_outcomes_and_no_money(database: Database) -> None:
    statuses: set[str] = set()

    def look(_: GameProgress) -> None:
        statuses.update(one(database, "SELECT array_agg(DISTINCT status) FROM manufacturing_tasks") or [])

    options = GameOptions(players=2, rate=math.inf, daemon="construction")
    progress = anyio.run(lambda: play(database.dsn, options, statements=4000, on_progress=look))

    assert progress.moves["task READY → COMPLETED"] > 100
    assert statuses <= {"PENDING", "READY", "COMPLETED", "FAILED"}
    assert one(database, "SELECT count(*) FROM manufacturing_factory_states") == 0
    assert one(database, "SELECT count(*) FROM manufacturing_pipelines WHERE pipeline_type <> 'CONSTRUCTION'") == 0
    assert one(database, "SELECT max(abs(total_cost) + abs(total_revenue)) FROM manufacturing_tasks") == 0
    assert one(database, "SELECT max(abs(total_cost) + abs(total_revenue)) FROM manufacturing_pipelines") == 0
    ran = "started_at >= ready_at AND completed_at >= started_at AND assigned_ship <> ''"
    query = "SELECT bool_and({}) FROM manufacturing_tasks WHERE status = 'COMPLETED'"
    assert one(database, query.format(ran))


def test_the_same_game_twice_on_one_database_does_not_collide(database: Database) -> None:
    first, second = (anyio.run(lambda: play(database.dsn, AS_FAST_AS_POSSIBLE, statements=600)) for _ in range(2))

    assert first.player_ids == (1, 2)
    assert second.player_ids == (3, 4)
    assert one(database, "SELECT count(DISTINCT player_id) FROM manufacturing_pipelines") == 4


def test_eras_end_and_only_finished_work_of_old_players_stays(database: Database) -> None:
    options = GameOptions(players=1, rate=math.inf, era_hours=0.3)
    progress = anyio.run(lambda: play(database.dsn, options, statements=4000))

    assert progress.moves["era ended"] > 1
    old = ", ".join(map(str, progress.player_ids[:-1]))
    live = "status IN ('PLANNING', 'EXECUTING', 'PENDING', 'READY', 'ASSIGNED')"
    for table, condition in (
        ("manufacturing_factory_states", "true"),
        ("manufacturing_pipelines", live),
        ("manufacturing_tasks", live),
        ("ships", "true"),
    ):
        query = "SELECT count(*) FROM {} WHERE player_id IN ({}) AND {}"
        assert one(database, query.format(table, old, condition)) == 0


@pytest.mark.parametrize("daemon", ["classic", "construction"])
def test_the_eras_of_old_players_are_closed(database: Database, daemon: Daemon) -> None:
    options = GameOptions(players=1, rate=math.inf, era_hours=0.3, daemon=daemon)
    progress = anyio.run(lambda: play(database.dsn, options, statements=4000))

    assert progress.moves["era ended"] > 1
    assert one(database, "SELECT array_agg(player_id ORDER BY id) FROM eras") == list(progress.player_ids)
    still_open = "SELECT array_agg(player_id) FROM eras WHERE closed_at IS NULL"
    assert one(database, still_open) == [progress.player_ids[-1]]


def test_the_construction_daemon_leaves_the_rows_of_old_players(database: Database) -> None:
    options = GameOptions(players=1, rate=math.inf, era_hours=0.3, daemon="construction")
    progress = anyio.run(lambda: play(database.dsn, options, statements=4000))

    old = len(progress.player_ids) - 1
    assert old > 1
    closed = "player_id IN (SELECT player_id FROM eras WHERE closed_at IS NOT NULL)"
    for table, condition in (
        ("manufacturing_pipelines", "status IN ('PLANNING', 'EXECUTING')"),
        ("manufacturing_tasks", "status IN ('PENDING', 'READY')"),
        ("ships", "true"),
    ):
        query = "SELECT count(DISTINCT player_id) FROM {} WHERE {} AND {}"
        assert one(database, query.format(table, closed, condition)) == old


def test_another_schema(database: Database) -> None:
    async def run() -> GameProgress:
        async with await psycopg.AsyncConnection.connect(database.dsn) as connection:
            await create_tables(connection, "Game of 2025")
        return await play(database.dsn, AS_FAST_AS_POSSIBLE, schema="Game of 2025", statements=300)

    assert anyio.run(run).statements >= 300
    assert one(database, 'SELECT count(*) FROM "Game of 2025".manufacturing_tasks') > 0
    assert one(database, "SELECT count(*) FROM public.manufacturing_tasks") == 0


CUT = b"""
SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""


@pytest.mark.slow
@pytest.mark.parametrize(("daemon", "reconnect"), [("classic", False), ("classic", True), ("construction", True)])
def test_a_lost_connection(database: Database, daemon: Daemon, *, reconnect: bool) -> None:
    """Without `reconnect` it is an error; with it, the game goes on and the rows are the same as if nothing was."""
    cuts: list[int] = []

    def cut(progress: GameProgress) -> None:
        if progress.statements < 2500:
            with psycopg.connect(database.dsn, autocommit=True) as connection:
                connection.execute(CUT)
            cuts.append(progress.statements)

    async def run() -> GameProgress:
        # At the end of an era the classic daemon would delete pipelines that `runs` below counts.
        era_hours = 0.3 if daemon == "construction" else 168
        options = GameOptions(players=1, rate=2000.0, era_hours=era_hours, daemon=daemon)
        return await play(database.dsn, options, statements=3000, on_progress=cut, reconnect=reconnect)

    if not reconnect:
        with pytest.raises(psycopg.OperationalError):
            anyio.run(run)
        return
    progress = anyio.run(run)
    assert cuts
    deleted = sum(count for move, count in progress.moves.items() if move.endswith(" deleted") and "pipeline" in move)
    runs = one(database, "SELECT count(*) FROM manufacturing_pipelines")
    assert runs == progress.moves["pipeline → PLANNING"] - deleted
    assert len(progress.player_ids) > 1 or daemon == "classic"
    assert one(database, "SELECT array_agg(player_id ORDER BY id) FROM eras") == list(progress.player_ids)
    assert one(database, MISMATCHED_MATERIALS) == 0
