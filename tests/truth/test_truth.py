"""The checker checked: a game played by hand, its numbers worked out by hand."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
from tests.conftest import Database
from tests.truth import (
    PREFIX,
    Connection,
    Series,
    compare,
    expected_samples,
    install,
    read_counters,
    read_gauges,
)


@pytest.fixture
def game(database: Database) -> Iterator[Connection]:
    """Yield a connection to a database with the game's tables, empty, and the audit on them."""
    with database.connect() as connection:
        connection.execute("INSERT INTO players (id, agent_symbol, token) VALUES (1, 'ONE', ''), (2, 'TWO', '')")
        install(connection)
        yield connection


def series(metric: str, **labels: str) -> Series:
    return metric, frozenset(labels.items())


def manufacturing(values: dict[Series, Any]) -> dict[Series, Any]:
    return {("manufacturing_" + metric, labels): value for (metric, labels), value in values.items()}


# One script is one transaction: now() stands still and every duration below is exact.
PLAY = """
-- A run of five minutes; its revenue is corrected up, then down; then its row is deleted.
INSERT INTO manufacturing_pipelines (id, player_id, product_good, sell_market, expected_price, status)
VALUES ('p1', 1, 'LASER_RIFLES', 'M', 0, 'PLANNING');
UPDATE manufacturing_pipelines SET status = 'EXECUTING', started_at = now() - interval '15 min'
WHERE id = 'p1';
UPDATE manufacturing_pipelines SET status = 'COMPLETED', completed_at = now() - interval '10 min',
    total_revenue = 1000, total_cost = 400, net_profit = 600 WHERE id = 'p1';
UPDATE manufacturing_pipelines SET total_revenue = 1100 WHERE id = 'p1';
UPDATE manufacturing_pipelines SET total_revenue = 900 WHERE id = 'p1';
DELETE FROM manufacturing_pipelines WHERE id = 'p1';
-- Inserted as failed, without a start; completed afterwards, which is no second end.
INSERT INTO manufacturing_pipelines (id, player_id, product_good, sell_market, expected_price, status,
    completed_at, net_profit, total_cost) VALUES ('p2', 1, 'SHIP_PARTS', 'M', 0, 'FAILED', now(), -50, 50);
UPDATE manufacturing_pipelines SET status = 'COMPLETED', total_revenue = 10 WHERE id = 'p2';
-- A construction site: a good that comes twice counts as one, units that were there at first count, a fall does not.
INSERT INTO manufacturing_pipelines (id, player_id, product_good, sell_market, expected_price, status, pipeline_type,
    construction_site, materials) VALUES ('c1', 2, 'FAB_MATS', 'M', 0, 'EXECUTING', 'CONSTRUCTION', 'I52', '[
    {"tradeSymbol": "FAB_MATS", "targetQuantity": 400, "deliveredQuantity": 10},
    {"tradeSymbol": "CIRCUITRY", "targetQuantity": 30, "deliveredQuantity": 0},
    {"tradeSymbol": "CIRCUITRY", "targetQuantity": 10}]');
UPDATE manufacturing_pipelines SET materials = jsonb_set(jsonb_set(materials, '{0,deliveredQuantity}', '50'),
    '{1,deliveredQuantity}', '5') WHERE id = 'c1';
UPDATE manufacturing_pipelines SET materials = jsonb_set(materials, '{0,deliveredQuantity}', '45') WHERE id = 'c1';
-- A second pipeline for the same site; then one that has ended, and the site has its units.
INSERT INTO manufacturing_pipelines (id, player_id, product_good, sell_market, expected_price, status, pipeline_type,
    construction_site, materials)
VALUES ('c2', 2, 'FAB_MATS', 'M', 0, 'PLANNING', 'CONSTRUCTION', 'I52',
        '[{"tradeSymbol": "FAB_MATS", "targetQuantity": 5}]'),
       ('c3', 2, 'FAB_MATS', 'M', 0, 'CANCELLED', 'CONSTRUCTION', 'I52',
        '[{"tradeSymbol": "FAB_MATS", "targetQuantity": 9}]');
-- One UPDATE from READY to the end, as the newest daemon writes it, and a retry that moves more.
INSERT INTO manufacturing_tasks (id, pipeline_id, player_id, task_type, status, good, ready_at)
VALUES ('t5', 'c1', 2, 'DELIVER_TO_CONSTRUCTION', 'READY', 'FAB_MATS', now() - interval '50 s');
UPDATE manufacturing_tasks SET status = 'FAILED', retry_count = 1, assigned_ship = 'Z', actual_quantity = 15,
    started_at = now() - interval '30 s', completed_at = now() WHERE id = 't5';
UPDATE manufacturing_tasks SET status = 'READY', actual_quantity = 0, assigned_ship = NULL, started_at = NULL,
    completed_at = NULL WHERE id = 't5';
UPDATE manufacturing_tasks SET status = 'COMPLETED', assigned_ship = 'Z', actual_quantity = 40,
    started_at = now() - interval '30 s', completed_at = now() WHERE id = 't5';
INSERT INTO manufacturing_pipelines (id, player_id, product_good, sell_market, expected_price, status)
VALUES ('p3', 1, 'LASER_RIFLES', 'M', 0, 'EXECUTING'), ('p4', 1, 'DRUGS', 'M', 0, 'PLANNING'),
       ('p5', 1, 'LASER_RIFLES', 'M', 0, 'PLANNING'), ('p6', 1, 'FUEL', 'M', 0, 'PLANNING');

-- A sale, from the beginning to its end after exactly a minute.
INSERT INTO manufacturing_tasks (id, pipeline_id, player_id, task_type, status, good)
VALUES ('t1', 'p3', 1, 'COLLECT_SELL', 'PENDING', 'G');
UPDATE manufacturing_tasks SET status = 'READY', ready_at = now() - interval '20 s' WHERE id = 't1';
UPDATE manufacturing_tasks SET status = 'ASSIGNED', assigned_ship = 'A' WHERE id = 't1';
UPDATE manufacturing_tasks SET status = 'EXECUTING', started_at = now() - interval '90 s' WHERE id = 't1';
UPDATE manufacturing_tasks SET status = 'COMPLETED', completed_at = now() - interval '30 s',
    total_revenue = 500, total_cost = 7 WHERE id = 't1';
-- Fails twice (the second time with a start that is no time and a lower cost), then runs on.
INSERT INTO manufacturing_tasks (id, player_id, task_type, status, good, assigned_ship)
VALUES ('t2', 1, 'ACQUIRE_DELIVER', 'ASSIGNED', 'G', '');
UPDATE manufacturing_tasks SET status = 'FAILED', completed_at = now(), retry_count = 1, total_cost = 30
WHERE id = 't2';
UPDATE manufacturing_tasks SET status = 'PENDING', completed_at = NULL WHERE id = 't2';
UPDATE manufacturing_tasks SET status = 'ASSIGNED', assigned_ship = 'B' WHERE id = 't2';
UPDATE manufacturing_tasks SET status = 'FAILED', started_at = '0001-01-01 00:00:00+00', completed_at = now(),
    retry_count = 2, total_cost = 10 WHERE id = 't2';
UPDATE manufacturing_tasks SET status = 'READY', completed_at = NULL WHERE id = 't2';
UPDATE manufacturing_tasks SET status = 'EXECUTING' WHERE id = 't2';
UPDATE manufacturing_tasks SET status = status, total_cost = total_cost;
INSERT INTO manufacturing_tasks (id, player_id, task_type, status, good)
VALUES ('t3', 1, 'LIQUIDATE', 'READY', 'G');
-- Ends before it starts. Under a new key it is the same task: it has ended once.
INSERT INTO manufacturing_tasks (id, player_id, task_type, status, good, started_at, completed_at)
VALUES ('t4', 1, 'LIQUIDATE', 'COMPLETED', 'G', now(), now() - interval '1 s');
UPDATE manufacturing_tasks SET id = 't4, renamed' WHERE id = 't4';
UPDATE manufacturing_tasks SET id = 't3, renamed', status = 'ASSIGNED' WHERE id = 't3';
UPDATE manufacturing_tasks SET id = 't3', status = 'READY' WHERE id = 't3, renamed';

-- One factory, two rows: only the newest of a live pipeline counts and shows.
INSERT INTO manufacturing_factory_states (factory_symbol, output_good, player_id, pipeline_id,
    required_inputs, delivered_inputs) VALUES ('F', 'LASERS', 1, 'p3', '["A", "B"]',
    '{"A": {"delivered": true}, "B": {"delivered": false}, "X": {"delivered": true}}');
UPDATE manufacturing_factory_states SET current_supply = 'LIMITED' WHERE pipeline_id = 'p3';
UPDATE manufacturing_factory_states SET current_supply = 'HIGH', ready_for_collection = true
WHERE pipeline_id = 'p3';
INSERT INTO manufacturing_factory_states (factory_symbol, output_good, player_id, pipeline_id,
    required_inputs, current_supply) VALUES ('F', 'LASERS', 1, 'p4', '["A", "B"]', 'LIMITED');
UPDATE manufacturing_factory_states SET current_supply = 'SCARCE', ready_for_collection = false
WHERE pipeline_id = 'p3';
UPDATE manufacturing_factory_states SET ready_for_collection = true WHERE pipeline_id = 'p3';
UPDATE manufacturing_factory_states SET current_supply = 'MODERATE' WHERE pipeline_id = 'p4';
UPDATE manufacturing_pipelines SET status = 'CANCELLED' WHERE id = 'p4';
UPDATE manufacturing_factory_states SET current_supply = 'LIMITED' WHERE pipeline_id = 'p3';
-- A source factory, not yet looked at.
INSERT INTO manufacturing_factory_states (factory_symbol, output_good, player_id, required_inputs,
    current_supply) VALUES ('S', 'ORE', 1, '[]', '');

-- D is a satellite.
INSERT INTO ships (ship_symbol, player_id, assignment_status, cargo_capacity)
VALUES ('A', 1, 'idle', 40), ('B', 1, 'idle', 40), ('C', 1, 'active', 40), ('D', 1, 'idle', 0), ('Z', 2, 'idle', 40);
"""

