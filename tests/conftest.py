"""Servers and databases for the tests: one PostgreSQL a run, one database a test, cloned from a template."""

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
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
SETTINGS = {"fsync": "off", "max_connections": "200", "track_commit_timestamp": "on"}
"""Nothing here survives the run, so nothing need reach the disk. Faults are checked against the times of commits."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write golden files anew instead of comparing")


def pytest_report_header() -> str:
    return f"server: {'the one in ' + TEST_DSN if TEST_DSN in os.environ else 'embedded PostgreSQL'}"


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
        """Make a database from a template, and drop it in the end, whoever is still connected."""
        name = f"mfg_test_{secrets.token_hex(6)}"
        with self.connect() as connection:
            connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(*map(sql.Identifier, (name, template))))
        yield Database(self.dsn_of(name))
        with self.connect() as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def create_game_tables(dsn: str) -> None:
    """Make the game's tables in schema public."""

    async def create() -> None:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            await create_tables(connection)

    anyio.run(create)


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


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """Start an embedded PostgreSQL, or use the server that the environment names."""
    if TEST_DSN in os.environ:
        yield from _make_templates(os.environ[TEST_DSN])
        return
    with EmbeddedPostgres(settings=SETTINGS) as embedded:
        yield from _make_templates(embedded.dsn())


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
