"""The world of the simulated game: the seed decides it, all moves are legal, and everything a game has appears.

This holds for both of the game's daemons.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import islice, pairwise, takewhile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mfg_notify.demo.game import WORLDS
from mfg_notify.demo.rows import FactoryRow, PipelineRow, ShipRow, TaskRow
from mfg_notify.demo.statements import (
    Assign,
    CloseEra,
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
from mfg_notify.demo.world import Daemon, GameOptions, World

LEGAL_TASK_MOVES = {
    "PENDING → READY", "READY → ASSIGNED", "ASSIGNED → EXECUTING", "EXECUTING → COMPLETED", "EXECUTING → FAILED",
    "ASSIGNED → FAILED", "FAILED → PENDING", "ASSIGNED → READY", "EXECUTING → READY", "READY → PENDING",
    "EXECUTING → PENDING", "ASSIGNED → PENDING", "PENDING → FAILED (cancelled)", "READY → FAILED (cancelled)",
    "ASSIGNED → FAILED (cancelled)",
}  # fmt: skip
LEGAL_CONSTRUCTION_TASK_MOVES = {
    "PENDING → READY", "READY → COMPLETED", "READY → FAILED", "FAILED → PENDING", "READY → PENDING",
    "PENDING → FAILED (cancelled)", "READY → FAILED (cancelled)",
}  # fmt: skip
LEGAL_PIPELINE_MOVES = {
    "PLANNING → EXECUTING", "PLANNING → FAILED", "PLANNING → CANCELLED", "EXECUTING → COMPLETED",
    "EXECUTING → FAILED", "EXECUTING → CANCELLED",
}  # fmt: skip
TASK_TYPES = {
    "ACQUIRE_DELIVER", "COLLECT_SELL", "LIQUIDATE", "STORAGE_ACQUIRE_DELIVER", "DELIVER_TO_CONSTRUCTION", "ACQUIRE",
    "DELIVER", "COLLECT", "SELL",
}  # fmt: skip
CONSTRUCTION_TASK_TYPES = {"ACQUIRE_DELIVER", "LIQUIDATE", "STORAGE_ACQUIRE_DELIVER", "DELIVER_TO_CONSTRUCTION"}
DAEMONS: tuple[Daemon, ...] = ("classic", "construction")
HALF_A_MINUTE = 900.0
"""Half a minute of wall time at the default speed, in game seconds."""
FIVE_HOURS = 5 * 3600.0


def world(options: GameOptions, index: int = 0) -> World:
    return WORLDS[options.daemon](options, index)


def transactions(
    until: float, seed: int = 1, index: int = 0, era_hours: float = 168.0, daemon: Daemon = "classic"
) -> Iterator[Transaction]:
    played = world(GameOptions(seed=seed, era_hours=era_hours, daemon=daemon), index)
    return takewhile(lambda transaction: transaction.at <= until, played.transactions())


def committed_statements(
    until: float, seed: int = 1, index: int = 0, era_hours: float = 168.0, daemon: Daemon = "classic"
) -> Iterator[Statement]:
    for transaction in transactions(until, seed, index, era_hours, daemon):
        if not transaction.rolled_back:
            yield from transaction.statements


@given(seed=st.integers(0, 10**6), index=st.integers(0, 5), daemon=st.sampled_from(DAEMONS))
@settings(max_examples=20, deadline=None)
def test_the_seed_decides_everything(seed: int, index: int, daemon: Daemon) -> None:
    first, second = (world(GameOptions(seed=seed, daemon=daemon), index).transactions() for _ in range(2))

    assert list(islice(first, 300)) == list(islice(second, 300))


@pytest.mark.parametrize("daemon", DAEMONS)
def test_neither_speed_nor_rate_changes_what_happens(daemon: Daemon) -> None:
    slow, fast = GameOptions(speed=1, daemon=daemon), GameOptions(speed=900, rate=5000, daemon=daemon)

    assert list(islice(world(slow).transactions(), 500)) == list(islice(world(fast).transactions(), 500))


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
def test_a_construction_ship_works_on_one_task_at_a_time(seed: int) -> None:
    executions: dict[str, list[tuple[float, float]]] = {}
    for statement in committed_statements(FIVE_HOURS, seed, daemon="construction"):
        match statement:
            case Save(TaskRow(assigned_ship=str(ship), started_at=float(started), completed_at=float(completed))):
                executions.setdefault(ship, []).append((started, completed))
            case _:
                pass

    assert len(executions) > 1
    for spans in executions.values():
        spans.sort()
        assert all(completed <= started for (_, completed), (started, _) in pairwise(spans))


@pytest.mark.parametrize("daemon", DAEMONS)
@pytest.mark.parametrize("seed", range(1, 6))
def test_a_satellite_is_never_assigned(seed: int, daemon: Daemon) -> None:
    satellites: set[str] = set()
    for statement in committed_statements(FIVE_HOURS, seed, era_hours=2, daemon=daemon):
        match statement:
            case Insert(ShipRow(role="SATELLITE") as ship):
                assert (ship.assignment_status, ship.cargo_capacity) == ("idle", 0)
                satellites.add(ship.ship_symbol)
            case Insert(ShipRow() as ship):
                assert ship.cargo_capacity >= 40
            case Save(ShipRow() as ship):
                assert ship.ship_symbol not in satellites
            case Save(TaskRow() as task) | Assign(task):
                assert task.assigned_ship not in satellites
            case _:
                pass

    assert satellites


def moves(statements: Iterator[Statement]) -> tuple[set[str], set[str]]:
    """Return the changes of status of tasks and of pipelines."""
    names: dict[type, set[str]] = {TaskRow: set(), PipelineRow: set()}
    for statement in statements:
        if (
            isinstance(statement, Save | Assign)
            and isinstance(statement.row, TaskRow | PipelineRow)
            and isinstance(statement.before, TaskRow | PipelineRow)
            and statement.row.status != statement.before.status
        ):
            names[type(statement.row)].add((name_move(statement) or "").partition(" ")[2])
    return names[TaskRow], names[PipelineRow]


@pytest.mark.parametrize("seed", range(1, 6))
def test_all_moves_are_legal_and_every_legal_move_appears(seed: int) -> None:
    assert moves(committed_statements(FIVE_HOURS, seed)) == (LEGAL_TASK_MOVES, LEGAL_PIPELINE_MOVES)


@pytest.mark.parametrize("seed", range(1, 6))
def test_construction_has_all_its_moves_and_no_others(seed: int) -> None:
    found = moves(committed_statements(FIVE_HOURS, seed, daemon="construction"))

    assert found == (LEGAL_CONSTRUCTION_TASK_MOVES, LEGAL_PIPELINE_MOVES)


@pytest.mark.parametrize("daemon", DAEMONS)
@pytest.mark.parametrize("seed", range(1, 6))
def test_rows_keep_the_rules_of_the_game(seed: int, daemon: Daemon) -> None:
    for statement in committed_statements(FIVE_HOURS, seed, daemon=daemon):
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


@pytest.mark.parametrize("seed", range(1, 6))
def test_construction_saves_only_outcomes_and_no_money(seed: int) -> None:
    for statement in committed_statements(FIVE_HOURS, seed, daemon="construction"):
        assert not isinstance(statement, Assign)
        if not isinstance(statement, Insert | Save):
            continue
        row = statement.row
        assert not isinstance(row, FactoryRow)
        if isinstance(row, PipelineRow):
            assert row.pipeline_type == "CONSTRUCTION"
            assert row.product_good == row.materials[0].trade_symbol
            assert row.total_cost == row.total_revenue == row.net_profit == 0
        if isinstance(row, TaskRow):
            assert row.status not in {"ASSIGNED", "EXECUTING"}
            assert row.total_cost == row.total_revenue == 0
            ran = isinstance(statement, Save) and (row.status == "COMPLETED" or row.started_at is not None)
            assert ran == all((row.assigned_ship, row.ready_at, row.started_at, row.completed_at))


@pytest.mark.parametrize("daemon", DAEMONS)
@pytest.mark.parametrize("seed", range(1, 6))
def test_a_site_has_what_was_delivered_to_it(seed: int, daemon: Daemon) -> None:
    delivered: dict[int | None, Counter[str]] = {}
    live_sites: dict[int, str | None] = {}
    completed = 0
    for transaction in transactions(FIVE_HOURS, seed, daemon=daemon):
        if transaction.rolled_back:
            continue
        sites: dict[int, PipelineRow] = {}
        for statement in transaction.statements:
            match statement:
                case Save(TaskRow(task_type="DELIVER_TO_CONSTRUCTION", status="COMPLETED") as task):
                    delivered.setdefault(task.pipeline_id, Counter())[task.good] += task.actual_quantity
                case Insert(PipelineRow() as row) | Save(PipelineRow() as row) if row.pipeline_type == "CONSTRUCTION":
                    sites[row.id] = row
                case DeletePipeline(number):
                    live_sites.pop(number, None)
                case _:
                    pass
        for row in sites.values():
            entered = Counter({each.trade_symbol: each.delivered_quantity for each in row.materials})
            assert entered == delivered.get(row.id, Counter())
            assert all(0 <= each.delivered_quantity <= each.target_quantity for each in row.materials)
            if row.status == "COMPLETED":
                completed += 1
                assert all(each.delivered_quantity == each.target_quantity for each in row.materials)
            live_sites[row.id] = row.construction_site
            if row.status not in {"PLANNING", "EXECUTING"}:
                del live_sites[row.id]
        assert len(live_sites) == len(set(live_sites.values())), "a site has one live pipeline"
    assert completed


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
    names = Counter(map(name_move, statements))
    assert {"pipeline EXECUTING deleted", "pipeline COMPLETED deleted", "task deleted", "market scan"} <= set(names)
    # Most Saves of the supply monitor change nothing.
    changed = sum(count for name, count in names.items() if name and name.startswith("factory ") and "→" in name)
    assert names["factory unchanged"] > changed


@pytest.mark.parametrize("index", range(3))
def test_half_a_minute_shows_every_kind_of_move(index: int) -> None:
    statements = list(committed_statements(HALF_A_MINUTE, index=index))
    names = set(map(name_move, statements))
    completed = {
        statement.row.task_type
        for statement in statements
        if isinstance(statement, Save) and isinstance(statement.row, TaskRow) and statement.row.status == "COMPLETED"
    }

    assert {f"pipeline EXECUTING → {status}" for status in ("COMPLETED", "FAILED", "CANCELLED")} <= names
    assert {"task EXECUTING → FAILED", "task FAILED → PENDING", "task PENDING → FAILED (cancelled)"} <= names
    assert "factory MODERATE → HIGH (cycle)" in names
    assert {"ACQUIRE_DELIVER", "DELIVER_TO_CONSTRUCTION", "COLLECT_SELL", "LIQUIDATE", "SELL"} <= completed


@pytest.mark.parametrize("index", range(3))
def test_half_a_minute_of_construction_shows_every_move(index: int) -> None:
    statements = list(committed_statements(HALF_A_MINUTE, index=index, daemon="construction"))
    completed = {
        statement.row.task_type
        for statement in statements
        if isinstance(statement, Save) and isinstance(statement.row, TaskRow) and statement.row.status == "COMPLETED"
    }
    tasks, pipelines = moves(iter(statements))

    assert tasks == LEGAL_CONSTRUCTION_TASK_MOVES
    # A site takes hours.
    assert pipelines == LEGAL_PIPELINE_MOVES - {"EXECUTING → COMPLETED"}
    assert completed == CONSTRUCTION_TASK_TYPES
    assert {"material delivered", "pipeline EXECUTING deleted", "task deleted"} <= set(map(name_move, statements))


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


@pytest.mark.parametrize("daemon", DAEMONS)
def test_an_era_ends_and_another_player_enters(daemon: Daemon) -> None:
    statements = list(committed_statements(2 * 3600, era_hours=0.5, daemon=daemon))
    resets = [position for position, statement in enumerate(statements) if isinstance(statement, CloseEra)]

    assert len(resets) > 1
    for position in resets:
        # Only the classic daemon deletes what the dead player had.
        assert isinstance(statements[position - 1], Scrub) == (daemon == "classic")
        assert isinstance(statements[position + 1], Enter)
        ship = statements[position + 2]
        assert isinstance(ship, Insert)
        assert isinstance(ship.row, ShipRow)
    assert sum(isinstance(statement, Scrub) for statement in statements) == (len(resets) if daemon == "classic" else 0)


def test_a_universe_lasts_a_week() -> None:
    assert GameOptions().era_hours == 7 * 24
