"""Any split, repetition or crash between the steps of a fold gives the totals of a plain recount."""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import anyio
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import Database, Server
from tests.game_rows import add_player, add_task

from mfg_notify.core.events import Event, decode_change
from mfg_notify.core.ledger import Fold, Ledger
from mfg_notify.core.rules import SampleKey, increments
from mfg_notify.core.tuning import Tuning
from mfg_notify.demo.game import play
from mfg_notify.demo.world import GameOptions
from mfg_notify.postgres import journal, lease
from mfg_notify.postgres.queries import QUERY

STEPS = ("begin_fold", "take_events", "add_totals", "add_recent", "add_latest", "end_fold")
COMMITTED = "committed"
"""Not a step: the transaction commits, but its reply never arrives."""


class CrashError(Exception):
    """The exporter has crashed."""


class CrashingConnection(psycopg.AsyncConnection[Any]):
    """A connection that breaks just before it sends the statement of that name."""

    crash_before = ""

    async def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Send a statement, or crash before it."""
        if self.crash_before and query == QUERY[self.crash_before]:
            self.pgconn.finish()
            raise CrashError
        return await super().execute(query, *args, **kwargs)


class Exporter:
    """The state that an exporter keeps between folds."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ledger = Ledger(lambda: 0.0, 0, Tuning())

    async def fold(self, dsn: str, chunk: int, crash: str) -> bool:
        """Fold once on a new connection; True if the journal is drained. Crash before the step of that name."""
        async with await CrashingConnection.connect(dsn, autocommit=True) as connection:
            # Each takes the lease from the other without waiting, which is the worst case that a lease allows.
            await connection.execute("UPDATE mfg_notify.lease SET holder = %s", (self.name,))
            if crash in STEPS:
                connection.crash_before = crash
            number = self.ledger.begin_fold()
            fold = await journal.fold(connection, self.name, "channel", chunk, number=number)
            assert fold is not None
            if crash == COMMITTED:
                raise CrashError
            if self.ledger.settle(fold).needs_totals:
                self.ledger.resync(await journal.read_totals(connection))
            return fold.drained

    def exposed(self) -> dict[SampleKey, int]:
        """Return the counters that this exporter knows."""
        return self.ledger._counters.exposed()


@pytest.fixture(scope="module")
def full(server: Server) -> Iterator[Database]:
    """Return a database with a copy of a journal that a game has filled."""
    clones = server.clone(server.installed)
    database = next(clones)
    anyio.run(partial(play, database.dsn, GameOptions(seed=11, rate=0), statements=1200))
    with database.connect() as connection:
        connection.execute("CREATE TABLE public.copy AS SELECT * FROM mfg_notify.event")
    yield database
    next(clones, None)


def recount(connection: psycopg.Connection) -> dict[SampleKey, int]:
    """Sum up the increments of the journal, one event at a time."""
    totals: Counter[SampleKey] = Counter()
    for number, xid, at, body in connection.execute(
        "SELECT id, xid::text::bigint, (extract(epoch FROM at) * 1000000)::bigint, body FROM public.copy"
    ):
        for key, n in increments(Event(number, xid, at, decode_change(body))):
            totals[key] += n
    return dict(totals)


async def play_out(dsn: str, steps: list[tuple[int, int, str]]) -> list[dict[SampleKey, int]]:
    """Fold in these steps, then to the end; return the totals of each exporter, and those in the database."""
    exporters = [Exporter("one"), Exporter("two")]
    for number, chunk, crash in steps:
        try:
            await exporters[number].fold(dsn, chunk, crash)
        except (CrashError, psycopg.OperationalError):
            exporters[number] = Exporter(exporters[number].name)
    for exporter in exporters:
        while not await exporter.fold(dsn, 500, ""):
            pass
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        stored = (await journal.read_totals(connection)).counters.copy()
    return [exporters[0].exposed(), exporters[1].exposed(), stored]


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from((0, 1)), st.integers(1, 400), st.sampled_from(("", "", *STEPS, COMMITTED))),
        max_size=12,
    )
)
def test_totals_are_those_of_a_plain_recount(full: Database, steps: list[tuple[int, int, str]]) -> None:
    with full.connect() as connection:
        connection.execute(
            """TRUNCATE mfg_notify.total, mfg_notify.recent, mfg_notify.latest, mfg_notify.event;
               INSERT INTO mfg_notify.event OVERRIDING SYSTEM VALUE SELECT * FROM public.copy"""
        )
        truth = recount(connection)
        for known in anyio.run(play_out, full.dsn, steps):
            assert known == truth


def test_totals_stop_at_the_end_of_bigint(installed: Database) -> None:
    with installed.connect() as connection:
        highest = 2**63 - 1
        for n in (highest - 1, 5, 7):
            increment = {"metrics": ["manufacturing_revenue_total"], "labels": ["{}"], "n": [n]}
            connection.execute(QUERY["add_totals"], increment | {"entry": None})
        assert connection.execute("SELECT n FROM mfg_notify.total").fetchall() == [(highest,)]


def test_an_exporter_that_lost_the_lease_folds_nothing(installed: Database) -> None:
    async def fold() -> Fold | None:
        async with await psycopg.AsyncConnection.connect(installed.dsn, autocommit=True) as connection:
            assert await lease.acquire(connection, "one", 5, from_the_dead=True)
            return await journal.fold(connection, "another", "channel", 100)

    with installed.connect() as connection:
        connection.execute("INSERT INTO mfg_notify.event (body) VALUES ('junk')")
        assert anyio.run(fold) is None
        assert connection.execute("SELECT body FROM mfg_notify.event").fetchall() == [("junk",)]


def test_malformed_events_are_removed_and_counted(installed: Database) -> None:
    async def fold() -> Fold | None:
        async with await psycopg.AsyncConnection.connect(installed.dsn, autocommit=True) as connection:
            await lease.acquire(connection, "one", 5, from_the_dead=True)
            return await journal.fold(connection, "one", "channel", 100)

    with installed.connect() as connection:
        for body in ("junk", "[" * 100_000, '["task","U","t",null,null]', '["planet","I","p",null,null]'):
            connection.execute("INSERT INTO mfg_notify.event (body) VALUES (%s)", (body,))
        connection.execute("INSERT INTO mfg_notify.event (body, version) VALUES ('of tomorrow', 2)")
        folded = anyio.run(fold)
        assert folded is not None
        assert (folded.malformed, folded.events) == (4, [])
        # Events of a newer version stay for an exporter that can read them.
        assert connection.execute("SELECT body FROM mfg_notify.event").fetchall() == [("of tomorrow",)]


def test_only_buffers_that_were_lost_are_counted(installed: Database) -> None:
    async def prune() -> None:
        async with await psycopg.AsyncConnection.connect(installed.dsn, autocommit=True) as connection:
            await journal.prune(connection)

    with installed.connect() as connection, installed.connect() as other:
        add_player(connection)
        # The second event of a transaction is buffered.
        with connection.transaction():
            add_task(connection, "a")
            add_task(connection, "aa")
        with other.transaction():
            add_task(other, "b")
            add_task(other, "bb")
            anyio.run(prune)
        anyio.run(prune)
        assert connection.execute("SELECT count(*) FROM mfg_notify.event").fetchone() == (4,)
        assert connection.execute("SELECT count(*) FROM mfg_notify.pending_commit").fetchone() == (0,)
        assert connection.execute("SELECT is_called FROM mfg_notify.lost").fetchone() == (False,)
