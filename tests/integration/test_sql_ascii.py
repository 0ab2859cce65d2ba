"""A SQL_ASCII database, in which the game may store any bytes: one bad row is one bad row."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner
from psycopg import sql
from psycopg.conninfo import make_conninfo
from tests.conftest import Database, Server, install
from tests.game_rows import add_factory, add_pipeline, add_player, add_task, ago
from tests.samples import value
from tests.support import ExporterProcess, eventually

from mfg_notify.cli.main import main

SHOWN = "M\ufffdll"
"""How the product M\xfcll in Latin-1 is shown."""


@pytest.fixture
def any_bytes(server: Server, database: Database) -> Iterator[Database]:
    """Make a SQL_ASCII database with the game, the audit and the triggers."""
    name = f"{database.name}_bytes"
    with server.connect() as admin:
        make = "CREATE DATABASE {} TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'"
        admin.execute(sql.SQL(make).format(sql.Identifier(name)))
        try:
            found = Database(make_conninfo(database.dsn, dbname=name))
            install(found.dsn)
            yield found
        finally:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def play(game: psycopg.Connection) -> None:
    """Finish a pipeline of each product, the second of which is not UTF-8, and leave one of that running."""
    for table, column in (("pipelines", "product_good"), ("tasks", "good"), ("factory_states", "output_good")):
        update = f"UPDATE manufacturing_{table} SET {column} = 'M\xfcll' WHERE {column} = '?'"  # noqa: S608 - from above
        game.execute(update.encode("latin-1"))
    game.execute("UPDATE manufacturing_factory_states SET current_supply = 'HIGH'")
    game.execute(
        "UPDATE manufacturing_pipelines SET status = 'COMPLETED', completed_at = now() WHERE id IN ('p0', 'p1')"
    )
    game.execute("UPDATE manufacturing_pipelines SET status = 'EXECUTING' WHERE id = 'p2'")


def has_counted(page: str) -> bool:
    """Tell whether a page shows what was played."""
    finished = [
        value(page, "manufacturing_pipeline_completed_total", player_id="1", product_good=good, status="COMPLETED")
        for good in ("IRON", SHOWN)
    ]
    running = value(page, "manufacturing_pipeline_running_total", player_id="1", product_good=SHOWN)
    return [*finished, running] == [1, 1, 1]


@pytest.mark.parametrize("running", [True, False], ids=["running", "starting"])
def test_what_is_not_utf8_is_shown_with_replacements(any_bytes: Database, tmp_path: Path, *, running: bool) -> None:
    with any_bytes.connect(client_encoding="SQL_ASCII") as game:
        add_player(game)
        with game.transaction():
            game.execute("SET LOCAL session_replication_role = replica")  # as if before the triggers
            add_pipeline(
                game, "old", product_good="?", status="COMPLETED", started_at=ago("2h"), completed_at=ago("1h")
            )
        for n, name in enumerate(("IRON", "?", "?")):
            add_pipeline(game, f"p{n}", product_good=name)
            add_task(game, f"t{n}", good=name)
            add_factory(game, f"F{n}", output_good=name)
        if not running:
            play(game)
        with ExporterProcess(any_bytes.dsn, "--reconcile-interval", "500ms") as exporter:
            exporter.wait_ready()
            if running:
                play(game)
            eventually(lambda: has_counted(exporter.page()))
            exporter.wait_ready()
    past = tmp_path / "history.om"
    for command in (["verify"], ["doctor"], ["backfill", "--output", str(past)]):
        done = CliRunner().invoke(main, [*command, "--dsn", any_bytes.dsn])
        assert done.exit_code == 0, done.output
    assert f'product_good="{SHOWN}"' in past.read_text(encoding="utf-8")
