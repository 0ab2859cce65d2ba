"""What a game database still knows of the past: its rows with their times, and the events that wait in the journal.

Reads only. Unlike everything else here it reads the whole history; so it is for a command that somebody runs, never for
the exporter. The server keeps the rows of an answer until they are fetched, so no lock outlives a query.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec
from psycopg import ServerCursor, sql
from psycopg.rows import TupleRow

from mfg_notify.core.catalogue import SETTLED_LABELS
from mfg_notify.core.events import VERSION, Event, PipelineChange, TaskChange, decode_change
from mfg_notify.core.history import Row
from mfg_notify.core.rules import SampleKey
from mfg_notify.errors import MalformedEvent, SchemaNotReady
from mfg_notify.postgres.connection import BlockingConnection, connect_blocking, translated_errors
from mfg_notify.postgres.installation import NOT_OURS, SCHEMA_VERSION, is_installed, is_ours, read_settings
from mfg_notify.postgres.queries import QUERY
from mfg_notify.postgres.snapshot import game_tables

ROWS_AT_A_TIME = 5_000
"""Rows that are in memory at once."""


@dataclass(frozen=True, slots=True)
class Past:
    """How far back the database goes. Times in epoch microseconds."""

    installed_at: int
    first: int | None
    """The first time in any row; None if there is none."""
    last_changes: Mapping[int, int]
    """The last time in the rows of each player."""
    seeds: Mapping[SampleKey, int]
    """Totals that began above 0."""
    pipelines: int
    tasks: int
    undated: int
    """Finished rows that do not say when they were finished."""


@dataclass(slots=True)
class Rows:
    """Rows of one table as they arrive."""

    _cursor: ServerCursor[TupleRow]
    read: int = 0
    unreadable: int = 0

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows in order of player and product or task type; leave out and count those that cannot be read."""
        for body, created_at in _fetch(self._cursor):
            self.read += 1
            try:
                change = decode_change(body)
            except MalformedEvent:
                self.unreadable += 1
                continue
            if isinstance(change, PipelineChange | TaskChange) and change.new is not None:
                yield Row(change.new, created_at)


@dataclass(slots=True)
class Journal:
    """What no exporter has folded yet, and what came before. Times in epoch microseconds."""

    totals: Mapping[SampleKey, int]
    heartbeat: int
    """The last one of an exporter, or the installation."""
    clock: int
    _cursor: ServerCursor[TupleRow]
    read: int = field(default=0, init=False)

    def __iter__(self) -> Iterator[Event]:
        """Yield the events; leave out those that are none, as a fold does."""
        for number, xid, at, body in _fetch(self._cursor):
            self.read += 1
            try:
                yield Event(number, xid, at, decode_change(body))
            except MalformedEvent:
                continue


@contextmanager
def connect(conninfo: str, schema: str) -> Iterator[BlockingConnection]:
    """Open a connection that only reads, and check what is installed. Raise `DatabaseError`."""
    with connect_blocking(conninfo) as connection:
        with translated_errors():
            for name in ("configure_session", "history_session", "read_only_session"):
                connection.execute(QUERY[name])
        installed = is_installed(connection)
        if installed and not is_ours(connection, schema):
            raise SchemaNotReady(NOT_OURS)
        settings = read_settings(connection) if installed else None
        if settings is None or settings.version != SCHEMA_VERSION or not settings.released:
            raise SchemaNotReady(
                "the past ends where the triggers begin to count, and they are not installed in this version; "
                "run `mfg-notify migrate up`"
            )
        yield connection


def read_past(connection: BlockingConnection, schema: str) -> Past:
    """Read how far back the rows go, and where the live totals began. Reads both tables once."""
    with translated_errors():
        [(installed_at,)] = connection.execute(QUERY["installed_at"]).fetchall()
        seeds = _totals(connection, "seeds")
        query = sql.SQL(QUERY["history_players"]).format(**game_tables(schema))
        players = connection.execute(query).fetchall()
    return Past(
        installed_at,
        min((first for _, first, *_ in players if first is not None), default=None),
        {player: last for player, _, last, *_ in players if last is not None},
        seeds,
        sum(pipelines for *_, pipelines, _, _ in players),
        sum(tasks for *_, tasks, _ in players),
        sum(undated for *_, undated in players),
    )


def read_rows(
    connection: BlockingConnection, schema: str, since: int, until: int, pipelines_until: int
) -> tuple[Rows, Rows]:
    """Let the server sort what tells something of a time, in one snapshot; return the pipelines and the tasks."""
    with translated_errors():
        optional = {name for (name,) in connection.execute(QUERY["optional_columns"]).fetchall()}
        column = sql.Identifier("actual_quantity") if "task.actual_quantity" in optional else sql.NULL
        with connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            pipelines, tasks = (
                _declare(
                    connection,
                    name,
                    sql.SQL(QUERY[name]).format(**game_tables(schema), actual_quantity=column),
                    {"since": since, "until": end},
                )
                for name, end in (("history_pipelines", pipelines_until), ("history_tasks", until))
            )
    return Rows(pipelines), Rows(tasks)


def read_journal(connection: BlockingConnection) -> Journal:
    """Read the totals, and the events that they do not have yet, in one snapshot."""
    with translated_errors(), connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        [(heartbeat, clock)] = connection.execute(QUERY["outage"]).fetchall()
        totals = _totals(connection, "totals")
        cursor = _declare(connection, "journal", sql.SQL(QUERY["journal"]), {"version": VERSION})
    return Journal(totals, heartbeat, clock, cursor)


def _totals(connection: BlockingConnection, query: str) -> dict[SampleKey, int]:
    found = {}
    for metric, labels, n in connection.execute(QUERY[query]).fetchall():
        if metric in SETTLED_LABELS:
            given = msgspec.json.decode(labels, type=dict[str, str])
            found[metric, tuple(given[name] for name in SETTLED_LABELS[metric])] = n
    return found


def _declare(
    connection: BlockingConnection, name: str, query: sql.SQL | sql.Composed, values: Mapping[str, int]
) -> ServerCursor[TupleRow]:
    cursor = connection.cursor(f"mfg_notify_{name}", withhold=True)
    cursor.execute(query, values)
    return cursor


def _fetch(cursor: ServerCursor[TupleRow]) -> Iterator[TupleRow]:
    with translated_errors():
        while rows := cursor.fetchmany(ROWS_AT_A_TIME):
            yield from rows
        cursor.close()
