"""Every metric reaches /metrics with the value that an independent recount in SQL gives."""

import pytest
from prometheus_client.exposition import choose_encoder
from tests.conftest import Database
from tests.support import assert_exact, exporting, page_of, samples, settled

from mfg_notify.core import catalogue
from mfg_notify.demo.game import GameOptions, play

pytestmark = pytest.mark.anyio


async def test_simulated_game_is_counted_exactly(installed: Database) -> None:
    with installed.connect() as connection:
        async with exporting(installed.dsn, reconcile_interval=0.2) as exporter:
            await play(installed.dsn, GameOptions(seed=7, rate=0), statements=6000)
            assert_exact(await settled(exporter, connection), connection)


async def test_every_metric_moves(installed: Database) -> None:
    with installed.connect() as connection:
        async with exporting(installed.dsn, reconcile_interval=0.2) as exporter:
            await play(installed.dsn, GameOptions(seed=3, rate=0), statements=6000)
            page = await settled(exporter, connection)
    moved = {name for (name, _), value in samples(page).items() if value}
    for metric in catalogue.CATALOGUE:
        name = metric.full_name + ("_count" if metric.buckets else "")
        assert name in moved, name


async def test_idle_database_with_one_of_each_shows_all_specified_names(installed: Database) -> None:
    with installed.connect() as connection:
        connection.execute("INSERT INTO players (agent_symbol, token) VALUES ('A', 'secret')")
        connection.execute(
            """INSERT INTO manufacturing_pipelines (id, player_id, product_good, sell_market, expected_price, status)
               VALUES ('p', 1, 'LASER_RIFLES', 'M', 1, 'PLANNING');
               INSERT INTO manufacturing_tasks (id, pipeline_id, player_id, task_type, status, good)
               VALUES ('t', 'p', 1, 'ACQUIRE_DELIVER', 'PENDING', 'G');
               INSERT INTO manufacturing_factory_states (factory_symbol, output_good, player_id, pipeline_id,
                                                         required_inputs)
               VALUES ('F', 'LASER_RIFLES', 1, 'p', '[]')"""
        )
        async with exporting(installed.dsn) as exporter:
            shown = {name for name, _ in samples(page_of(exporter))}
            encoder, content_type = choose_encoder("application/openmetrics-text; version=1.0.0")
            openmetrics = encoder(exporter.registry).decode()
    for metric in catalogue.SPECIFIED:
        # A margin needs revenue, and only that.
        if metric is not catalogue.MARGIN:
            assert metric.full_name + ("_count" if metric.buckets else "") in shown
        family = metric.full_name.removesuffix("_total") if metric.kind == "counter" else metric.full_name
        assert f"# TYPE {family} {metric.kind}\n" in openmetrics
    assert "openmetrics" in content_type
    assert "secret" not in openmetrics
