"""Connections: how they are opened, and what their session is set to.

The one place that translates psycopg's errors. It sends no statement that concerns the game or the journal.
"""

import os
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import psycopg
from psycopg import AsyncConnection, errors, sql
from psycopg.adapt import Loader
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from mfg_notify.errors import (
    AccessDenied,
    DatabaseError,
    DatabaseUnavailable,
    NoAnswer,
    OptionError,
    SchemaNotReady,
)
from mfg_notify.postgres.queries import QUERY

Connection: TypeAlias = AsyncConnection[TupleRow]
BlockingConnection: TypeAlias = psycopg.Connection[TupleRow]

_DEFAULTS: Mapping[str, str] = {
    "connect_timeout": "5",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
_PATIENCE_WITH_ONE_OF_SEVERAL = "2"
"""Seconds of `connect_timeout` if several servers are named: each one that does not answer costs so much."""
_ENVIRONMENT = {"application_name": "PGAPPNAME", "connect_timeout": "PGCONNECT_TIMEOUT"}


@dataclass(frozen=True, slots=True)
class Target:
    """Where a conninfo leads, as far as it and the environment say so; an empty string means libpq's default."""

    user: str
    host: str
    port: str
    database: str


def complete_conninfo(dsn: str, application_name: str = "mfg-notify") -> str:
    """Return the conninfo, with defaults for what it leaves open. Raise `OptionError` if it cannot be parsed.

    An empty dsn leaves everything to libpq's own PG* variables, service file and password file. The error never repeats
    the dsn: one wrong character may put the password in another place.
    """
    if "\0" in dsn:
        raise OptionError("the DSN contains the character 0, which libpq takes for its end")
    uri = re.match(r"postgres(?:ql)?://([^/?#]*)(.*)", dsn, re.DOTALL)
    if uri and (uri.group(1).count("@") > 1 or "@" in uri.group(2)):
        raise OptionError(
            "the DSN is ambiguous: it has more than one '@', or one after its first '/', '?' or '#'; in user and "
            "password write %40 for '@', %2F for '/', %3F for '?' and %23 for '#'"
        )
    try:
        given = conninfo_to_dict(dsn)
    except UnicodeError:
        raise OptionError("the DSN cannot be parsed: a percent-encoded value in it is not UTF-8") from None
    except psycopg.Error as error:
        # From the first quotation mark to the last: what libpq quotes may contain some.
        reason = re.sub(r'".*"|".*', '"…"', str(error).strip(), flags=re.DOTALL)
        raise OptionError(
            f"the DSN cannot be parsed ({reason}); it looks like postgresql://user@host:5432/database "
            "or host=… dbname=… user=…"
        ) from None
    if not all(_is_port(port) for port in str(given.get("port") or "").split(",")):
        raise OptionError(
            "a port in the DSN is not a number from 1 to 65535; a DSN with a password and without a host looks like "
            "postgresql://user:password@/database"
        )
    settings = {"application_name": application_name, **_DEFAULTS}
    if any("," in _setting(given, *names) for names in (("host", "PGHOST"), ("hostaddr", "PGHOSTADDR"))):
        settings["connect_timeout"] = _PATIENCE_WITH_ONE_OF_SEVERAL
    for name, variable in _ENVIRONMENT.items():
        if variable in os.environ:
            del settings[name]
    # The client encoding is not the user's choice: the journal and the labels are UTF-8.
    return make_conninfo("", **{**settings, **given, "client_encoding": "utf8"})


def _setting(given: Mapping[str, object], name: str, variable: str) -> str:
    return str(given[name] if name in given else os.environ.get(variable, ""))


def split_servers(conninfo: str) -> list[str]:
    """Return one conninfo for each server that a conninfo or the environment names, in that order."""
    given = conninfo_to_dict(conninfo)
    named = {
        name: _setting(given, name, variable).split(",")
        for name, variable in (("host", "PGHOST"), ("hostaddr", "PGHOSTADDR"), ("port", "PGPORT"))
    }
    number = max(len(named["host"]), len(named["hostaddr"]))
    if number == 1 or any(len(values) not in (1, number) for values in named.values()):
        return [conninfo]  # libpq explains what does not match
    each = {name: values if len(values) == number else values * number for name, values in named.items()}
    return [
        make_conninfo(conninfo, **{name: values[place] for name, values in each.items() if any(values)})
        for place in range(number)
    ]


def of_same_server(conninfo: str, connection: Connection) -> str:
    """Return a conninfo that leads to the address of a connection, whatever the name of the host resolves to next."""
    address = connection.info.hostaddr
    return make_conninfo(conninfo, hostaddr=address, port=connection.info.port) if address else conninfo


def _is_port(text: str) -> bool:
    # libpq takes an empty one for its default. What it cannot read, its errors repeat.
    return not text.strip() or (re.fullmatch(r"\s*\d{1,5}\s*", text, re.ASCII) is not None and 1 <= int(text) <= 65535)


def target_of(conninfo: str) -> Target:
    """Return where a conninfo leads."""
    given = conninfo_to_dict(conninfo)

    def setting(variable: str, *names: str) -> str:
        stated = next((given[name] for name in names if given.get(name)), None)
        return str(stated or os.environ.get(variable, ""))

    return Target(
        user=setting("PGUSER", "user"),
        host=setting("PGHOST", "host", "hostaddr"),
        port=setting("PGPORT", "port"),
        database=setting("PGDATABASE", "dbname") or str(given.get("service") or ""),
    )


def describe(conninfo: str) -> str:
    """Return where a conninfo leads, without secrets, as in `game@db.example:5432/spacetraders`."""
    target = target_of(conninfo)
    user = f"{target.user}@" if target.user else ""
    port = f":{target.port}" if target.port else ""
    return f"{user}{target.host or 'local socket'}{port}/{target.database}"


def quote_identifier(name: str) -> str:
    """Return the name of an object or a role as SQL, in quotes."""
    return sql.Identifier(name).as_string()


def quote_literal(text: str) -> str:
    """Return a text as an SQL literal."""
    return sql.Literal(text).as_string()


async def connect(conninfo: str, *, read_only: bool = False) -> Connection:
    """Open a connection in autocommit mode with the session settings of `configure_session`.

    With `read_only` the server refuses every write. Raise `DatabaseUnavailable` or `AccessDenied`.
    """
    with translated_errors():
        connection = await AsyncConnection.connect(conninfo, autocommit=True)
        try:
            if _takes_any_bytes(connection):
                await connection.execute(QUERY["send_any_bytes"])
            await connection.execute(QUERY["configure_session"])
            if read_only:
                await connection.execute(QUERY["read_only_session"])
        except BaseException:
            await connection.close()
            raise
        return connection


def connect_blocking(conninfo: str) -> BlockingConnection:
    """Open a blocking connection in autocommit mode. Its session keeps its default settings. Raise `DatabaseError`."""
    with translated_errors():
        connection = psycopg.connect(conninfo, autocommit=True)
        if _takes_any_bytes(connection):
            connection.execute(QUERY["send_any_bytes"])
        return connection


def _takes_any_bytes(connection: Connection | BlockingConnection) -> bool:
    """Tell whether the database is in SQL_ASCII, where the game may store any bytes; if it is, read text leniently."""
    if connection.info.parameter_status("server_encoding") != "SQL_ASCII":
        return False
    for kind in ("text", "varchar", "bpchar", "name", 0):
        connection.adapters.register_loader(kind, _LenientTextLoader)
    return True


class _LenientTextLoader(Loader):
    """Loads text with U+FFFD in place of what is not UTF-8."""

    def load(self, data: bytes | bytearray | memoryview) -> str:
        return bytes(data).decode("utf-8", "replace")


@asynccontextmanager
async def read_only_snapshot(connection: Connection) -> AsyncIterator[None]:
    """Run the body in one snapshot of the database: REPEATABLE READ, READ ONLY."""
    await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    try:
        yield
    except BaseException:
        if not connection.closed:
            await connection.execute("ROLLBACK")
        raise
    await connection.execute("COMMIT")


async def fetch_without_locks(connection: Connection, *queries: sql.Composable) -> list[list[TupleRow]]:
    """Run queries in one read-only snapshot, and return the rows of each.

    The rows are fetched after the transaction has ended: cursors WITH HOLD make the server keep them. So a reader that
    stops reading in the middle of an answer holds no lock on any table.
    """
    names = [sql.Identifier(f"mfg_notify_{number}") for number in range(len(queries))]
    async with connection.pipeline():
        async with connection.transaction():
            await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            # A query that fails at the COMMIT, where the cursors are filled, leaves those before it open.
            await connection.execute("CLOSE ALL")
            for name, query in zip(names, queries, strict=True):
                await connection.execute(sql.SQL("DECLARE {} NO SCROLL CURSOR WITH HOLD FOR {}").format(name, query))
        cursors = [await connection.execute(sql.SQL("FETCH ALL FROM {}").format(name)) for name in names]
        for name in names:
            await connection.execute(sql.SQL("CLOSE {}").format(name))
        return [await cursor.fetchall() for cursor in cursors]


@contextmanager
def translated_errors() -> Iterator[None]:
    """Translate psycopg's errors into those of `mfg_notify.errors`."""
    try:
        yield
    except psycopg.Error as error:
        raise translate(error) from error


def translate(error: psycopg.Error) -> DatabaseError:
    """Return the error of `mfg_notify.errors` for one of psycopg's; its message says what to do."""
    # libpq repeats the value of an option that it cannot read, which may be a misplaced password.
    text = re.sub(r'(invalid [\w ]+:?) ".*"', r'\1 "…"', " ".join(str(error).split()))
    match error:
        case errors.ConnectionTimeout():
            return NoAnswer(text)
        case errors.InsufficientPrivilege() if "row-level security" in text:
            # No grant helps. The server's own hint is for the owner of the table.
            return AccessDenied(f"{text.partition(' HINT: ')[0]}; `mfg-notify doctor` says what to do")
        case errors.InsufficientPrivilege():
            return AccessDenied(f"{text}; `mfg-notify migrate up --create-role NAME` grants a role what it needs")
        case errors.InvalidPassword() | errors.InvalidAuthorizationSpecification():
            return AccessDenied(text)
        case errors.UndefinedColumn() | errors.UndefinedTable() | errors.UndefinedFunction():
            # The migration restores what belongs to mfg_notify. Missing columns of the game were reported before.
            return SchemaNotReady(f"{text}; run `mfg-notify migrate up`" if "mfg_notify." in text else text)
        case errors.InvalidSchemaName():
            return SchemaNotReady(f"{text}; run `mfg-notify migrate up`")
        case psycopg.OperationalError() if re.search(r'database ".*" does not exist', text):
            return SchemaNotReady(f"{text}; check the database's name in --dsn or PGDATABASE")
        case psycopg.OperationalError() if re.search(r"permission denied|not permitted to log in", text):
            return AccessDenied(f"{text}; `mfg-notify migrate up --create-role NAME` grants a role what it needs")
        case psycopg.OperationalError() if re.search(
            r"authentication failed|no password supplied|pg_hba|role \".*\" does not exist", text
        ):
            return AccessDenied(f"{text}; check user and password in --dsn, PGPASSWORD or ~/.pgpass")
        case psycopg.OperationalError() if "connection to server on socket" in text:
            return DatabaseUnavailable(f"{text}; for another server give --dsn, MFG_NOTIFY_DSN or PGHOST")
    return DatabaseUnavailable(text)
