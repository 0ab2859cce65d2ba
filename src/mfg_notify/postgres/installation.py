"""What is installed in a game database: which version, whether it fits this code, and what is missing.

The one place that decides this, for the exporter and every command. It only reads; `migrations` changes what is
installed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mfg_notify.errors import DatabaseUnavailable, SchemaNotReady, SchemaTooNew
from mfg_notify.postgres.connection import BlockingConnection, Connection, translated_errors
from mfg_notify.postgres.queries import QUERY

MIGRATION_HASHES = {
    "1": "e345b477e9baca50f4472dceab9f45643285d5576aca5e02a8205d58ee25fbb0",
    "2": "6e776393740b68413b3ba211763883e31b6e1e48aaa4b744bdd0524857e384f5",
}
"""The migrations in `db/triggers` by number, with the hash that each stores when it is applied.

A file never changes after its release. An installation with other hashes was made by an unreleased version.
"""
SCHEMA_VERSION = len(MIGRATION_HASHES)
"""Version of the schema that this code works with: the number of the newest migration."""
TRIGGERS_PER_TABLE = 4
TRIGGERS = 3 * TRIGGERS_PER_TABLE
"""On the game's three tables."""
UNRELEASED = "the triggers were installed by an unreleased version of mfg-notify"
NOT_OURS = (
    "the schema mfg_notify belongs to a role that does not own the game's tables: nothing in it was read; `mfg-notify "
    "doctor` says what to do"
)
REINSTALL = "mfg-notify migrate down, then mfg-notify migrate up: the totals start again"


@dataclass(frozen=True, slots=True)
class Installation:
    """The settings of an installed schema, as one session reads them."""

    version: int
    channel: str
    """Channel that the triggers notify. Installing again changes it."""
    notify: bool
    """False: this installation never notifies; the exporter polls the journal."""
    backend_pid: int
    """Backend that the notifications of the asking session name as their sender."""
    applied: Mapping[str, str] | None
    """Hash of each applied migration by number; None before hashes were stored."""

    @property
    def released(self) -> bool:
        """Whether every migration was applied in the form in which it was released, as far as this code knows it."""
        applied = self.applied or {}
        return all(
            applied.get(number) == known for number, known in MIGRATION_HASHES.items() if int(number) <= self.version
        )


class Whereabouts(NamedTuple):
    """Which server and database a session is connected to."""

    system_identifier: int
    timeline: int | None
    """None on a standby server."""
    database_oid: int


@dataclass(frozen=True, slots=True)
class Status:
    """What is installed and what is missing."""

    installation: Installation | None
    """None: nothing is installed, or the settings have lost their row."""
    triggers: dict[str, int]
    """Number of enabled triggers on each of the game's tables that exist."""
    missing: tuple[str, ...] = ()
    """Functions, triggers, tables and sequences that somebody has dropped."""
    changed: tuple[str, ...] = ()
    """Those that somebody has changed."""
    missing_columns: tuple[str, ...] = ()
    """Columns of the game that the triggers do not find: also all of them, if its tables are in another schema now."""
    new_columns: tuple[str, ...] = ()
    """Optional columns of the game that have come since the installation, so that the triggers do not read them."""

    @property
    def version(self) -> int | None:
        """The installed version."""
        return self.installation.version if self.installation is not None else None

    @property
    def intact(self) -> bool:
        """Whether everything of the installed version is as it would be installed now and every trigger is enabled."""
        if self.installation is None or self.missing or self.changed or self.missing_columns or self.new_columns:
            return False
        return sum(self.triggers.values()) == TRIGGERS

    @property
    def complete(self) -> bool:
        """Whether the newest version is installed and intact."""
        return self.intact and self.version == SCHEMA_VERSION


async def read_whereabouts(connection: Connection) -> Whereabouts:
    """Return which server and database this is."""
    with translated_errors():
        [row] = await (await connection.execute(QUERY["whereabouts"])).fetchall()
    return Whereabouts(*row)


async def check_same_server(one: Connection, other: Connection) -> None:
    """Raise `DatabaseUnavailable` unless both connections lead to the same server process.

    A proxy or a name with several addresses may lead each elsewhere, and during a failover two servers accept writes.
    """
    with translated_errors():
        started = [await (await each.execute(QUERY["server_process"])).fetchone() for each in (one, other)]
    if started[0] != started[1]:
        raise DatabaseUnavailable("two connections have led to two servers: a failover, or a proxy that balances load")


