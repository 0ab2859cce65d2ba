"""The live rows in one consistent snapshot, and what the exporter wants to know about the database itself.

Reads only. It starts at live pipelines and live tasks, by the game's own indexes on status, never at the history.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from psycopg import DataError, ProgrammingError, sql
from psycopg.rows import TupleRow

from mfg_notify.core import events
from mfg_notify.core.events import Change, FactoryChange, PipelineChange, TaskChange
from mfg_notify.core.ledger import Snapshot
from mfg_notify.core.live_state import LiveRows
from mfg_notify.core.visibility import Visibility
from mfg_notify.errors import MalformedEvent
from mfg_notify.postgres.connection import Connection, fetch_without_locks, translated_errors
from mfg_notify.postgres.queries import QUERY

ShipsQuery: TypeAlias = sql.Composed
_SHIP_COLUMNS = {
    "ships": ("player_id", "ship_symbol", "assignment_status"),
    "ship_assignments": ("player_id", "ship_symbol", "status"),
}
"""Newest first: the table of ships, and its columns with the one that says 'idle' last."""
_OPTIONAL_COLUMNS = {
    "pipeline_type": "pipeline.pipeline_type",
    "construction_site": "pipeline.construction_site",
    "materials": "pipeline.materials",
    "actual_quantity": "task.actual_quantity",
}
"""The optional columns by their names in the queries of the live rows: their names in the database."""


class SnapshotHolder(NamedTuple):
    """Who holds the oldest snapshot of the database, and so keeps vacuum from removing dead row versions."""

    kind: str
    """A session, a prepared transaction or a replication slot."""
    name: str
    """The process id, the global identifier or the name of the slot."""
    detail: str
    transactions: int
    """How many transactions have begun since."""
    seconds: float | None
    """For how long it has been held, if this role may see that."""

    def __str__(self) -> str:
        return f"{self.kind} {self.name} ({self.detail})"


@dataclass(frozen=True, slots=True)
class Health:
    """The exporter's view of the database. Ages in seconds, the clock in epoch microseconds."""

    journal_rows: int
    journal_oldest_age: float
    unknown_versions: int
    queue_usage: float
    lost_changes: int
    clock: int
    triggers: dict[str, int]
    """Enabled triggers of ours by table of the game."""
    oldest_snapshot: SnapshotHolder | None


def game_tables(schema: str) -> dict[str, sql.Identifier]:
    """Return the game's tables by their names in the queries of the live rows."""
    return {
        name: sql.Identifier(schema, f"manufacturing_{table}")
        for name, table in (("pipelines", "pipelines"), ("tasks", "tasks"), ("factories", "factory_states"))
    }


def live_row_queries(schema: str, optional: Collection[str]) -> list[sql.Composed]:
    """Return the queries of the live pipelines, tasks and factories; `optional` columns are those the triggers read."""
    columns = {
        name: sql.Identifier(name) if column in optional else sql.NULL for name, column in _OPTIONAL_COLUMNS.items()
    }
    names = ("live_pipelines", "live_tasks", "live_factories")
    return [sql.SQL(QUERY[name]).format(**game_tables(schema), **columns) for name in names]


class Reading(NamedTuple):
    """The live rows and the ships, and how to read the ships again."""

    snapshot: Snapshot
    ships_query: ShipsQuery | None
    """For `read_ships`; None if the game has no table of ships that can be read."""
    unreadable: Mapping[str, int]
    """Number of rows that are left out because they cannot be read, by table; 0 for the others."""
    ships_error: str | None
    """Name of the error, if the table of ships exists and cannot be read; its message may repeat what is in a row."""


