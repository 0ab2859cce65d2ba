"""What `mfg-notify doctor` checks: the connection, the rights, the triggers and the state of the journal.

It only reads, and it never shows a secret. A check that depends on a failed one is skipped, because it would only
repeat that finding. What the checks ask the database is `postgres.inspection`.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from mfg_notify.core.books import changed_rows
from mfg_notify.core.catalogue import COUNTERS, HISTOGRAMS
from mfg_notify.diagnosis.verify import verify
from mfg_notify.errors import AccessDenied, DatabaseError, DatabaseUnavailable, SchemaNotReady
from mfg_notify.postgres import inspection, installation, migrations
from mfg_notify.postgres.connection import BlockingConnection, describe, quote_identifier, quote_literal, target_of

SECONDS_MAXIMUM = 120
MINUTES_MAXIMUM = 120
"""Longer durations are printed in the next larger unit."""
NAMED_MAXIMUM = 6
"""Number of things that a line lists by name."""
GAME_TABLES = ("manufacturing_pipelines", "manufacturing_tasks", "manufacturing_factory_states")
"""Tables of the game that have triggers."""

Verdict = Literal["ok", "warning", "failed"]
UPGRADE = "pip install --upgrade mfg-notify"
MIGRATE = "mfg-notify migrate up"


@dataclass(frozen=True, slots=True)
class Limits:
    """From where on the doctor complains. Durations are in seconds, queue usage is from 0 to 1."""

    delivery_timeout: float = 5.0
    """How long a notification may take; the exporter waits as long for its own."""
    heartbeat_timeout: float = 5.0
    """Time without a heartbeat after which an exporter counts as gone and a standby takes the lease over."""
    clock_skew: float = 1.0
    """Difference of two clocks from which ages in the charts look wrong."""
    queue_warning: float = 0.10
    queue_failed: float = 0.25
    """The triggers stop notifying at this usage of the queue."""
    backlog_warning: float = 60.0
    backlog_failed: float = 300.0
    """Age of the oldest event. The fold is due within a second or two; the alert fires after `backlog_failed`."""
    journal_events: int = 5_000_000
    """Size of the journal from which the triggers record no further changes."""
    books_journal: int = 100_000
    """Events in the journal above which the books are not checked: it would take seconds."""
    snapshot_age: float = 600.0
    """Age of a snapshot from which it makes folds noticeably slower."""
    snapshot_transactions: int = 100_000
    """The same in transactions, if the role may not see the age."""
    idle_events: int = 1000
    """Events after which a metric that has never moved says something about the game."""


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check has found, in one sentence, and the command that fixes it if something is wrong."""

    check: str
    verdict: Verdict
    message: str
    remedy: str | None = None


@dataclass(frozen=True, slots=True)
class _Result:
    verdict: Verdict
    message: str
    remedy: str | None = None


class _Examination:
    """Two connections, as an exporter has them: one listens, the other notifies. `clock` is this machine's."""

    def __init__(
        self,
        listening: BlockingConnection,
        working: BlockingConnection,
        conninfo: str,
        schema: str,
        clock: Callable[[], float],
        limits: Limits,
    ) -> None:
        self.listening = listening
        self.working = working
        self.conninfo = conninfo
        self.schema = schema
        self.clock = clock
        self.limits = limits

    @cached_property
    def server(self) -> inspection.Server:
        return inspection.read_server(self.working)

    @property
    def role(self) -> str:
        return self.server.role

    @property
    def migrate(self) -> str:
        """The command that mends an installation, and the role that may: the exporter's may not."""
        return f"{MIGRATE}, as {inspection.read_installation_owner(self.working)}"

    @cached_property
    def settings(self) -> installation.Installation | None:
        return installation.read_settings(self.working)


