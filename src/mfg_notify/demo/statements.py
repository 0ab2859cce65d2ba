"""Owns the statements and transactions that the simulated game sends, as frozen values, and the names of their effects.

The world yields them and `commands` turns them into SQL. Nothing here knows SQL or decides what happens.
"""

from dataclasses import dataclass
from typing import TypeAlias

from mfg_notify.demo.rows import FactoryRow, MarketRow, PipelineRow, Row, TaskRow


@dataclass(frozen=True, slots=True)
class Enter:
    """INSERT of a player who enters a new universe, and of their era. All later rows of the world are this player's."""

    agent_symbol: str
    token: str


@dataclass(frozen=True, slots=True)
class Insert:
    """One INSERT."""

    row: Row


@dataclass(frozen=True, slots=True)
class Save:
    """GORM's Save: UPDATE of every column; if no row matched, INSERT … ON CONFLICT DO UPDATE."""

    row: Row
    before: Row | None = None


@dataclass(frozen=True, slots=True)
class Assign:
    """SELECT … FOR UPDATE, then UPDATE of the status and the ship."""

    row: TaskRow
    before: TaskRow


@dataclass(frozen=True, slots=True)
class DeletePipeline:
    """DELETE of a pipeline, which cascades to its tasks and factory rows."""

    id: int
    status: str


@dataclass(frozen=True, slots=True)
class DeleteTask:
    """DELETE of one task."""

    id: int


@dataclass(frozen=True, slots=True)
class Scan:
    """DELETE and INSERT of all market rows of a waypoint."""

    waypoint_symbol: str
    rows: tuple[MarketRow, ...]


@dataclass(frozen=True, slots=True)
class CloseEra:
    """UPDATE of the player's era at a universe reset."""


@dataclass(frozen=True, slots=True)
class Scrub:
    """DELETE of the player's factory rows, live pipelines, live tasks, ships and market rows, by the classic daemon."""


Statement: TypeAlias = Enter | Insert | Save | Assign | DeletePipeline | DeleteTask | Scan | CloseEra | Scrub


@dataclass(frozen=True, slots=True)
class Transaction:
    """Statements that commit or roll back together, at a time in seconds of game time."""

    at: float
    statements: tuple[Statement, ...]
    rolled_back: bool = False


def name_move(statement: Statement) -> str | None:
    """Name the effect of a statement on a pipeline, a task or a factory, such as `task READY → ASSIGNED`.

    Return None if the statement changes nothing worth counting.
    """
    match statement:
        case Assign(row, before):
            return f"task {before.status} → {row.status}"
        case Insert(PipelineRow() as row) | Save(PipelineRow() as row, None):
            return f"pipeline → {row.status}"
        case Insert(TaskRow() as row):
            return f"task → {row.status}"
        case Save(PipelineRow() as row, PipelineRow() as old) if row.status != old.status:
            return f"pipeline {old.status} → {row.status}"
        case Save(PipelineRow() as row, PipelineRow() as old) if row.materials != old.materials:
            return "material delivered"
        case Save(TaskRow() as row, TaskRow() as old) if row.status != old.status:
            cancelled = row.status == "FAILED" and row.retry_count == old.retry_count
            return f"task {old.status} → {row.status}{' (cancelled)' if cancelled else ''}"
        case Save(FactoryRow() as row, FactoryRow() as old) if row.current_supply != old.current_supply:
            cycle = row.ready_for_collection and not old.ready_for_collection
            return f"factory {old.current_supply or 'unknown'} → {row.current_supply}{' (cycle)' if cycle else ''}"
        case Save(FactoryRow() as row, FactoryRow() as old) if row == old:
            return "factory unchanged"
        case DeletePipeline(status=status):
            return f"pipeline {status} deleted"
        case DeleteTask():
            return "task deleted"
        case Scan():
            return "market scan"
        case CloseEra():
            return "era ended"
        case Scrub():
            return "player scrubbed"
        case _:
            return None
