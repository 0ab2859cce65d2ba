"""Connections: how they are opened, what they are set to, and the one place where psycopg's errors are translated."""

import os
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import TypeAlias

import psycopg
from psycopg import AsyncConnection, errors
from psycopg.adapt import Loader
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from mfg_notify.errors import (
    AccessDenied,
    DatabaseError,
    DatabaseUnavailable,
    SchemaNotReady,
    UsageError,
)
from mfg_notify.postgres.queries import QUERY

Connection: TypeAlias = AsyncConnection[TupleRow]

_DEFAULTS: Mapping[str, str] = {
    "connect_timeout": "5",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
_ENVIRONMENT = {"application_name": "PGAPPNAME", "connect_timeout": "PGCONNECT_TIMEOUT"}


def complete_conninfo(dsn: str, application_name: str = "mfg-notify") -> str:
    """Return the conninfo with our defaults for what it leaves open. Raise `UsageError` where it cannot be parsed.

    An empty dsn leaves everything to libpq's own PG* variables, service and password file. The error never repeats
    the text: a DSN that is wrong by one character may show its password in the wrong place.
    """
    authority = re.match(r"postgres(?:ql)?://([^/?]*)", dsn)
    if authority and authority.group(1).count("@") > 1:
        raise UsageError("the DSN has more than one '@' before its path: write %40 for an '@' in user or password")
    try:
        given = conninfo_to_dict(dsn)
    except psycopg.Error as error:
        reason = re.sub(r'"[^"]*"?', '"…"', str(error).strip())
        raise UsageError(
            f"the DSN cannot be parsed ({reason}); it looks like postgresql://user@host:5432/database "
            "or host=… dbname=… user=…"
        ) from None
    settings = {"application_name": application_name, **_DEFAULTS}
    for name, variable in _ENVIRONMENT.items():
        if variable in os.environ:
            del settings[name]
    # The client's encoding is ours to choose: journal and labels are UTF-8.
    return make_conninfo("", **{**settings, **given, "client_encoding": "utf8"})


def describe(conninfo: str) -> str:
    """Say where a conninfo leads, without secrets, as in `game@db.example:5432/spacetraders`."""
    given = conninfo_to_dict(conninfo)
    user = given.get("user") or os.environ.get("PGUSER") or ""
    host = given.get("host") or given.get("hostaddr") or os.environ.get("PGHOST") or "local socket"
    port = given.get("port") or os.environ.get("PGPORT") or ""
    database = given.get("dbname") or os.environ.get("PGDATABASE") or given.get("service") or ""
    return f"{user}{'@' if user else ''}{host}{f':{port}' if port else ''}/{database}"


async def connect(conninfo: str) -> Connection:
    """Open a connection in autocommit mode with the session settings of `configure_session`.

    Raise `DatabaseUnavailable` or `AccessDenied`.
    """
    with translated_errors():
        connection = await AsyncConnection.connect(conninfo, autocommit=True)
        if connection.info.parameter_status("server_encoding") == "SQL_ASCII":
            connection.adapters.register_loader("text", _LenientTextLoader)
        try:
            await connection.execute(QUERY["configure_session"])
        except BaseException:
            await connection.close()
            raise
        return connection


class _LenientTextLoader(Loader):
    """Text of a SQL_ASCII database: whatever bytes the game wrote, with U+FFFD for what is not UTF-8."""

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


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn psycopg's errors into those of `mfg_notify.errors`."""
    try:
        yield
    except psycopg.Error as error:
        raise translate(error) from error


def translate(error: psycopg.Error) -> DatabaseError:
    """Return our error for one of psycopg's: what kind it is, and what to do about it."""
    # libpq repeats the value of an option that it cannot read; a misplaced password may be in there.
    text = re.sub(r'(invalid [\w ]+:?) ".*?"(?=\s|$)', r'\1 "…"', " ".join(str(error).split()))
    match error:
        case errors.InsufficientPrivilege():
            return AccessDenied(f"{text}; `mfg-notify migrate up --create-role NAME` grants a role what it needs")
        case errors.InvalidPassword() | errors.InvalidAuthorizationSpecification():
            return AccessDenied(text)
        case errors.UndefinedColumn() | errors.UndefinedTable() | errors.UndefinedFunction():
            # What is ours, the migration brings back; what it needs of the game, the exporter has named before.
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
            return DatabaseUnavailable(f"{text}; a server elsewhere is named with --dsn, MFG_NOTIFY_DSN or PGHOST")
    return DatabaseUnavailable(text)
