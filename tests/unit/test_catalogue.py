"""The catalogue says what the metric page says; the table here was copied from that page by hand."""

import re
from collections import Counter

import pytest

from mfg_notify.core import catalogue
from mfg_notify.core.catalogue import CATALOGUE, EXPORTER_METRICS, SPECIFIED, Kind, Metric

PRODUCT, TASK, FACTORY = "player_id product_good", "player_id task_type", "player_id factory_symbol output_good"
MINUTES, CREDITS = "60 120 300 600 900 1200 1800 3600", "1000 5000 10000 50000 100000 500000"
JOURNEY, WAIT = "10 30 60 120 300 600", "1 5 15 30 60 120 300 600 1800 3600"

SPECIFICATION = [
    ("manufacturing_pipeline_running_total", "gauge", PRODUCT, ""),
    ("manufacturing_pipeline_queue_depth", "gauge", "player_id", ""),
    ("manufacturing_pipeline_completed_total", "counter", PRODUCT + " status", ""),
    ("manufacturing_pipeline_duration_seconds", "histogram", PRODUCT, MINUTES),
    ("manufacturing_pipeline_profit_credits", "histogram", PRODUCT, CREDITS),
    ("manufacturing_tasks_pending_total", "gauge", TASK, ""),
    ("manufacturing_tasks_ready_total", "gauge", TASK, ""),
    ("manufacturing_tasks_executing_total", "gauge", TASK, ""),
    ("manufacturing_tasks_completed_total", "counter", TASK + " status", ""),
    ("manufacturing_task_duration_seconds", "histogram", TASK, JOURNEY),
    ("manufacturing_task_retry_total", "counter", TASK, ""),
    ("manufacturing_factory_supply_level", "gauge", FACTORY + " supply_level", ""),
    ("manufacturing_factory_inputs_delivered", "gauge", FACTORY, ""),
    ("manufacturing_factory_ready_total", "gauge", "player_id", ""),
    ("manufacturing_factory_cycles_total", "counter", FACTORY, ""),
    ("manufacturing_supply_transitions_total", "counter", "player_id good_symbol from_level to_level", ""),
    ("manufacturing_ships_assigned_total", "gauge", "player_id", ""),
    ("manufacturing_ships_idle_total", "gauge", "player_id", ""),
    ("manufacturing_ship_task_duration_seconds", "histogram", TASK, JOURNEY),
    ("manufacturing_ship_utilization_percent", "gauge", "player_id", ""),
    ("manufacturing_cost_total", "counter", "player_id cost_type", ""),
    ("manufacturing_revenue_total", "counter", "player_id", ""),
    ("manufacturing_profit_rate", "gauge", "player_id", ""),
    ("manufacturing_margin_percent", "gauge", PRODUCT, ""),
]
BEYOND = [
    ("manufacturing_pipelines", "gauge", PRODUCT + " status", ""),
    ("manufacturing_pipeline_revenue_credits_total", "counter", PRODUCT, ""),
    ("manufacturing_pipeline_cost_credits_total", "counter", PRODUCT, ""),
    ("manufacturing_task_assignments_total", "counter", TASK, ""),
    ("manufacturing_task_wait_seconds", "histogram", TASK, WAIT),
    ("manufacturing_task_starvation_seconds", "gauge", TASK, ""),
    ("manufacturing_factory_supply_ordinal", "gauge", FACTORY, ""),
    ("player_info", "gauge", "player_id agent_symbol", ""),
    ("player_last_event_timestamp_seconds", "gauge", "player_id", ""),
    ("manufacturing_construction_delivered_units", "gauge", "player_id construction_site good_symbol", ""),
    ("manufacturing_construction_target_units", "gauge", "player_id construction_site good_symbol", ""),
    ("manufacturing_construction_units_total", "counter", "player_id good_symbol", ""),
    ("manufacturing_task_units_total", "counter", TASK, ""),
    ("market_supply_distribution", "gauge", "player_id good_symbol supply_level", ""),
    ("market_activity_distribution", "gauge", "player_id good_symbol activity_level", ""),
]
EXPORTER = [
    ("build_info", "gauge", "version python_version"),
    ("connected", "gauge", ""),
    ("leader", "gauge", ""),
    ("standby", "gauge", ""),
    ("polling", "gauge", ""),
    ("ready", "gauge", ""),
    ("polling", "gauge", ""),
    ("series", "gauge", ""),
    ("series_dropped", "gauge", ""),
    ("events_applied_total", "counter", "table op"),
    ("notifications_received_total", "counter", ""),
    ("events_rejected_total", "counter", "reason"),
    ("events_replayed_total", "counter", ""),
    ("events_duplicate_total", "counter", ""),
    ("event_delay_seconds", "histogram", ""),
    ("listener_roundtrip_seconds", "histogram", ""),
    ("reconnects_total", "counter", "reason"),
    ("rewinds_total", "counter", ""),
    ("reconcile_duration_seconds", "histogram", ""),
    ("reconcile_corrections_total", "counter", "metric"),
    ("reconcile_last_success_timestamp_seconds", "gauge", ""),
    ("fold_duration_seconds", "histogram", ""),
    ("fold_last_success_timestamp_seconds", "gauge", ""),
    ("journal_rows", "gauge", ""),
    ("journal_oldest_age_seconds", "gauge", ""),
    ("notification_queue_usage_ratio", "gauge", ""),
    ("lost_changes_total", "counter", ""),
    ("imbalance_rows", "gauge", "table"),
    ("unrecorded_changes_total", "counter", "table"),
    ("books_last_balanced_timestamp_seconds", "gauge", ""),
    ("triggers_installed", "gauge", "table"),
    ("unreadable_rows", "gauge", "table"),
    ("oldest_snapshot_age_seconds", "gauge", "kind holder"),
    ("web_config_failures_total", "counter", ""),
    ("http_responses_total", "counter", "code"),
    ("http_connections_dropped_total", "counter", "reason"),
]
DECLARED = {metric.name: metric for metric in CATALOGUE}
DECLARED_OF_EXPORTER = {metric.name: metric for metric in EXPORTER_METRICS}


