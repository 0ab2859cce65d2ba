"""What is installed: the answer when it fits, and the error that says what to do when it does not."""

import re
from hashlib import sha256
from typing import Any, LiteralString

import anyio
import pytest
from tests.conftest import Database
from tests.support import PATIENCE

from mfg_notify.errors import DatabaseError, SchemaNotReady, SchemaTooNew
from mfg_notify.exporter import Exporter, Settings
from mfg_notify.postgres import migrations, snapshot
from mfg_notify.postgres.connection import Connection, connect
from mfg_notify.postgres.installation import (
    MIGRATION_HASHES,
    SCHEMA_VERSION,
    check_installation,
    read_installation,
    read_status,
)

pytestmark = pytest.mark.anyio


def test_a_released_migration_never_changes() -> None:
    """Until the first release, write the hash that this test finds into the file and into the code."""
    hashes = {}
    for migration in migrations.migrations():
        hashes[str(migration.number)] = sha256(re.sub(r"[0-9a-f]{64}", "", migration.up).encode()).hexdigest()
        assert re.findall(r"[0-9a-f]{64}", migration.up) == [hashes[str(migration.number)]]
    assert hashes == MIGRATION_HASHES


async def test_an_installation_that_fits(installed: Database) -> None:
    async with await connect(installed.dsn) as connection:
        found = await check_installation(connection, "public")
        assert found == await read_installation(connection, "public")
        assert found.version == SCHEMA_VERSION
        assert found.notify
        assert found.backend_pid == connection.info.backend_pid
        assert found.channel


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        ("DROP SCHEMA mfg_notify CASCADE", SchemaNotReady, "not installed in this database; run `mfg-notify migrate"),
        ("DELETE FROM mfg_notify.settings", SchemaNotReady, "has lost its row; run `mfg-notify migrate down`, then up"),
        (
            "ALTER TABLE mfg_notify.settings DROP applied",
            SchemaNotReady, "by an unreleased version of mfg-notify; run mfg-notify migrate down, then mfg-notify migr",
        ),
        (
            "UPDATE mfg_notify.settings SET version = 0",
            SchemaNotReady, "the database has schema version 0, this exporter needs",
        ),
        (
            "UPDATE mfg_notify.settings SET version = 99",
            SchemaTooNew, "the database has schema version 99, this exporter knows",
        ),
        (
            "ALTER TABLE manufacturing_tasks DROP COLUMN ready_at",
            SchemaNotReady, "lack what is needed: public.manufacturing_tasks.ready_at",
        ),
    ],
)  # fmt: skip
async def test_an_installation_that_does_not_fit(
    installed: Database, damage: LiteralString, error: type[DatabaseError], message: str
) -> None:
    with installed.connect() as other:
        other.execute(damage)
    async with await connect(installed.dsn) as connection:
        with pytest.raises(error, match=message):
            await check_installation(connection, "public")


async def test_another_version_can_be_read(installed: Database) -> None:
    with installed.connect() as other:
        other.execute("UPDATE mfg_notify.settings SET version = 99")
        async with await connect(installed.dsn) as connection:
            assert (await read_installation(connection, "public")).version == 99
        status = read_status(other, "public")
        assert status.version == 99
        assert status.intact
        assert not status.complete


def test_status_without_an_installation(database: Database) -> None:
    with database.connect() as connection:
        status = read_status(connection, "public")
    assert status.installation is None
    assert set(status.triggers.values()) == {0}
    assert not status.intact


async def test_a_column_dropped_after_the_check_is_named(installed: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The game may change its tables between the check of its columns and the snapshot that reads them."""
    read = snapshot.read_snapshot

    async def drop_and_read(connection: Connection, schema: str) -> Any:  # noqa: ANN401
        with installed.connect() as game:
            game.execute("ALTER TABLE manufacturing_tasks DROP COLUMN IF EXISTS ready_at")
        return await read(connection, schema)

    monkeypatch.setattr(snapshot, "read_snapshot", drop_and_read)
    exporter = Exporter(Settings(installed.dsn))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(exporter.run)
        with anyio.fail_after(PATIENCE):
            state = await exporter.wait_until(lambda state: state.problem is not None)
        exporter.stop()
    assert state.problem is not None
    assert "public.manufacturing_tasks.ready_at" in state.problem
