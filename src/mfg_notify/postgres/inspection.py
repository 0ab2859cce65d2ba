"""What `mfg-notify doctor` asks a server and its game database; what an answer means is decided in `diagnosis.doctor`.

It only reads. The server itself refuses every write of its connections, and its only notification goes to a channel of
its own. Every function raises `DatabaseError`.
"""

import secrets
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from psycopg import errors, sql

from mfg_notify.core.catalogue import PIPELINE_LIVE, TASK_LIVE, TERMINAL
from mfg_notify.core.events import VERSION, decode_change
from mfg_notify.errors import MalformedEvent
from mfg_notify.postgres.connection import (
    BlockingConnection,
    connect_blocking,
    quote_identifier,
    translated_errors,
)
from mfg_notify.postgres.queries import QUERY
from mfg_notify.postgres.snapshot import SnapshotHolder, game_tables, live_row_queries

Delivery = Literal["received", "missing", "queue full"]


@dataclass(frozen=True, slots=True)
class Server:
    """The server that answers."""

    version: str
    version_number: int
    """As psycopg numbers it: 140005 is 14.5."""
    in_recovery: bool
    role: str
    """The session's role, quoted."""
    max_prepared_transactions: int
    pooled: bool
    """Whether a connection pooler is between: the client knows a different backend than the one that answers."""


@dataclass(frozen=True, slots=True)
class MissingRight:
    """A right that the role lacks, written as in GRANT."""

    right: str
    needed: bool
    """False: an exporter works without it and leaves some metrics out."""


@dataclass(frozen=True, slots=True)
class ExcessRights:
    """Rights that an exporter does not need."""

    superuser: bool
    readable_of_players: tuple[str, ...]
    """Columns of the table of players beside the two that have the agents; the API tokens come first."""
    writable_tables: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HiddenRows:
    """Tables of which row-level security hides rows from a role."""

    role: str
    """Quoted."""
    own: bool
    """Whether that is the session's role; otherwise the triggers run as it."""
    tables: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DeadLetters:
    """Journal rows that were not events: how many are kept, the last one's id and why it is none."""

    count: int
    last_id: int | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class Lease:
    """Who holds the lease; `heartbeat_age` is in seconds, None if there never was a heartbeat."""

    holder: str | None
    heartbeat_age: float | None


@dataclass(frozen=True, slots=True)
class Journal:
    """The state of the journal; the age is in seconds, 0 if the journal is empty."""

    events: int
    oldest_age: float
    newer_version_events: int
    lost_changes: int


@dataclass(frozen=True, slots=True)
class Activity:
    """The metrics that have counted anything since the installation, and the number of events."""

    metrics: frozenset[str]
    events: int


def connect(conninfo: str) -> BlockingConnection:
    """Open a connection in autocommit mode that can only read."""
    connection = connect_blocking(conninfo)
    with translated_errors():
        try:
            connection.execute(QUERY["configure_session"])
            connection.execute(QUERY["read_only_session"])
        except BaseException:
            connection.close()
            raise
        return connection


def read_server(connection: BlockingConnection) -> Server:
    """Return what the server says about itself and the session."""
    [(version, in_recovery, backend_pid, role, prepared)] = _ask(connection, "server")
    return Server(
        version,
        connection.info.server_version,
        in_recovery,
        quote_identifier(role),
        prepared,
        pooled=backend_pid != connection.info.backend_pid,
    )


def read_clock(connection: BlockingConnection) -> float:
    """Return the database's clock in epoch seconds."""
    [(now,)] = _ask(connection, "clock")
    return float(now)


def read_queue_usage(connection: BlockingConnection) -> float:
    """Return how full the server's notification queue is, from 0 to 1."""
    [(usage,)] = _ask(connection, "queue_usage")
    return float(usage)


def probe_delivery(listening: BlockingConnection, working: BlockingConnection, timeout: float) -> Delivery:
    """Notify on one connection and wait up to `timeout` seconds for it on the other."""
    channel = f"mfg_notify_doctor_{secrets.token_hex(8)}"
    identifier = sql.Identifier(channel)
    with translated_errors():
        listening.execute(sql.SQL("LISTEN {}").format(identifier))
        try:
            working.execute(QUERY["probe_delivery"], {"channel": channel, "ping": channel})
        except errors.ProgramLimitExceeded:
            return "queue full"
        received = list(listening.notifies(timeout=timeout, stop_after=1))
        # A pooler may keep the connection open: do not leave it listening.
        listening.execute(sql.SQL("UNLISTEN {}").format(identifier))
    return "received" if received else "missing"


def find_game_tables(connection: BlockingConnection) -> dict[str, list[str]]:
    """Return the game's tables by schema, the schema with most of them first."""
    return dict(_ask(connection, "game_schemas"))


