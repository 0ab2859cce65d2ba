"""What `mfg-notify doctor` looks at: the connection, the rights, the triggers and the state of the journal.

It only reads (the server itself sees to it), its one notification goes to a channel of its own, and it never shows a
secret. A check that depends on a failed one is left out: its finding would be the same one again.
"""

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import psycopg
from psycopg import errors, sql
from psycopg.conninfo import conninfo_to_dict

from mfg_notify.core.catalogue import COUNTERS, HISTOGRAMS
from mfg_notify.core.events import VERSION
from mfg_notify.errors import AccessDenied, DatabaseError, DatabaseUnavailable, SchemaNotReady
from mfg_notify.postgres import installation, migrations
from mfg_notify.postgres.connection import describe, translated_errors
from mfg_notify.postgres.queries import QUERY

DELIVERY_PATIENCE = 5.0
"""Seconds that a notification may take, as with the exporter's own."""
BEAT_SILENCE = 5.0
"""Seconds after its last beat from which an exporter counts as gone, as it does to another that waits for the lease."""
SKEW_MAXIMUM = 1.0
"""Seconds that two clocks may differ: from there on, ages in the charts look wrong."""
QUEUE_WARNING = 0.10
QUEUE_SILENT = 0.25
"""Share of the notification queue from which the triggers do not notify any more."""
AGE_WARNING = 60.0
AGE_FAILED = 300.0
"""Seconds that the oldest event has waited: the fold is due within a second or two, the alert comes after this."""
JOURNAL_MAXIMUM = 5_000_000
"""Events beyond which the triggers only count what they give up."""
SECONDS_ARE_PLAIN = 120
MINUTES_ARE_PLAIN = 120
"""Up to here a duration is said in this unit."""
NAMED_MAXIMUM = 6
"""Things that a line names one by one."""

EVENTS_THAT_TELL = 1000
"""Events after which a column that has never moved a metric looks idle."""

TABLES = 3
"""Of the game, with triggers of ours."""

Verdict = Literal["ok", "warning", "failed"]
UPGRADE = "pip install --upgrade mfg-notify"
MIGRATE = "mfg-notify migrate up"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check has found, in a sentence; and the command that mends it, where there is something to mend."""

    check: str
    verdict: Verdict
    message: str
    remedy: str | None = None


@dataclass(frozen=True, slots=True)
class _Answer:
    verdict: Verdict
    message: str
    remedy: str | None = None


class _Examination:
    """Two connections, as an exporter has them: the first listens, the second notifies. `clock` is this machine's."""

    def __init__(
        self, listening: psycopg.Connection, working: psycopg.Connection, schema: str, clock: Callable[[], float]
    ) -> None:
        self.listening = listening
        self.working = working
        self.schema = schema
        self.clock = clock

    def ask(self, name: str, **parameters: object) -> list[tuple[Any, ...]]:
        return self.working.execute(QUERY[name], parameters or None).fetchall()

    @cached_property
    def server(self) -> tuple[str, bool, int, str, int]:
        """Version, in recovery, process id of the backend, role, max_prepared_transactions."""
        [(version, in_recovery, backend_pid, role, prepared)] = self.ask("doctor_server")
        return version, in_recovery, backend_pid, role, prepared

    @property
    def role(self) -> str:
        return sql.Identifier(self.server[3]).as_string()

    @cached_property
    def settings(self) -> tuple[int, bool] | None:
        """Version of the schema, and whether the triggers notify; None where the row is lost."""
        rows = self.ask("settings")
        return (rows[0][0], rows[0][2]) if rows else None


def examine(conninfo: str, schema: str, clock: Callable[[], float]) -> Iterator[Finding]:
    """Look at everything, and yield a finding a check as soon as it is known.

    `clock` tells this machine's time in epoch seconds.
    """
    try:
        listening = _connect(conninfo)
    except DatabaseError as error:
        yield Finding("connection", "failed", str(error), _connection_remedy(error, conninfo))
        return
    with closing(listening):
        try:
            working = _connect(conninfo)
        except DatabaseError as error:
            remedy = "allow one connection more: ALTER ROLE … CONNECTION LIMIT, or max_connections in postgresql.conf"
            yield Finding("connection", "failed", f"the second of an exporter's two connections: {error}", remedy)
            return
        with closing(working):
            yield Finding("connection", "ok", describe(conninfo))
            yield from _run_checks(_Examination(listening, working, schema, clock))


