"""The listening connection: what it keeps of what strangers send."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from tests.conftest import Database
from tests.support import PATIENCE

from mfg_notify.postgres import listener as room
from mfg_notify.postgres.connection import connect
from mfg_notify.postgres.listener import Listener

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def listening(database: Database, own: int) -> AsyncIterator[tuple[Listener, anyio.Event]]:
    """Listen to channel `c`; the event is set when the last notification has come."""
    arrived, last = 0, anyio.Event()

    def count() -> None:
        nonlocal arrived
        arrived += 1
        if arrived == 6:
            last.set()

    connection = await connect(database.dsn)
    listener = Listener(connection, own, count)
    await listener.listen("c")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listener.pump)
        yield listener, last
        tasks.cancel_scope.cancel()
    await connection.close()


async def test_what_waits_is_bounded(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "WAITING_MAXIMUM", 2)
    with database.connect() as stranger, database.connect() as exporter:
        async with listening(database, exporter.info.backend_pid) as (listener, last):
            stranger.execute("SELECT pg_notify('c', 'ab' || i) FROM generate_series(1, 5) i")
            exporter.execute("NOTIFY c, 'fence 7'")
            with anyio.fail_after(PATIENCE):
                await last.wait()
            assert [one.payload for one in listener.take()] == ["ab1", "ab2", "fence 7"]
            assert (listener.take_skipped(), listener.take_skipped(), listener.take()) == (3, 0, [])


async def test_what_is_too_long_is_not_kept(database: Database) -> None:
    with database.connect() as stranger:
        async with listening(database, 0) as (listener, last):
            stranger.execute("SELECT pg_notify('c', i || repeat('x', 7990)) FROM generate_series(1, 6) i")
            with anyio.fail_after(PATIENCE):
                await last.wait()
            assert {one.payload for one in listener.take()} == {room.TOO_LONG}


async def test_what_comes_before_it_listens_is_not_kept(database: Database) -> None:
    with database.connect() as stranger:
        connection, came = await connect(database.dsn), anyio.Event()
        await connection.execute("LISTEN c")
        stranger.execute("SELECT pg_notify('c', 'ab' || i) FROM generate_series(1, 5) i")
        listener = Listener(connection, 0, lambda: came.set())
        await listener.listen("c")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.pump)
            stranger.execute("NOTIFY c, 'now'")
            with anyio.fail_after(PATIENCE):
                await came.wait()
            tasks.cancel_scope.cancel()
        assert [one.payload for one in listener.take()] == ["now"]
        await connection.close()