LASER_RIFLES = {"player_id": "1", "product_good": "LASER_RIFLES"}
SHIP_PARTS = {"player_id": "1", "product_good": "SHIP_PARTS"}
DRUGS = {"player_id": "1", "product_good": "DRUGS"}
FUEL = {"player_id": "1", "product_good": "FUEL"}
FAB_MATS = {"player_id": "2", "product_good": "FAB_MATS"}
COLLECT_SELL = {"player_id": "1", "task_type": "COLLECT_SELL"}
TO_SITE = {"player_id": "2", "task_type": "DELIVER_TO_CONSTRUCTION"}
ACQUIRE_DELIVER = {"player_id": "1", "task_type": "ACQUIRE_DELIVER"}
LIQUIDATE = {"player_id": "1", "task_type": "LIQUIDATE"}
LASERS = {"player_id": "1", "factory_symbol": "F", "output_good": "LASERS"}
ORE = {"player_id": "1", "factory_symbol": "S", "output_good": "ORE"}
MICROSECONDS = 1_000_000


def moved(from_level: str, to_level: str) -> Series:
    return series(
        "supply_transitions_total",
        player_id="1",
        good_symbol="LASERS",
        from_level=from_level,
        to_level=to_level,
    )


def test_counters_of_a_game_played_by_hand(game: Connection) -> None:
    game.execute(PLAY.encode())
    assert read_counters(game) == manufacturing(
        {
            series("pipeline_completed_total", **LASER_RIFLES, status="COMPLETED"): 1,
            series("pipeline_completed_total", **SHIP_PARTS, status="FAILED"): 1,
            series("pipeline_completed_total", **DRUGS, status="CANCELLED"): 1,
            series("pipeline_duration_seconds_bucket", **LASER_RIFLES, le="300"): 1,
            series("pipeline_duration_seconds_sum", **LASER_RIFLES): 300 * MICROSECONDS,
            series("pipeline_profit_credits_bucket", **LASER_RIFLES, le="1000"): 1,
            series("pipeline_profit_credits_sum", **LASER_RIFLES): 600,
            series("pipeline_profit_credits_bucket", **SHIP_PARTS, le="1000"): 1,
            series("pipeline_profit_credits_sum", **SHIP_PARTS): -50,
            series("pipeline_profit_credits_bucket", **DRUGS, le="1000"): 1,
            series("pipeline_profit_credits_sum", **DRUGS): 0,
            series("pipeline_revenue_credits_total", **LASER_RIFLES): 1000 + 100,
            series("pipeline_cost_credits_total", **LASER_RIFLES): 400,
            series("pipeline_revenue_credits_total", **SHIP_PARTS): 10,
            series("pipeline_cost_credits_total", **SHIP_PARTS): 50,
            series("tasks_completed_total", **COLLECT_SELL, status="success"): 1,
            series("tasks_completed_total", **ACQUIRE_DELIVER, status="failure"): 2,
            series("tasks_completed_total", **LIQUIDATE, status="success"): 1,
            series("task_duration_seconds_bucket", **COLLECT_SELL, le="60"): 1,
            series("task_duration_seconds_sum", **COLLECT_SELL): 60 * MICROSECONDS,
            series("task_duration_seconds_bucket", **LIQUIDATE, le="10"): 1,
            series("task_duration_seconds_sum", **LIQUIDATE): 0,
            series("ship_task_duration_seconds_bucket", **COLLECT_SELL, le="60"): 1,
            series("ship_task_duration_seconds_sum", **COLLECT_SELL): 60 * MICROSECONDS,
            series("pipeline_completed_total", **FAB_MATS, status="CANCELLED"): 1,
            series("pipeline_profit_credits_bucket", **FAB_MATS, le="1000"): 1,
            series("pipeline_profit_credits_sum", **FAB_MATS): 0,
            series("construction_units_total", player_id="2", good_symbol="FAB_MATS"): 10 + 40,
            series("construction_units_total", player_id="2", good_symbol="CIRCUITRY"): 5,
            series("tasks_completed_total", **TO_SITE, status="failure"): 1,
            series("tasks_completed_total", **TO_SITE, status="success"): 1,
            series("task_duration_seconds_bucket", **TO_SITE, le="30"): 2,
            series("task_duration_seconds_sum", **TO_SITE): 60 * MICROSECONDS,
            series("ship_task_duration_seconds_bucket", **TO_SITE, le="30"): 2,
            series("ship_task_duration_seconds_sum", **TO_SITE): 60 * MICROSECONDS,
            series("task_retry_total", **TO_SITE): 1,
            series("task_assignments_total", **TO_SITE): 2,
            series("task_units_total", **TO_SITE): 15 + 40,
            series("task_retry_total", **ACQUIRE_DELIVER): 2,
            series("task_assignments_total", **COLLECT_SELL): 1,
            series("task_assignments_total", **ACQUIRE_DELIVER): 3,
            series("task_assignments_total", **LIQUIDATE): 1,
            series("cost_total", player_id="1", cost_type="collect"): 7,
            series("cost_total", player_id="1", cost_type="acquire"): 30,
            series("revenue_total", player_id="1"): 500,
            series("factory_cycles_total", **LASERS): 1,
            moved("LIMITED", "HIGH"): 1,
            moved("LIMITED", "MODERATE"): 1,
            moved("SCARCE", "LIMITED"): 1,
        }
    )


