"""Applies, removes and prints `db/triggers`: plain SQL files that psql and golang-migrate can apply as well.

Also creates the exporter's role (`role.sql`), which `down` removes together with everything else.

A file that cannot get its locks at once rolls back and is tried again, so the game never queues behind a migration.
What is installed is read by `installation`.
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

from mfg_notify.errors import AccessDenied, DatabaseUnavailable, OptionError, UsageError
from mfg_notify.postgres.connection import BlockingConnection, translate, translated_errors
from mfg_notify.postgres.installation import REINSTALL, SCHEMA_VERSION, UNRELEASED, read_status
from mfg_notify.postgres.queries import QUERY

OLDEST_SERVER = 140000
"""PostgreSQL 14, as psycopg numbers it."""
LOCK_TIMEOUT = 60.0
"""Seconds for which a migration tries to get its locks."""
NAME_BYTES = 63
"""PostgreSQL truncates longer names."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered pair of files; `up` and `down` are SQL for a game whose tables are in schema public."""

    number: int
    name: str
    up: str
    down: str


def _directory() -> Traversable:
    # The wheel contains the files in this package; in a checkout they are at the top, where people look for them.
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


def triggers() -> set[tuple[str, str]]:
    """Return table and name of every trigger that the migrations create."""
    statement = r"^ *CREATE (?:OR REPLACE|CONSTRAINT) TRIGGER (\w+)[^;]*? ON (?:public|mfg_notify)\.(\w+)"
    created = re.compile(statement, re.MULTILINE)
    return {(table, name) for migration in migrations() for name, table in created.findall(migration.up)}


def render(text: str, schema: str) -> str:
    """Return a migration for a game whose tables are in `schema`. Raise `UsageError` unless that is a plain name."""
    if schema == "public":
        return text
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_$]{0,62}", schema):
        raise OptionError(f"the game schema {schema!r} is not a plain name: letters, digits, _ and $ only")
    quoted = schema if re.fullmatch(r"[a-z_][a-z0-9_]*", schema) else f'"{schema}"'
    return re.sub(r"\bpublic(?=\.manufacturing_)|(?<=ON SCHEMA )public\b", lambda _: quoted, text)


def render_role(name: str, schema: str) -> str:
    """Return the SQL that creates the exporter's role. Raise `UsageError` for a name that no role can have."""
    if not 0 < len(name.encode()) <= NAME_BYTES or "\0" in name:
        raise OptionError(f"{name!r} cannot be the name of a role: 1 to {NAME_BYTES} bytes")
    text = files(__package__).joinpath("role.sql").read_text(encoding="utf-8")
    composed = sql.SQL(text).format(role=sql.Identifier(name), name=sql.Literal(name), schema=sql.Literal(schema))
    return composed.as_string()


def connect(conninfo: str, on_notice: Callable[[str], None] | None = None) -> BlockingConnection:
    """Open a connection in autocommit mode; `on_notice` receives the server's notices. Raise `DatabaseError`.

    The session keeps its default settings: the files set what they need.
    """
    with translated_errors():
        connection = psycopg.connect(conninfo, autocommit=True)
    if on_notice is not None:
        connection.add_notice_handler(lambda notice: on_notice(notice.message_primary or ""))
    return connection


def check_owner(connection: BlockingConnection, schema: str, *, unless_complete: bool = False) -> None:
    """Raise `AccessDenied` naming the owner if another role has installed what is there.

    With `unless_complete` there may be nothing to do, which any role may be told. What does not look like an
    installation is left to the migrations, which refuse it.
    """
    with translated_errors():
        row = connection.execute(QUERY["foreign_owner"]).fetchone()
    if row is None:
        return
    owner, role, readable = row
    if readable:
        status = read_status(connection, schema)
        if status.installation is None or not status.installation.released or (unless_complete and status.complete):
            return
    raise AccessDenied(f"{owner} has installed mfg-notify in this database: migrate as {owner}, not as {role}")


def check_role(connection: BlockingConnection, schema: str, name: str) -> None:
    """Raise `AccessDenied` with the statements for an administrator if `create_role` could not do everything."""
    render_role(name, schema)  # refuses an impossible name
    with translated_errors():
        rows = connection.execute(QUERY["statements_for_an_administrator"], {"role": name, "schema": schema}).fetchall()
    if rows:
        statements = "; ".join(statement for (statement,) in rows)
        raise AccessDenied(
            f"nothing was changed, because role {connection.info.user} may not do all that --create-role needs; let an "
            f"administrator run this in database {connection.info.dbname}, then repeat the command: {statements}"
        )


