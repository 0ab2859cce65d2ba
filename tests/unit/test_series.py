"""Which series a scrape shows: zeros before the first step, totals laid out by metric, and the margin."""

from typing import NamedTuple

import pytest
from tests.unit.builders import NOW, SECOND, factory, gauge, pipeline, samples, task

from mfg_notify.core import catalogue
from mfg_notify.core.factory_floor import HOUR, LiveRows, Memory, survey
from mfg_notify.core.rules import SampleKey
from mfg_notify.core.series import Series, View, lay_out


def series_of(rows: LiveRows | None = None, totals: str = "", memory: Memory | None = None) -> Series:
    return lay_out(View(samples(totals), survey(rows or LiveRows()), memory or Memory()), NOW)


def counters_of(series: Series) -> dict[SampleKey, int]:
    return {(name, labels): n for name, found in series.counters.items() for labels, n in found.items()}


def histograms_of(series: Series) -> dict[SampleKey, int]:
    """Return the sums and the buckets that are not at 0, as `mfg_notify.total` names them."""
    found: dict[SampleKey, int] = {}
    for name, distributions in series.histograms.items():
        for labels, distribution in distributions.items():
            found[f"{name}_sum", labels] = distribution.total
            found |= {(f"{name}_bucket", (*labels, le)): n for le, n in distribution.buckets.items()}
    return found


PLAYER = """
    cost_total 1 acquire 0
    cost_total 1 deliver 0
    cost_total 1 collect 0
    cost_total 1 liquidate 0
    cost_total 1 other 0
    revenue_total 1 0
"""
PRODUCT = """
    pipeline_completed_total 1 RIFLES COMPLETED 0
    pipeline_completed_total 1 RIFLES FAILED 0
    pipeline_completed_total 1 RIFLES CANCELLED 0
    pipeline_revenue_credits_total 1 RIFLES 0
    pipeline_cost_credits_total 1 RIFLES 0
"""
PRODUCT_HISTOGRAMS = "pipeline_duration_seconds_sum 1 RIFLES 0 \n pipeline_profit_credits_sum 1 RIFLES 0"
TASK_TYPE = """
    tasks_completed_total 1 SELL success 0
    tasks_completed_total 1 SELL failure 0
    tasks_completed_total 1 SELL cancelled 0
    task_retry_total 1 SELL 0
    task_assignments_total 1 SELL 0
"""
TASK_TYPE_HISTOGRAMS = """
    task_duration_seconds_sum 1 SELL 0
    ship_task_duration_seconds_sum 1 SELL 0
    task_wait_seconds_sum 1 SELL 0
"""
GOOD = """
    supply_transitions_total 1 IRON SCARCE LIMITED 0
    supply_transitions_total 1 IRON LIMITED MODERATE 0
    supply_transitions_total 1 IRON MODERATE HIGH 0
    supply_transitions_total 1 IRON HIGH ABUNDANT 0
    supply_transitions_total 1 IRON ABUNDANT HIGH 0
    supply_transitions_total 1 IRON HIGH MODERATE 0
    supply_transitions_total 1 IRON MODERATE LIMITED 0
    supply_transitions_total 1 IRON LIMITED SCARCE 0
"""
FACTORY = "factory_cycles_total 1 X1-F IRON 0"


class Case(NamedTuple):
    """What exists beside the totals: `totals` themselves are expected as they are, the rest is listed."""

    id: str
    rows: LiveRows
    totals: str
    counters: str
    histograms: str = ""
    memory: Memory = Memory()


