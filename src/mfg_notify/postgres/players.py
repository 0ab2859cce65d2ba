"""Who the players are, and whose era is closed, from two tables of the game that are optional. Reads only.

The table of players also has the API tokens of the agents: what is read is two columns, which `--create-role` grants.
"""

from collections.abc import Mapping
from typing import NamedTuple

from psycopg import DataError, ProgrammingError, sql
from psycopg.rows import TupleRow

from mfg_notify.core.series import Players
from mfg_notify.postgres.connection import Connection, fetch_without_locks, translated_errors
from mfg_notify.postgres.queries import QUERY
from mfg_notify.postgres.snapshot import readable_columns

_TABLES = {"players": ("player_names", ("id", "agent_symbol")), "eras": ("closed_eras", ("player_id", "closed_at"))}
"""The query and its columns by table."""


class PlayersReading(NamedTuple):
    """The players, and the name of the error by table if a table exists and cannot be read."""

    players: Players
    errors: Mapping[str, str]


async def read_players(connection: Connection, schema: str) -> PlayersReading:
    """Read both tables. One that is absent, that this role may not read, or that cannot be read is left out."""
    errors: dict[str, str] = {}

    async def read(table: str) -> list[TupleRow]:
        query, columns = _TABLES[table]
        if not set(columns) <= readable.get(table, frozenset()):
            return []
        try:
            composed = sql.SQL(QUERY[query]).format(**{table: sql.Identifier(schema, table)})
            [rows] = await fetch_without_locks(connection, composed)
        except (DataError, ProgrammingError) as error:
            errors[table] = type(error).__name__
            return []
        return rows

    with translated_errors():
        readable = await readable_columns(connection, schema, *_TABLES)
        players = Players(names=dict(await read("players")), closed_at=dict(await read("eras")))
    return PlayersReading(players, errors)