def _run_checks(examination: _Examination) -> Iterator[Finding]:
    out: set[str] = set()
    for name, needs, check in _CHECKS:
        if not out.isdisjoint(needs):
            out.add(name)
            continue
        try:
            with translated_errors():
                answer = check(examination)
        except DatabaseError as error:
            answer = _Answer(
                "failed", str(error), "mfg-notify doctor" if isinstance(error, DatabaseUnavailable) else None
            )
        if answer.verdict == "failed":
            out.add(name)
        yield Finding(name, answer.verdict, answer.message, answer.remedy)
        if examination.working.closed:
            return


def _connect(conninfo: str) -> psycopg.Connection:
    with translated_errors():
        connection = psycopg.connect(conninfo, autocommit=True)
        try:
            connection.execute(QUERY["configure_session"])
            connection.execute(QUERY["read_only_session"])
        except BaseException:
            connection.close()
            raise
        return connection


def _connection_remedy(error: DatabaseError, conninfo: str) -> str:
    given = conninfo_to_dict(conninfo)
    role = given.get("user") or os.environ.get("PGUSER") or "ROLE"
    match error:
        case AccessDenied():
            return _way_in_for(sql.Identifier(str(role)).as_string(), str(error))
        case SchemaNotReady():
            return "psql --list names the server's databases; give the game's in --dsn or PGDATABASE"
    options = "".join(
        f" {option} {value}"
        for option, value in (
            ("-h", given.get("host") or os.environ.get("PGHOST")),
            ("-p", given.get("port") or os.environ.get("PGPORT")),
        )
        if value
    )
    return f"pg_isready{options} says whether a server answers there; start it, or name another with --dsn"


def _way_in_for(role: str, refused: str) -> str:
    if "not permitted to log in" in refused:
        return f"ALTER ROLE {role} LOGIN"
    if "pg_hba.conf" in refused:
        return f"add a line for database, {role} and this address to pg_hba.conf, then SELECT pg_reload_conf()"
    if "authentication failed" in refused or "no password supplied" in refused:
        return f"set PGPASSWORD, or give the role a new password: ALTER ROLE {role} PASSWORD '…'"
    return f"{MIGRATE} --create-role {role}, as the owner of the game's tables"


# ------------------------------------------------------------------------------------------------ server --


def _check_server(examination: _Examination) -> _Answer:
    version = examination.working.info.server_version
    if version < migrations.OLDEST_SERVER:
        oldest = migrations.OLDEST_SERVER // 10000
        return _Answer(
            "failed", f"PostgreSQL {version // 10000} is too old", f"upgrade to PostgreSQL {oldest} or newer"
        )
    return _Answer("ok", f"PostgreSQL {examination.server[0]}")


def _check_primary(examination: _Examination) -> _Answer:
    if examination.server[1]:
        return _Answer(
            "failed",
            "this server is a standby: it is in recovery, where nobody can LISTEN and no fold can write",
            "name both servers, libpq finds the primary: --dsn 'host=ONE,TWO target_session_attrs=read-write …'",
        )
    return _Answer("ok", "accepts writes")


def _check_delivery(examination: _Examination) -> _Answer:
    channel = f"mfg_notify_doctor_{secrets.token_hex(8)}"
    listening = examination.listening
    listening.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
    try:
        examination.ask("doctor_probe", channel=channel, ping=channel)
    except errors.ProgramLimitExceeded:
        return _Answer("failed", "the notification queue is full: every NOTIFY of anyone fails", _EMPTY_QUEUE)
    came = list(listening.notifies(timeout=DELIVERY_PATIENCE, stop_after=1))
    # A pooler may keep the connection that listens: do not leave it listening.
    listening.execute(sql.SQL("UNLISTEN {}").format(sql.Identifier(channel)))
    pooled = examination.server[2] != examination.working.info.backend_pid
    if came:
        return _Answer("ok", f"what is notified is heard{', through a pooler in session mode' if pooled else ''}")
    if pooled:
        return _Answer(
            "failed",
            f"a notification did not come within {DELIVERY_PATIENCE:.0f} s: a pooler in transaction mode (PgBouncer) "
            "is in the way: it gives LISTEN and NOTIFY different servers",
            "connect to PostgreSQL itself (its own port in --dsn or PGPORT), or give this user pool_mode=session in "
            "pgbouncer.ini",
        )
    return _Answer(
        "failed",
        f"a notification did not come within {DELIVERY_PATIENCE:.0f} s: the network stalls",
        "connect to PostgreSQL itself, not through a proxy: --dsn or PGHOST and PGPORT",
    )


