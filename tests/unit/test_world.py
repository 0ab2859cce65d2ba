"""The world of the simulated game: the seed decides it, all moves are legal, and everything a game has appears."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice, takewhile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mfg_notify.demo.rows import FactoryRow, PipelineRow, ShipRow, TaskRow
from mfg_notify.demo.statements import (
    Assign,
    DeletePipeline,
    DeleteTask,
    Enter,
    Insert,
    Save,
    Scrub,
    Statement,
    Transaction,
    name_move,
)
from mfg_notify.demo.world import GameOptions, World

LEGAL_TASK_MOVES = {
    "PENDING → READY", "READY → ASSIGNED", "ASSIGNED → EXECUTING", "EXECUTING → COMPLETED", "EXECUTING → FAILED",
    "ASSIGNED → FAILED", "FAILED → PENDING", "ASSIGNED → READY", "EXECUTING → READY", "READY → PENDING",
    "EXECUTING → PENDING", "ASSIGNED → PENDING", "PENDING → FAILED (cancelled)", "READY → FAILED (cancelled)",
    "ASSIGNED → FAILED (cancelled)",
}  # fmt: skip
LEGAL_PIPELINE_MOVES = {
    "PLANNING → EXECUTING", "PLANNING → FAILED", "PLANNING → CANCELLED", "EXECUTING → COMPLETED",
    "EXECUTING → FAILED", "EXECUTING → CANCELLED",
}  # fmt: skip
TASK_TYPES = {
    "ACQUIRE_DELIVER", "COLLECT_SELL", "LIQUIDATE", "STORAGE_ACQUIRE_DELIVER", "DELIVER_TO_CONSTRUCTION", "ACQUIRE",
    "DELIVER", "COLLECT", "SELL",
}  # fmt: skip
HALF_A_MINUTE = 900.0
"""Half a minute of wall time at the default speed, in game seconds."""
FIVE_HOURS = 5 * 3600.0


def transactions(until: float, seed: int = 1, index: int = 0, era_hours: float = 30.0) -> Iterator[Transaction]:
    world = World(GameOptions(seed=seed, era_hours=era_hours), index)
    return takewhile(lambda transaction: transaction.at <= until, world.transactions())


def committed_statements(until: float, seed: int = 1, index: int = 0, era_hours: float = 30.0) -> Iterator[Statement]:
    for transaction in transactions(until, seed, index, era_hours):
        if not transaction.rolled_back:
            yield from transaction.statements


@given(seed=st.integers(0, 10**6), index=st.integers(0, 5))
@settings(max_examples=10, deadline=None)
def test_the_seed_decides_everything(seed: int, index: int) -> None:
    first, second = (World(GameOptions(seed=seed), index).transactions() for _ in range(2))

    assert list(islice(first, 300)) == list(islice(second, 300))


def test_neither_speed_nor_rate_changes_what_happens() -> None:
    slow, fast = GameOptions(speed=1), GameOptions(speed=900, rate=5000)

    assert list(islice(World(slow).transactions(), 500)) == list(islice(World(fast).transactions(), 500))


def test_players_play_different_games() -> None:
    assert list(transactions(600, index=0)) != list(transactions(600, index=1))


@pytest.mark.parametrize("seed", range(1, 6))
def test_a_ship_never_holds_two_tasks(seed: int) -> None:
    ships: set[str | None] = set()
    tasks: dict[int, TaskRow] = {}
    for transaction in transactions(FIVE_HOURS, seed):
        if transaction.rolled_back:
            continue
        for statement in transaction.statements:
            if isinstance(statement, Insert | Save | Assign) and isinstance(statement.row, TaskRow):
                tasks[statement.row.id] = statement.row
            elif isinstance(statement, DeleteTask):
                del tasks[statement.id]
            elif isinstance(statement, DeletePipeline):
                tasks = {key: task for key, task in tasks.items() if task.pipeline_id != statement.id}
            elif isinstance(statement, Scrub):
                tasks = {}
        holders = [task.assigned_ship for task in tasks.values() if task.status in {"ASSIGNED", "EXECUTING"}]
        assert all(holders), "a task that is assigned or executing has a ship"
        assert len(holders) == len(set(holders))
        ships.update(holders)
    assert ships


@pytest.mark.parametrize("seed", range(1, 6))
def test_all_moves_are_legal_and_every_legal_move_appears(seed: int) -> None:
    tasks: set[str] = set()
    pipelines: set[str] = set()
    for statement in committed_statements(FIVE_HOURS, seed):
        move = name_move(statement) or ""
        if isinstance(statement, Save | Assign) and isinstance(statement.row, TaskRow | PipelineRow) and move:
            table, _, what = move.partition(" ")
            (tasks if table == "task" else pipelines).add(what)

    assert tasks == LEGAL_TASK_MOVES
    assert pipelines == LEGAL_PIPELINE_MOVES


@pytest.mark.parametrize("seed", range(1, 6))
def test_rows_keep_the_rules_of_the_game(seed: int) -> None:
    for statement in committed_statements(FIVE_HOURS, seed):
        match statement:
            case Save(TaskRow() as new, TaskRow() as old) | Assign(TaskRow() as new, TaskRow() as old):
                check_task(old, new)
            case Save(PipelineRow() as pipeline, PipelineRow()):
                ended = pipeline.status not in {"PLANNING", "EXECUTING"}
                assert (pipeline.completed_at is not None) == ended
                assert ended or pipeline.total_cost == pipeline.total_revenue == pipeline.net_profit == 0
                assert pipeline.net_profit == pipeline.total_revenue - pipeline.total_cost
                assert pipeline.started_at is not None or pipeline.status != "COMPLETED"
            case Save(FactoryRow() as view):
                assert view.ready_for_collection == (view.current_supply in {"HIGH", "ABUNDANT"})
                assert set(view.required_inputs) <= {each.good for each in view.delivered_inputs}
            case _:
                pass


def check_task(old: TaskRow, new: TaskRow) -> None:
    move = old.status, new.status
    if new.started_at is not None and new.completed_at is not None:
        assert new.created_at <= new.started_at <= new.completed_at
    assert new.retry_count - old.retry_count in ({0, 1} if new.status == "FAILED" else {0})
    if new.status == "FAILED" and new.retry_count == old.retry_count:
        assert new.started_at is None
    if move[1] == "FAILED" != move[0] or new.status == "COMPLETED":
        assert new.completed_at is not None
    if move == ("FAILED", "PENDING"):
        assert new.started_at is new.completed_at is new.ready_at is None
        assert new.assigned_ship is None
    if move == ("EXECUTING", "READY"):
        assert new.assigned_ship == old.assigned_ship
    if new.status == "READY":
        assert new.ready_at is not None


def test_every_type_and_every_special_case_appears() -> None:
    statements = list(committed_statements(FIVE_HOURS))
    rows = [statement.row for statement in statements if isinstance(statement, Insert | Save | Assign)]
    tasks = [row for row in rows if isinstance(row, TaskRow)]
    pipelines = [row for row in rows if isinstance(row, PipelineRow)]

    assert {task.task_type for task in tasks} == TASK_TYPES
    assert {pipeline.pipeline_type for pipeline in pipelines} == {"FABRICATION", "COLLECTION", "CONSTRUCTION"}
    assert {None, ""} <= {task.assigned_ship for task in tasks}
    assert any(task.pipeline_id is None for task in tasks)
    profits = [pipeline.net_profit for pipeline in pipelines if pipeline.status == "COMPLETED"]
    assert min(profits) < 0 < max(profits)
    assert any(transaction.rolled_back for transaction in transactions(FIVE_HOURS))
    moves = Counter(map(name_move, statements))
    assert {"pipeline EXECUTING deleted", "pipeline COMPLETED deleted", "task deleted", "market scan"} <= set(moves)
    # Most Saves of the supply monitor change nothing.
    changed = sum(count for move, count in moves.items() if move and move.startswith("factory ") and "→" in move)
    assert moves["factory unchanged"] > changed


@pytest.mark.parametrize("index", range(3))
def test_half_a_minute_at_the_default_speed_shows_every_kind_of_move(index: int) -> None:
    statements = list(committed_statements(HALF_A_MINUTE, index=index))
    moves = {move for move in map(name_move, statements) if move}
    completed = {
        statement.row.task_type
        for statement in statements
        if isinstance(statement, Save) and isinstance(statement.row, TaskRow) and statement.row.status == "COMPLETED"
    }

    assert {f"pipeline EXECUTING → {status}" for status in ("COMPLETED", "FAILED", "CANCELLED")} <= moves
    assert {"task EXECUTING → FAILED", "task FAILED → PENDING", "task PENDING → FAILED (cancelled)"} <= moves
    assert "factory MODERATE → HIGH (cycle)" in moves
    assert {"ACQUIRE_DELIVER", "DELIVER_TO_CONSTRUCTION", "COLLECT_SELL", "LIQUIDATE", "SELL"} <= completed


def test_several_live_pipelines_share_a_factory() -> None:
    pipelines_of: dict[str, set[int]] = {}
    ended: set[int] = set()
    shared = False
    for statement in committed_statements(HALF_A_MINUTE):
        if isinstance(statement, Save) and isinstance(statement.row, FactoryRow) and statement.row.pipeline_id:
            pipelines = pipelines_of.setdefault(statement.row.factory_symbol, set())
            pipelines.add(statement.row.pipeline_id)
            shared = shared or len(pipelines - ended) > 1
        elif isinstance(statement, Save) and isinstance(statement.row, PipelineRow) and statement.row.completed_at:
            ended.add(statement.row.id)

    assert shared


def test_an_era_ends_and_another_player_enters() -> None:
    statements = list(committed_statements(2 * 3600, era_hours=0.5))
    resets = [position for position, statement in enumerate(statements) if isinstance(statement, Scrub)]

    assert len(resets) > 1
    for position in resets:
        assert isinstance(statements[position + 1], Enter)
        ship = statements[position + 2]
        assert isinstance(ship, Insert)
        assert isinstance(ship.row, ShipRow)