def test_the_wait_is_counted_exactly_and_measured_nearly(game: Connection) -> None:
    game.execute(PLAY.encode())
    waits = game.execute("SELECT labels, n FROM audit.wait_count ORDER BY labels").fetchall()
    assert waits == [(COLLECT_SELL, 1), (TO_SITE, 2)]
    query = "SELECT metric, n FROM audit.approximate_counter WHERE labels->>'player_id' = '1'"
    wait = dict(game.execute(query).fetchall())
    assert wait["manufacturing_task_wait_seconds_bucket"] == 1
    assert 20 * MICROSECONDS <= wait["manufacturing_task_wait_seconds_sum"] < 50 * MICROSECONDS


def test_gauges_of_a_game_played_by_hand(game: Connection) -> None:
    game.execute(PLAY.encode())
    levels = ("SCARCE", "LIMITED", "MODERATE", "HIGH", "ABUNDANT")
    expected = {
        series("pipeline_running_total", **LASER_RIFLES): 1,
        series("pipeline_running_total", **FUEL): 0,
        series("pipelines", **LASER_RIFLES, status="EXECUTING"): 1,
        series("pipelines", **LASER_RIFLES, status="PLANNING"): 1,
        series("pipelines", **FUEL, status="EXECUTING"): 0,
        series("pipelines", **FUEL, status="PLANNING"): 1,
        series("tasks_pending_total", **ACQUIRE_DELIVER): 0,
        series("tasks_ready_total", **ACQUIRE_DELIVER): 0,
        series("tasks_executing_total", **ACQUIRE_DELIVER): 1,
        series("tasks_pending_total", **LIQUIDATE): 0,
        series("tasks_ready_total", **LIQUIDATE): 1,
        series("tasks_executing_total", **LIQUIDATE): 0,
        series("factory_supply_ordinal", **LASERS): 2,
        series("factory_inputs_delivered", **LASERS): 0.5,
        series("factory_inputs_delivered", **ORE): 1,
        # Player 1: B carries a task, A is free, C does something else.
        series("pipeline_queue_depth", player_id="1"): 3,
        series("factory_ready_total", player_id="1"): 1,
        series("ships_assigned_total", player_id="1"): 1,
        series("ships_idle_total", player_id="1"): 1,
        series("ship_utilization_percent", player_id="1"): 50,
        series("profit_rate", player_id="1"): (900 - 400) + (10 - 50),
        # Player 2 has a ship and builds.
        series("pipeline_running_total", **FAB_MATS): 1,
        series("pipelines", **FAB_MATS, status="EXECUTING"): 1,
        series("pipelines", **FAB_MATS, status="PLANNING"): 1,
        series("construction_delivered_units", player_id="2", construction_site="I52", good_symbol="FAB_MATS"): 45,
        series("construction_target_units", player_id="2", construction_site="I52", good_symbol="FAB_MATS"): 405,
        series("construction_delivered_units", player_id="2", construction_site="I52", good_symbol="CIRCUITRY"): 5,
        series("construction_target_units", player_id="2", construction_site="I52", good_symbol="CIRCUITRY"): 40,
        series("pipeline_queue_depth", player_id="2"): 2,
        series("factory_ready_total", player_id="2"): 0,
        series("ships_assigned_total", player_id="2"): 0,
        series("ships_idle_total", player_id="2"): 1,
        series("ship_utilization_percent", player_id="2"): 0,
        series("profit_rate", player_id="2"): 0,
        series("margin_percent", **LASER_RIFLES): pytest.approx(100 * (1100 - 400) / 1100),
        series("margin_percent", **SHIP_PARTS): -400,
    }
    for level in levels:
        expected[series("factory_supply_level", **LASERS, supply_level=level)] = int(level == "LIMITED")
        expected[series("factory_supply_level", **ORE, supply_level=level)] = 0
    agents = {
        series("player_info", player_id=player, agent_symbol=agent): 1 for player, agent in (("1", "ONE"), ("2", "TWO"))
    }
    assert read_gauges(game) == manufacturing(expected) | agents


