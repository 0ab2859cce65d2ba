"""Servers and databases for the tests: one PostgreSQL for each pytest process, one database for each test.

Each process of pytest-xdist starts its own server, so tests in different processes share neither roles nor databases.
`--postgres-bin` chooses the binaries. MFG_NOTIFY_TEST_DSN names a server that runs already, for a run in one process.
"""

import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import LiteralString

import anyio
import hypothesis
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from tests import truth

from mfg_notify.demo.embedded import EmbeddedPostgres
from mfg_notify.demo.game import create_tables
from mfg_notify.postgres import migrations
from mfg_notify.postgres.queries import QUERY

# How long an example takes says nothing about it.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

TEST_DSN = "MFG_NOTIFY_TEST_DSN"
SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "track_commit_timestamp": "on",
}
"""The data is thrown away after the run, so it need not survive a crash. Commit times are what the audit relies on."""
MEMORY = Path("/dev/shm")  # noqa: S108
"""A file system in memory. Cloning a database makes 380 files, which takes 150 ms of processor time on some disks
(ext4 without a journal avoids inodes that were freed in the last seconds) and 20 ms here."""
MEMORY_NEEDED = 6 << 30
"""Bytes that must be free in memory. A server needs up to 1.5 GiB, most of it WAL, and several run at once."""
EXTENDED = frozenset(
    f"tests/{module}.py"
    for module in (
        *("e2e/test_board", "e2e/test_dead_exporter", "e2e/test_exemplars", "e2e/test_existing_stack"),
        *("e2e/test_game_alerts", "e2e/test_history", "e2e/test_two_games", "fuzz/test_fuzz"),
        *("integration/test_daemons", "integration/test_game", "integration/test_history"),
        *("integration/test_old_snapshots", "integration/test_other_worlds"),
        *("integration/test_restore", "integration/test_rewinds", "integration/test_secrets"),
        *("integration/test_stalled_reader", "integration/test_stopping", "unit/test_world"),
    )
)
"""Modules in which most tests start servers, browsers or many processes, or wait for time-outs: half the time of the
suite. `make test` leaves them out; `make test-all` and the matrix run them."""
NAME_MAXIMUM = 60
"""Characters of the name of a test, without its parameters."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write golden files anew instead of comparing")
    parser.addoption(
        "--postgres-bin",
        metavar="DIR",
        type=Path,
        help="test against servers made from this folder's initdb, pg_ctl and postgres, not the embedded PostgreSQL",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Use one process for a named server: several would meet in its roles and in its oldest running transaction."""
    if TEST_DSN not in os.environ:
        return
    if config.option.postgres_bin is not None:
        msg = f"{TEST_DSN} and --postgres-bin exclude each other"
        raise pytest.UsageError(msg)
    # Absent without pytest-xdist, and read by it after this.
    config.option.numprocesses = 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that need a server of the version under test, and slow modules. Refuse names that are too long."""
    for item in items:
        if isinstance(item, pytest.Function) and len(item.originalname) > NAME_MAXIMUM:
            msg = f"{item.originalname} is longer than {NAME_MAXIMUM} characters"
            raise pytest.UsageError(msg)
        if isinstance(item, pytest.Function) and {"server", "postgres"} & set(item.fixturenames):
            item.add_marker("database")
        if item.nodeid.partition("::")[0] in EXTENDED:
            item.add_marker("extended")


def pytest_report_header(config: pytest.Config) -> str:
    if TEST_DSN in os.environ:
        return f"server: the one in {TEST_DSN}"
    return f"server: {config.option.postgres_bin or 'embedded PostgreSQL'}"


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Run async tests on asyncio: psycopg knows no other loop."""
    return "asyncio"


@dataclass(frozen=True)
class Database:
    """One database of the test's own, with the game's tables in schema public."""

    dsn: str

    @property
    def name(self) -> str:
        """Its name on the server."""
        return str(conninfo_to_dict(self.dsn)["dbname"])

    def connect(self, **more: str) -> psycopg.Connection:
        """Open a connection in autocommit mode."""
        return psycopg.connect(make_conninfo(self.dsn, **more), autocommit=True)


@dataclass(frozen=True)
class Server:
    """The server under test, and its templates: the game alone, and the game audited with the triggers installed."""

    dsn: str
    game: str
    installed: str

    def connect(self) -> psycopg.Connection:
        """Open a connection to the maintenance database."""
        return psycopg.connect(self.dsn, autocommit=True)

    def dsn_of(self, database: str) -> str:
        """Return the conninfo of one of its databases."""
        return make_conninfo(self.dsn, dbname=database)

    def clone(self, template: str) -> Iterator[Database]:
        """Make a database from a template, and drop it in the end even if someone is still connected."""
        name = f"mfg_test_{secrets.token_hex(6)}"
        with self.connect() as connection:
            create = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(*map(sql.Identifier, (name, template)))
            # Half the processor time of copying through the WAL, which is the default from version 15 on.
            if connection.info.server_version >= 150000:
                create += sql.SQL(" STRATEGY FILE_COPY")
            connection.execute(create)
        yield Database(self.dsn_of(name))
        with self.connect() as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def create_game_tables(dsn: str) -> None:
    """Make the game's tables in schema public."""

    async def create() -> None:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            await create_tables(connection)

    anyio.run(create)