@pytest.mark.parametrize(
    ("name", "kind", "labels", "buckets"), [pytest.param(*row, id=row[0]) for row in SPECIFICATION + BEYOND]
)
def test_the_metric_page_is_in_the_catalogue(name: str, kind: str, labels: str, buckets: str) -> None:
    assert name in DECLARED
    metric = DECLARED[name]
    assert metric.full_name == "spacetraders_daemon_" + name
    assert (metric.kind, " ".join(metric.labels), " ".join(map(str, metric.buckets))) == (kind, labels, buckets)


@pytest.mark.parametrize(("name", "kind", "labels"), [pytest.param(*row, id=row[0]) for row in EXPORTER])
def test_the_metric_page_is_in_the_exporters_table(name: str, kind: str, labels: str) -> None:
    assert name in DECLARED_OF_EXPORTER
    metric = DECLARED_OF_EXPORTER[name]
    assert (metric.kind, " ".join(metric.labels)) == (kind, labels)


def test_the_specification_has_24_metrics_in_the_pages_order() -> None:
    assert [metric.name for metric in SPECIFIED] == [name for name, *_ in SPECIFICATION]
    assert len(SPECIFIED) == 24


def test_names_are_unique_and_on_the_page() -> None:
    assert max(Counter(metric.name for metric in CATALOGUE).values()) == 1
    assert max(Counter(metric.name for metric in EXPORTER_METRICS).values()) == 1
    assert DECLARED.keys() <= {name for name, *_ in SPECIFICATION + BEYOND}
    assert DECLARED_OF_EXPORTER.keys() <= {name for name, *_ in EXPORTER}


@pytest.mark.parametrize("metric", CATALOGUE, ids=lambda metric: metric.name)
def test_a_metric_is_well_formed(metric: Metric) -> None:
    assert re.fullmatch(r"[a-z][a-z_]*", metric.name)
    assert metric.labels[0] == "player_id"
    assert len(set(metric.labels)) == len(metric.labels)
    assert bool(metric.buckets) is (metric.kind is Kind.HISTOGRAM)
    assert list(metric.buckets) == sorted(set(metric.buckets))
    assert metric.scale == (1_000_000 if metric.kind is Kind.HISTOGRAM and metric.name.endswith("_seconds") else 1)
    assert metric.kind is not Kind.COUNTER or metric.name.endswith("_total")
    assert metric.help.strip()
    assert metric.source.strip()


@pytest.mark.parametrize("metric", EXPORTER_METRICS, ids=lambda metric: metric.name)
def test_a_duration_of_the_exporter_is_a_histogram(metric: catalogue.SelfMetric) -> None:
    timed = metric.name.endswith(("_duration_seconds", "_delay_seconds", "_roundtrip_seconds"))
    assert timed is (metric.kind is Kind.HISTOGRAM) is bool(metric.buckets)


def test_settled_labels() -> None:
    expected = {}
    for name, kind, labels, _ in SPECIFICATION + BEYOND:
        if kind == "counter":
            expected[name] = tuple(labels.split())
        elif kind == "histogram":
            expected[f"{name}_bucket"] = (*labels.split(), "le")
            expected[f"{name}_sum"] = tuple(labels.split())
    assert expected == catalogue.SETTLED_LABELS


def test_the_games_words() -> None:
    assert catalogue.PIPELINE_LIVE == ("PLANNING", "EXECUTING")
    assert catalogue.TASK_LIVE == ("PENDING", "READY", "ASSIGNED", "EXECUTING")
    assert catalogue.TERMINAL == ("COMPLETED", "FAILED", "CANCELLED")
    assert catalogue.SUPPLY_LEVELS == ("SCARCE", "LIMITED", "MODERATE", "HIGH", "ABUNDANT")
    assert catalogue.TASK_OUTCOMES == {"COMPLETED": "success", "FAILED": "failure", "CANCELLED": "cancelled"}
    assert set(catalogue.COST_TYPES) == {"acquire", "deliver", "collect", "liquidate", "other"}
