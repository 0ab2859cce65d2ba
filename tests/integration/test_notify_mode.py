"""The notify mode on a real server: when the triggers notify, and when the exporter polls instead.

At a high rate NOTIFY is disabled, and no event is left behind when it is enabled again. Payloads that arrive while a
fold is under way are counted at once.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import anyio
import anyio.lowlevel
import psycopg
import pytest
from psycopg import sql
from tenacity import AsyncRetrying, retry_if_result, stop_after_delay, wait_fixed
from tests import support
from tests.conftest import Database
from tests.game_rows import add_player, add_task
from tests.samples import applied, number
from tests.support import PATIENCE, assert_exact, page_of, settled

from mfg_notify.core.notify_mode import NotifyMode, Policy
from mfg_notify.core.tuning import Tuning
from mfg_notify.demo.game import play
from mfg_notify.demo.world import GameOptions
from mfg_notify.exporter import Exporter

pytestmark = pytest.mark.anyio
NEVER_AGAIN = 3600.0
"""Seconds between reconciliations: longer than any test, so that only folds and payloads count events."""


exporting = partial(support.exporting, reconcile_interval=NEVER_AGAIN)


async def reached(exporter: Exporter, condition: Callable[[str], bool]) -> None:
    """Wait until the page satisfies the condition."""

    async def look() -> bool:
        return condition(page_of(exporter))

    await AsyncRetrying(
        retry=retry_if_result(lambda met: not met), wait=wait_fixed(0.01), stop=stop_after_delay(PATIENCE)
    )(look)


async def two_pings(exporter: Exporter) -> None:
    """Wait for two of its pings: by then it has handled every notification from before the first."""
    pings = "mfg_notify_listener_roundtrip_seconds_count"
    before = number(page_of(exporter), pings)
    await reached(exporter, lambda page: number(page, pings) >= before + 2)


def polls(page: str) -> bool:
    return number(page, "mfg_notify_polling") == 1


def notify_is_disabled(database: Database) -> bool:
    with database.connect() as connection:
        return connection.execute("SELECT last_value FROM mfg_notify.notify_disabled").fetchone() == (1,)


@contextmanager
def listening(database: Database) -> Iterator[Callable[[], list[str]]]:
    """Listen; the function returns the events that were notified since the last call."""
    with database.connect() as connection:
        [(channel,)] = connection.execute("SELECT channel FROM mfg_notify.settings").fetchall()
        connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))

        def received() -> list[str]:
            connection.execute("SELECT")
            payloads = [notification.payload for notification in connection.notifies(timeout=0)]
            return [payload for payload in payloads if payload == "fold" or payload.startswith("[")]

        yield received


def insert(connection: psycopg.Connection, number: int) -> None:
    add_task(connection, f"t{number}", status="READY")


@pytest.fixture
def game(installed: Database) -> Iterator[psycopg.Connection]:
    with installed.connect() as connection:
        add_player(connection)
        yield connection


async def test_it_polls_while_changes_come_fast(installed: Database, game: psycopg.Connection) -> None:
    with listening(installed) as received:
        async with exporting(installed.dsn, tuning=Tuning(high_water_rate=20.0)) as exporter:
            assert not polls(page_of(exporter))
            inserted = 0
            with anyio.fail_after(PATIENCE):
                while not polls(page_of(exporter)):
                    insert(game, inserted := inserted + 1)
                    await anyio.lowlevel.checkpoint()
            assert len(received()) > 0
            insert(game, inserted := inserted + 1)
            assert received() == []
            await reached(exporter, lambda page: applied(page) == inserted)
            # When the rate has fallen, NOTIFY is enabled again and the exporter sleeps.
            await reached(exporter, lambda page: not polls(page))
            insert(game, inserted := inserted + 1)
            assert len(received()) == 1
            await reached(exporter, lambda page: applied(page) == inserted)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [True, False], ids=["as it is", "rule taken out"])
async def test_a_writer_that_did_not_notify_and_commits_late(
    installed: Database, game: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, *, rule: bool
) -> None:
    if not rule:
        monkeypatch.setattr(NotifyMode, "may_sleep", property(lambda self: not self.polling))
    async with exporting(installed.dsn, tuning=Tuning(high_water_rate=20.0)) as exporter:
        inserted = 0
        with anyio.fail_after(PATIENCE):
            while not polls(page_of(exporter)):
                insert(game, inserted := inserted + 1)
                await anyio.lowlevel.checkpoint()
        with listening(installed) as received:
            with game.transaction():
                insert(game, inserted + 1)
                await reached(exporter, lambda page: not polls(page))
                await two_pings(exporter)
                assert applied(page_of(exporter)) == inserted
            assert received() == []
        if rule:
            await reached(exporter, lambda page: applied(page) == inserted + 1)
        else:
            await two_pings(exporter)
            assert applied(page_of(exporter)) == inserted


@pytest.mark.slow
async def test_it_sleeps_once_all_silent_writers_have_ended(installed: Database, game: psycopg.Connection) -> None:
    async with exporting(installed.dsn) as exporter:
        insert(game, 1)
        await reached(exporter, lambda page: applied(page) == 1)
        # The fold that settles it is the last: nothing happens, so nothing is folded.
        await exporter.wait_until(lambda _: game.execute("SELECT FROM mfg_notify.event").fetchone() is None)
        await two_pings(exporter)
        folds = exporter.state.folds
        await two_pings(exporter)
        assert exporter.state.folds == folds


async def test_the_first_event_after_many_empty_folds(installed: Database, game: psycopg.Connection) -> None:
    """The id that a new sequence reports as its last has not been given out yet, so it is still to come."""
    async with exporting(installed.dsn, notify=Policy.NEVER, tuning=Tuning(poll_interval_maximum=0.015)) as exporter:
        empty = exporter.state.folds + 5
        await exporter.wait_until(lambda state: state.folds >= empty)
        insert(game, 1)
        await reached(exporter, lambda page: applied(page) == 1)


async def test_never_means_never(installed: Database, game: psycopg.Connection) -> None:
    with listening(installed) as received:
        async with exporting(installed.dsn, notify=Policy.NEVER) as exporter:
            await reached(exporter, polls)
            insert(game, 1)
            await reached(exporter, lambda page: applied(page) == 1)
        assert received() == []


async def test_always_means_always(installed: Database, game: psycopg.Connection) -> None:
    with listening(installed) as received:
        async with exporting(installed.dsn, notify=Policy.ALWAYS, tuning=Tuning(high_water_rate=0.0)) as exporter:
            for one in range(50):
                insert(game, one)
            await reached(exporter, lambda page: applied(page) == 50)
            assert not polls(page_of(exporter))
        assert len(received()) == 50
    assert not notify_is_disabled(installed)


async def test_stopping_disables_notify_and_starting_enables_it(installed: Database, game: psycopg.Connection) -> None:
    async with exporting(installed.dsn):
        assert not notify_is_disabled(installed)
    assert notify_is_disabled(installed)
    insert(game, 1)
    async with exporting(installed.dsn) as exporter:
        assert not notify_is_disabled(installed)
        await reached(exporter, lambda page: applied(page) == 1)
        insert(game, 2)
        await reached(exporter, lambda page: number(page, "mfg_notify_notifications_received_total") == 1)


@pytest.mark.parametrize("notify", [Policy.ADAPTIVE, Policy.NEVER])
async def test_a_notify_mode_set_by_someone_else_is_corrected(
    installed: Database, game: psycopg.Connection, notify: Policy
) -> None:
    async with exporting(installed.dsn, notify=notify) as exporter:
        await reached(exporter, lambda page: polls(page) is (notify is Policy.NEVER))
        wrong = int(notify is not Policy.NEVER)
        game.execute("SELECT setval('mfg_notify.notify_disabled', %s)", (wrong,))
        insert(game, 1)
        await reached(exporter, lambda page: applied(page) == 1)
        with anyio.fail_after(PATIENCE):
            while notify_is_disabled(installed) is bool(wrong):
                await two_pings(exporter)


async def test_a_standby_does_not_switch_the_triggers(installed: Database) -> None:
    async with exporting(installed.dsn), exporting(installed.dsn, notify=Policy.NEVER) as second:
        assert second.state.standby
        await two_pings(second)
        assert not notify_is_disabled(installed)


@pytest.mark.slow
@pytest.mark.extended
async def test_exact_while_the_notify_mode_changes(installed: Database) -> None:
    modes: list[bool] = []
    with installed.connect() as connection:
        async with exporting(
            installed.dsn, reconcile_interval=1, tuning=Tuning(high_water_rate=100.0, quiet_exit_windows=1)
        ) as exporter:
            for rate in (0.0, 30.0, 0.0, 30.0):
                await play(
                    installed.dsn,
                    GameOptions(seed=round(rate), rate=rate),
                    statements=60 if rate else 1500,
                    on_progress=lambda _: modes.append(polls(page_of(exporter))),
                )
            assert_exact(await settled(exporter, connection), connection)
    assert True in modes
    assert False in modes


async def test_payloads_during_a_fold_are_counted_at_once(installed: Database, game: psycopg.Connection) -> None:

    def fold_waits() -> bool:
        waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'mfg_notify.total'::regclass AND NOT granted)"
        return game.execute(waits).fetchone() == (True,)

    async with exporting(installed.dsn, notify=Policy.ALWAYS, tuning=Tuning(confirming_fold_delay=0.0)) as exporter:
        with installed.connect() as locking, locking.transaction():
            locking.execute("LOCK TABLE mfg_notify.total IN EXCLUSIVE MODE")
            insert(game, 1)
            game.execute("UPDATE manufacturing_tasks SET status = 'COMPLETED'")
            await reached(exporter, lambda _: fold_waits())
            insert(game, 2)
            await reached(exporter, lambda page: applied(page) == 3)
            assert fold_waits()
        await reached(exporter, lambda _: journal_is_empty(game))
        assert applied(page_of(exporter)) == 3


async def test_many_counted_payloads_do_not_wait_for_their_fold(installed: Database, game: psycopg.Connection) -> None:
    async with exporting(
        installed.dsn, notify=Policy.ALWAYS, tuning=Tuning(confirming_fold_delay=NEVER_AGAIN, announced_maximum=10)
    ) as exporter:
        # At first it also folds by itself, until every transaction that may not notify has ended.
        for number in range(30):
            insert(game, number)
            if number % 10 == 9:
                await reached(exporter, lambda _: journal_is_empty(game))


def journal_is_empty(connection: psycopg.Connection) -> bool:
    return connection.execute("SELECT EXISTS (SELECT FROM mfg_notify.event)").fetchone() == (False,)