def _check_clock(examination: _Examination) -> _Answer:
    before = examination.clock()
    [(database,)] = examination.ask("doctor_clock")
    after = examination.clock()
    # The server read its clock somewhere in between.
    skew = max(before - database, database - after, 0.0)
    if skew > SKEW_MAXIMUM:
        ahead = "ahead of" if database > after else "behind"
        return _Answer(
            "warning",
            f"the database's clock is {_duration(skew)} {ahead} this machine's, and so wrong are ages in charts",
            "timedatectl set-ntp true, on both machines",
        )
    return _Answer("ok", "the database's clock and this machine's agree")


_EMPTY_QUEUE = (
    "SELECT pid, application_name, xact_start FROM pg_stat_activity WHERE xact_start < now() - interval '1 minute' "
    "names who listens and does not end a transaction; then SELECT pg_terminate_backend(PID)"
)


def _check_queue(examination: _Examination) -> _Answer:
    [(usage,)] = examination.ask("doctor_queue")
    if usage >= QUEUE_SILENT:
        message = f"the notification queue is {usage:.0%} full: the triggers do not notify from {QUEUE_SILENT:.0%} on"
        return _Answer("failed", message, _EMPTY_QUEUE)
    if usage >= QUEUE_WARNING:
        return _Answer("warning", f"the notification queue is filling: {usage:.0%}", _EMPTY_QUEUE)
    return _Answer("ok", f"the notification queue is {usage:.0%} full")


# ---------------------------------------------------------------------------------------------- database --


def _check_game(examination: _Examination) -> _Answer:
    found = dict(examination.ask("doctor_game"))
    if len(found.get(examination.schema, ())) == TABLES:
        return _Answer("ok", f"the game's tables are in schema {examination.schema}")
    elsewhere = [schema for schema, tables in found.items() if len(tables) == TABLES]
    if elsewhere:
        return _Answer(
            "failed",
            f"the game's tables are in schema {_several(elsewhere)}, not in {examination.schema}",
            f"say --game-schema {elsewhere[0]}, or set MFG_NOTIFY_GAME_SCHEMA",
        )
    return _Answer(
        "failed",
        f"the game's tables are not in schema {examination.schema} of this database, nor in another",
        "name the game's database in --dsn or PGDATABASE; start the bot once, which makes its tables",
    )


def _check_schema(examination: _Examination) -> _Answer:
    if examination.ask("is_installed") != [(True,)]:
        return _Answer("failed", "the triggers and their journal are not installed in this database", MIGRATE)
    return _Answer("ok", "the schema mfg_notify is there")


def _check_rights(examination: _Examination) -> _Answer:
    missing = examination.ask("doctor_missing_rights", schema=examination.schema)
    remedy = f"{MIGRATE} --create-role {examination.role}, as the owner of the game's tables"
    needed = [right for right, is_needed in missing if is_needed]
    if needed:
        return _Answer("failed", f"role {examination.role} lacks {_several(needed)}", remedy)
    if missing:
        message = (
            f"role {examination.role} lacks {_several([right for right, _ in missing])}: metrics of these are left out"
        )
        return _Answer("warning", message, remedy)
    return _Answer("ok", f"role {examination.role} has what an exporter needs")


def _check_version(examination: _Examination) -> _Answer:
    if examination.settings is None:
        remedy = "mfg-notify migrate down, then mfg-notify migrate up: the totals begin anew"
        return _Answer("failed", "mfg_notify.settings has lost its row", remedy)
    version, latest = examination.settings[0], installation.SCHEMA_VERSION
    if version > latest:
        return _Answer("failed", f"the triggers are of version {version}, this mfg-notify knows {latest}", UPGRADE)
    if version < latest:
        return _Answer("failed", f"the triggers are of version {version}, this mfg-notify needs {latest}", MIGRATE)
    missing = examination.ask(
        "missing_objects", relations=list(installation.RELATIONS), functions=list(installation.FUNCTIONS)
    )
    if missing:
        return _Answer("failed", f"missing in schema mfg_notify: {_several([name for (name,) in missing])}", MIGRATE)
    return _Answer("ok", f"version {version} is installed, the newest")