def examine(
    conninfo: str, schema: str, clock: Callable[[], float], limits: Limits = DEFAULT_LIMITS
) -> Iterator[Finding]:
    """Run every check, and yield each finding as soon as it is known.

    `clock` returns this machine's time in epoch seconds.
    """
    try:
        listening = inspection.connect(conninfo)
    except DatabaseError as error:
        yield Finding("connection", "failed", str(error), _connection_remedy(error, conninfo))
        return
    with closing(listening):
        try:
            working = inspection.connect(conninfo)
        except DatabaseError as error:
            remedy = "allow one more connection: ALTER ROLE … CONNECTION LIMIT, or max_connections in postgresql.conf"
            yield Finding("connection", "failed", f"the second of an exporter's two connections: {error}", remedy)
            return
        with closing(working):
            yield Finding("connection", "ok", describe(conninfo))
            yield from _run_checks(_Examination(listening, working, conninfo, schema, clock, limits))


def _run_checks(examination: _Examination) -> Iterator[Finding]:
    failed: set[str] = set()
    for name, needs, check in _CHECKS:
        if not failed.isdisjoint(needs):
            failed.add(name)
            continue
        try:
            result = check(examination)
        except DatabaseError as error:
            # If the connection broke, another run may succeed; the other errors say what to do.
            remedy = "mfg-notify doctor" if isinstance(error, DatabaseUnavailable) else None
            result = _Result("failed", str(error), remedy)
        if result.verdict == "failed":
            failed.add(name)
        yield Finding(name, result.verdict, result.message, result.remedy)
        if examination.working.closed:
            return


def _connection_remedy(error: DatabaseError, conninfo: str) -> str:
    target = target_of(conninfo)
    match error:
        case AccessDenied():
            return _access_remedy(quote_identifier(target.user or "ROLE"), str(error))
        case SchemaNotReady():
            return "psql --list shows the server's databases; give the game's in --dsn or PGDATABASE"
    options = "".join(f" {option} {value}" for option, value in (("-h", target.host), ("-p", target.port)) if value)
    return f"check with pg_isready{options} whether a server answers; start it, or name another with --dsn"


def _access_remedy(role: str, refusal: str) -> str:
    if "not permitted to log in" in refusal:
        return f"ALTER ROLE {role} LOGIN"
    if "pg_hba.conf" in refusal:
        return f"add a line for database, {role} and this address to pg_hba.conf, then SELECT pg_reload_conf()"
    if "authentication failed" in refusal or "no password supplied" in refusal:
        return f"set PGPASSWORD, or give the role a new password: ALTER ROLE {role} PASSWORD '…'"
    return f"{MIGRATE} --create-role {role}, as the owner of the game's tables"


# ------------------------------------------------------------------------------------------------ server --


def _check_server(examination: _Examination) -> _Result:
    server = examination.server
    if server.version_number < migrations.OLDEST_SERVER:
        oldest = migrations.OLDEST_SERVER // 10000
        return _Result(
            "failed",
            f"PostgreSQL {server.version_number // 10000} is too old",
            f"upgrade to PostgreSQL {oldest} or newer",
        )
    return _Result("ok", f"PostgreSQL {server.version}")


def _check_primary(examination: _Examination) -> _Result:
    if examination.server.in_recovery:
        return _Result(
            "failed",
            "this server is a standby (in recovery): it does not support LISTEN, and no fold can write",
            "list both servers, so that libpq finds the primary: "
            "--dsn 'host=ONE,TWO target_session_attrs=read-write …'",
        )
    return _Result("ok", "the server accepts writes")


def _check_clock(examination: _Examination) -> _Result:
    before = examination.clock()
    database = inspection.read_clock(examination.working)
    after = examination.clock()
    # The server read its clock at some moment between these two.
    skew = max(before - database, database - after, 0.0)
    if skew > examination.limits.clock_skew:
        direction = "ahead of" if database > after else "behind"
        return _Result(
            "warning",
            f"the database's clock is {_duration(skew)} {direction} this machine's, so ages in the charts are wrong",
            "timedatectl set-ntp true, on both machines",
        )
    return _Result("ok", "the database's clock and this machine's agree")


