"""The journal and the settled totals: folding one into the other, and reading the totals back.

Owns what makes a number exact: an event leaves the journal and enters the totals in one transaction. What an event
adds is decided in `core.rules`.
"""

from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple

import msgspec
import psycopg
import structlog
from psycopg.rows import TupleRow

from mfg_notify.core.books import Balance, Entry
from mfg_notify.core.capped_totals import SERIES_MAXIMUM, CappedTotals, limited
from mfg_notify.core.catalogue import SETTLED_LABELS
from mfg_notify.core.counters import Settlement, Waiting
from mfg_notify.core.events import VERSION, Event, decode_change
from mfg_notify.core.ledger import Fold, Totals
from mfg_notify.core.live_state import RecentActivity
from mfg_notify.core.rules import Completion, SampleKey
from mfg_notify.core.visibility import Visibility
from mfg_notify.errors import MalformedEvent, SchemaNotReady
from mfg_notify.postgres import books
from mfg_notify.postgres.connection import Connection, read_only_snapshot, translated_errors
from mfg_notify.postgres.lease import LEASE_LOST
from mfg_notify.postgres.queries import QUERY

BARRIER = "barrier "
"""Payload that ends a fold: `barrier ` and its number. It counts only from the exporter's own backend."""

DEAD_LETTERS_KEPT = 1_000
"""Journal rows that are not events, kept for inspection."""

TOTALS_AT_A_TIME = 2_000
"""Totals that are in memory before they are summed up; other tasks run in between."""

log = structlog.get_logger(__name__)


async def enable_notify(connection: Connection) -> None:
    """Enable NOTIFY in the triggers. Transactions that have already read the old setting may still not notify."""
    with translated_errors():
        await connection.execute(QUERY["enable_notify"])