def _check_columns(examination: _Examination) -> _Answer:
    missing = [name for (name,) in examination.ask("missing_columns")]
    if missing:
        remedy = "upgrade the bot, whose own migrations add its columns"
        return _Answer("failed", f"the game's tables lack what is needed: {_several(missing)}", remedy)
    return _Answer("ok", "the game's tables have the columns that are needed")


def _check_triggers(examination: _Examination) -> _Answer:
    found = {
        (table, name): enabled for table, name, enabled in examination.ask("doctor_triggers", schema=examination.schema)
    }
    needed = migrations.triggers()
    foreign = sorted(found.keys() - needed)
    if foreign:
        [(table, name), *_] = foreign
        remedy = f"DROP TRIGGER {name} ON {examination.schema}.{table}"
        return _Answer("failed", f"{_of_tables(foreign)} of another version", remedy)
    absent = sorted(needed - found.keys())
    # 'O' fires in ordinary sessions, 'A' always, 'R' only where changes of another server are replayed.
    silent = sorted(key for key, enabled in found.items() if enabled in ("D", "R"))
    problems = [f"{_of_tables(keys)} {what}" for keys, what in ((absent, "missing"), (silent, "disabled")) if keys]
    if problems:
        return _Answer("failed", "; ".join(problems), MIGRATE)
    return _Answer("ok", f"all {len(needed)} are there and enabled")


def _of_tables(triggers: list[tuple[str, str]]) -> str:
    named = _several([f"{name} on {table}" for table, name in triggers])
    return f"{named} {'is' if len(triggers) == 1 else 'are'}"


def _check_notify(examination: _Examination) -> _Answer:
    notify = examination.settings is not None and examination.settings[1]
    prepared = examination.server[4]
    if notify and prepared:
        return _Answer(
            "failed",
            f"max_prepared_transactions is {prepared} and the triggers notify: a PREPARE TRANSACTION of the game fails",
            "UPDATE mfg_notify.settings SET notify = false",
        )
    if prepared:
        return _Answer(
            "warning",
            f"prepared transactions are on (max_prepared_transactions is {prepared}), so the triggers do not notify "
            "and the exporter looks once a second",
            "if nothing uses them: ALTER SYSTEM SET max_prepared_transactions = 0; restart PostgreSQL; UPDATE "
            "mfg_notify.settings SET notify = true",
        )
    if not notify:
        message = "the triggers are told not to notify; the exporter looks once a second"
        return _Answer("warning", message, "UPDATE mfg_notify.settings SET notify = true")
    if examination.ask("doctor_quiet") == [(True,)]:
        return _Answer("ok", "the triggers are quiet, as the last exporter has told them: it looks by itself")
    return _Answer("ok", "the triggers notify")


# ----------------------------------------------------------------------------------------------- journal --


def _check_exporter(examination: _Examination) -> _Answer:
    rows = examination.ask("doctor_lease")
    if not rows:
        return _Answer("failed", "mfg_notify.lease has lost its row", "INSERT INTO mfg_notify.lease DEFAULT VALUES")
    [(who, silence)] = rows
    if who is None or silence is None:
        return _Answer("warning", "no exporter is active: events wait in the journal", "mfg-notify run")
    host, pid = [*who.split(":"), "?"][:2]
    # A beat from the future is no sign of life either: the clock was set back.
    if abs(silence) > BEAT_SILENCE:
        message = (
            f"the exporter on {host} (pid {pid}) has been silent for {_duration(abs(silence))}, and no other is active"
        )
        return _Answer("warning", message, "mfg-notify run")
    return _Answer("ok", f"an exporter is active on {host} (pid {pid})")


