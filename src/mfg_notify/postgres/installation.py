"""What is installed in a game database: which version, whether it fits this code, and what is missing.

The one place that decides this, for the exporter, `migrate`, `doctor` and `tail`. It only reads; `migrations` changes
what is installed.
"""

from dataclasses import dataclass

from mfg_notify.errors import SchemaNotReady, SchemaTooNew
from mfg_notify.postgres.connection import BlockingConnection, Connection, translated_errors
from mfg_notify.postgres.queries import QUERY

SCHEMA_VERSION = 2
"""Version of the schema that this code works with: the number of the newest migration in `db/triggers`."""
TRIGGERS_PER_TABLE = 4
TRIGGERS = 3 * TRIGGERS_PER_TABLE
"""On the game's three tables."""
RELATIONS = (
    *("event", "event_id_seq", "pending_commit", "total", "recent", "latest", "lease", "settings", "lost", "folded"),
    "notify_disabled",
)
FUNCTIONS = (
    *("watched_columns", "missing_columns", "backlog", "transactions_can_be_prepared", "can_notify"),
    *("database_is_utf8", "payload", "write_events", "count_inputs", "flush_at_commit"),
    *("pipeline_changed", "task_changed", "factory_changed", "table_truncated"),
)
"""If one of these relations and functions is missing, the installation is not complete."""


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


@dataclass(frozen=True, slots=True)
class Status:
    """What is installed and what is missing."""

    installation: Installation | None
    """None: nothing is installed, or the settings have lost their row."""
    triggers: dict[str, int]
    """Number of enabled triggers on each of the game's tables that exist."""
    missing: tuple[str, ...] = ()
    """Relations and functions of the schema that somebody has dropped."""

    @property
    def version(self) -> int | None:
        """The installed version."""
        return self.installation.version if self.installation is not None else None

    @property
    def intact(self) -> bool:
        """Whether everything that the installed version consists of exists and every trigger is enabled."""
        return self.installation is not None and not self.missing and sum(self.triggers.values()) == TRIGGERS

    @property
    def complete(self) -> bool:
        """Whether the newest version is installed and intact."""
        return self.intact and self.version == SCHEMA_VERSION


async def check_installation(connection: Connection) -> Installation:
    """Return what is installed. Raise `SchemaNotReady` or `SchemaTooNew` if this code cannot work with it."""
    installation = await read_installation(connection)
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
    with translated_errors():
        missing = await (await connection.execute(QUERY["missing_columns"])).fetchall()
    if missing:
        raise SchemaNotReady(f"the game's tables lack what is needed: {', '.join(name for (name,) in missing)}")
    return installation


async def read_installation(connection: Connection) -> Installation:
    """Return what is installed, of whatever version. Raise `SchemaNotReady` if nothing is."""
    with translated_errors():
        if await (await connection.execute(QUERY["is_installed"])).fetchone() != (True,):
            raise SchemaNotReady("the triggers are not installed in this database; run `mfg-notify migrate up`")
        row = await (await connection.execute(QUERY["settings"])).fetchone()
    if row is None:
        raise SchemaNotReady("mfg_notify.settings has lost its row; run `mfg-notify migrate down`, then up")
    return Installation(*row)


def read_status(connection: BlockingConnection, schema: str) -> Status:
    """Return what is installed and what is missing; the game's tables are in `schema`."""
    with translated_errors():
        counted: list[tuple[str, int]] = connection.execute(QUERY["triggers"], {"schema": schema}).fetchall()
    if not is_installed(connection):
        return Status(None, dict(counted))
    return Status(read_settings(connection), dict(counted), tuple(find_missing_objects(connection)))


def is_installed(connection: BlockingConnection) -> bool:
    """Return whether the schema mfg_notify is installed. Needs no right on it."""
    with translated_errors():
        return connection.execute(QUERY["is_installed"]).fetchone() == (True,)


def read_settings(connection: BlockingConnection) -> Installation | None:
    """Return the settings of an installed schema, or None if they have lost their row."""
    with translated_errors():
        row = connection.execute(QUERY["settings"]).fetchone()
    return Installation(*row) if row is not None else None


def find_missing_objects(connection: BlockingConnection) -> list[str]:
    """Return the relations and functions of the schema that do not exist."""
    with translated_errors():
        names = {"relations": list(RELATIONS), "functions": list(FUNCTIONS)}
        return [name for (name,) in connection.execute(QUERY["missing_objects"], names).fetchall()]


def find_missing_columns(connection: BlockingConnection) -> list[str]:
    """Return the columns of the game's tables that the triggers need and that do not exist."""
    with translated_errors():
        return [name for (name,) in connection.execute(QUERY["missing_columns"]).fetchall()]