def test_a_player_whose_era_is_closed_is_hidden(game: Connection) -> None:
    game.execute(PLAY.encode())
    game.execute("INSERT INTO eras (player_id, closed_at) VALUES (1, now()), (1, NULL), (2, now()), (2, now())")
    shown = {dict(labels)["player_id"] for _, labels in true_page(game)}
    assert shown == {"1"}
    game.execute("UPDATE manufacturing_pipelines SET status = 'EXECUTING' WHERE id = 'c2'")
    assert {dict(labels)["player_id"] for _, labels in true_page(game)} == {"1", "2"}


def test_a_pipeline_that_leaves_completed_leaves_the_profit_rate(game: Connection) -> None:
    game.execute(PLAY.encode())
    game.execute("UPDATE manufacturing_pipelines SET status = 'FAILED' WHERE id = 'p2'")
    rate = read_gauges(game)[series("manufacturing_profit_rate", player_id="1")]
    assert rate == 900 - 400


def test_an_unchanged_row_is_not_audited_and_a_replica_role_is(game: Connection) -> None:
    game.execute(PLAY.encode())
    game.execute("TRUNCATE audit.change")
    game.execute("UPDATE manufacturing_tasks SET status = status")
    assert game.execute("SELECT count(*) FROM audit.change").fetchone() == (0,)
    # The daemon's code knows CANCELLED for tasks, the table's constraint does not.
    game.execute("ALTER TABLE manufacturing_tasks DROP CONSTRAINT manufacturing_tasks_status")
    game.execute("SET session_replication_role = replica")
    game.execute("UPDATE manufacturing_tasks SET status = 'CANCELLED' WHERE id = 't2'")
    assert read_counters(game) == manufacturing(
        {series("tasks_completed_total", **ACQUIRE_DELIVER, status="cancelled"): 1}
    )