async def fold(
    connection: Connection,
    holder: str,
    channel: str,
    chunk: int,
    *,
    number: int = 0,
    parts: int = 1,
    after: int = -1,
    disable_notify: bool = False,
) -> Fold | None:
    """Move up to `chunk` events with ids above `after` from the journal into the totals in one transaction.

    They are taken in so many `parts`. A barrier with the fold's `number` goes out on the channel; `disable_notify`
    stops the triggers from notifying. Return None if `holder` does not hold the lease; nothing was done then. If this
    raises, the outcome of the COMMIT is unknown: read the totals again.
    """
    fold: Fold | None = None
    found = _Found()
    with translated_errors():
        # Pipeline mode sends the statements together; only two round trips are waited for.
        async with connection.pipeline(), connection.transaction():
            beginning = await connection.execute(QUERY["begin_fold"], {"holder": holder})
            if disable_notify:
                await connection.execute(QUERY["disable_notify"], {"holder": holder})
            part = -(-chunk // parts)
            take = {"version": VERSION, "chunk": part, "after": after}
            takings = [await connection.execute(QUERY["take_events"], take)]
            begun = await beginning.fetchone()
            if begun is None:
                raise psycopg.Rollback
            generation, xid, xmin, last_id = begun
            rows = await takings[0].fetchall()
            if len(rows) == part:
                for taken in range(part, chunk, part):
                    limit = {"chunk": min(part, chunk - taken)}
                    takings.append(await connection.execute(QUERY["take_events"], take | limit))
            found.add(rows)
            for taking in takings[1:]:
                found.add(await taking.fetchall())
            if found.rows:
                await _save(connection, found.settlement)
            if found.malformed:
                await _set_aside(connection, found.malformed[-DEAD_LETTERS_KEPT:])
            drained = found.rows < chunk
            # Ids that are handed out and not in a drained journal belong to transactions that are open or rolled back.
            folded_to = last_id if drained else found.last_id
            await connection.execute(
                QUERY["end_fold"], {"channel": channel, "barrier": f"{BARRIER}{number}", "id": folded_to}
            )
            fold = Fold(
                number, generation, found.events, found.settlement, len(found.malformed), drained, xid, xmin, last_id
            )
    if n := len(found.malformed):
        # Do not say why: that could repeat the contents of the row.
        log.warning(
            "journal rows are not events; they count as nothing and are in mfg_notify.dead_letter",
            rows=n,
            last_id=found.malformed[-1].id,
        )
    return fold


class _DeadLetter(NamedTuple):
    """A journal row that is not an event; `at` in epoch microseconds."""

    id: int
    xid: int
    at: int
    body: str
    reason: str


class _Found:
    """What the parts of a fold have brought so far.

    Events of one row of the game are in order of id, within a part and across parts: the row lock orders their
    transactions.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.last_id = -1
        self.events: list[Event] = []
        self.malformed: list[_DeadLetter] = []
        self.settlement = Settlement()

    def add(self, rows: list[TupleRow]) -> None:
        """Decode and settle a part."""
        rows.sort()
        events: list[Event] = []
        settled = 0
        for number, xid, at, body in rows:
            try:
                events.append(Event(number, xid, at, decode_change(body)))
            except MalformedEvent as error:
                self.malformed.append(_DeadLetter(number, xid, at, body, str(error)))
                self.settlement.add(events[settled:])  # in order, because a TRUNCATE begins the balance anew
                settled = len(events)
                self.settlement.balance.add_malformed(body)
        self.rows += len(rows)
        self.last_id = max(self.last_id, rows[-1][0] if rows else -1)
        self.events += events
        self.settlement.add(events[settled:])


async def _save(connection: Connection, settlement: Settlement) -> None:
    # In order of events, because new label sets are numbered by it. Folds do not overlap, so this cannot deadlock.
    metrics = [metric for metric, _ in settlement.increments]
    added = [limited(n) for n in settlement.increments.values()]
    entry = _encode_entry(settlement.balance, metrics, added)
    if entry is not None:
        labels = [_to_json(key) for key in settlement.increments]
        await connection.execute(
            QUERY["add_totals"], {"metrics": metrics, "labels": labels, "n": added, "entry": entry}
        )
    done = [c for _, c in sorted(settlement.completions.items()) if c.profit is not None]
    undone = [c.pipeline_id for _, c in sorted(settlement.completions.items()) if c.profit is None]
    if done:
        await connection.execute(
            QUERY["add_recent"],
            {
                "ids": [c.pipeline_id for c in done],
                "players": [c.player_id for c in done],
                "completed": [c.completed_at for c in done],
                "profits": [limited(c.profit) for c in done if c.profit is not None],
            },
        )
    if undone:
        await connection.execute(QUERY["forget_recent"], {"ids": undone})
    last_seen = sorted(settlement.last_seen.items())
    if last_seen:
        await connection.execute(
            QUERY["add_latest"],
            {
                "kinds": [kind for (kind, _, _), _ in last_seen],
                "players": [player_id for (_, player_id, _), _ in last_seen],
                "keys": [key for (_, _, key), _ in last_seen],
                "at": [at for _, at in last_seen],
            },
        )


def _encode_entry(balance: Balance, metrics: list[str], added: list[int]) -> str | None:
    sums: dict[str, int] = {}
    for metric, n in zip(metrics, added, strict=True):
        sums[metric] = sums.get(metric, 0) + n
    return books.encode(
        Entry(tuple(sorted(balance.truncated)), balance.rows(), {metric: limited(n) for metric, n in sums.items()})
    )


async def _set_aside(connection: Connection, letters: list[_DeadLetter]) -> None:
    ids, xids, at, bodies, reasons = map(list, zip(*letters, strict=True))
    parameters = {"ids": ids, "xids": xids, "at": at, "bodies": bodies, "reasons": reasons}
    await connection.execute(QUERY["add_dead_letters"], parameters)


async def prune(connection: Connection) -> None:
    """Delete what no gauge needs any more from `recent` and `latest`; count the buffers that were never written."""
    with translated_errors():
        await connection.execute(QUERY["forget_recent"], {"ids": []})
        await connection.execute(QUERY["forget_latest"])
        await connection.execute(QUERY["count_abandoned"])
        await connection.execute(QUERY["forget_dead_letters"], {"kept": DEAD_LETTERS_KEPT})


async def read_totals(connection: Connection, series_maximum: int = SERIES_MAXIMUM) -> Totals:
    """Read totals, `recent` and `latest` whole, as of one generation. Raise `SchemaNotReady` if the lease is gone.

    However many totals there are, at most about `series_maximum` of them are in memory at a time.
    """
    with translated_errors():
        async with read_only_snapshot(connection):
            return await _read_totals(connection, series_maximum)


async def follow(
    connection: Connection, series_maximum: int, asked: frozenset[int], newest: int
) -> tuple[Totals, Waiting]:
    """Read the same as a standby, and what is in the journal at that moment.

    It has heard the events `asked` for; of the others, read those among the `newest` ids.
    """
    with translated_errors():
        async with read_only_snapshot(connection):
            totals = await _read_totals(connection, series_maximum)
            return totals, await _read_waiting(connection, asked, newest)


async def _read_totals(connection: Connection, series_maximum: int) -> Totals:
    await connection.execute(QUERY["lock_totals"])
    lease = await (await connection.execute(QUERY["generation"])).fetchone()
    if lease is None:
        raise SchemaNotReady(LEASE_LOST)
    counters = CappedTotals(series_maximum)
    async with connection.cursor("mfg_notify_totals") as cursor:
        await cursor.execute(QUERY["totals"])
        while rows := await cursor.fetchmany(TOTALS_AT_A_TIME):
            for metric, labels, n in rows:
                # A metric that only a newer version knows stays in the table, untouched.
                if metric in SETTLED_LABELS:
                    counters.add(_from_json(metric, labels), n)
    return Totals(lease[0], counters, await _read_activity(connection))


async def _read_waiting(connection: Connection, asked: frozenset[int], newest: int) -> Waiting:
    ids = sorted(asked)
    [(next_xid, in_progress)] = await (await connection.execute(QUERY["visibility"])).fetchall()
    heard = await (await connection.execute(QUERY["heard"], {"ids": ids})).fetchall()
    others = {"version": VERSION, "newest": newest, "ids": ids}
    unheard = []
    for number, xid, at, body in await (await connection.execute(QUERY["unheard"], others)).fetchall():
        with suppress(MalformedEvent):  # the exporter that leads sets it aside
            unheard.append(Event(number, xid, at, decode_change(body)))
    visibility = Visibility(next_xid, frozenset(in_progress))
    return Waiting(visibility, asked, frozenset(number for (number,) in heard), unheard)


async def _read_activity(connection: Connection) -> RecentActivity:
    recent = await connection.execute(QUERY["recent"])
    completions = {row[0]: Completion(*row) for row in await recent.fetchall()}
    latest = await connection.execute(QUERY["latest"])
    return RecentActivity(completions, {(kind, player, key): at for kind, player, key, at in await latest.fetchall()})


@lru_cache(maxsize=10_000)
def _to_json(key: SampleKey) -> str:
    metric, values = key
    return msgspec.json.encode(dict(zip(SETTLED_LABELS[metric], values, strict=True))).decode()


def _from_json(metric: str, labels: str) -> SampleKey:
    given = msgspec.json.decode(labels, type=dict[str, str])
    return metric, tuple(given[name] for name in SETTLED_LABELS[metric])
