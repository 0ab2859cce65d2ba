"""Whether mfg-notify is installed in a database, in which version, and whether it fits this exporter."""

from dataclasses import dataclass

from mfg_notify.errors import SchemaNotReady, SchemaTooNew
from mfg_notify.postgres import migrations
from mfg_notify.postgres.connection import Connection, translated_errors
from mfg_notify.postgres.queries import QUERY


@dataclass(frozen=True, slots=True)
class Installation:
    """What `mfg_notify.settings` says, and the backend that was asked."""

    version: int
    channel: str
    notify: bool
    """Whether the triggers may notify at all."""
    backend_pid: int
    """A pooler tells the client another number than the server does; this is the server's."""


async def check_installation(connection: Connection) -> Installation:
    """Return what is installed. Raise `SchemaNotReady` or `SchemaTooNew` if this exporter cannot work with it."""
    with translated_errors():
        exists = await (await connection.execute(QUERY["schema_exists"])).fetchone()
        if exists is None or not exists[0]:
            raise SchemaNotReady("the triggers are not installed in this database; run `mfg-notify migrate up`")
        row = await (await connection.execute(QUERY["settings"])).fetchone()
        missing = [name for (name,) in await (await connection.execute(QUERY["missing_columns"])).fetchall()]
    if row is None:
        raise SchemaNotReady("mfg_notify.settings has lost its row; run `mfg-notify migrate down`, then up")
    installation, latest = Installation(*row), migrations.latest_version()
    if installation.version < latest:
        raise SchemaNotReady(
            f"the database has schema version {installation.version}, this exporter needs {latest}; "
            "run `mfg-notify migrate up`"
        )
    if installation.version > latest:
        raise SchemaTooNew(
            f"the database has schema version {installation.version}, this exporter knows {latest}; upgrade mfg-notify"
        )
    if missing:
        raise SchemaNotReady(f"the game's tables lack what is needed: {', '.join(missing)}")
    return installation
