"""The live rows in one consistent snapshot, and what the exporter wants to know about the database itself.

Reads only. It starts at live pipelines and live tasks, by the game's own indexes on status, never at the history.
"""

from dataclasses import dataclass
from typing import TypeAlias

from psycopg import sql

from mfg_notify.core import events
from mfg_notify.core.events import FactoryChange, PipelineChange, TaskChange
from mfg_notify.core.live_state import LiveRows
from mfg_notify.postgres.connection import Connection, read_only_snapshot, translated_errors
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


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The live rows, and which transactions they show."""

    rows: LiveRows
    ships_query: ShipsQuery | None
    """Reads the ships again by `read_ships`; None where the game has no table of ships that may be read."""
    next_xid: int
    in_progress: frozenset[int]

    def sees(self, xid: int) -> bool:
        """Tell whether the rows show what this transaction has done, given that it has committed."""
        return xid < self.next_xid and xid not in self.in_progress


async def read_snapshot(connection: Connection, schema: str) -> Snapshot:
    """Read the live rows and the ships in one snapshot."""
    game = {
        name: sql.Identifier(schema, f"manufacturing_{table}")
        for name, table in (("pipelines", "pipelines"), ("tasks", "tasks"), ("factories", "factory_states"))
    }
    with translated_errors():
        async with read_only_snapshot(connection):
            changes = [
                events.decode_change(body)
                for name in ("live_pipelines", "live_tasks", "live_factories")
                for (body,) in await (await connection.execute(sql.SQL(QUERY[name]).format(**game))).fetchall()
            ]
            ships_query = await _find_ships(connection, schema)
            ships = await read_ships(connection, ships_query) if ships_query is not None else None
            visible = await (await connection.execute(QUERY["visible"])).fetchall()
    ((next_xid, in_progress),) = visible
    rows = LiveRows(
        {change.key: change.new for change in changes if isinstance(change, PipelineChange) and change.new},
        {change.key: change.new for change in changes if isinstance(change, TaskChange) and change.new},
        {int(change.key): change.new for change in changes if isinstance(change, FactoryChange) and change.new},
        ships,
    )
    return Snapshot(rows, ships_query, next_xid, frozenset(in_progress))


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
    """Return (player, ship) → idle by the game's own word. No trigger tells of ships, so they are read now and then."""
    with translated_errors():
        rows = await (await connection.execute(query)).fetchall()
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