def test_the_audit_stands_in_the_way_of_no_alter_table(game: Connection) -> None:
    game.execute(PLAY.encode())
    game.execute("ALTER TABLE manufacturing_tasks ALTER COLUMN status TYPE text, DROP COLUMN priority")
    game.execute(
        "UPDATE manufacturing_tasks SET status = 'FAILED', retry_count = 9, completed_at = now() WHERE id = 't2'"
    )
    failures = series("manufacturing_tasks_completed_total", **ACQUIRE_DELIVER, status="failure")
    assert read_counters(game)[failures] == 3
    assert series("manufacturing_tasks_executing_total", **ACQUIRE_DELIVER) not in read_gauges(game)


def page_of(samples: dict[Series, float]) -> str:
    lines = []
    for (name, labels), value in samples.items():
        written = ",".join(f'{label}="{text}"' for label, text in sorted(labels))
        lines.append(f"{name}{{{written}}} {value!r}\n")
    return "".join(lines)


def true_page(game: Connection) -> dict[Series, float]:
    gauges = {(PREFIX + name, labels): value for (name, labels), value in read_gauges(game).items()}
    return expected_samples(game) | gauges


def test_expected_samples_are_cumulative_and_in_base_units(game: Connection) -> None:
    game.execute(PLAY.encode())
    samples = expected_samples(game)
    duration = PREFIX + "manufacturing_pipeline_duration_seconds"
    seen = {dict(labels)["le"]: value for (name, labels), value in samples.items() if name == f"{duration}_bucket"}
    assert seen == {
        "60.0": 0,
        "120.0": 0,
        "300.0": 1,
        "600.0": 1,
        "900.0": 1,
        "1200.0": 1,
        "1800.0": 1,
        "3600.0": 1,
        "+Inf": 1,
    }
    assert math.isclose(samples[series(f"{duration}_sum", **LASER_RIFLES)], 300.0)
    assert samples[series(f"{duration}_count", **LASER_RIFLES)] == 1
    assert samples[series(f"{PREFIX}manufacturing_task_wait_seconds_count", **COLLECT_SELL)] == 1