def install(dsn: str) -> None:
    """Make the game's tables, the audit and the triggers in an empty database."""
    create_game_tables(dsn)
    with psycopg.connect(dsn, autocommit=True) as connection:
        truth.install(connection)
        migrations.up(connection, "public", print)


def _make_templates(dsn: str) -> Iterator[Server]:
    run = secrets.token_hex(4)
    server = Server(dsn, f"mfg_game_{run}", f"mfg_installed_{run}")
    with server.connect() as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(server.game)))
        create_game_tables(server.dsn_of(server.game))
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(*map(sql.Identifier, (server.installed, server.game)))
        )
        with psycopg.connect(server.dsn_of(server.installed), autocommit=True) as installed:
            truth.install(installed)
            migrations.up(installed, "public", print)
    yield server
    with server.connect() as connection:
        for name in (server.game, server.installed):
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@dataclass(frozen=True)
class Postgres:
    """The PostgreSQL under test. Makes servers for tests that need one of their own, to stop it or to configure it."""

    binaries: Path | None
    """The folder with its programs, None for the embedded one."""
    parent: Path | None
    """The folder to make the servers in, None for the usual one."""

    @cached_property
    def version(self) -> int:
        """Its major version."""
        if self.binaries is None:
            return EmbeddedPostgres().version
        said = subprocess.run([self.binaries / "postgres", "--version"], capture_output=True, text=True, check=True)
        found = re.search(r"\d+", said.stdout)
        assert found is not None, said.stdout
        return int(found[0])

    def make(self, settings: Mapping[str, str] | None = None) -> EmbeddedPostgres:
        """Return a server that is not started yet, with these lines in its postgresql.conf."""
        return EmbeddedPostgres(settings=settings, binaries=self.binaries, parent=self.parent)

    def skip_before(self, version: int, why: str) -> None:
        """Skip the test on an older PostgreSQL."""
        if self.version < version:
            pytest.skip(f"needs PostgreSQL {version}: {why}")


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Postgres:
    """Return the PostgreSQL that --postgres-bin names, or the embedded one."""
    in_memory = MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= MEMORY_NEEDED
    return Postgres(request.config.option.postgres_bin, MEMORY if in_memory else None)


@pytest.fixture(scope="session")
def server(postgres: Postgres) -> Iterator[Server]:
    """Start the PostgreSQL under test, or use the server that the environment names."""
    if TEST_DSN in os.environ:
        yield from _make_templates(os.environ[TEST_DSN])
        return
    with postgres.make(SETTINGS) as started:
        yield from _make_templates(started.dsn())


@pytest.fixture
def database(server: Server) -> Iterator[Database]:
    """Return an empty game database without triggers."""
    yield from server.clone(server.game)


@pytest.fixture
def installed(server: Server) -> Iterator[Database]:
    """Return an empty game database with the triggers and the audit."""
    yield from server.clone(server.installed)


@dataclass(frozen=True)
class Roles:
    """Makes roles with names of their own."""

    connection: psycopg.Connection
    made: list[str]

    def name(self, word: str) -> str:
        """Return a name for a role that the test makes; it is dropped in the end."""
        self.made.append(f'mfg {word}"{secrets.token_hex(6)}')
        return self.made[-1]

    def make(self, word: str, attributes: LiteralString = "") -> str:
        """Make a role that can log in."""
        name = self.name(word)
        self.connection.execute(sql.SQL("CREATE ROLE {} LOGIN {}").format(sql.Identifier(name), sql.SQL(attributes)))
        return name

    def exists(self, name: str) -> bool:
        """Tell whether the server has such a role."""
        return self.connection.execute(QUERY["role_exists"], {"role": name}).fetchone() == (True,)


@pytest.fixture
def roles(server: Server) -> Iterator[Roles]:
    """Make roles; a test asks for this first, so that its database is gone when they are dropped."""
    with server.connect() as connection:
        roles = Roles(connection, [])
        yield roles
        for name in roles.made:
            connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(name)))


@pytest.fixture
def exporter_dsn(roles: Roles, installed: Database) -> str:
    """Return the conninfo of the database `installed` for a role that can do what an exporter needs, and no more."""
    name = roles.name("exporter")
    with installed.connect() as connection:
        migrations.create_role(connection, "public", name, print)
    return make_conninfo(installed.dsn, user=name)
