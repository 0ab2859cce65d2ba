"""How many markets are at each level of supply and of activity, counted by the database from the game's `market_data`.

Works on a connection of its own, one a reading, so that a large table delays nobody. Reads only.
"""

from collections import Counter
from contextlib import AsyncExitStack

from psycopg import sql

from mfg_notify.core import catalogue
from mfg_notify.core.series import Market
from mfg_notify.errors import SchemaNotReady
from mfg_notify.postgres.connection import connect, fetch_without_locks, translated_errors
from mfg_notify.postgres.queries import QUERY


async def read_market(conninfo: str, schema: str) -> Market:
    """Count the markets. A level that is NULL or '' is not counted, one that nobody has heard of is.

    Raise `DatabaseError` where the table is missing, may not be read, or cannot be read in time.
    """
    with translated_errors():
        connection = await connect(conninfo)
        # Its own context manager would not close it if this is cancelled while it rolls back.
        async with AsyncExitStack() as stack:
            stack.push_async_callback(connection.close)
            found = await (await connection.execute(QUERY["market_columns"], {"schema": schema})).fetchall()
            columns = {name for (name,) in found}
            if not columns:
                raise SchemaNotReady(f"there is no table {schema}.market_data")
            player = sql.Identifier("player_id") if "player_id" in columns else sql.Literal("")
            query = sql.SQL(QUERY["market"]).format(player=player, market=sql.Identifier(schema, "market_data"))
            [rows] = await fetch_without_locks(connection, query)
    by_supply: Counter[tuple[str, ...]] = Counter()
    by_activity: Counter[tuple[str, ...]] = Counter()
    for player_id, good, supply, activity, markets in rows:
        if supply:
            by_supply[player_id, good, supply] += markets
        if activity:
            by_activity[player_id, good, activity] += markets
    return {catalogue.MARKET_SUPPLY.name: dict(by_supply), catalogue.MARKET_ACTIVITY.name: dict(by_activity)}
