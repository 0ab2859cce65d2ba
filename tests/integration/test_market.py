"""Reading the markets from the game's cache: what is counted, and that nothing else is disturbed."""

from functools import partial

import psycopg
import pytest
from psycopg import sql
from tests.conftest import Database
from tests.game_rows import add_ship, add_tasks
from tests.samples import samples
from tests.support import ExporterProcess, eventually, exporting, page_of

from mfg_notify.core import catalogue
from mfg_notify.demo.game import play
from mfg_notify.demo.world import GameOptions
from mfg_notify.exporter import Exporter
from mfg_notify.postgres import migrations

pytestmark = pytest.mark.anyio

SUPPLY, ACTIVITY = catalogue.MARKET_SUPPLY.full_name, catalogue.MARKET_ACTIVITY.full_name
ROWS = """
    INSERT INTO players (agent_symbol, token) VALUES ('A', 'x'), ('B', 'x');
    ALTER TABLE market_data DROP CONSTRAINT market_data_supply, DROP CONSTRAINT market_data_activity;
    INSERT INTO market_data (player_id, waypoint_symbol, good_symbol, supply, activity) VALUES
        (1, 'M-1', 'IRON', 'HIGH', 'WEAK'), (1, 'M-2', 'IRON', 'HIGH', NULL), (1, 'M-3', 'IRON', 'SCARCE', ''),
        (1, 'M-1', 'GOLD', NULL, 'STRONG'), (1, 'M-2', 'GOLD', '', 'STRONG'), (2, 'M-1', 'IRON', 'OVERFLOWING', 'WEAK')
"""
OF_EACH = {
    (SUPPLY, "1", "IRON", "HIGH"): 2,
    (SUPPLY, "1", "IRON", "SCARCE"): 1,
    (SUPPLY, "2", "IRON", "OVERFLOWING"): 1,
    (ACTIVITY, "1", "IRON", "WEAK"): 1,
    (ACTIVITY, "1", "GOLD", "STRONG"): 2,
    (ACTIVITY, "2", "IRON", "WEAK"): 1,
}


watching = partial(exporting, reconcile_interval=0.2, market_interval=0.05)
"""Runs an exporter that reads the markets every 50 ms."""


async def look(exporter: Exporter) -> dict[tuple[str, ...], float]:
    """Wait for a reading of the markets that began after now; return what the page shows of it."""
    seen = exporter.state.market_reads
    await exporter.wait_until(lambda state: state.market_reads > seen + 1)
    return markets_on(page_of(exporter))


def markets_on(page: str) -> dict[tuple[str, ...], float]:
    """Return the markets by name, player, good and level."""
    return {
        (name, labels["player_id"], labels["good_symbol"], labels.get("supply_level") or labels["activity_level"]): n
        for (name, pairs), n in samples(page).items()
        if "market" in name
        for labels in [dict(pairs)]
    }


async def test_markets_are_counted_by_level(installed: Database) -> None:
    with installed.connect() as game:
        game.execute(ROWS)
        async with watching(installed.dsn) as exporter:
            assert await look(exporter) == OF_EACH
            game.execute("DELETE FROM market_data WHERE waypoint_symbol = 'M-1'")
            assert (ACTIVITY, "1", "IRON", "WEAK") not in await look(exporter)


async def test_a_simulated_game_shows_what_its_table_holds(installed: Database) -> None:
    with installed.connect() as game:
        await play(installed.dsn, GameOptions(seed=5, rate=0), statements=1500)
        expected = {
            (prefix, *labels): n
            for prefix, column in ((SUPPLY, "supply"), (ACTIVITY, "activity"))
            for *labels, n in game.execute(
                sql.SQL(
                    """SELECT player_id::text, good_symbol, {level}, count(DISTINCT waypoint_symbol)
                       FROM market_data WHERE {level} <> '' GROUP BY 1, 2, 3"""
                ).format(level=sql.Identifier(column))
            ).fetchall()
        }
        assert expected
        async with watching(installed.dsn) as exporter:
            assert await look(exporter) == expected


