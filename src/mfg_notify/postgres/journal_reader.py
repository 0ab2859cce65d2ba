"""Reads the journal without folding it: how far it has come, which transactions are open, and the events in it.

It never writes, so an exporter that folds at the same time is not disturbed.
"""

from dataclasses import dataclass

from mfg_notify.core.events import Event, decode_change
from mfg_notify.errors import MalformedEvent
from mfg_notify.postgres.connection import Connection, translated_errors
from mfg_notify.postgres.queries import QUERY


@dataclass(frozen=True, slots=True)
class Position:
    """How far the journal has come."""

    last_id: int
    """The highest id that was given to an event so far; its transaction may still be open."""
    notify_disabled: bool
    """Whether the leader has disabled NOTIFY for now."""


@dataclass(frozen=True, slots=True)
class Marker:
    """The transactions that were open when a ping was sent."""

    oldest_running: int
    own: int
    """The transaction that sent the ping. It is younger than every transaction that had an event id by then."""


@dataclass(frozen=True, slots=True)
class Page:
    """Some rows of the journal: events in order of id, and the number of rows that are not events of this version."""

    events: list[Event]
    malformed: int


async def read_position(connection: Connection) -> Position:
    """Return how far the journal has come."""
    with translated_errors():
        [row] = await (await connection.execute(QUERY["journal_position"])).fetchall()
    return Position(*row)


async def send_marker(connection: Connection, channel: str, ping: str) -> Marker:
    """Notify a channel. When the ping arrives, so has what every transaction before `oldest_running` has notified."""
    with translated_errors():
        cursor = await connection.execute(QUERY["journal_marker"], {"channel": channel, "ping": ping})
        [(oldest_running, own, _)] = await cursor.fetchall()
    return Marker(oldest_running, own)


async def read_page(connection: Connection, after: int, limit: int) -> Page:
    """Return up to `limit` rows of the journal with ids above `after`."""
    with translated_errors():
        cursor = await connection.execute(QUERY["journal_events"], {"after": after, "chunk": limit})
        rows = await cursor.fetchall()
    events = []
    for number, xid, at, body in rows:
        try:
            events.append(Event(number, xid, at, decode_change(body)))
        except MalformedEvent:
            continue
    return Page(events, len(rows) - len(events))
