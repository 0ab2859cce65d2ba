"""Applying, removing and printing `db/triggers`: plain SQL files that psql and golang-migrate can apply as well.

Also the exporter's role (`role.sql`), which `down` takes away with the rest.

Owns the order of the files and the patience: a file that cannot have its lock at once rolls back, and is tried again.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import psycopg
from psycopg import errors, sql
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from mfg_notify.errors import AccessDenied, DatabaseUnavailable, UsageError
from mfg_notify.postgres.connection import translate, translated_errors
from mfg_notify.postgres.queries import QUERY

OLDEST_SERVER = 140000
"""As psycopg counts: PostgreSQL 14."""
PATIENCE = 60.0
"""Seconds for which a migration tries to get its locks."""
TRIGGERS = 12
"""Four on each of the game's three tables."""
RELATIONS = (
    *("event", "event_id_seq", "pending_commit", "total", "recent", "latest", "lease", "settings", "lost", "folded"),
    "notify_disabled",
)
FUNCTIONS = (
    *("watched_columns", "missing_columns", "backlog", "transactions_can_be_prepared", "can_notify", "payload"),
    *("write_events", "count_inputs", "flush_at_commit"),
    *("pipeline_changed", "task_changed", "factory_changed", "table_truncated"),
)
"""Without one of these the installation is not complete."""
NAME_BYTES = 63
"""PostgreSQL cuts longer names."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered pair of files; `up` and `down` are SQL for the game's tables in schema public."""

    number: int
    name: str
    up: str
    down: str


@dataclass(frozen=True, slots=True)
class Status:
    """What is installed: `version` None where nothing is; triggers of ours that are enabled.

    `missing` are tables, sequences and functions of our schema that somebody has dropped.
    """

    version: int | None
    notify: bool | None
    triggers: dict[str, int]
    missing: tuple[str, ...] = ()

    @property
    def intact(self) -> bool:
        """Tell whether everything of the version that is installed is there, and every trigger enabled."""
        return self.version is not None and not self.missing and sum(self.triggers.values()) == TRIGGERS

    @property
    def complete(self) -> bool:
        """Tell whether that is the newest version, too."""
        return self.intact and self.version == latest_version()


def _directory() -> Traversable:
    # In the wheel the files lie in the package; in a checkout they are at the top, where people look for them.
    packaged = files(__package__).joinpath("triggers")
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "db" / "triggers"


def migrations() -> list[Migration]:
    """Return all migrations, oldest first."""
    texts = {file.name: file.read_text(encoding="utf-8") for file in _directory().iterdir()}
    found = []
    for file_name, up in sorted(texts.items()):
        if match := re.fullmatch(r"(\d{4})_(\w+)\.up\.sql", file_name):
            number, name = match.groups()
            found.append(Migration(int(number), name, up, texts[f"{number}_{name}.down.sql"]))
    return found


def latest_version() -> int:
    """Return the schema version that this exporter works with."""
    return migrations()[-1].number


def triggers() -> set[tuple[str, str]]:
    """Return table and name of every trigger that the migrations make."""
    statement = r"^ *CREATE (?:OR REPLACE|CONSTRAINT) TRIGGER (\w+)[^;]*? ON (?:public|mfg_notify)\.(\w+)"
    made = re.compile(statement, re.MULTILINE)
    return {(table, name) for migration in migrations() for name, table in made.findall(migration.up)}


def render(text: str, schema: str) -> str:
    """Return a migration for a game whose tables are in `schema`. Raise `UsageError` for an odd name."""
    if schema == "public":
        return text
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_$]{0,62}", schema):
        raise UsageError(f"the game schema {schema!r} is not a plain name: letters, digits, _ and $ only")
    quoted = schema if re.fullmatch(r"[a-z_][a-z0-9_]*", schema) else f'"{schema}"'
    return re.sub(r"\bpublic(?=\.manufacturing_)|(?<=ON SCHEMA )public\b", lambda _: quoted, text)


def render_role(name: str, schema: str) -> str:
    """Return the SQL that makes the exporter's role. Raise `UsageError` for a name that cannot be one."""
    if not 0 < len(name.encode()) <= NAME_BYTES or "\0" in name:
        raise UsageError(f"{name!r} cannot be the name of a role: 1 to {NAME_BYTES} bytes")
    text = files(__package__).joinpath("role.sql").read_text(encoding="utf-8")
    composed = sql.SQL(text).format(role=sql.Identifier(name), name=sql.Literal(name), schema=sql.Literal(schema))
    return composed.as_string()


