"""One exporter leads after another.

An exporter that leads again must not take for granted what it knew before. One that cannot prove that it leads shows
nothing of the game, so that sums over both are right.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import psycopg
import pytest
from tests.conftest import Database
from tests.faults.network import socket_of, through
from tests.faults.proxy import Proxy
from tests.samples import value
from tests.support import PATIENCE, exporting, page_of

from mfg_notify.core.catalogue import PREFIX
from mfg_notify.exporter import Exporter
from mfg_notify.postgres import journal

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
NEVER_AGAIN = 3600.0
"""Seconds between reconciliations: none comes to help."""


@asynccontextmanager
async def another_leads(exporter: Exporter, other: psycopg.Connection) -> AsyncIterator[None]:
    """Take the lease from the exporter for the duration of the block."""
    other.execute(
        """UPDATE mfg_notify.lease
           SET holder = 'another', backend_pid = pg_backend_pid(), renewed_at = clock_timestamp()"""
    )
    with anyio.fail_after(PATIENCE):
        await exporter.wait_until(lambda state: state.standby)
    other.execute("UPDATE mfg_notify.lease SET renewed_at = clock_timestamp()")
    yield
    other.execute("UPDATE mfg_notify.lease SET holder = NULL")
    with anyio.fail_after(PATIENCE):
        await exporter.wait_until(lambda state: state.leader and state.reconciled)


def insert_task(connection: psycopg.Connection, key: str) -> None:
    connection.execute(
        "INSERT INTO manufacturing_tasks (id, player_id, task_type, status, good) VALUES (%s, 1, 'SELL', 'READY', 'G')",
        (key,),
    )


async def empty_journal(exporter: Exporter, connection: psycopg.Connection) -> None:
    """Wait until everything that was committed is folded."""
    with anyio.fail_after(PATIENCE):
        while connection.execute("SELECT EXISTS (SELECT FROM mfg_notify.event)").fetchone() != (False,):
            await exporter.wait_until(lambda state, before=exporter.state.folds: state.folds > before)  # type: ignore[misc]


async def test_a_writer_that_another_leader_has_silenced_is_awaited(installed: Database) -> None:
    with installed.connect() as other, installed.connect() as game:
        other.execute("INSERT INTO players (agent_symbol, token) VALUES ('A', 'x')")
        async with exporting(installed.dsn, NEVER_AGAIN) as exporter:
            session = exporter._session
            with anyio.fail_after(PATIENCE):
                await exporter.wait_until(lambda _: session is not None and session._notify_mode.may_sleep)
            async with another_leads(exporter, other):
                other.execute("SELECT setval('mfg_notify.notify_disabled', 1)")
                game.execute("BEGIN")
                insert_task(game, "silent")
                other.execute("SELECT setval('mfg_notify.notify_disabled', 0)")
            game.execute("COMMIT")
            await empty_journal(exporter, other)
            assert exporter._session is session


@pytest.mark.thorough
async def test_ids_handed_out_again_under_another_leader_are_folded(installed: Database) -> None:
    with installed.connect() as other:
        other.execute("INSERT INTO players (agent_symbol, token) VALUES ('A', 'x')")
        async with exporting(installed.dsn, NEVER_AGAIN) as exporter:
            session = exporter._session
            assert session is not None
            for number in range(50):
                insert_task(other, f"before {number}")
                await empty_journal(exporter, other)
                if session._folding._horizon.folded_up_to > 0:
                    break
            assert session._folding._horizon.folded_up_to > 0
            async with another_leads(exporter, other):
                other.execute("SELECT setval('mfg_notify.event_id_seq', 1, false)")
                other.execute("UPDATE mfg_notify.lease SET generation = generation + 100")
            insert_task(other, "again")
            await empty_journal(exporter, other)
            # A fold that does not see the event would take its payload for forged.
            assert not value(page_of(exporter), "mfg_notify_events_rejected_total", reason="unconfirmed")
            assert exporter._session is session


def shows_the_game(exporter: Exporter) -> bool:
    page = page_of(exporter)
    assert "mfg_notify_connected" in page
    return f"\n{PREFIX}" in page


@pytest.mark.parametrize("backend_gone", [False, pytest.param(True, marks=pytest.mark.thorough)])
async def test_a_cut_off_leader_and_its_successor_never_show_both(installed: Database, *, backend_gone: bool) -> None:
    with installed.connect() as game, Proxy(socket_of(installed.dsn)) as proxy:
        game.execute("INSERT INTO players (agent_symbol, token) VALUES ('A', 'x')")
        insert_task(game, "waiting")
        async with (
            exporting(through(installed.dsn, "127.0.0.1", proxy.port)) as cut_off,
            exporting(installed.dsn) as next_,
        ):
            assert (shows_the_game(cut_off), shows_the_game(next_)) == (True, False)
            proxy.stalled.set()
            if backend_gone:
                # The server has hung up, and the exporter cannot know.
                game.execute("SELECT pg_terminate_backend(backend_pid) FROM mfg_notify.lease")
            with anyio.fail_after(PATIENCE):
                await next_.wait_until(lambda state: state.leader and state.ready)
            assert (shows_the_game(cut_off), shows_the_game(next_)) == (False, True)
            assert cut_off.board_snapshot().game is not None, (
                "the board still shows the last numbers, and how old they are"
            )
            proxy.stalled.clear()


async def test_a_stopping_exporter_shows_nothing_once_another_may_lead(installed: Database) -> None:
    with installed.connect() as game:
        game.execute("INSERT INTO players (agent_symbol, token) VALUES ('A', 'x')")
        insert_task(game, "waiting")
        async with exporting(installed.dsn) as first:
            assert shows_the_game(first)
        assert not shows_the_game(first)


async def test_a_standby_hears_what_was_running_when_it_read(installed: Database) -> None:
    with installed.connect() as game, installed.connect() as other:
        other.execute("INSERT INTO players (agent_symbol, token) VALUES ('A', 'x')")
        async with exporting(installed.dsn, NEVER_AGAIN) as leader:
            game.execute("BEGIN")
            insert_task(game, "its id is handed out first")
            insert_task(other, "folded first")
            await empty_journal(leader, other)
            async with exporting(installed.dsn, NEVER_AGAIN) as standby:
                with anyio.fail_after(PATIENCE):
                    while not standby.ledger._counters.following:
                        await anyio.lowlevel.checkpoint()
                assert standby.ledger.heard() == set()
                game.execute("COMMIT")
                with anyio.fail_after(PATIENCE):
                    while standby.ledger.heard() != {1}:
                        await anyio.lowlevel.checkpoint()


async def test_a_standby_reads_what_it_did_not_hear(installed: Database) -> None:
    with installed.connect() as game, installed.connect() as other:
        other.execute("INSERT INTO players (agent_symbol, token) VALUES ('A', 'x')")
        for key in ("too old", "heard", "unheard"):
            insert_task(other, key)
        game.execute("BEGIN")
        insert_task(game, "running")
        other.execute("INSERT INTO mfg_notify.event (version, body) VALUES (1, 'junk'), (99, 'of a newer version')")
        xid = game.execute("SELECT pg_current_xact_id()::text::bigint").fetchone()
        newest = 5
        async with await psycopg.AsyncConnection.connect(installed.dsn, autocommit=True) as connection:
            _, waiting = await journal.follow(connection, 100, frozenset({2, 50}), newest)
        assert [event.change.key for event in waiting.unheard] == ["unheard"]
        assert waiting.in_journal == {2}
        assert xid is not None
        assert not waiting.visibility.sees(xid[0])
        assert all(waiting.visibility.sees(event.xid) for event in waiting.unheard)
