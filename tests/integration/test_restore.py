"""A restored dump has the same numbers, and counting goes on from there."""

import os
import re
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from tests import truth
from tests.conftest import Database, Roles, Server
from tests.samples import Series, samples
from tests.support import ROOT, ExporterProcess, assert_exact, clean_environment, exporting, settled, settled_page

from mfg_notify.core.catalogue import CATALOGUE, Kind
from mfg_notify.demo import embedded
from mfg_notify.demo.game import play
from mfg_notify.demo.world import GameOptions
from mfg_notify.postgres import migrations

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

COUNTED = tuple(metric.full_name for metric in CATALOGUE if metric.kind is not Kind.GAUGE)


@pytest.fixture
def empty(server: Server) -> Iterator[Database]:
    """Return a database with nothing in it."""
    name = sql.Identifier(f"mfg_test_{secrets.token_hex(6)}")
    with server.connect() as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(name))
    yield Database(server.dsn_of(name.as_string().strip('"')))
    with server.connect() as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(embedded._binaries(18) / program), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def counters(page: str) -> dict[Series, float]:
    """Return the samples that never fall, which excludes the sum of profits."""
    found = samples(page).items()
    return {key: n for key, n in found if key[0].startswith(COUNTED) and not key[0].endswith("credits_sum")}


async def test_a_restored_dump_goes_on_counting(installed: Database, empty: Database, tmp_path: Path) -> None:
    dump = str(tmp_path / "dump")
    with installed.connect() as connection:
        async with exporting(installed.dsn, reconcile_interval=0.2) as exporter:
            await play(installed.dsn, GameOptions(seed=5, rate=0), statements=800)
            before = await settled(exporter, connection)
        # The dump also contains events that are not folded yet.
        await play(installed.dsn, GameOptions(seed=5, rate=0), statements=200)
        assert connection.execute("SELECT EXISTS (SELECT FROM mfg_notify.event)").fetchone() == (True,)
    dumped = run("pg_dump", "--format=custom", f"--file={dump}", f"--dbname={installed.dsn}")
    assert dumped.returncode == 0, dumped.stderr
    restored = run("pg_restore", f"--dbname={empty.dsn}", dump)
    # An older server does not know every setting of a newer pg_restore.
    assert restored.returncode == 0 or "transaction_timeout" in restored.stderr, restored.stderr
    with empty.connect() as connection:
        async with exporting(empty.dsn, reconcile_interval=0.2) as exporter:
            after = counters(await settled(exporter, connection))
            assert all(after[key] >= n for key, n in counters(before).items())
            await play(empty.dsn, GameOptions(seed=6, rate=0), statements=200)
            assert_exact(await settled(exporter, connection), connection)


@pytest.mark.parametrize(
    "left_out", ["--exclude-schema=mfg_notify", "--table=public.*"], ids=["without our schema", "only the tables"]
)
async def test_a_dump_without_our_schema(
    roles: Roles, database: Database, empty: Database, tmp_path: Path, left_out: str
) -> None:
    """By the recipe in docs/how-to/backup-and-restore.md, on a server without the roles of the installation."""
    page = (ROOT / "docs" / "how-to" / "backup-and-restore.md").read_text(encoding="utf-8")
    [recipe] = re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    dump, listing, restore = recipe.splitlines()
    dump = dump.replace("--exclude-schema=mfg_notify", left_out).removesuffix(" game") + ' "$GAME"'
    restore = restore.replace("--dbname=copy", '--dbname="$COPY"')
    role = roles.name("exporter")

    def follow(script: str) -> subprocess.CompletedProcess[str]:
        path = f"{embedded._binaries(18)}:{os.environ['PATH']}"
        environment = clean_environment() | {"PATH": path, "GAME": database.dsn, "COPY": empty.dsn}
        return subprocess.run(
            ["sh", "-euc", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    with database.connect() as connection:
        migrations.up(connection, "public", print)
        migrations.create_role(connection, "public", role, print)
        await play(database.dsn, GameOptions(seed=5, rate=0), statements=500)
        done = follow(f"{dump}\n{listing}")
        assert done.returncode == 0, done.stderr
        migrations.down(connection, "public", print)
    assert not roles.exists(role)
    everything = follow('pg_restore --no-owner --dbname="$COPY" game.dump')
    assert "mfg_notify" in everything.stderr
    with empty.connect() as connection:
        connection.execute("DROP SCHEMA IF EXISTS mfg_notify CASCADE; DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        # An older server does not know every setting of a newer pg_restore.
        old = connection.info.server_version < 170000
    restored = follow(restore.replace(" --exit-on-error", "") if old else restore)
    errors = [line for line in restored.stderr.splitlines() if " error: " in line]
    assert all(old and "transaction_timeout" in error for error in errors), restored.stderr
    with empty.connect() as connection:
        migrations.up(connection, "public", print)
        truth.install(connection)
        async with exporting(empty.dsn, reconcile_interval=0.2) as exporter:
            await play(empty.dsn, GameOptions(seed=6, rate=0), statements=300)
            page = await settled(exporter, connection)
            assert truth.compare_gauges(page, connection) == []


@pytest.mark.parametrize("over", [False, True])
async def test_a_copy_belongs_to_another_role(
    roles: Roles, installed: Database, empty: Database, tmp_path: Path, *, over: bool
) -> None:
    """As a test system gets it: without owners and rights, by several workers, also over what an exporter shows."""
    owner, dump = roles.make("owner"), str(tmp_path / "dump")
    await play(installed.dsn, GameOptions(seed=5, rate=0), statements=300)
    dumped = run("pg_dump", "--format=directory", "--jobs=2", f"--file={dump}", f"--dbname={installed.dsn}")
    assert dumped.returncode == 0, dumped.stderr
    mine = make_conninfo(empty.dsn, user=owner)
    with empty.connect() as admin:
        admin.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(*map(sql.Identifier, (empty.name, owner))))
        admin.execute(sql.SQL("ALTER SCHEMA public OWNER TO {}").format(sql.Identifier(owner)))
    options = ["--no-owner", "--no-privileges", "--jobs=2", *(["--clean", "--if-exists"] if over else [])]
    restored = run("pg_restore", f"--dbname={mine}", *options, dump)
    assert restored.returncode == 0 or "transaction_timeout" in restored.stderr, restored.stderr
    with empty.connect(user=owner) as game, ExporterProcess(mine, "--reconcile-interval", "200ms") as exporter:
        if over:
            settled_page(exporter)
            await play(mine, GameOptions(seed=7, rate=0), statements=100)
            restored = run("pg_restore", f"--dbname={mine}", *options, dump)
            assert restored.returncode == 0 or "transaction_timeout" in restored.stderr, restored.stderr
        # The functions run as the role that restored; repeated, as a role of their own if that is possible.
        assert migrations.up(game, "public", print)
        await play(mine, GameOptions(seed=6, rate=0), statements=100)
        page = settled_page(exporter)
        if not over:
            assert_exact(page, game)
        exporter.terminate()
    with empty.connect(user=owner) as game, ExporterProcess(mine, "--reconcile-interval", "200ms") as exporter:
        assert_exact(settled_page(exporter), game)
        migrations.down(game, "public", print)