_EMPTY_QUEUE = (
    "find the listener that keeps a transaction open: SELECT pid, application_name, xact_start FROM pg_stat_activity "
    "WHERE xact_start < now() - interval '1 minute'; then SELECT pg_terminate_backend(PID)"
)


def _check_delivery(examination: _Examination) -> _Result:
    timeout = examination.limits.delivery_timeout
    pooled = examination.server.pooled
    match inspection.probe_delivery(examination.listening, examination.working, timeout):
        case "received":
            return _Result("ok", f"notifications arrive{', through a pooler in session mode' if pooled else ''}")
        case "queue full":
            return _Result("failed", "the notification queue is full: every NOTIFY fails", _EMPTY_QUEUE)
    if pooled:
        return _Result(
            "failed",
            f"no notification arrived within {timeout:.0f} s: a pooler in transaction mode (PgBouncer) is in the way "
            "and gives LISTEN and NOTIFY different server connections",
            "connect to PostgreSQL itself (its own port in --dsn or PGPORT), or give this user pool_mode=session in "
            "pgbouncer.ini",
        )
    return _Result(
        "failed",
        f"no notification arrived within {timeout:.0f} s: the network stalls",
        "connect to PostgreSQL itself, not through a proxy: --dsn or PGHOST and PGPORT",
    )


def _check_queue(examination: _Examination) -> _Result:
    usage, limits = inspection.read_queue_usage(examination.working), examination.limits
    if usage >= limits.queue_failed:
        message = (
            f"the notification queue is {usage:.0%} full: the triggers stop notifying at {limits.queue_failed:.0%}"
        )
        return _Result("failed", message, _EMPTY_QUEUE)
    if usage >= limits.queue_warning:
        return _Result("warning", f"the notification queue is filling up: {usage:.0%}", _EMPTY_QUEUE)
    return _Result("ok", f"the notification queue is {usage:.0%} full")


# ---------------------------------------------------------------------------------------------- database --


def _check_game(examination: _Examination) -> _Result:
    unsupported = installation.find_unsupported_tables(examination.working, examination.schema)
    if unsupported:
        subscribed = any("subscription" in reason for _, reason in unsupported)
        return _Result(
            "failed",
            f"the triggers cannot see every change: {installation.describe_unsupported(unsupported)}",
            "run the exporter on the publisher; after a switch-over to this server, DROP SUBSCRIPTION"
            if subscribed
            else "make it a plain table again, or give up the metrics: mfg-notify migrate down",
        )
    found = inspection.find_game_tables(examination.working)
    missing = [table for table in GAME_TABLES if table not in found.get(examination.schema, ())]
    if not missing:
        return _Result("ok", f"the game's tables are in schema {examination.schema}")
    elsewhere = [schema for schema, tables in found.items() if len(tables) == len(GAME_TABLES)]
    if elsewhere:
        return _Result(
            "failed",
            f"the game's tables are in schema {_list(elsewhere)}, not in {examination.schema}",
            f"use --game-schema {elsewhere[0]}, or set MFG_NOTIFY_GAME_SCHEMA",
        )
    if len(missing) < len(GAME_TABLES):
        return _Result(
            "failed",
            f"schema {examination.schema} has no table {_list(missing)}, but others of the game",
            "undo the renaming, or upgrade the bot: its own migrations create the tables",
        )
    return _Result(
        "failed",
        f"this database does not have the game's tables, neither in schema {examination.schema} nor in another",
        "give the game's database in --dsn or PGDATABASE; the bot creates its tables when it starts",
    )


def _check_installation(examination: _Examination) -> _Result:
    if not installation.is_ours(examination.working, examination.schema):
        return _Result(
            "failed",
            "the schema mfg_notify belongs to a role that does not own the game's tables",
            "find out who has made it; if nobody misses it, DROP SCHEMA mfg_notify CASCADE, then mfg-notify migrate up",
        )
    if not installation.is_installed(examination.working):
        return _Result("failed", "the triggers and their journal are not installed in this database", MIGRATE)
    return _Result("ok", "the schema mfg_notify is installed")