def test_compare_finds_nothing_on_a_true_page(game: Connection) -> None:
    game.execute(PLAY.encode())
    page = true_page(game)
    page[series(PREFIX + "manufacturing_tasks_completed_total", **COLLECT_SELL, status="failure")] = 0.0
    page[series("mfg_notify_connected")] = 1.0
    assert compare(page_of(page), game) == []


def test_compare_names_every_difference(game: Connection) -> None:
    game.execute(PLAY.encode())
    page = true_page(game)
    revenue = series(PREFIX + "manufacturing_revenue_total", player_id="1")
    stale = series(PREFIX + "manufacturing_pipeline_running_total", **DRUGS)
    page[revenue] += 1
    page[stale] = 0.0
    page[series(PREFIX + "manufacturing_revenue_total", player_id="9")] = 3.0
    del page[series(PREFIX + "manufacturing_ships_idle_total", player_id="2")]
    assert compare(page_of(page) + page_of({stale: 0.0}), game) == [
        "spacetraders_daemon_manufacturing_pipeline_running_total{player_id='1',product_good='DRUGS'}"
        " is 0.0 on the page and must not be there",
        "spacetraders_daemon_manufacturing_pipeline_running_total{player_id='1',product_good='DRUGS'}"
        " is on the page twice",
        "spacetraders_daemon_manufacturing_revenue_total{player_id='1'} is 501.0 on the page and must be 500.0",
        "spacetraders_daemon_manufacturing_revenue_total{player_id='9'} is 3.0 on the page and must be 0",
        "spacetraders_daemon_manufacturing_ships_idle_total{player_id='2'} is not on the page and must be 1.0",
    ]