def find_missing_rights(connection: BlockingConnection, schema: str) -> list[MissingRight]:
    """Return what the role lacks to be an exporter's role for the game in `schema`."""
    return [MissingRight(*row) for row in _ask(connection, "missing_rights", schema=schema)]


def find_excess_rights(connection: BlockingConnection, schema: str) -> ExcessRights:
    """Return what the role may do to the game in `schema` beyond an exporter's needs."""
    [(superuser, of_players, writable)] = _ask(connection, "excess_rights", schema=schema)
    return ExcessRights(superuser, tuple(of_players), tuple(writable))


def read_installation_owner(connection: BlockingConnection) -> str:
    """Return the role that has installed the schema mfg_notify, quoted."""
    [(owner,)] = _ask(connection, "installation_owner")
    return str(owner)


def read_triggers(connection: BlockingConnection, schema: str) -> dict[tuple[str, str], bool]:
    """Return (table, name) → enabled for every trigger of mfg-notify."""
    return {(table, name): enabled for table, name, enabled in _ask(connection, "trigger_states", schema=schema)}


def find_replica_settings(connection: BlockingConnection) -> list[str]:
    """Return for which roles and databases session_replication_role is set to replica, in words."""
    return [place for (place,) in _ask(connection, "replica_settings")]


def find_publications_of_all_tables(connection: BlockingConnection) -> list[str]:
    """Return the publications that are FOR ALL TABLES."""
    return [name for (name,) in _ask(connection, "publications_of_all_tables")]


def find_hidden_rows(connection: BlockingConnection, schema: str) -> list[HiddenRows]:
    """Return from whom row-level security hides rows of the game in `schema`: from this role, from the triggers."""
    return [HiddenRows(role, own, tuple(tables)) for role, own, tables in _ask(connection, "policies", schema=schema)]


def find_unknown_statuses(connection: BlockingConnection, schema: str) -> list[str]:
    """Return the statuses that no metric knows as `table status`, at most 100 of each table."""
    game = game_tables(schema)
    unknown = []
    with translated_errors():
        for name, known in (("pipelines", PIPELINE_LIVE), ("tasks", TASK_LIVE)):
            for (status,) in connection.execute(sql.SQL(QUERY["statuses"]).format(table=game[name])):
                if status not in (*known, *TERMINAL):
                    unknown.append(f"manufacturing_{name} {status!r}")
    return unknown


def is_notify_disabled(connection: BlockingConnection) -> bool:
    """Return whether the leader has disabled NOTIFY for now."""
    return _ask(connection, "notify_disabled") == [(True,)]


def read_lease(connection: BlockingConnection) -> Lease | None:
    """Return the lease, or None if it has lost its row."""
    rows = _ask(connection, "lease_holder")
    return Lease(*rows[0]) if rows else None


def read_journal(connection: BlockingConnection) -> Journal:
    """Return the state of the journal."""
    [(events, oldest_age, newer_version_events, _, lost_changes, _)] = _ask(connection, "health", version=VERSION)
    return Journal(events, oldest_age, newer_version_events, lost_changes)


def read_oldest_snapshot(connection: BlockingConnection) -> SnapshotHolder | None:
    """Return who holds the oldest snapshot of the database, or None."""
    rows = _ask(connection, "oldest_snapshot")
    return SnapshotHolder(*rows[0]) if rows else None


def read_dead_letters(connection: BlockingConnection) -> DeadLetters:
    """Return how many journal rows were not events, and the last of them."""
    return DeadLetters(*_ask(connection, "dead_letters")[0])


def find_unreadable_rows(connection: BlockingConnection, schema: str) -> list[str]:
    """Return the live rows that cannot be read as `table id`, as far as their id can be told."""
    places = (("pipelines", 2, 1), ("tasks", 2, 2), ("factory_states", 3, 0))
    unreadable = []
    with translated_errors():
        optional = {name for (name,) in _ask(connection, "optional_columns")}
        for query, (table, part, position) in zip(live_row_queries(schema, optional), places, strict=True):
            for (body,) in connection.execute(query):
                try:
                    decode_change(body)
                except MalformedEvent:
                    unreadable.append(f"manufacturing_{table} {msgspec.json.decode(body)[part][position]}")
    return unreadable


def read_activity(connection: BlockingConnection) -> Activity:
    """Return which metrics have moved since the installation."""
    [(metrics, events)] = _ask(connection, "moved_metrics")
    return Activity(frozenset(metrics), events)


def _ask(connection: BlockingConnection, name: str, **parameters: object) -> list[tuple[Any, ...]]:
    with translated_errors():
        return connection.execute(QUERY[name], parameters or None).fetchall()