async def test_without_player_id_every_player_has_all_markets(installed: Database) -> None:
    with installed.connect() as game:
        game.execute(ROWS)
        game.execute("DELETE FROM market_data WHERE player_id = 2; ALTER TABLE market_data DROP COLUMN player_id")
        add_ship(game, "S-1", player_id=1)
        add_ship(game, "S-2", player_id=2)
        async with watching(installed.dsn) as exporter:
            shown = await look(exporter)
    of_the_first = {key: n for key, n in OF_EACH.items() if key[1] == "1"}
    assert shown == of_the_first | {(name, "2", *rest): n for (name, _, *rest), n in of_the_first.items()}


async def test_off_by_default(installed: Database) -> None:
    with installed.connect() as game:
        game.execute(ROWS)
    with ExporterProcess(installed.dsn) as exporter:
        exporter.wait_ready()
        assert "market" not in exporter.page()
    with ExporterProcess(installed.dsn, "--collect-market") as exporter:
        assert eventually(lambda: markets_on(exporter.page())) == OF_EACH


async def test_a_missing_table_is_one_warning(installed: Database, capsys: pytest.CaptureFixture[str]) -> None:
    with installed.connect() as game:
        game.execute(ROWS)
        game.execute("ALTER TABLE market_data RENAME TO elsewhere")
        async with watching(installed.dsn) as exporter:
            assert not any([await look(exporter) for _ in range(3)])
            assert exporter.state.ready
            assert capsys.readouterr().out.count("there is no table public.market_data") == 1
            game.execute("ALTER TABLE elsewhere RENAME TO market_data")
            assert await look(exporter) == OF_EACH
            assert exporter.state.ready


async def test_without_the_right_the_markets_are_missing(
    installed: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    role = f"{installed.name}_exporter"
    with installed.connect() as game:
        game.execute(ROWS)
        migrations.create_role(game, "public", role, print)
        try:
            game.execute(sql.SQL("REVOKE SELECT (player_id) ON market_data FROM {}").format(sql.Identifier(role)))
            async with watching(psycopg.conninfo.make_conninfo(installed.dsn, user=role)) as exporter:
                # A missing right is not mistaken for a missing column.
                assert not any([await look(exporter) for _ in range(3)])
                assert exporter.state.ready
                assert capsys.readouterr().out.count("permission denied for table market_data") == 1
        finally:
            game.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(role)))


async def test_a_blocked_reading_does_not_delay_folds_or_pings(installed: Database) -> None:
    with installed.connect() as game, installed.connect() as locking:
        game.execute(ROWS)
        async with watching(installed.dsn) as exporter:
            assert await look(exporter) == OF_EACH
            with locking.transaction():
                locking.execute("LOCK TABLE market_data")
                looks = exporter.state.market_reads
                for _ in range(3):
                    add_tasks(game, 200, status="READY", id=sql.SQL("gen_random_uuid()"))
                    before = exporter.state
                    await exporter.wait_until(
                        lambda state, before=before: (
                            state.folds > before.folds  # type: ignore[misc]
                            and state.reconciles > before.reconciles
                        )
                    )
                assert exporter.state.market_reads <= looks + 1
                assert exporter.state.ready
                # The last reading stays on the page until one fails.
                assert markets_on(page_of(exporter)) == OF_EACH
            assert await look(exporter) == OF_EACH


async def test_stopping_does_not_wait_for_a_reading(installed: Database) -> None:
    with installed.connect() as game, ExporterProcess(installed.dsn, "--collect-market") as exporter:
        game.execute("BEGIN; LOCK TABLE market_data")
        exporter.wait_ready()
        eventually(
            lambda: game.execute(
                "SELECT count(*) FROM pg_locks WHERE relation = 'market_data'::regclass AND NOT granted"
            ).fetchone(),
            lambda waiting: waiting == (1,),
        )
        assert exporter.terminate() == 0