def up(connection: BlockingConnection, schema: str, on_wait: Callable[[str], None]) -> list[Migration]:
    """Install what is missing and return it; an empty list if nothing is. The connection is in autocommit mode.

    `on_wait` receives the reason before each retry. Raise `SchemaNotReady` naming missing columns, `AccessDenied`,
    `UsageError` if the server is too old or the schema too new, `DatabaseUnavailable` if the locks are not free in
    time.
    """
    if connection.info.server_version < OLDEST_SERVER:
        raise UsageError(f"PostgreSQL {connection.info.server_version // 10000} is too old: 14 or newer is needed")
    status = read_status(connection, schema)
    if status.version is not None and status.version > SCHEMA_VERSION:
        raise UsageError(
            f"the database has schema version {status.version}, this mfg-notify knows {SCHEMA_VERSION}: "
            "upgrade mfg-notify"
        )
    if status.installation is not None and not status.installation.released:
        raise UsageError(f"{UNRELEASED}; run {REINSTALL}")
    # To restore what somebody has dropped or changed, or to follow the game's tables to another schema, apply every
    # file again: all of them are safe to repeat.
    if status.complete:
        return []
    installed = status.version if status.intact and status.version is not None else 0
    pending = [migration for migration in migrations() if migration.number > installed]
    # The roles made before may need more now. They need a right on a new column before the triggers read the column:
    # otherwise a running exporter is refused for a moment.
    if status.new_columns:
        _grant_again(connection, schema, on_wait)
    for migration in pending:
        _apply(connection, render(migration.up, schema), on_wait)
    _grant_again(connection, schema, on_wait)
    return pending


def down(connection: BlockingConnection, schema: str, on_wait: Callable[[str], None]) -> bool:
    """Remove everything; return False if there was nothing. Raises what `up` raises."""
    status = read_status(connection, schema)
    _apply(connection, render(migrations()[0].down, schema), on_wait)
    return status.version is not None or bool(sum(status.triggers.values()))


def create_role(connection: BlockingConnection, schema: str, name: str, on_wait: Callable[[str], None]) -> bool:
    """Grant a role what an exporter needs; create the role first if it does not exist, and return whether it was.

    Raises what `up` raises.
    """
    text = render_role(name, schema)
    with translated_errors():
        existed = connection.execute(QUERY["role_exists"], {"role": name}).fetchone() == (True,)
    _apply(connection, text, on_wait)
    return not existed


def _grant_again(connection: BlockingConnection, schema: str, on_wait: Callable[[str], None]) -> None:
    with translated_errors():
        if connection.execute(QUERY["has_granted_roles"]).fetchone() != (True,):
            return
        roles = [role for (role,) in connection.execute(QUERY["granted_roles"]).fetchall()]
    for role in roles:
        _apply(connection, render_role(role, schema), on_wait)


def _apply(connection: BlockingConnection, text: str, on_wait: Callable[[str], None]) -> None:
    def report(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        on_wait(f"{_first_line(error)}; {_describe_lock_holder(connection)}trying again")

    retrying = Retrying(
        retry=retry_if_exception_type((errors.LockNotAvailable, errors.SerializationFailure, errors.DeadlockDetected)),
        wait=wait_random_exponential(multiplier=0.1, max=1.0),
        stop=stop_after_delay(LOCK_TIMEOUT),
        before_sleep=report,
        reraise=True,
    )
    try:
        retrying(_execute, connection, text)
    except errors.LockNotAvailable as error:
        raise DatabaseUnavailable(
            f"could not lock the game's tables within {LOCK_TIMEOUT:.0f} s: {_describe_lock_holder(connection)}"
            "end that transaction or try later; nothing was changed"
        ) from error
    except errors.InsufficientPrivilege as error:
        if error.diag.source_function == "exec_stmt_raise":
            # An error that our own files raise says what to do; the server's own error does not.
            raise AccessDenied(_first_line(error)) from error
        advice = (
            "check the database's name, and use the role that owns the game's tables; it needs CREATE on the database"
        )
        if "row-level security" in _first_line(error):
            advice = "`mfg-notify doctor` says what to do"
        raise AccessDenied(f"{_first_line(error)}; {advice}") from error
    except psycopg.Error as error:
        raise type(translate(error))(_first_line(error)) from error


def _execute(connection: BlockingConnection, text: str) -> None:
    try:
        connection.execute(text.encode())
    except psycopg.Error:
        if not connection.closed:
            connection.execute("ROLLBACK")
        raise


def _describe_lock_holder(connection: BlockingConnection) -> str:
    row = connection.execute(QUERY["oldest_lock_holder"]).fetchone()
    if row is None:
        return ""
    pid, application, seconds = row
    return f"a transaction of {application or 'a client'} (pid {pid}) has been open for {seconds:.0f} s; "


def _first_line(error: BaseException | None) -> str:
    return (str(error).splitlines() or [""])[0]