def _check_rights(examination: _Examination) -> _Result:
    missing = inspection.find_missing_rights(examination.working, examination.schema)
    remedy = f"{MIGRATE} --create-role {examination.role}, as the owner of the game's tables"
    needed = [found.right for found in missing if found.needed]
    if needed:
        return _Result("failed", f"role {examination.role} lacks {_list(needed)}", remedy)
    if missing:
        rights = _list([found.right for found in missing])
        message = f"role {examination.role} lacks {rights}: what needs it is left out"
        return _Result("warning", message, remedy)
    return _Result("ok", f"role {examination.role} has every right that an exporter needs")


def _check_excess(examination: _Examination) -> _Result:
    found = inspection.find_excess_rights(examination.working, examination.schema)
    role, schema = examination.role, examination.schema
    remedy = f"{MIGRATE} --create-role mfg_exporter, then run the exporter as mfg_exporter"
    if found.superuser:
        return _Result("warning", f"role {role} is a superuser; an exporter does not need that", remedy)
    abilities = []
    if found.readable_of_players:
        columns = _list(list(found.readable_of_players))
        abilities.append(f"read {columns} of {schema}.players, where the API tokens are")
    if found.writable_tables:
        abilities.append(f"write {_list([f'{schema}.{table}' for table in found.writable_tables])}")
    if abilities:
        message = f"role {role} can {' and can '.join(abilities)}; an exporter does not need that"
        return _Result("warning", message, remedy)
    return _Result("ok", f"role {role} has no right that could harm the game")


def _check_version(examination: _Examination) -> _Result:
    if examination.settings is None:
        return _Result("failed", "mfg_notify.settings has lost its row", installation.REINSTALL)
    version, latest = examination.settings.version, installation.SCHEMA_VERSION
    if version > latest:
        return _Result("failed", f"the schema has version {version}, this mfg-notify knows {latest}", UPGRADE)
    if version < latest:
        return _Result(
            "failed", f"the schema has version {version}, this mfg-notify needs {latest}", examination.migrate
        )
    if not examination.settings.released:
        return _Result("failed", installation.UNRELEASED, installation.REINSTALL)
    missing, changed = installation.find_differences(examination.working)
    # The next check reports triggers.
    missing = [name for name in missing if not name.startswith("trigger ")]
    if missing:
        return _Result("failed", f"missing in schema mfg_notify: {_list(missing)}", examination.migrate)
    if changed:
        return _Result("failed", f"not as version {version} installs it: {_list(changed)}", examination.migrate)
    return _Result("ok", f"version {version} is installed, the newest")


def _check_columns(examination: _Examination) -> _Result:
    missing = installation.find_missing_columns(examination.working)
    if missing:
        optional = all("(optional" in column for column in missing)
        remedy = examination.migrate if optional else "upgrade the bot: its own migrations add the columns"
        return _Result("failed", f"the game's tables lack what is needed: {_list(missing)}", remedy)
    if new := installation.find_new_columns(examination.working):
        message = f"the game has columns that the triggers do not read yet: {_list(new)}"
        return _Result("warning", message, examination.migrate)
    return _Result("ok", "the game's tables have every column that is needed")