def _check_backlog(examination: _Examination) -> _Answer:
    [(rows, oldest, unknown, *_)] = examination.ask("health", version=VERSION)
    if unknown:
        return _Answer("failed", f"{unknown} events in the journal are of a newer version", UPGRADE)
    if not rows:
        return _Answer("ok", "the journal is empty")
    waiting = f"{rows:,} event{'s' if rows != 1 else ''} in the journal, the oldest for {_duration(oldest)}"
    remedy = (
        "mfg-notify run, if no exporter is active; else SELECT pid, state, wait_event, xact_start FROM "
        "pg_stat_activity ORDER BY xact_start shows what holds it up"
    )
    if rows >= JOURNAL_MAXIMUM:
        return _Answer("failed", f"{waiting}: the triggers give up what comes now", remedy)
    if oldest > AGE_FAILED:
        return _Answer("failed", f"{waiting}: counters are late", remedy)
    return _Answer("warning", waiting, remedy) if oldest > AGE_WARNING else _Answer("ok", waiting)


def _check_losses(examination: _Examination) -> _Answer:
    [(_, _, _, _, lost, _)] = examination.ask("health", version=VERSION)
    if lost:
        return _Answer(
            "warning",
            f"{lost} change{'s were' if lost != 1 else ' was'} given up since the installation; counters lack "
            "them for good, gauges do not",
            "grep 'mfg-notify did not record' in the log of PostgreSQL: it says why, each time",
        )
    return _Answer("ok", "no change was given up")


def _check_idle(examination: _Examination) -> _Answer:
    # Some of the game's daemons have left columns idle; that is no fault, but explains a metric that stays at 0.
    [(moved, events)] = examination.ask("doctor_moved")
    if events < EVENTS_THAT_TELL:
        return _Answer("ok", f"{events} events so far: too few to tell which columns the game leaves alone")
    idle = [
        f"{metric.name} ({metric.source})"
        for metric in (*COUNTERS, *HISTOGRAMS)
        if metric.name not in moved and f"{metric.name}_bucket" not in moved
    ]
    if idle:
        return _Answer("ok", f"never moved since the installation: {_several(idle)}; the game leaves its columns alone")
    return _Answer("ok", "every counter has moved since the installation")


def _check_excess(examination: _Examination) -> _Answer:
    [(superuser, reads_players, writes)] = examination.ask("doctor_excess_rights", schema=examination.schema)
    role, schema = examination.role, examination.schema
    remedy = f"{MIGRATE} --create-role mfg_exporter, then run the exporter as mfg_exporter"
    if superuser:
        return _Answer("warning", f"role {role} is a superuser, and an exporter need not be", remedy)
    more = []
    if reads_players:
        more.append(f"read {schema}.players, where the API tokens are")
    if writes:
        more.append(f"write {_several([f'{schema}.{table}' for table in writes])}")
    if more:
        return _Answer("warning", f"role {role} can {' and can '.join(more)}, and an exporter need not", remedy)
    return _Answer("ok", f"role {role} can do no harm to the game")


_CHECKS: tuple[tuple[str, tuple[str, ...], Callable[[_Examination], _Answer]], ...] = (
    ("server", (), _check_server),
    ("primary", ("server",), _check_primary),
    ("clock", ("server",), _check_clock),
    ("delivery", ("primary",), _check_delivery),
    ("queue", ("primary",), _check_queue),
    ("game", ("server",), _check_game),
    ("installation", ("game",), _check_schema),
    ("rights", ("installation",), _check_rights),
    ("excess", ("game",), _check_excess),
    ("version", ("rights",), _check_version),
    ("columns", ("version",), _check_columns),
    ("triggers", ("installation",), _check_triggers),
    ("notify", ("version", "primary"), _check_notify),
    ("exporter", ("version", "primary"), _check_exporter),
    ("backlog", ("version", "primary"), _check_backlog),
    ("losses", ("version",), _check_losses),
    ("idle", ("version", "rights"), _check_idle),
)
"""Name, the checks without which it would say nothing new, and the check itself; in the order of their lines."""


def _several(names: list[str]) -> str:
    named = ", ".join(names[:NAMED_MAXIMUM])
    return f"{named} and {len(names) - NAMED_MAXIMUM} more" if len(names) > NAMED_MAXIMUM else named


def _duration(seconds: float) -> str:
    if seconds < SECONDS_ARE_PLAIN:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < MINUTES_ARE_PLAIN else f"{minutes / 60:.1f} h"
