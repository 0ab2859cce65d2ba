"""The live rows in one consistent snapshot, and what the exporter wants to know about the database itself.

Reads only. It starts at live pipelines and live tasks, by the game's own indexes on status, never at the history.
"""

from dataclasses import dataclass
from typing import TypeAlias

from psycopg import sql
from psycopg.rows import TupleRow

from mfg_notify.core import events
from mfg_notify.core.events import FactoryImage, PipelineImage, TaskImage
from mfg_notify.core.ledger import Snapshot
from mfg_notify.core.live_state import LiveRows
from mfg_notify.postgres.connection import Connection, fetch_without_locks, translated_errors
from mfg_notify.postgres.queries import QUERY

ShipsQuery: TypeAlias = sql.Composed
_SHIP_COLUMNS = {
    "ships": ("player_id", "ship_symbol", "assignment_status"),
    "ship_assignments": ("player_id", "ship_symbol", "status"),
}
"""Newest first: the table of ships, and its columns with the one that says 'idle' last."""


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


async def read_snapshot(connection: Connection, schema: str) -> tuple[Snapshot, ShipsQuery | None]:
    """Read the live rows and the ships in one snapshot of the database.

    Also return the query by which `read_ships` reads the ships again; None if the game has no table of ships that this
    role may read.
    """
    game = {
        name: sql.Identifier(schema, f"manufacturing_{table}")
        for name, table in (("pipelines", "pipelines"), ("tasks", "tasks"), ("factories", "factory_states"))
    }
    with translated_errors():
        ships_query = await _find_ships(connection, schema)
        live = [QUERY["live_pipelines"], QUERY["live_tasks"], QUERY["live_factories"]]
        queries = [*(sql.SQL(query).format(**game) for query in live), sql.SQL(QUERY["visible"])]
        if ships_query is not None:
            queries.append(ships_query)
        found = await fetch_without_locks(connection, *queries)
    pipelines, tasks, factories, ((next_xid, in_progress),), *ships = found
    rows = LiveRows(
        {key: row for key, row in map(_decode_row, pipelines) if isinstance(row, PipelineImage)},
        {key: row for key, row in map(_decode_row, tasks) if isinstance(row, TaskImage)},
        {int(key): row for key, row in map(_decode_row, factories) if isinstance(row, FactoryImage)},
        _idle_by_ship(ships[0]) if ships else None,
    )
    return Snapshot(rows, next_xid, frozenset(in_progress)), ships_query


def _decode_row(found: TupleRow) -> tuple[str, PipelineImage | TaskImage | FactoryImage | None]:
    change = events.decode_change(found[0])
    return change.key, change.new


async def _find_ships(connection: Connection, schema: str) -> ShipsQuery | None:
    found: dict[str, list[str]] = dict(
        await (await connection.execute(QUERY["ship_columns"], {"schema": schema})).fetchall()
    )
    for table, columns in _SHIP_COLUMNS.items():
        if set(columns) <= set(found.get(table, ())):
            return sql.SQL(QUERY["ships"]).format(
                status=sql.Identifier(columns[-1]), ships=sql.Identifier(schema, table)
            )
    return None


async def read_ships(connection: Connection, query: ShipsQuery) -> dict[tuple[int, str], bool]:
    """Return (player, ship) → whether the game calls it idle. No trigger reports ships, so they are read repeatedly."""
    with translated_errors():
        [ships] = await fetch_without_locks(connection, query)
    return _idle_by_ship(ships)


def _idle_by_ship(rows: list[TupleRow]) -> dict[tuple[int, str], bool]:
    return {(player, ship[:128]): bool(idle) for player, ship, idle in rows}


async def read_health(connection: Connection, schema: str) -> Health:
    """Ask the database how it is doing."""
    with translated_errors():
        cursor = await connection.execute(QUERY["health"], {"version": events.VERSION})
        rows, oldest_age, unknown, queue_usage, lost, clock = (await cursor.fetchall())[0]
        triggers = await (await connection.execute(QUERY["triggers"], {"schema": schema})).fetchall()
    return Health(
        journal_rows=rows,
        journal_oldest_age=oldest_age,
        unknown_versions=unknown,
        queue_usage=queue_usage,
        lost_changes=lost,
        clock=clock,
        triggers=dict(triggers),
    )