def _check_triggers(examination: _Examination) -> _Result:
    found = inspection.read_triggers(examination.working, examination.schema)
    needed = migrations.triggers()
    foreign = sorted(found.keys() - needed)
    if foreign:
        [(table, name), *_] = foreign
        remedy = f"DROP TRIGGER {name} ON {examination.schema}.{table}"
        return _Result("failed", f"{_describe_triggers(foreign)} of another version", remedy)
    absent = sorted(needed - found.keys())
    disabled = sorted(key for key, enabled in found.items() if not enabled)
    problems = [
        f"{_describe_triggers(keys)} {problem}"
        for keys, problem in ((absent, "missing"), (disabled, "disabled"))
        if keys
    ]
    if problems:
        return _Result("failed", "; ".join(problems), examination.migrate)
    if replicas := inspection.find_replica_settings(examination.working):
        return _Result(
            "failed",
            f"session_replication_role is replica for {_list(replicas)}: triggers do not fire in such sessions",
            "ALTER ROLE … or ALTER DATABASE … RESET session_replication_role, or correct postgresql.conf",
        )
    return _Result("ok", f"all {len(needed)} exist and are enabled")


def _describe_triggers(triggers: list[tuple[str, str]]) -> str:
    names = _list([f"{name} on {table}" for table, name in triggers])
    return f"{names} {'is' if len(triggers) == 1 else 'are'}"


def _check_policies(examination: _Examination) -> _Result:
    hidden = inspection.find_hidden_rows(examination.working, examination.schema)
    if not hidden:
        return _Result("ok", "no row-level security hides rows of the game")
    remedy = "as a superuser: " + "; ".join(f"ALTER ROLE {found.role} BYPASSRLS" for found in hidden)
    own = next((found for found in hidden if found.own), None)
    if own is not None:
        rows = f"rows of {_list(list(own.tables))} from role {own.role}"
        return _Result("failed", f"row-level security hides {rows}, so no metric can be shown", remedy)
    [triggers, *_] = hidden
    rows = f"rows of {_list(list(triggers.tables))} from role {triggers.role}"
    message = f"row-level security hides {rows}, as which the triggers run: changes that they cannot judge are lost"
    return _Result("warning", message, remedy)


def _check_publications(examination: _Examination) -> _Result:
    found = inspection.find_publications_of_all_tables(examination.working)
    if found:
        return _Result(
            "warning",
            f"publication {_list(found)} is FOR ALL TABLES: a subscriber without the tables of mfg_notify stops",
            "publish the game's tables by name, see 'In other surroundings' in the documentation",
        )
    return _Result("ok", "no publication contains the tables of mfg_notify")


def _check_statuses(examination: _Examination) -> _Result:
    unknown = inspection.find_unknown_statuses(examination.working, examination.schema)
    if unknown:
        return _Result(
            "warning",
            f"rows with a status that the metrics do not know are left out of all metrics: {_list(unknown)}",
            "correct these rows; the bot writes its statuses in upper case",
        )
    return _Result("ok", "every status is one that the metrics know")


def _check_notify(examination: _Examination) -> _Result:
    notify = examination.settings is not None and examination.settings.notify
    prepared = examination.server.max_prepared_transactions
    if prepared:
        return _Result(
            "warning",
            f"prepared transactions are on (max_prepared_transactions is {prepared}), so the triggers do not notify "
            "and the exporter polls once a second",
            "if nothing uses them: ALTER SYSTEM SET max_prepared_transactions = 0; restart PostgreSQL",
        )
    if not notify:
        message = "NOTIFY is switched off in mfg_notify.settings; the exporter polls once a second"
        return _Result("warning", message, "UPDATE mfg_notify.settings SET notify = true")
    if inspection.is_notify_disabled(examination.working):
        return _Result("ok", "NOTIFY is disabled (polling): the exporter reads the journal while changes come fast")
    return _Result("ok", "the triggers notify")


# ----------------------------------------------------------------------------------------------- journal --