async def check_installation(connection: Connection, schema: str) -> Installation:
    """Return what is installed for the game in `schema`.

    Raise `SchemaNotReady` or `SchemaTooNew` if this code cannot work with it.
    """
    installation = await read_installation(connection, schema)
    if installation.version < SCHEMA_VERSION:
        raise SchemaNotReady(
            f"the database has schema version {installation.version}, this exporter needs {SCHEMA_VERSION}; "
            "run `mfg-notify migrate up`"
        )
    if installation.version > SCHEMA_VERSION:
        raise SchemaTooNew(
            f"the database has schema version {installation.version}, this exporter knows {SCHEMA_VERSION}; "
            "upgrade mfg-notify"
        )
    if not installation.released:
        raise SchemaNotReady(f"{UNRELEASED}; run {REINSTALL}")
    with translated_errors():
        missing = await (await connection.execute(QUERY["missing_columns"])).fetchall()
        unsupported = await (await connection.execute(QUERY["unsupported_tables"], {"schema": schema})).fetchall()
    if missing:
        raise SchemaNotReady(f"the game's tables lack what is needed: {', '.join(name for (name,) in missing)}")
    if unsupported:
        raise SchemaNotReady(
            f"the triggers cannot see every change: {describe_unsupported(unsupported)}; `mfg-notify doctor` says what "
            "to do"
        )
    return installation


def describe_unsupported(tables: Sequence[tuple[Any, ...]]) -> str:
    """Return why the triggers on some tables do not see every change; of each, its name and the reason."""
    return ", ".join(f"{table} {reason}" for table, reason in tables)


async def read_installation(connection: Connection, schema: str) -> Installation:
    """Return what is installed for the game in `schema`, of whatever version.

    Raise `SchemaNotReady` if nothing is, or if somebody may have planted it: then nothing of it was read or called.
    """
    with translated_errors():
        if await (await connection.execute(QUERY["is_installed"])).fetchone() != (True,):
            raise SchemaNotReady("the triggers are not installed in this database; run `mfg-notify migrate up`")
        if await (await connection.execute(QUERY["is_ours"], {"schema": schema})).fetchone() != (True,):
            raise SchemaNotReady(NOT_OURS)
        row = await (await connection.execute(QUERY["settings"])).fetchone()
    if row is None:
        raise SchemaNotReady("mfg_notify.settings has lost its row; run `mfg-notify migrate down`, then up")
    return Installation(*row)


def read_status(connection: BlockingConnection, schema: str) -> Status:
    """Return what is installed and what is missing; the game's tables are in `schema`."""
    with translated_errors():
        counted: list[tuple[str, int]] = connection.execute(QUERY["triggers"], {"schema": schema}).fetchall()
    if not is_installed(connection) or not is_ours(connection, schema):
        return Status(None, dict(counted))
    settings = read_settings(connection)
    if settings is None or settings.applied is None:
        return Status(settings, dict(counted))
    missing, changed = find_differences(connection)
    if missing:
        return Status(settings, dict(counted), tuple(missing), tuple(changed))
    absent, new = find_missing_columns(connection), find_new_columns(connection)
    return Status(settings, dict(counted), (), tuple(changed), tuple(absent), tuple(new))


def is_installed(connection: BlockingConnection) -> bool:
    """Return whether the schema mfg_notify is installed. Needs no right on it."""
    with translated_errors():
        return connection.execute(QUERY["is_installed"]).fetchone() == (True,)


def is_ours(connection: BlockingConnection, schema: str) -> bool:
    """Return whether nobody can have planted the schema mfg_notify; the game's tables are in `schema`."""
    with translated_errors():
        return connection.execute(QUERY["is_ours"], {"schema": schema}).fetchone() == (True,)


def read_settings(connection: BlockingConnection) -> Installation | None:
    """Return the settings of an installed schema, or None if they have lost their row."""
    with translated_errors():
        row = connection.execute(QUERY["settings"]).fetchone()
    return Installation(*row) if row is not None else None


def find_differences(connection: BlockingConnection) -> tuple[list[str], list[str]]:
    """Return which objects of the installed version are missing, and which are not as they were installed."""
    with translated_errors():
        if connection.execute(QUERY["can_compare"]).fetchone() != (True,):
            return ["function object_hashes"], []
        found = connection.execute(QUERY["different_objects"]).fetchall()
    return [name for name, exists in found if not exists], [name for name, exists in found if exists]


def find_unsupported_tables(connection: BlockingConnection, schema: str) -> list[tuple[str, str]]:
    """Return the tables on which the triggers cannot see every change, and why; the game's tables are in `schema`."""
    with translated_errors():
        return connection.execute(QUERY["unsupported_tables"], {"schema": schema}).fetchall()


def find_missing_columns(connection: BlockingConnection) -> list[str]:
    """Return the columns of the game's tables that the triggers need and that do not exist."""
    with translated_errors():
        return [name for (name,) in connection.execute(QUERY["missing_columns"]).fetchall()]


def find_new_columns(connection: BlockingConnection) -> list[str]:
    """Return the optional columns of the game that the triggers could read and do not, as `table.column`."""
    with translated_errors():
        return [name for (name,) in connection.execute(QUERY["new_columns"]).fetchall()]