CASES = [
    Case("nothing", LiveRows(), "", ""),
    Case("a pipeline in PLANNING", LiveRows({"p": pipeline("PLANNING")}), "", PLAYER + PRODUCT, PRODUCT_HISTOGRAMS),
    Case("a pipeline in EXECUTING", LiveRows({"p": pipeline()}), "", PLAYER + PRODUCT, PRODUCT_HISTOGRAMS),
    Case("a finished pipeline", LiveRows({"p": pipeline("FAILED")}), "", ""),
    Case(
        "a PENDING task",
        LiveRows(tasks={"t": task("PENDING", task_type="SELL")}),
        "",
        PLAYER + TASK_TYPE,
        TASK_TYPE_HISTOGRAMS,
    ),
    Case("a factory row", LiveRows(factories={1: factory()}), "", PLAYER + GOOD + FACTORY),
    Case("a stale factory row", LiveRows(factories={1: factory(pipeline_id="gone")}), "", ""),
    Case("a ship by the table", LiveRows(ships={(1, "A"): False}), "", PLAYER),
    Case("a ship that was seen", LiveRows(), "", PLAYER, "", Memory(latest={("ship", 1, "A"): NOW - 23 * HOUR})),
    Case("a ship not seen for a day", LiveRows(), "", "", "", Memory(latest={("ship", 1, "A"): NOW - 24 * HOUR})),
    Case("a ship seen, but not in the table", LiveRows(ships={}), "", "", "", Memory(latest={("ship", 1, "A"): NOW})),
    Case("a start of a task is no ship", LiveRows(), "", "", "", Memory(latest={("task_type", 1, "SELL"): NOW})),
    # From totals alone: the rows are gone, their series stay.
    Case(
        "a product's counter",
        LiveRows(),
        "pipeline_completed_total 1 RIFLES FAILED 3",
        PLAYER + PRODUCT,
        PRODUCT_HISTOGRAMS,
    ),
    Case(
        "a product's credits",
        LiveRows(),
        "pipeline_cost_credits_total 1 RIFLES 3",
        PLAYER + PRODUCT,
        PRODUCT_HISTOGRAMS,
    ),
    Case(
        "a product's histogram",
        LiveRows(),
        "pipeline_profit_credits_bucket 1 RIFLES 1000 2 \n pipeline_profit_credits_sum 1 RIFLES -70",
        PLAYER + PRODUCT,
        PRODUCT_HISTOGRAMS,
    ),
    Case("a task type's counter", LiveRows(), "task_retry_total 1 SELL 3", PLAYER + TASK_TYPE, TASK_TYPE_HISTOGRAMS),
    Case(
        "a task type's histogram",
        LiveRows(),
        """task_wait_seconds_bucket 1 SELL 5 2
           task_wait_seconds_bucket 1 SELL +Inf 1
           task_wait_seconds_sum 1 SELL 4_000_000_000""",
        PLAYER + TASK_TYPE,
        TASK_TYPE_HISTOGRAMS,
    ),
    Case("a factory's cycles", LiveRows(), "factory_cycles_total 1 X1-F IRON 3", PLAYER + GOOD + FACTORY),
    Case("a good's transition", LiveRows(), "supply_transitions_total 1 IRON LIMITED SCARCE 3", PLAYER + GOOD),
    Case("a good's leap", LiveRows(), "supply_transitions_total 1 IRON SCARCE ABUNDANT 3", PLAYER + GOOD),
    Case("a cost", LiveRows(), "cost_total 1 liquidate 3", PLAYER),
    Case("revenue", LiveRows(), "revenue_total 1 3", PLAYER),
    Case(
        "totals beside live rows",
        LiveRows({"p": pipeline()}),
        "pipeline_completed_total 1 RIFLES COMPLETED 3 \n revenue_total 1 5",
        PLAYER + PRODUCT,
        PRODUCT_HISTOGRAMS,
    ),
    Case("a total of another version", LiveRows(), "abandoned_total 1 RIFLES 3", PLAYER),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_zeros_and_totals(case: Case) -> None:
    series = series_of(case.rows, case.totals, case.memory)
    totals = {key: n for key, n in samples(case.totals).items() if key[0] in catalogue.SETTLED_LABELS}
    counted = {key: n for key, n in totals.items() if key[0].endswith("_total")}
    observed = {key: n for key, n in totals.items() if not key[0].endswith("_total")}
    assert counters_of(series) == samples(case.counters) | counted
    assert histograms_of(series) == samples(case.histograms) | observed


def test_every_counter_and_histogram_has_a_zero() -> None:
    keys = {name for case in CASES for name, _ in samples(case.counters + "\n" + case.histograms)}
    assert keys == {metric.name for metric in catalogue.COUNTERS} | {f"{m.name}_sum" for m in catalogue.HISTOGRAMS}


@pytest.mark.parametrize(
    ("totals", "expected"),
    [
        ("", ""),
        ("pipeline_cost_credits_total 1 RIFLES 50", ""),
        ("pipeline_revenue_credits_total 1 RIFLES 0 \n pipeline_cost_credits_total 1 RIFLES 50", ""),
        ("pipeline_revenue_credits_total 1 RIFLES 200", "1 RIFLES 100"),
        ("pipeline_revenue_credits_total 1 RIFLES 200 \n pipeline_cost_credits_total 1 RIFLES 50", "1 RIFLES 75"),
        ("pipeline_revenue_credits_total 1 RIFLES 200 \n pipeline_cost_credits_total 1 RIFLES 500", "1 RIFLES -150"),
        (
            """pipeline_revenue_credits_total 1 RIFLES 200
               pipeline_revenue_credits_total 2 RIFLES 300
               pipeline_cost_credits_total 2 RIFLES 300
               pipeline_cost_credits_total 1 DRUGS 1""",
            "1 RIFLES 100 \n 2 RIFLES 0",
        ),
    ],
    ids=["idle", "cost only", "revenue of 0", "revenue only", "profit", "loss", "by player and product"],
)
def test_margin(totals: str, expected: str) -> None:
    margin = series_of(LiveRows({"p": pipeline()}), totals).gauges["manufacturing_margin_percent"]
    assert margin == gauge(expected)


@pytest.mark.parametrize(
    ("rows", "totals", "memory"),
    [
        (LiveRows({"p": pipeline()}), "", Memory()),
        (LiveRows(tasks={"t": task()}), "", Memory()),
        (LiveRows(factories={1: factory()}), "", Memory()),
        (LiveRows(ships={(1, "A"): False}), "", Memory()),
        (LiveRows(), "", Memory(latest={("ship", 1, "A"): NOW - SECOND})),
        (LiveRows(), "task_retry_total 1 SELL 3", Memory()),
        (LiveRows(), "pipeline_profit_credits_sum 1 RIFLES -3", Memory()),
    ],
    ids=["pipeline", "task", "factory", "ship", "ship seen", "counter", "histogram"],
)
def test_whoever_is_known_has_the_player_gauges(rows: LiveRows, totals: str, memory: Memory) -> None:
    gauges = series_of(rows, totals, memory).gauges
    of_players = [metric for metric in catalogue.GAUGES if metric.labels == ("player_id",)]
    assert len(of_players) == 6
    assert all(gauges[metric.name].keys() == {("1",)} for metric in of_players)


def test_nobody_is_known() -> None:
    assert not any(series_of().gauges.values())


def test_every_metric_of_the_catalogue_is_laid_out_once() -> None:
    series = series_of()
    names = [*series.counters, *series.histograms, *series.gauges]
    assert sorted(names) == sorted(metric.name for metric in catalogue.CATALOGUE)


def test_a_view_is_left_as_it_was() -> None:
    totals = samples("revenue_total 1 5")
    view = View(totals, survey(LiveRows({"p": pipeline(player_id=2)}, ships={(3, "A"): True})), Memory())
    assert lay_out(view, NOW) == lay_out(view, NOW)
    assert view.totals == samples("revenue_total 1 5")
    assert view.floor.gauges["manufacturing_pipeline_queue_depth"] == {("2",): 1}
