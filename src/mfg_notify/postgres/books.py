"""The books in the database: how entries are stored, added up and checked.

Each fold stores one entry, and with each reconciliation one entry takes the place of all. A row for each account would
make each fold a tenth dearer.

A check reads one snapshot of the database and changes nothing. What the numbers mean is decided in `core.books`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import structlog
from psycopg import errors, sql
from psycopg.rows import TupleRow

from mfg_notify.core.books import Account, Balance, Books, Difference, Entry, changed_rows, compare
from mfg_notify.core.capped_totals import limited
from mfg_notify.core.events import VERSION, decode_change
from mfg_notify.errors import MalformedEvent, SchemaNotReady
from mfg_notify.postgres.connection import Connection, read_only_snapshot, translated_errors
from mfg_notify.postgres.lease import LEASE_LOST
from mfg_notify.postgres.queries import QUERY
from mfg_notify.postgres.snapshot import game_tables

NO_ENTRY = Entry()
ROWS_AT_A_TIME = 10_000
"""Events of the journal that are in memory at a time."""

log = structlog.get_logger(__name__)

_decoder = msgspec.json.Decoder(Entry)


@dataclass(frozen=True, slots=True)
class ChangedTotal:
    """A metric whose totals are not the sum of what folds have added to them, in stored units."""

    metric: str
    added: int
    stored: int
    at_limit: bool
    """One of them has stopped at the end of bigint, so nothing can be proved."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a check has found in one snapshot of the database."""

    snapshot: str
    """As `pg_current_snapshot` prints it."""
    read_at: str
    """The database's clock, ISO 8601."""
    balance: Mapping[Account, int]
    """Balance and journal together."""
    counted: Mapping[Account, int]
    """The rows in the tables."""
    sources: tuple[str, ...]
    """Those that were counted."""
    journal_events: int
    unknown_versions: int
    """Events of a newer version among them: as long as there are any, nothing is proved."""
    metrics: int
    changed_totals: tuple[ChangedTotal, ...]
    unrecorded: Mapping[str, int]
    """Rows by source that were changed without an event, as entered so far."""
    accepted: Mapping[str, int]
    """What was changed in the totals of each metric, as accepted so far."""

    @property
    def differences(self) -> list[Difference]:
        """The accounts that differ."""
        return compare({place: n for place, n in self.balance.items() if place[0] in self.sources}, self.counted)