async def read_snapshot(connection: Connection, schema: str) -> Reading:
    """Read the live rows and the ships in one snapshot of the database.

    A row that cannot be read is left out. A table of ships that cannot be read is left out as a whole: it is optional.
    """
    names = sql.Literal([table.as_string() for table in game_tables(schema).values()])
    with translated_errors():
        names_of_columns = await (await connection.execute(QUERY["optional_columns"])).fetchall()
        optional = {name for (name,) in names_of_columns}
        queries = [
            *live_row_queries(schema, optional),
            sql.SQL(QUERY["visible"]).format(names=names),
        ]
        ships_query = await _find_ships(connection, schema)
        ships_error = None
        rewritten = True
        while rewritten:
            try:
                found = await fetch_without_locks(connection, *queries, *([] if ships_query is None else [ships_query]))
            except (DataError, ProgrammingError) as error:
                if ships_query is None:
                    raise
                # Either the ships are to blame, or the same error comes again.
                ships_query, ships_error = None, type(error).__name__
                continue
            pipelines, tasks, factories, ((next_xid, in_progress, rewritten),), *ships = found
    unreadable = dict.fromkeys(("manufacturing_pipelines", "manufacturing_tasks", "manufacturing_factory_states"), 0)
    changes = [
        change
        for table, live_rows in zip(unreadable, (pipelines, tasks, factories), strict=True)
        for change in _decode_rows(live_rows, table, unreadable)
    ]
    rows = LiveRows(
        {change.key: change.new for change in changes if isinstance(change, PipelineChange) and change.new},
        {change.key: change.new for change in changes if isinstance(change, TaskChange) and change.new},
        {int(change.key): change.new for change in changes if isinstance(change, FactoryChange) and change.new},
        _idle_by_ship(ships[0]) if ships else None,
        _OPTIONAL_COLUMNS["actual_quantity"] in optional,
    )
    return Reading(Snapshot(rows, Visibility(next_xid, frozenset(in_progress))), ships_query, unreadable, ships_error)


def _decode_rows(found: list[TupleRow], table: str, unreadable: dict[str, int]) -> Iterator[Change]:
    for (body,) in found:
        try:
            yield events.decode_change(body)
        except MalformedEvent:
            unreadable[table] += 1


async def _find_ships(connection: Connection, schema: str) -> ShipsQuery | None:
    found = await readable_columns(connection, schema, *_SHIP_COLUMNS)
    for table, columns in _SHIP_COLUMNS.items():
        if set(columns) <= found.get(table, frozenset()):
            carries = sql.SQL("cargo_capacity::numeric > 0") if "cargo_capacity" in found[table] else sql.SQL("true")
            return sql.SQL(QUERY["ships"]).format(
                status=sql.Identifier(columns[-1]), ships=sql.Identifier(schema, table), carries_cargo=carries
            )
    return None


async def readable_columns(connection: Connection, schema: str, *tables: str) -> dict[str, frozenset[str]]:
    """Return the columns of some tables that this role may read, by table; no entry for one that it cannot read."""
    rows = await connection.execute(QUERY["readable_columns"], {"schema": schema, "tables": list(tables)})
    return {table: frozenset(columns) for table, columns in await rows.fetchall()}


async def read_ships(connection: Connection, query: ShipsQuery) -> dict[tuple[int, str], bool]:
    """Return (player, ship) → whether the game calls it idle. No trigger reports ships, so they are read repeatedly."""
    with translated_errors():
        [ships] = await fetch_without_locks(connection, query)
    return _idle_by_ship(ships)


def _idle_by_ship(rows: list[TupleRow]) -> dict[tuple[int, str], bool]:
    return {(int(player), ship[:128]): bool(idle) for player, ship, idle in rows}


async def read_health(connection: Connection, schema: str) -> Health:
    """Ask the database how it is doing."""
    with translated_errors():
        cursor = await connection.execute(QUERY["health"], {"version": events.VERSION})
        rows, oldest_age, unknown, queue_usage, lost, clock = (await cursor.fetchall())[0]
        triggers = await (await connection.execute(QUERY["triggers"], {"schema": schema})).fetchall()
        holder = await (await connection.execute(QUERY["oldest_snapshot"])).fetchone()
    return Health(
        journal_rows=rows,
        journal_oldest_age=oldest_age,
        unknown_versions=unknown,
        queue_usage=queue_usage,
        lost_changes=lost,
        clock=clock,
        triggers=dict(triggers),
        oldest_snapshot=None if holder is None else SnapshotHolder(*holder),
    )
