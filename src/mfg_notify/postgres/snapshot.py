"""The live rows in one consistent snapshot, and what the exporter wants to know about the database itself.

Reads only. It starts at live pipelines and live tasks, by the game's own indexes on status, never at the history.
"""

from dataclasses import dataclass
from typing import TypeAlias

from psycopg import sql

from mfg_notify.core import events
from mfg_notify.core.ledger import Snapshot
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
        async with read_only_snapshot(connection):
            pipelines = await connection.execute(sql.SQL(QUERY["live_pipelines"]).format(**game))
            pipeline_rows = {key: events.decode_pipeline(image) for key, image in await pipelines.fetchall()}
            tasks = await connection.execute(sql.SQL(QUERY["live_tasks"]).format(**game))
            task_rows = {key: events.decode_task(image) for key, image in await tasks.fetchall()}
            factories = await connection.execute(sql.SQL(QUERY["live_factories"]).format(**game))
            factory_rows = {key: events.decode_factory(image) for key, image in await factories.fetchall()}
            ships_query = await _find_ships(connection, schema)
            ships = await read_ships(connection, ships_query) if ships_query is not None else None
            visible = await (await connection.execute(QUERY["visible"])).fetchall()
    ((next_xid, in_progress),) = visible
    rows = LiveRows(pipeline_rows, task_rows, factory_rows, ships)
    return Snapshot(rows, next_xid, frozenset(in_progress)), ships_query


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