def _check_exporter(examination: _Examination) -> _Result:
    lease = inspection.read_lease(examination.working)
    if lease is None:
        return _Result("failed", "mfg_notify.lease has lost its row", "INSERT INTO mfg_notify.lease DEFAULT VALUES")
    if lease.holder is None or lease.heartbeat_age is None:
        return _Result("warning", "no exporter is active: events wait in the journal", "mfg-notify run")
    host, pid = [*lease.holder.split(":"), "?"][:2]
    # A heartbeat from the future is no sign of life either: somebody set the clock back.
    if abs(lease.heartbeat_age) > examination.limits.heartbeat_timeout:
        message = (
            f"the exporter on {host} (pid {pid}) has sent no heartbeat for {_duration(abs(lease.heartbeat_age))}, and "
            "no other is active"
        )
        return _Result("warning", message, "mfg-notify run")
    return _Result("ok", f"an exporter is active on {host} (pid {pid})")


def _check_backlog(examination: _Examination) -> _Result:
    journal, limits = inspection.read_journal(examination.working), examination.limits
    if journal.newer_version_events:
        message = f"{journal.newer_version_events} events in the journal are of a newer version"
        return _Result("failed", message, UPGRADE)
    if not journal.events:
        return _Result("ok", "the journal is empty")
    plural = "s" if journal.events != 1 else ""
    backlog = f"{journal.events:,} event{plural} in the journal, the oldest for {_duration(journal.oldest_age)}"
    remedy = (
        "mfg-notify run, if no exporter is active; else find what blocks it: SELECT pid, state, wait_event, xact_start "
        "FROM pg_stat_activity ORDER BY xact_start"
    )
    if journal.events >= limits.journal_events:
        return _Result("failed", f"{backlog}: the journal is full, and the triggers record no further changes", remedy)
    if journal.oldest_age > limits.backlog_failed:
        return _Result("failed", f"{backlog}: counters are late", remedy)
    if journal.oldest_age > limits.backlog_warning:
        return _Result("warning", backlog, remedy)
    return _Result("ok", backlog)


def _check_snapshot(examination: _Examination) -> _Result:
    holder, limits = inspection.read_oldest_snapshot(examination.working), examination.limits
    if holder is None:
        return _Result("ok", "nobody holds an old snapshot")
    known = holder.seconds is not None
    age = _duration(holder.seconds) if holder.seconds is not None else f"{holder.transactions:,} transactions"
    message = f"{holder} has held a snapshot for {age}"
    if (holder.seconds or 0) < limits.snapshot_age and (known or holder.transactions < limits.snapshot_transactions):
        return _Result("ok", message)
    remedy = {
        "session": f"end its transaction, or SELECT pg_terminate_backend({holder.name})",
        "prepared transaction": f"COMMIT PREPARED or ROLLBACK PREPARED {quote_literal(holder.name)}",
        "replication slot": f"if nothing uses it: SELECT pg_drop_replication_slot({quote_literal(holder.name)})",
    }
    return _Result(
        "warning", f"{message}: vacuum cannot remove dead rows, and folds become slower", remedy[holder.kind]
    )


def _check_losses(examination: _Examination) -> _Result:
    lost = inspection.read_journal(examination.working).lost_changes
    if lost:
        return _Result(
            "warning",
            f"{lost} change{'s were' if lost != 1 else ' was'} lost since the installation: the counters miss "
            f"{'them' if lost != 1 else 'it'} for good, the gauges do not",
            "search PostgreSQL's log for 'mfg-notify did not record': each line gives the reason",
        )
    return _Result("ok", "no change was lost")


def _check_books(examination: _Examination) -> _Result:
    if inspection.read_journal(examination.working).events > examination.limits.books_journal:
        return _Result("ok", "too many events in the journal to check the books now; mfg-notify verify does")
    report = verify(examination.conninfo, examination.schema)
    rows = sum(changed_rows(report.books.differences).values())
    if rows:
        return _Result("failed", f"at least {rows:,} rows were changed without an event", "mfg-notify verify")
    if report.books.changed_totals:
        names = _list([total.metric for total in report.books.changed_totals])
        return _Result("failed", f"totals were changed by hand: {names}", "mfg-notify verify")
    entered = sum(report.unrecorded.values())
    if entered:
        message = (
            f"{entered:,} rows were changed without an event since the installation: the counters lack what that meant"
        )
        return _Result(
            "warning",
            message,
            "docs/how-to/answer-an-alert.md, MfgNotifyUnrecordedChanges, says how to find out why",
        )
    return _Result("ok", "the books balance: the recorded events explain every live row")


