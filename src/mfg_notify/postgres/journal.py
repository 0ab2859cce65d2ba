"""The journal and the settled totals: lease, fold, and reading the totals back.

Owns what makes a number exact: an event leaves the journal and enters the totals in one transaction. What an event
adds is `core.rules`.
"""

from dataclasses import dataclass

import msgspec
import psycopg
import structlog
from psycopg.rows import TupleRow

from mfg_notify.core.catalogue import SETTLED_LABELS
from mfg_notify.core.counters import Settlement
from mfg_notify.core.events import VERSION, Event, decode_change
from mfg_notify.core.live_state import RecentActivity
from mfg_notify.core.rules import Completion, SampleKey
from mfg_notify.errors import MalformedEvent, SchemaNotReady
from mfg_notify.postgres.connection import Connection, read_only_snapshot, translated_errors
from mfg_notify.postgres.queries import QUERY

CHUNK = 20_000
"""Events folded in one transaction."""
PARTS = 4
"""Statements that take them: while one part is settled here, the server is at work on the next."""

BARRIER = "barrier "
"""Payload that ends a fold: `barrier ` and its generation. It counts only from one's own backend."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Fold:
    """One committed fold. `events` of one row of the game are in order of id; `malformed` rows count as nothing."""

    generation: int
    events: list[Event]
    settlement: Settlement
    malformed: int
    drained: bool
    """Fewer events than a chunk were there: nothing is left that was visible when the fold began."""
    xid: int
    oldest: int
    """The oldest transaction that was open when the fold began to look."""
    last_id: int
    """Last id that was given out when the fold began."""


@dataclass(frozen=True, slots=True)
class Settled:
    """What the database holds as of a generation."""

    generation: int
    totals: dict[SampleKey, int]
    memory: RecentActivity


async def acquire_lease(connection: Connection, who: str) -> bool:
    """Try to become the one who folds; True if `who` holds the lease now.

    A holder that is silent and keeps the lease locked is disconnected, for the next try.
    """
    with translated_errors():
        if await (await connection.execute(QUERY["acquire_lease"], {"holder": who})).fetchone() is not None:
            return True
        await connection.execute(QUERY["dislodge"])
        return False


async def release_lease(connection: Connection, who: str) -> None:
    """Give the lease back, so that the next exporter need not wait for it to run out."""
    with translated_errors():
        await connection.execute(QUERY["release_lease"], {"holder": who})


async def enable_notify(connection: Connection) -> None:
    """Tell the triggers to notify. Who has begun to write by now may still be quiet."""
    with translated_errors():
        await connection.execute(QUERY["enable_notify"])


async def fold(
    connection: Connection, who: str, channel: str, chunk: int = CHUNK, *, after: int = -1, disable_notify: bool = False
) -> Fold | None:
    """Move up to `chunk` events with ids above `after` from the journal into the totals in one transaction.

    A barrier with the fold's generation goes out on the channel; `disable_notify` stops the triggers from notifying.
    Return None if `who` does not hold the lease; nothing was done then. If this raises, the outcome of the COMMIT is
    unknown: read the totals again.
    """
    fold: Fold | None = None
    found = _Found()
    with translated_errors():
        # In a pipeline: the statements go out together, and only two answers are waited for.
        async with connection.pipeline(), connection.transaction():
            beginning = await connection.execute(QUERY["begin_fold"], {"holder": who})
            if disable_notify:
                await connection.execute(QUERY["disable_notify"], {"holder": who})
            part = -(-chunk // PARTS)
            take = {"version": VERSION, "chunk": part, "after": after}
            takings = [await connection.execute(QUERY["take_events"], take)]
            begun = await beginning.fetchone()
            if begun is None:
                raise psycopg.Rollback
            generation, xid, oldest, last_id, folded = begun
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
            drained = found.rows < chunk
            # Of the ids up to last_id those that are not drained are rolled back, or of transactions that are open now.
            folded_to = last_id if drained else found.last_id
            if found.rows or last_id > folded:
                await connection.execute(QUERY["mark_folded"], {"id": folded_to})
            await connection.execute(QUERY["barrier"], {"channel": channel, "barrier": f"{BARRIER}{generation}"})
            fold = Fold(generation, found.events, found.settlement, len(found.malformed), drained, xid, oldest, last_id)
    if n := len(found.malformed):
        # Not why: that would repeat what is in the row.
        log.warning("journal rows are not events; they count as nothing", rows=n, last_id=found.malformed[-1])
    return fold


class _Found:
    """What the parts of a fold have brought so far.

    The events of one row of the game come in order of id, within a part and from part to part: that row's lock has put
    their transactions in order.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.last_id = -1
        self.events: list[Event] = []
        self.malformed: list[int] = []
        self.settlement = Settlement()

    def add(self, rows: list[TupleRow]) -> None:
        """Decode and settle a part."""
        rows.sort()
        events = []
        for number, xid, at, body in rows:
            try:
                events.append(Event(number, xid, at, decode_change(body)))
            except MalformedEvent:
                self.malformed.append(number)
        self.rows += len(rows)
        self.last_id = max(self.last_id, rows[-1][0] if rows else -1)
        self.events += events
        self.settlement.add(events)


async def _save(connection: Connection, settlement: Settlement) -> None:
    # In the order of events, by which new label sets are numbered; folds do not overlap, so no deadlock.
    increments = list(settlement.increments.items())
    if increments:
        await connection.execute(
            QUERY["add_totals"],
            {
                "metrics": [metric for (metric, _), _ in increments],
                "labels": [_to_json(key) for key, _ in increments],
                "n": [_bigint(n) for _, n in increments],
            },
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
                "profits": [_bigint(c.profit) for c in done if c.profit is not None],
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


def _bigint(n: int) -> int:
    # A sum that no bigint can hold stops at the end of bigint.
    return max(-(2**63), min(n, 2**63 - 1))


async def prune(connection: Connection) -> None:
    """Forget what no gauge asks for any more in `recent` and `latest`; count buffers that were never written."""
    with translated_errors():
        await connection.execute(QUERY["forget_recent"], {"ids": []})
        await connection.execute(QUERY["forget_latest"])
        await connection.execute(QUERY["count_abandoned"])


async def read_settled(connection: Connection) -> Settled:
    """Read totals, `recent` and `latest` whole, as of one generation. Raise `SchemaNotReady` if the owner is gone."""
    with translated_errors():
        async with read_only_snapshot(connection):
            owner = await (await connection.execute(QUERY["generation"])).fetchone()
            if owner is None:
                raise SchemaNotReady("mfg_notify.lease has lost its row; `mfg-notify doctor` says what mends it")
            totals = {}
            async for metric, labels, n in await connection.execute(QUERY["totals"]):
                # A metric that only a newer version knows stays in the table, untouched.
                if metric in SETTLED_LABELS:
                    totals[_from_json(metric, labels)] = n
            return Settled(owner[0], totals, await _read_memory(connection))


async def _read_memory(connection: Connection) -> RecentActivity:
    recent = await connection.execute(QUERY["recent"])
    completions = {row[0]: Completion(*row) for row in await recent.fetchall()}
    latest = await connection.execute(QUERY["latest"])
    return RecentActivity(completions, {(kind, player, key): at for kind, player, key, at in await latest.fetchall()})


def _to_json(key: SampleKey) -> str:
    metric, values = key
    return msgspec.json.encode(dict(zip(SETTLED_LABELS[metric], values, strict=True))).decode()


def _from_json(metric: str, labels: str) -> SampleKey:
    given = msgspec.json.decode(labels, type=dict[str, str])
    return metric, tuple(given[name] for name in SETTLED_LABELS[metric])