async def check(
    connection: Connection,
    schema: str,
    *,
    after: int = -1,
    journal_maximum: int | None = None,
    factories: bool = True,
    totals: bool = True,
    statement_timeout: float = 0.0,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Reading | None:
    """Read the books, the journal above the id `after` and the live rows in one snapshot.

    Return None if the journal holds more than `journal_maximum` events, or if a statement takes longer than
    `statement_timeout` seconds (0: whatever it takes). Without `factories` their table is not read, without `totals`
    neither are the totals. `on_progress` is told how many events of the journal have been read.
    """
    limit = sql.SQL("SET LOCAL statement_timeout = {}").format(sql.Literal(round(statement_timeout * 1000)))
    with translated_errors():
        while True:
            try:
                async with read_only_snapshot(connection):
                    await connection.execute(limit)
                    counted = await _count_rows(connection, schema, factories=factories)
                    if counted is not None:
                        return await _read_books(
                            connection, counted, after, journal_maximum, totals=totals, on_progress=on_progress
                        )
            except errors.QueryCanceled:
                if not statement_timeout:
                    raise
                return None


_COUNTS = {"pipeline": "live_pipeline_accounts", "task": "live_task_accounts", "factory": "factory_accounts"}


async def _count_rows(connection: Connection, schema: str, *, factories: bool) -> dict[str, dict[Account, int]] | None:
    """Count the rows by source; None if the snapshot does not show a table as it is, because it was rewritten."""
    tables = game_tables(schema)
    sources = [source for source in _COUNTS if factories or source != "factory"]
    names = sql.Literal([table.as_string() for table in tables.values()])
    # All of it is sent at once: a reader that is stopped in between holds no lock on a table of the game.
    async with connection.pipeline():
        await connection.execute("SAVEPOINT mfg_notify_game")
        cursors = [await connection.execute(sql.SQL(QUERY[_COUNTS[source]]).format(**tables)) for source in sources]
        visible = await connection.execute(sql.SQL(QUERY["visible"]).format(names=names))
        await connection.execute("ROLLBACK TO SAVEPOINT mfg_notify_game")
        found = [await cursor.fetchall() for cursor in cursors]
        [(_, _, rewritten)] = await visible.fetchall()
    if rewritten:
        return None
    return {
        source: {(place, player_id, status): n for place, player_id, status, n in rows}
        for source, rows in zip(sources, found, strict=True)
    }


async def _read_books(
    connection: Connection,
    counted: Mapping[str, Mapping[Account, int]],
    after: int,
    journal_maximum: int | None,
    *,
    totals: bool,
    on_progress: Callable[[int], None],
) -> Reading | None:
    [(snapshot, read_at)] = await (await connection.execute(QUERY["snapshot_identity"])).fetchall()
    books = sum_up(await (await connection.execute(QUERY["entries"])).fetchall())
    stored = await (await connection.execute(QUERY["sums_of_totals"])).fetchall() if totals else None
    events = unknown = 0
    journal = sql.SQL(QUERY["journal_bodies"]).format(
        version=sql.Literal(VERSION),
        after=sql.Literal(after),
        at_most=sql.NULL if journal_maximum is None else sql.Literal(journal_maximum + 1),
    )
    async with connection.cursor("mfg_notify_journal") as cursor:
        await cursor.execute(journal)
        while bodies := await cursor.fetchmany(ROWS_AT_A_TIME):
            events += len(bodies)
            unknown += sum(not readable for readable, _ in bodies)
            for body in (body for readable, body in bodies if readable):
                _enter_body(books.balance, body)
            on_progress(events)
    if journal_maximum is not None and events > journal_maximum:
        return None
    rows = {place: n for accounts in counted.values() for place, n in accounts.items()}
    return Reading(
        snapshot,
        read_at,
        books.balance.accounts(),
        rows,
        tuple(counted),
        events,
        unknown,
        len(books.sums),
        () if stored is None else _changed_totals(books.sums, stored),
        dict(books.unrecorded),
        dict(books.accepted),
    )


async def count_lost(connection: Connection) -> int:
    """Return how many changes the triggers have given up since the installation."""
    with translated_errors():
        [(lost,)] = await (await connection.execute(QUERY["lost_changes"])).fetchall()
    return int(lost)


def sum_up(rows: Sequence[TupleRow]) -> Books:
    """Return the sum of entries as they are stored.

    One that somebody has spoiled is left out, so that what it entered is found as a difference.
    """
    books = Books()
    for (body,) in rows:
        try:
            entry = _decoder.decode(body)
        except msgspec.DecodeError as error:
            log.warning("an entry of the books cannot be read and is left out", error=str(error))
        else:
            books.add(entry)
    return books


def _changed_totals(sums: Mapping[str, int], stored: Sequence[TupleRow]) -> tuple[ChangedTotal, ...]:
    found = {metric: (limited(int(n)), at_limit) for metric, n, at_limit in stored}
    compared = (
        ChangedTotal(metric, sums.get(metric, 0), *found.get(metric, (0, False)))
        for metric in sorted(sums.keys() | found.keys())
    )
    return tuple(total for total in compared if total.added != total.stored)


def _enter_body(balance: Balance, body: str) -> None:
    try:
        change = decode_change(body)
    except MalformedEvent:
        balance.add_malformed(body)
    else:
        balance.add((change,))


def encode(entry: Entry) -> str | None:
    """Return an entry as it is stored; None if it enters nothing."""
    return msgspec.json.encode(entry).decode() if entry != NO_ENTRY else None


async def carry_forward(connection: Connection, holder: str | None, found: Reading | None = None) -> Books:
    """Store one entry in place of all. Return the sum of all, nothing if `holder` does not hold the lease.

    What a check has `found` is entered, so that the next one balances. A `holder` of None is anyone. Raise
    `SchemaNotReady` if the lease has lost its row.
    """
    with translated_errors():
        async with connection.transaction():
            if await (await connection.execute(QUERY["lock_lease"], {"holder": holder})).fetchone() is None:
                if holder is None:
                    raise SchemaNotReady(LEASE_LOST)
                return Books()
            books = sum_up(await (await connection.execute(QUERY["take_entries"])).fetchall())
            if found is not None:
                books.add(_correction(found))
            entry = encode(books.carried_forward())
            if entry is not None:
                await connection.execute(QUERY["add_entry"], {"entry": entry})
            return books


def _correction(found: Reading) -> Entry:
    differences = found.differences
    changed_totals = {total.metric: total.stored - total.added for total in found.changed_totals}
    return Entry(
        rows=tuple((*difference.account, difference.missing) for difference in differences),
        sums=changed_totals,
        unrecorded={source: n for source, n in changed_rows(differences).items() if n},
        accepted=changed_totals,
    )