def _check_unreadable(examination: _Examination) -> _Result:
    rows = inspection.find_unreadable_rows(examination.working, examination.schema)
    letters = inspection.read_dead_letters(examination.working)
    problems = []
    if rows:
        problems.append(f"live rows that cannot be read are missing from the gauges: {_list(rows)}")
    if letters.count:
        kept = f"{letters.count} row{'s' if letters.count != 1 else ''} of the journal"
        problems.append(
            f"{kept} could not be read and count as nothing; the last is {letters.last_id}: {letters.reason}"
        )
    if problems:
        remedy = "correct the rows of the game, if any are named; SELECT * FROM mfg_notify.dead_letter"
        return _Result("warning", "; ".join(problems), remedy)
    return _Result("ok", "every live row and every event can be read")


def _check_idle(examination: _Examination) -> _Result:
    # Some daemons of the game never fill certain columns. That is no fault, but it explains a metric that stays at 0.
    activity = inspection.read_activity(examination.working)
    # The journal's events have moved no total yet.
    waiting = inspection.read_journal(examination.working).events
    if waiting:
        wait = "events wait" if waiting != 1 else "event waits"
        message = f"{waiting:,} {wait} in the journal, so it is too early to tell which columns the game never changes"
        return _Result("ok", message)
    if activity.events < examination.limits.idle_events:
        return _Result("ok", f"{activity.events} events so far, too few to tell which columns the game never changes")
    idle = [
        f"{metric.name} ({metric.source})"
        for metric in (*COUNTERS, *HISTOGRAMS)
        if activity.metrics.isdisjoint((metric.name, f"{metric.name}_bucket"))
    ]
    if idle:
        message = f"unchanged since the installation: {_list(idle)}; the game does not change the columns behind them"
        return _Result("ok", message)
    return _Result("ok", "every counter has changed since the installation")


_CHECKS: tuple[tuple[str, tuple[str, ...], Callable[[_Examination], _Result]], ...] = (
    ("server", (), _check_server),
    ("primary", ("server",), _check_primary),
    ("clock", ("server",), _check_clock),
    ("delivery", ("primary",), _check_delivery),
    ("queue", ("primary",), _check_queue),
    ("game", ("server",), _check_game),
    ("installation", ("game",), _check_installation),
    ("rights", ("installation",), _check_rights),
    ("excess", ("game",), _check_excess),
    ("version", ("rights",), _check_version),
    ("columns", ("version",), _check_columns),
    ("triggers", ("installation",), _check_triggers),
    ("policies", ("installation",), _check_policies),
    ("publications", ("installation",), _check_publications),
    ("notify", ("version", "primary"), _check_notify),
    ("exporter", ("version", "primary"), _check_exporter),
    ("backlog", ("version", "primary"), _check_backlog),
    ("snapshot", ("version",), _check_snapshot),
    ("losses", ("version",), _check_losses),
    ("books", ("version", "columns", "policies"), _check_books),
    ("unreadable", ("version", "columns", "policies"), _check_unreadable),
    ("statuses", ("version", "columns", "policies"), _check_statuses),
    ("idle", ("version", "rights"), _check_idle),
)
"""Name, the checks that it depends on, and the check itself, in the order in which they are printed."""


def _list(names: list[str]) -> str:
    listed = ", ".join(names[:NAMED_MAXIMUM])
    return f"{listed} and {len(names) - NAMED_MAXIMUM} more" if len(names) > NAMED_MAXIMUM else listed


def _duration(seconds: float) -> str:
    if seconds < SECONDS_MAXIMUM:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < MINUTES_MAXIMUM else f"{minutes / 60:.1f} h"
