"""The listening connection: what it keeps of what strangers send."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import psycopg
import pytest
from psycopg import Notify
from psycopg.conninfo import make_conninfo
from tests.conftest import Database
from tests.support import PATIENCE

from mfg_notify.errors import DatabaseUnavailable
from mfg_notify.postgres.connection import Connection, connect
from mfg_notify.postgres.listener import TOO_LONG, Listener

pytestmark = pytest.mark.anyio


class Ear:
    """A listener on channel `c`, and whether something has come."""

    def __init__(self, connection: Connection, own: int, waiting_maximum: int) -> None:
        self.listener = Listener(connection, own, waiting_maximum)
        self._arrived = anyio.Event()

    async def pump(self) -> None:
        """Queue notifications, and note that some have arrived."""
        await self.listener.pump(lambda: self._arrived.set())

    async def heard(self, number: int) -> tuple[list[Notify], int]:
        """Wait until that many have come; return those that were kept, and how many were not."""
        kept: list[Notify] = []
        skipped = 0
        with anyio.fail_after(PATIENCE):
            while len(kept) + skipped < number:
                await self._arrived.wait()
                self._arrived = anyio.Event()
                kept += self.listener.take()
                skipped += self.listener.take_skipped()
        return kept, skipped


@asynccontextmanager
async def listening(dsn: str, own: int = 0, waiting_maximum: int = 100) -> AsyncIterator[Ear]:
    async with await connect(dsn) as connection:
        ear = Ear(connection, own, waiting_maximum)
        await ear.listener.listen("c")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ear.pump)
            yield ear
            tasks.cancel_scope.cancel()


async def test_what_waits_is_bounded(database: Database) -> None:
    with database.connect() as both:
        async with listening(database.dsn, both.info.backend_pid, waiting_maximum=2) as ear:
            with database.connect() as stranger, stranger.transaction():
                stranger.execute("SELECT pg_notify('c', 'ab' || i) FROM generate_series(1, 5) i")
            both.execute("NOTIFY c, 'barrier 7'")
            # Both are on the way before anything is taken.
            kept, skipped = await ear.heard(6)
    assert [one.payload for one in kept] == ["ab1", "ab2", "barrier 7"]
    assert skipped == 3


async def test_what_is_too_long_is_not_kept(database: Database) -> None:
    async with listening(database.dsn) as ear:
        with database.connect() as stranger:
            stranger.execute("SELECT pg_notify('c', i || repeat('x', 7990)) FROM generate_series(1, 6) i")
        kept, _ = await ear.heard(6)
    assert {one.payload for one in kept} == {TOO_LONG}


async def test_bytes_that_are_no_text(database: Database) -> None:
    """A SQL_ASCII database takes whatever a client sends."""
    name = f"{database.name}_ascii"
    with database.connect() as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'".encode())
        try:
            dsn = make_conninfo(database.dsn, dbname=name)
            async with listening(dsn) as ear:
                with psycopg.connect(dsn, autocommit=True, client_encoding="SQL_ASCII") as stranger:
                    stranger.execute(b"SELECT pg_notify('c', 'M\xfcll')")
                kept, _ = await ear.heard(1)
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
    assert [one.payload for one in kept] == ["M\ufffdll"]


async def test_what_comes_before_it_listens_is_not_kept(database: Database) -> None:
    with database.connect() as stranger:
        async with await connect(database.dsn) as connection:
            await connection.execute("LISTEN c")
            stranger.execute("SELECT pg_notify('c', 'ab' || i) FROM generate_series(1, 5) i")
            ear = Ear(connection, 0, waiting_maximum=100)
            await ear.listener.listen("c")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ear.pump)
                stranger.execute("NOTIFY c, 'now'")
                kept, _ = await ear.heard(1)
                tasks.cancel_scope.cancel()
    assert [one.payload for one in kept] == ["now"]


async def test_what_the_arrival_raises_ends_it(database: Database) -> None:
    class OurError(Exception):
        pass

    def fail() -> None:
        raise OurError

    async with await connect(database.dsn) as connection:
        listener = Listener(connection, 0, 100)
        await listener.listen("c")
        with database.connect() as stranger:
            stranger.execute("NOTIFY c")
        with pytest.raises(OurError), anyio.fail_after(PATIENCE):
            await listener.pump(fail)


async def test_a_connection_that_breaks_ends_it(database: Database) -> None:
    async with await connect(database.dsn) as connection:
        listener = Listener(connection, 0, 100)
        await listener.listen("c")
        with database.connect() as stranger:
            stranger.execute("SELECT pg_terminate_backend(%s)", (connection.info.backend_pid,))
        with pytest.raises(DatabaseUnavailable), anyio.fail_after(PATIENCE):
            await listener.pump(lambda: None)


async def test_an_error_during_cancellation_is_not_logged(database: Database) -> None:
    """The working connection may break first and cancel the pump, in the very iteration in which this one breaks."""
    loop = asyncio.get_running_loop()
    logged: list[object] = []
    loop.set_exception_handler(lambda _, context: logged.append(context))
    connection = await connect(database.dsn)
    listener = Listener(connection, 0, 100)
    pumping = loop.create_task(listener.pump(lambda: None))
    await anyio.lowlevel.checkpoint()
    reader = loop._selector.get_key(connection.fileno()).data[0]  # type: ignore[attr-defined]
    pumping.cancel()
    connection.pgconn.finish()
    reader._run()
    with pytest.raises(asyncio.CancelledError):
        await pumping
    assert logged == []