def read_status(connection: psycopg.Connection, schema: str) -> Status:
    """Ask what is installed."""
    with translated_errors():
        counted = connection.execute(QUERY["triggers"], {"schema": schema}).fetchall()
        exists = connection.execute(QUERY["schema_exists"]).fetchone()
        if exists is None or not exists[0]:
            return Status(None, None, dict(counted))
        row = connection.execute(QUERY["settings"]).fetchone()
        names = {"relations": list(RELATIONS), "functions": list(FUNCTIONS)}
        missing = connection.execute(QUERY["missing_objects"], names).fetchall()
    version, _, notify, _ = row if row is not None else (None, None, None, None)
    return Status(version, notify, dict(counted), tuple(name for (name,) in missing))


def up(connection: psycopg.Connection, schema: str, on_wait: Callable[[str], None]) -> list[Migration]:
    """Install what is missing and return it; nothing if all is there. The connection is in autocommit mode.

    `on_wait` is told why, before each new try. Raise `SchemaNotReady` naming missing columns, `AccessDenied`,
    `UsageError` for a server that is too old or a schema that is too new, `DatabaseUnavailable` when the locks cannot
    be had.
    """
    if connection.info.server_version < OLDEST_SERVER:
        raise UsageError(f"PostgreSQL {connection.info.server_version // 10000} is too old: 14 or newer is needed")
    status = read_status(connection, schema)
    if status.complete:
        return []
    everything = migrations()
    if status.version is not None and status.version > everything[-1].number:
        raise UsageError(
            f"the database has schema version {status.version}, this mfg-notify knows {everything[-1].number}: "
            "upgrade mfg-notify"
        )
    # What someone dropped comes back by applying all again: every file is safe to repeat.
    installed = status.version if status.intact and status.version is not None else 0
    pending = [m for m in everything if m.number > installed]
    for migration in pending:
        _apply(connection, render(migration.up, schema), on_wait)
    return pending


def down(connection: psycopg.Connection, schema: str, on_wait: Callable[[str], None]) -> bool:
    """Remove everything; False if there was nothing. Raises as `up` does."""
    status = read_status(connection, schema)
    _apply(connection, render(migrations()[0].down, schema), on_wait)
    return status.version is not None or bool(sum(status.triggers.values()))


def create_role(connection: psycopg.Connection, schema: str, name: str, on_wait: Callable[[str], None]) -> bool:
    """Give the role what an exporter needs, making it if there is none: True if it was made. Raises as `up` does."""
    text = render_role(name, schema)
    with translated_errors():
        existed = connection.execute(QUERY["role_exists"], {"role": name}).fetchone() == (True,)
    _apply(connection, text, on_wait)
    return not existed


def _apply(connection: psycopg.Connection, text: str, on_wait: Callable[[str], None]) -> None:
    def tell(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        on_wait(f"{_first_line(error)}; {_blocker(connection)}trying again")

    patience = Retrying(
        retry=retry_if_exception_type((errors.LockNotAvailable, errors.SerializationFailure, errors.DeadlockDetected)),
        wait=wait_random_exponential(multiplier=0.1, max=1.0),
        stop=stop_after_delay(PATIENCE),
        before_sleep=tell,
        reraise=True,
    )
    try:
        patience(_execute, connection, text)
    except errors.LockNotAvailable as error:
        raise DatabaseUnavailable(
            f"could not lock the game's tables within {PATIENCE:.0f} s: {_blocker(connection)}"
            "end that transaction or try later; nothing was changed"
        ) from error
    except errors.InsufficientPrivilege as error:
        # What the files themselves raise says what to do; what the server says does not.
        of_ours = error.diag.source_function == "exec_stmt_raise"
        advice = (
            "check the database's name, and use the role that owns the game's tables; it needs CREATE on the database"
        )
        raise AccessDenied(_first_line(error) if of_ours else f"{_first_line(error)}; {advice}") from error
    except psycopg.Error as error:
        raise type(translate(error))(_first_line(error)) from error


def _execute(connection: psycopg.Connection, text: str) -> None:
    try:
        connection.execute(text.encode())
    except psycopg.Error:
        if not connection.closed:
            connection.execute("ROLLBACK")
        raise


def _blocker(connection: psycopg.Connection) -> str:
    # Who keeps the game's tables locked; its query may hold secrets and is not shown.
    row = connection.execute(QUERY["oldest_lock_holder"]).fetchone()
    if row is None:
        return ""
    pid, application, seconds = row
    return f"a transaction of {application or 'a client'} (pid {pid}) has been open for {seconds:.0f} s; "


def _first_line(error: BaseException | None) -> str:
    return (str(error).splitlines() or [""])[0]
