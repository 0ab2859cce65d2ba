"""A reader that stops reading in the middle of an answer holds no lock on the game's tables."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from tests.conftest import Database
from tests.faults.proxy import Proxy
from tests.support import PATIENCE

from mfg_notify.postgres import market, snapshot
from mfg_notify.postgres.connection import connect

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
ROWS = 60_000

FILL = """
    INSERT INTO players (agent_symbol, token) VALUES ('A', 'x');
    SET session_replication_role = replica;
    INSERT INTO manufacturing_tasks (id, player_id, task_type, status, good)
    SELECT rpad('t' || i, 64, 'x'), 1, 'SELL', 'READY', 'G' FROM generate_series(1, 60000) i;
    INSERT INTO ships (ship_symbol, player_id, cargo_capacity)
    SELECT rpad('S' || i, 64, 'x'), 1, 40 FROM generate_series(1, 60000) i;
    INSERT INTO market_data (player_id, waypoint_symbol, good_symbol, supply)
    SELECT 1, 'W' || i, rpad('G' || i, 64, 'x'), 'HIGH' FROM generate_series(1, 60000) i;
"""


@pytest.fixture
def game(installed: Database) -> psycopg.Connection:
    connection = installed.connect()
    connection.execute(FILL)
    return connection


@asynccontextmanager
async def stalling(dsn: str) -> AsyncIterator[tuple[Proxy, str]]:
    """Yield a proxy in front of the server, and the conninfo that leads through it."""
    given = conninfo_to_dict(dsn)
    socket = Path(str(given["host"])) / f".s.PGSQL.{given.get('port') or 5432}"
    with Proxy(str(socket)) as proxy:
        yield proxy, make_conninfo(dsn, host="127.0.0.1", port=proxy.port, sslmode="disable", gssencmode="disable")


async def read_tasks(conninfo: str) -> int:
    async with await connect(conninfo) as connection:
        taken = (await snapshot.read_snapshot(connection, "public")).snapshot
        return len(taken.rows.tasks)


async def read_ships(conninfo: str) -> int:
    async with await connect(conninfo) as connection:
        query = await snapshot._find_ships(connection, "public")
        assert query is not None
        return len(await snapshot.read_ships(connection, query))


async def read_market(conninfo: str) -> int:
    return sum(map(len, (await market.read_market(conninfo, "public")).values()))


@pytest.mark.parametrize(
    ("read", "table"),
    [(read_tasks, "manufacturing_tasks"), (read_ships, "ships"), (read_market, "market_data")],
    ids=["live rows", "ships", "markets"],
)
async def test_a_stalled_reader_locks_nothing(
    installed: Database, game: psycopg.Connection, read: Callable[[str], Awaitable[int]], table: str
) -> None:
    found: list[int] = []
    async with stalling(installed.dsn) as (proxy, conninfo), anyio.create_task_group() as tasks:

        async def reading() -> None:
            found.append(await read(conninfo))

        proxy.stall_after = 1_000_000
        tasks.start_soon(reading)
        with anyio.fail_after(PATIENCE):
            await anyio.to_thread.run_sync(proxy.stalled.wait)
        with game:
            game.execute("SET lock_timeout = '10s'")
            game.execute(f"ALTER TABLE {table} ADD COLUMN added integer".encode())
        proxy.stalled.clear()
    assert found == [ROWS]
