"""Prepares a database for the simulated game, and never touches a game that the simulation did not create."""

import psycopg
from psycopg import sql

from mfg_notify.demo.game import create_tables

OWNERSHIP = "players of mfg-notify's simulated game"
"""Comment on the table of players by which `claim` recognises its own databases."""


async def create(conninfo: str, schema: str = "public") -> None:
    """Create the game's tables if they do not exist. Raises psycopg's own errors."""
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
        await create_tables(connection, schema)


async def claim(conninfo: str, schema: str, *, force: bool) -> bool:
    """Create the game's tables if they do not exist, and mark them as simulated. Raises psycopg's own errors.

    Return False, having changed nothing, if the tables belong to a game that is not simulated. `force` accepts that
    game too.
    """
    table = sql.Identifier(schema, "players")
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
        # Whether the table exists, and the comment on it.
        cursor = await connection.execute(
            "SELECT to_regclass(%(table)s) IS NOT NULL, obj_description(to_regclass(%(table)s), 'pg_class')",
            {"table": table.as_string(connection)},
        )
        [(exists, comment)] = await cursor.fetchall()
        if exists and comment != OWNERSHIP and not force:
            return False
        await create_tables(connection, schema)
        if not exists:
            await connection.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(table, OWNERSHIP))
    return True
