"""What a change means: every counter and histogram of the metric page, and every move that the game makes.

Expectations are written out by hand; nothing in the tables is computed by the code under test.
"""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.unit.builders import NOW, SECOND, Image, event, factory, pipeline, samples, task

from mfg_notify.core import catalogue
from mfg_notify.core.capped_totals import CappedTotals
from mfg_notify.core.catalogue import Kind
from mfg_notify.core.counters import Counters, settle
from mfg_notify.core.events import (
    Event,
    FactoryChange,
    FactoryImage,
    PipelineChange,
    PipelineImage,
    TaskChange,
    TaskImage,
)
from mfg_notify.core.rules import (
    Completion,
    LastSeen,
    SampleKey,
    bucket,
    completion,
    cost_type,
    increments,
    last_seen,
)
from mfg_notify.core.tuning import Tuning

Row = tuple[Image | None, ...]
"""One row through time: each neighbouring pair is an event; a None first is an INSERT, a None last a DELETE."""
Case = tuple[str, Row, str]

S1 = "S-1"
READY_AT, STARTED_AT = NOW - 7 * SECOND, NOW - 40 * SECOND

PENDING = task("PENDING")
READY = task("READY", ready_at=READY_AT)
ASSIGNED = task("ASSIGNED", assigned_ship=S1, ready_at=READY_AT)
EXECUTING = task("EXECUTING", assigned_ship=S1, ready_at=READY_AT, started_at=STARTED_AT)
COMPLETED = task(
    "COMPLETED",
    assigned_ship=S1,
    total_cost=30,
    total_revenue=100,
    ready_at=READY_AT,
    started_at=STARTED_AT,
    completed_at=STARTED_AT + 25 * SECOND,
)
FAILED = task(
    "FAILED",
    assigned_ship=S1,
    retry_count=1,
    ready_at=READY_AT,
    started_at=STARTED_AT,
    completed_at=STARTED_AT + 25 * SECOND,
)

A_WAIT = """
    task_assignments_total 1 COLLECT_SELL 1
    task_wait_seconds_bucket 1 COLLECT_SELL 15 1
    task_wait_seconds_sum 1 COLLECT_SELL 7_000_000
"""
A_START = "task_assignments_total 1 COLLECT_SELL 1\n"
QUICK = task(
    "COMPLETED",
    assigned_ship=S1,
    ready_at=READY_AT,
    started_at=READY_AT + 2 * SECOND,
    completed_at=READY_AT + 6 * SECOND,
)
A_QUICK_START = """
    task_assignments_total 1 COLLECT_SELL 1
    task_wait_seconds_bucket 1 COLLECT_SELL 5 1
    task_wait_seconds_sum 1 COLLECT_SELL 2_000_000
"""
A_QUICK_JOURNEY = """
    task_duration_seconds_bucket 1 COLLECT_SELL 10 1
    task_duration_seconds_sum 1 COLLECT_SELL 4_000_000
    ship_task_duration_seconds_bucket 1 COLLECT_SELL 10 1
    ship_task_duration_seconds_sum 1 COLLECT_SELL 4_000_000
"""
A_JOURNEY = """
    task_duration_seconds_bucket 1 COLLECT_SELL 30 1
    task_duration_seconds_sum 1 COLLECT_SELL 25_000_000
    ship_task_duration_seconds_bucket 1 COLLECT_SELL 30 1
    ship_task_duration_seconds_sum 1 COLLECT_SELL 25_000_000
"""
FAILURE = "tasks_completed_total 1 COLLECT_SELL failure 1"
CANCELLED = "tasks_completed_total 1 COLLECT_SELL cancelled 1"
SUCCESS = "tasks_completed_total 1 COLLECT_SELL success 1"
TWO_WAITS = """
    task_assignments_total 1 COLLECT_SELL 2
    task_wait_seconds_bucket 1 COLLECT_SELL 15 2
    task_wait_seconds_sum 1 COLLECT_SELL 14_000_000
"""
TWO_JOURNEYS = """
    task_duration_seconds_bucket 1 COLLECT_SELL 30 2
    task_duration_seconds_sum 1 COLLECT_SELL 50_000_000
    ship_task_duration_seconds_bucket 1 COLLECT_SELL 30 2
    ship_task_duration_seconds_sum 1 COLLECT_SELL 50_000_000
"""
EARNINGS = """
    cost_total 1 collect 30
    revenue_total 1 100
"""

TASK_CASES: list[Case] = [
    ("enters as pending", (None, PENDING), ""),
    ("pending to ready", (PENDING, READY), ""),
    ("ready to assigned", (READY, ASSIGNED), A_WAIT),
    ("assigned to executing", (ASSIGNED, EXECUTING), ""),
    ("executing to completed", (EXECUTING, COMPLETED), SUCCESS + A_JOURNEY + EARNINGS),
    (
        "the whole way",
        (None, PENDING, READY, ASSIGNED, EXECUTING, COMPLETED),
        A_WAIT + SUCCESS + A_JOURNEY + EARNINGS,
    ),
    ("executing to failed", (EXECUTING, FAILED), FAILURE + A_JOURNEY + "task_retry_total 1 COLLECT_SELL 1"),
    (
        "assigned to failed, never started",
        (ASSIGNED, task("FAILED", assigned_ship=S1, retry_count=1, ready_at=READY_AT, completed_at=NOW)),
        f"{FAILURE}\n task_retry_total 1 COLLECT_SELL 1",
    ),
    ("failed back to pending", (FAILED, task("PENDING", retry_count=1)), ""),
    (
        "fails, is retried, succeeds",
        (
            EXECUTING,
            FAILED,
            task("PENDING", retry_count=1),
            task("READY", retry_count=1, ready_at=READY_AT),
            task("ASSIGNED", retry_count=1, assigned_ship=S1, ready_at=READY_AT),
            task("EXECUTING", retry_count=1, assigned_ship=S1, ready_at=READY_AT, started_at=STARTED_AT),
            task(
                "COMPLETED",
                retry_count=1,
                assigned_ship=S1,
                ready_at=READY_AT,
                started_at=STARTED_AT,
                completed_at=STARTED_AT + 25 * SECOND,
            ),
        ),
        f"{FAILURE}\n {SUCCESS}\n task_retry_total 1 COLLECT_SELL 1" + TWO_JOURNEYS + A_WAIT,
    ),
    (
        "fails twice",
        (EXECUTING, FAILED, task("PENDING", retry_count=1), task("FAILED", retry_count=2)),
        f"tasks_completed_total 1 COLLECT_SELL failure 2 \n task_retry_total 1 COLLECT_SELL 2 \n {A_START}" + A_JOURNEY,
    ),
    ("assigned rolled back and assigned again", (READY, ASSIGNED, READY, ASSIGNED), TWO_WAITS),
    (
        "executing rolled back, ship kept",
        (EXECUTING, task("READY", assigned_ship=S1, ready_at=READY_AT), ASSIGNED),
        A_WAIT,
    ),
    ("ready back to pending", (READY, PENDING), ""),
    ("executing parked", (EXECUTING, PENDING), ""),
    ("assigned parked", (ASSIGNED, PENDING), ""),
    ("pending cancelled", (PENDING, task("FAILED", completed_at=NOW)), CANCELLED),
    ("ready cancelled", (READY, task("FAILED", ready_at=READY_AT, completed_at=NOW)), CANCELLED),
    ("executing cancelled", (EXECUTING, replace(FAILED, retry_count=0)), CANCELLED + A_JOURNEY),
    (
        "assigned cancelled",
        (ASSIGNED, task("FAILED", assigned_ship=S1, ready_at=READY_AT, completed_at=NOW)),
        CANCELLED,
    ),
    ("cancelled by its own word", (READY, task("CANCELLED", completed_at=NOW)), CANCELLED),
    ("enters as failed", (None, FAILED), FAILURE + A_JOURNEY + "task_retry_total 1 COLLECT_SELL 1"),
    ("enters as cancelled", (None, replace(FAILED, retry_count=0)), CANCELLED + A_JOURNEY),
    # The newest daemon saves neither ASSIGNED nor EXECUTING.
    ("ready to completed", (READY, QUICK), A_QUICK_START + SUCCESS + A_QUICK_JOURNEY),
    (
        "ready to failed",
        (READY, replace(QUICK, status="FAILED", retry_count=1)),
        A_QUICK_START + FAILURE + A_QUICK_JOURNEY + "task_retry_total 1 COLLECT_SELL 1",
    ),
    ("pending to executing", (PENDING, task("EXECUTING")), A_START),
    ("ready to executing", (READY, replace(QUICK, status="EXECUTING", completed_at=None)), A_QUICK_START),
    (
        "ready to executing, and from there to completed",
        (READY, replace(QUICK, status="EXECUTING", completed_at=None), QUICK),
        A_QUICK_START + SUCCESS + A_QUICK_JOURNEY,
    ),
    (
        "ready to completed, started at an unknown time",
        (READY, task("COMPLETED", ready_at=READY_AT)),
        A_START + SUCCESS,
    ),
    (
        "ready to executing, started in the future",
        (READY, replace(QUICK, status="EXECUTING", started_at=NOW + 10**15, completed_at=None)),
        A_WAIT,
    ),
    ("failed to executing is no attempt of its own", (FAILED, EXECUTING), ""),
    ("failed to completed counts nothing", (FAILED, task("COMPLETED", retry_count=1, completed_at=NOW)), ""),
    ("completed to failed counts nothing", (task("COMPLETED"), task("FAILED")), ""),
    ("a save that changes a finished row's ship", (COMPLETED, task("COMPLETED", total_cost=30, total_revenue=100)), ""),
    (
        "enters as completed, with everything",
        (None, COMPLETED),
        SUCCESS + A_JOURNEY + EARNINGS,
    ),
    (
        "enters as failed after two retries",
        (None, task("FAILED", retry_count=2, total_cost=5)),
        f"{FAILURE}\n task_retry_total 1 COLLECT_SELL 2 \n cost_total 1 collect 5",
    ),
    (
        "enters as pending with cost, retries and revenue",
        (None, task("PENDING", retry_count=3, total_cost=11, total_revenue=13)),
        "task_retry_total 1 COLLECT_SELL 3 \n cost_total 1 collect 11 \n revenue_total 1 13",
    ),
    ("enters as assigned", (None, ASSIGNED), A_WAIT),
    ("enters as executing", (None, EXECUTING), ""),
    (
        "assigned without ready_at",
        (PENDING, task("ASSIGNED", assigned_ship=S1)),
        "task_assignments_total 1 COLLECT_SELL 1",
    ),
    ("passed from ship to ship is one assignment", (ASSIGNED, task("ASSIGNED", assigned_ship="S-2")), ""),
    ("executing back to assigned is a move", (EXECUTING, ASSIGNED), A_WAIT),
    (
        "assigned before it was ready waits 0",
        (READY, task("ASSIGNED", assigned_ship=S1, ready_at=NOW + SECOND)),
        """task_assignments_total 1 COLLECT_SELL 1
           task_wait_seconds_bucket 1 COLLECT_SELL 1 1
           task_wait_seconds_sum 1 COLLECT_SELL 0""",
    ),
    (
        "completed before it started takes 0",
        (EXECUTING, task("COMPLETED", started_at=STARTED_AT, completed_at=STARTED_AT - SECOND)),
        SUCCESS
        + """
           task_duration_seconds_bucket 1 COLLECT_SELL 10 1
           task_duration_seconds_sum 1 COLLECT_SELL 0""",
    ),
    ("completed_at missing", (EXECUTING, task("COMPLETED", assigned_ship=S1, started_at=STARTED_AT)), SUCCESS),
    ("started_at missing", (EXECUTING, task("COMPLETED", assigned_ship=S1, completed_at=NOW)), SUCCESS),
    (
        "started at the epoch is a time like any other",
        (task("EXECUTING", started_at=0), task("COMPLETED", started_at=0, completed_at=25 * SECOND)),
        SUCCESS
        + """
           task_duration_seconds_bucket 1 COLLECT_SELL 30 1
           task_duration_seconds_sum 1 COLLECT_SELL 25_000_000""",
    ),
    (
        "numbers fall and rise again",
        (
            task("EXECUTING", retry_count=4, total_cost=50, total_revenue=90),
            task("EXECUTING", retry_count=0, total_cost=0, total_revenue=10),
            task("EXECUTING", retry_count=1, total_cost=20, total_revenue=25),
        ),
        "task_retry_total 1 COLLECT_SELL 1 \n cost_total 1 collect 20 \n revenue_total 1 15",
    ),
    ("from below zero", (task("PENDING", total_cost=-5), task("PENDING", total_cost=2)), "cost_total 1 collect 7"),
    ("unknown status", (PENDING, task("DREAMING")), ""),
    ("from an unknown status to completed", (task("DREAMING"), task("COMPLETED")), ""),
    ("enters with an unknown status", (None, task("DREAMING", total_cost=3)), "cost_total 1 collect 3"),
    ("from an unknown status to assigned", (task("DREAMING"), ASSIGNED), A_WAIT),
    ("lower case is another word", (task("executing"), task("completed")), ""),
    (
        "new task type, other player",
        (
            task("EXECUTING", player_id=7, task_type="SCAN"),
            task("COMPLETED", player_id=7, task_type="SCAN", total_cost=9, total_revenue=8),
        ),
        "tasks_completed_total 7 SCAN success 1 \n cost_total 7 other 9 \n revenue_total 7 8",
    ),
    (
        "labels are the new image's",
        (
            task("EXECUTING", player_id=1, task_type="SELL"),
            task("COMPLETED", player_id=2, task_type="LIQUIDATE", total_cost=1),
        ),
        "tasks_completed_total 2 LIQUIDATE success 1 \n cost_total 2 liquidate 1",
    ),
    ("acquire", (None, task(task_type="ACQUIRE", total_cost=1)), "cost_total 1 acquire 1"),
    ("deliver", (None, task(task_type="DELIVER_TO_CONSTRUCTION", total_cost=1)), "cost_total 1 deliver 1"),
    ("moves units", (task(units=3), task(units=10)), "task_units_total 1 COLLECT_SELL 7"),
    ("enters with units", (None, task(units=3)), "task_units_total 1 COLLECT_SELL 3"),
    ("its units are not known any more", (task(units=3), task()), ""),
    ("its units fall, and rise", (task(units=9), task(units=0), task(units=4)), "task_units_total 1 COLLECT_SELL 4"),
    ("units from below zero", (task(units=-5), task(units=-3), task(units=2)), "task_units_total 1 COLLECT_SELL 7"),
    ("deleted", (EXECUTING, None), ""),
    ("deleted when finished", (COMPLETED, None), ""),
]

P_STARTED = pipeline("EXECUTING", started_at=STARTED_AT)


def ended(status: str, seconds: int = 90, cost: int = 0, revenue: int = 0) -> PipelineImage:
    return pipeline(
        status,
        total_cost=cost,
        total_revenue=revenue,
        net_profit=revenue - cost,
        started_at=STARTED_AT,
        completed_at=STARTED_AT + seconds * SECOND,
    )


ZERO_PROFIT = """
    pipeline_profit_credits_bucket 1 RIFLES 1000 1
    pipeline_profit_credits_sum 1 RIFLES 0
"""
NINETY_SECONDS = """
    pipeline_duration_seconds_bucket 1 RIFLES 120 1
    pipeline_duration_seconds_sum 1 RIFLES 90_000_000
"""

PIPELINE_CASES: list[Case] = [
    (
        "delivers materials",
        (
            pipeline(site="I52", materials=(("IRON", 1, 9), ("GOLD", 0, 2))),
            pipeline(site="I52", materials=(("IRON", 5, 9), ("GOLD", 2, 2))),
        ),
        "construction_units_total 1 IRON 4 \n construction_units_total 1 GOLD 2",
    ),
    (
        "another material, and one that falls",
        (
            pipeline(site="I52", materials=(("IRON", 5, 9),)),
            pipeline(site="I52", materials=(("IRON", 4, 9), ("GOLD", 2, 2))),
        ),
        "construction_units_total 1 GOLD 2",
    ),
    (
        "enters with materials",
        (None, pipeline("PLANNING", site="I52", materials=(("IRON", 5, 9), ("GOLD", 0, 2)))),
        "construction_units_total 1 IRON 5",
    ),
    ("has no materials any more", (pipeline(site="I52", materials=(("IRON", 5, 9),)), pipeline(site="I52")), ""),
    ("builds no more", (pipeline(site="I52", materials=(("IRON", 5, 9),)), pipeline()), ""),
    (
        "becomes a construction pipeline",
        (pipeline(), pipeline(site="I52", materials=(("IRON", 5, 9),))),
        "construction_units_total 1 IRON 5",
    ),
    ("deleted with its materials", (pipeline(site="I52", materials=(("IRON", 5, 9),)), None), ""),
    ("enters as planning", (None, pipeline("PLANNING")), ""),
    ("planning to executing", (pipeline("PLANNING"), P_STARTED), ""),
    (
        "executing to completed",
        (None, pipeline("PLANNING"), P_STARTED, ended("COMPLETED", cost=400, revenue=2400)),
        NINETY_SECONDS
        + """
           pipeline_completed_total 1 RIFLES COMPLETED 1
           pipeline_profit_credits_bucket 1 RIFLES 5000 1
           pipeline_profit_credits_sum 1 RIFLES 2000
           pipeline_revenue_credits_total 1 RIFLES 2400
           pipeline_cost_credits_total 1 RIFLES 400""",
    ),
    (
        "executing to failed, at a loss",
        (P_STARTED, ended("FAILED", cost=700)),
        NINETY_SECONDS
        + """
           pipeline_completed_total 1 RIFLES FAILED 1
           pipeline_profit_credits_bucket 1 RIFLES 1000 1
           pipeline_profit_credits_sum 1 RIFLES -700""",
    ),
    (
        "executing to cancelled",
        (P_STARTED, ended("CANCELLED")),
        NINETY_SECONDS + "pipeline_completed_total 1 RIFLES CANCELLED 1" + ZERO_PROFIT,
    ),
    *(
        (
            f"planning to {status}, never started",
            (pipeline("PLANNING"), pipeline(status, completed_at=NOW)),
            f"pipeline_completed_total 1 RIFLES {status} 1" + ZERO_PROFIT,
        )
        for status in ("COMPLETED", "FAILED", "CANCELLED")
    ),
    (
        "enters as completed",
        (None, ended("COMPLETED", revenue=600_000)),
        NINETY_SECONDS
        + """
           pipeline_completed_total 1 RIFLES COMPLETED 1
           pipeline_profit_credits_bucket 1 RIFLES +Inf 1
           pipeline_profit_credits_sum 1 RIFLES 600_000
           pipeline_revenue_credits_total 1 RIFLES 600_000""",
    ),
    (
        "enters as failed: its credits are not those of a completed pipeline",
        (None, ended("FAILED", cost=2, revenue=3)),
        NINETY_SECONDS
        + """
           pipeline_completed_total 1 RIFLES FAILED 1
           pipeline_profit_credits_bucket 1 RIFLES 1000 1
           pipeline_profit_credits_sum 1 RIFLES 1""",
    ),
    (
        "failed to completed is no completion, but its credits are now those of a completed one",
        (ended("FAILED", cost=2, revenue=3), ended("COMPLETED", cost=2, revenue=3)),
        "pipeline_revenue_credits_total 1 RIFLES 3 \n pipeline_cost_credits_total 1 RIFLES 2",
    ),
    ("completed to failed", (ended("COMPLETED", revenue=3), ended("FAILED", revenue=3)), ""),
    (
        "fails, is planned again, fails",
        (P_STARTED, pipeline("FAILED"), pipeline("PLANNING"), pipeline("FAILED")),
        """pipeline_completed_total 1 RIFLES FAILED 2
           pipeline_profit_credits_bucket 1 RIFLES 1000 2
           pipeline_profit_credits_sum 1 RIFLES 0""",
    ),
    (
        "a later rise on a completed row counts, a fall subtracts nothing",
        (
            ended("COMPLETED", cost=10, revenue=20),
            ended("COMPLETED", cost=4, revenue=35),
            ended("COMPLETED", cost=5, revenue=1),
        ),
        "pipeline_revenue_credits_total 1 RIFLES 15 \n pipeline_cost_credits_total 1 RIFLES 1",
    ),
    (
        "completed_at missing",
        (P_STARTED, pipeline("COMPLETED", started_at=STARTED_AT)),
        "pipeline_completed_total 1 RIFLES COMPLETED 1" + ZERO_PROFIT,
    ),
    (
        "completed before it started takes 0",
        (P_STARTED, ended("COMPLETED", seconds=-1)),
        """pipeline_completed_total 1 RIFLES COMPLETED 1
           pipeline_duration_seconds_bucket 1 RIFLES 60 1
           pipeline_duration_seconds_sum 1 RIFLES 0"""
        + ZERO_PROFIT,
    ),
    (
        "days of executing",
        (P_STARTED, ended("CANCELLED", seconds=300_000)),
        """pipeline_completed_total 1 RIFLES CANCELLED 1
           pipeline_duration_seconds_bucket 1 RIFLES +Inf 1
           pipeline_duration_seconds_sum 1 RIFLES 300_000_000_000"""
        + ZERO_PROFIT,
    ),
    ("totals of a pipeline that goes on are not counted", (P_STARTED, pipeline(total_cost=5, total_revenue=6)), ""),
    ("unknown status", (P_STARTED, pipeline("PAUSED", total_revenue=6)), ""),
    ("from an unknown status to failed", (pipeline("PAUSED"), pipeline("FAILED")), ""),
    ("enters with an unknown status", (None, pipeline("PAUSED")), ""),
    ("deleted", (P_STARTED, None), ""),
    ("deleted when completed", (ended("COMPLETED", revenue=3), None), ""),
]

FACTORY_CASES: list[Case] = [
    ("enters at a level, ready", (None, factory("HIGH", ready=True)), ""),
    ("first look", (factory(None), factory("SCARCE")), ""),
    ("out of sight", (factory("SCARCE"), factory(None)), ""),
    ("up", (factory("SCARCE"), factory("LIMITED")), "supply_transitions_total 1 IRON SCARCE LIMITED 1"),
    ("down by three", (factory("ABUNDANT"), factory("LIMITED")), "supply_transitions_total 1 IRON ABUNDANT LIMITED 1"),
    ("the same level", (factory("HIGH"), factory("HIGH", delivered=1)), ""),
    ("to an unknown level", (factory("HIGH"), factory("PLENTY")), ""),
    ("from an unknown level", (factory("PLENTY"), factory("HIGH")), ""),
    ("becomes ready", (factory(), factory(ready=True)), "factory_cycles_total 1 X1-F IRON 1"),
    ("falls back", (factory(ready=True), factory(ready=False)), ""),
    (
        "flips",
        (factory(), factory(ready=True), factory(), factory(ready=True), factory(ready=True, delivered=1)),
        "factory_cycles_total 1 X1-F IRON 2",
    ),
    (
        "level and readiness at once, other labels",
        (
            factory("MODERATE", player_id=2, factory_symbol="X2-A", output_good="GOLD"),
            factory("HIGH", player_id=2, factory_symbol="X2-A", output_good="GOLD", ready=True),
        ),
        "supply_transitions_total 2 GOLD MODERATE HIGH 1 \n factory_cycles_total 2 X2-A GOLD 1",
    ),
    ("a stale row does not speak", (factory("SCARCE"), factory("HIGH", ready=True, is_current=False)), ""),
    ("nobody asked whether it is_current", (factory("SCARCE"), factory("HIGH", ready=True, is_current=None)), ""),
    (
        "only the new image is_current",
        (factory("SCARCE", is_current=None), factory("HIGH")),
        "supply_transitions_total 1 IRON SCARCE HIGH 1",
    ),
    ("the old image's word does not count", (factory("SCARCE"), factory("HIGH", is_current=False)), ""),
    ("deleted", (factory("HIGH", ready=True), None), ""),
]

CASES = [
    *((f"task: {name}", row, text) for name, row, text in TASK_CASES),
    *((f"pipeline: {name}", row, text) for name, row, text in PIPELINE_CASES),
    *((f"factory: {name}", row, text) for name, row, text in FACTORY_CASES),
]


def summed(events: list[Event]) -> dict[SampleKey, int]:
    found: Counter[SampleKey] = Counter()
    for one in events:
        for key, n in increments(one):
            found[key] += n
    return dict(found)


@pytest.mark.parametrize(("row", "expected"), [pytest.param(row, text, id=name) for name, row, text in CASES])
def test_what_a_row_adds(row: Row, expected: str) -> None:
    assert summed([event(old, new) for old, new in pairwise(row)]) == samples(expected)


@pytest.mark.parametrize("kind", [PipelineChange, TaskChange, FactoryChange])
def test_truncate_counts_nothing(kind: type[PipelineChange | TaskChange | FactoryChange]) -> None:
    emptied = Event(1, 1, NOW, kind("T", "", None, None))
    assert (increments(emptied), completion(emptied), last_seen(emptied)) == ([], None, [])


PRODUCED = {key for _, _, text in CASES for key in samples(text)}


@pytest.mark.parametrize("metric", catalogue.COUNTERS, ids=lambda metric: metric.name)
def test_every_counter_is_in_the_tables(metric: catalogue.Metric) -> None:
    assert metric.name in {name for name, _ in PRODUCED}


@pytest.mark.parametrize("metric", catalogue.HISTOGRAMS, ids=lambda metric: metric.name)
def test_every_histogram_is_in_the_tables(metric: catalogue.Metric) -> None:
    assert {f"{metric.name}_bucket", f"{metric.name}_sum"} <= {name for name, _ in PRODUCED}


@pytest.mark.parametrize(
    ("task_type", "kind"),
    [
        ("ACQUIRE", "acquire"),
        ("ACQUIRE_DELIVER", "acquire"),
        ("STORAGE_ACQUIRE_DELIVER", "acquire"),
        ("STORAGE_ACQUIRE", "acquire"),
        ("DELIVER", "deliver"),
        ("DELIVER_TO_CONSTRUCTION", "deliver"),
        ("COLLECT", "collect"),
        ("COLLECT_SELL", "collect"),
        ("LIQUIDATE", "liquidate"),
        ("SELL", "other"),
        ("STORAGE_DELIVER", "other"),
        ("acquire", "other"),
        ("", "other"),
    ],
)
def test_cost_type(task_type: str, kind: str) -> None:
    assert cost_type(task_type) == kind


@pytest.mark.parametrize(
    ("metric", "value", "le"),
    [
        (catalogue.TASK_DURATION, 0, "10"),
        (catalogue.TASK_DURATION, 1, "10"),
        (catalogue.TASK_DURATION, 10_000_000, "10"),
        (catalogue.TASK_DURATION, 10_000_001, "30"),
        (catalogue.TASK_DURATION, 29_999_999, "30"),
        (catalogue.TASK_DURATION, 30_000_000, "30"),
        (catalogue.TASK_DURATION, 600_000_000, "600"),
        (catalogue.TASK_DURATION, 600_000_001, "+Inf"),
        (catalogue.SHIP_TASK_DURATION, 60_000_001, "120"),
        (catalogue.PIPELINE_DURATION, 60_000_000, "60"),
        (catalogue.PIPELINE_DURATION, 60_000_001, "120"),
        (catalogue.PIPELINE_DURATION, 3_600_000_000, "3600"),
        (catalogue.PIPELINE_DURATION, 3_600_000_001, "+Inf"),
        (catalogue.TASK_WAIT, 1_000_000, "1"),
        (catalogue.TASK_WAIT, 1_000_001, "5"),
        (catalogue.TASK_WAIT, 1_800_000_001, "3600"),
        (catalogue.TASK_WAIT, 3_600_000_001, "+Inf"),
        (catalogue.PIPELINE_PROFIT, -(2**63), "1000"),
        (catalogue.PIPELINE_PROFIT, -1, "1000"),
        (catalogue.PIPELINE_PROFIT, 1000, "1000"),
        (catalogue.PIPELINE_PROFIT, 1001, "5000"),
        (catalogue.PIPELINE_PROFIT, 500_000, "500000"),
        (catalogue.PIPELINE_PROFIT, 500_001, "+Inf"),
        (catalogue.PIPELINE_PROFIT, 2**63 - 1, "+Inf"),
    ],
    ids=lambda value: value.name.removeprefix("manufacturing_") if isinstance(value, catalogue.Metric) else None,
)
def test_bucket(metric: catalogue.Metric, value: int, le: str) -> None:
    assert bucket(metric, value) == le


DONE_AT = STARTED_AT + 90 * SECOND


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        pytest.param(P_STARTED, ended("COMPLETED", cost=4, revenue=9), Completion("p", 1, DONE_AT, 5), id="completed"),
        pytest.param(None, ended("COMPLETED", cost=4), Completion("p", 1, DONE_AT, -4), id="enters completed"),
        pytest.param(
            ended("FAILED"), ended("COMPLETED", revenue=9), Completion("p", 1, DONE_AT, 9), id="failed to completed"
        ),
        pytest.param(
            ended("COMPLETED", revenue=9), ended("COMPLETED", revenue=8), Completion("p", 1, DONE_AT, 8), id="corrected"
        ),
        pytest.param(ended("COMPLETED"), ended("FAILED"), Completion("p", 1, 0, None), id="completed no more"),
        pytest.param(
            ended("COMPLETED"), pipeline("COMPLETED"), Completion("p", 1, 0, None), id="completed_at taken away"
        ),
        pytest.param(
            P_STARTED,
            pipeline("COMPLETED", completed_at=NOW + 10**15),
            Completion("p", 1, DONE_AT, 0),
            id="in the future",
        ),
        pytest.param(P_STARTED, pipeline("COMPLETED"), None, id="completed_at missing"),
        pytest.param(P_STARTED, ended("FAILED"), None, id="failed"),
        pytest.param(None, P_STARTED, None, id="enters"),
        pytest.param(ended("COMPLETED"), None, Completion("p", 1, 0, None), id="goes on under another key"),
        pytest.param(EXECUTING, None, None, id="deleted"),
        pytest.param(EXECUTING, COMPLETED, None, id="a task"),
    ],
)
def test_completion(old: Image | None, new: Image | None, expected: Completion | None) -> None:
    assert completion(event(old, new, key="p", at=DONE_AT)) == expected


SEEN = (("player", 1, ""), NOW)
SHIP_SEEN = (("ship", 1, S1), NOW)
STARTED = ("task_type", 1, "COLLECT_SELL")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        pytest.param(None, PENDING, [SEEN], id="no ship"),
        pytest.param(READY, ASSIGNED, [SEEN, SHIP_SEEN, (STARTED, NOW)], id="assigned"),
        pytest.param(ASSIGNED, EXECUTING, [SEEN, SHIP_SEEN], id="goes on to execute"),
        pytest.param(READY, EXECUTING, [SEEN, SHIP_SEEN, (STARTED, STARTED_AT)], id="starts"),
        pytest.param(READY, COMPLETED, [SEEN, SHIP_SEEN, (STARTED, STARTED_AT)], id="starts and ends"),
        pytest.param(READY, task("EXECUTING", started_at=NOW + 10**15), [SEEN, (STARTED, NOW)], id="in the future"),
        pytest.param(READY, task("EXECUTING"), [SEEN, (STARTED, NOW)], id="starts, untold when"),
        pytest.param(READY, task("FAILED"), [SEEN], id="is cancelled"),
        pytest.param(None, EXECUTING, [SEEN, SHIP_SEEN], id="enters as executing"),
        pytest.param(None, ASSIGNED, [SEEN, SHIP_SEEN, (STARTED, NOW)], id="enters as assigned"),
        pytest.param(EXECUTING, EXECUTING, [SEEN, SHIP_SEEN], id="goes on"),
        pytest.param(EXECUTING, COMPLETED, [SEEN, SHIP_SEEN], id="completed"),
        pytest.param(EXECUTING, None, [SEEN], id="deleted"),
        pytest.param(None, pipeline("PLANNING", player_id=2), [(("player", 2, ""), NOW)], id="pipeline"),
        pytest.param(factory("HIGH"), None, [SEEN], id="factory deleted"),
    ],
)
def test_sightings(old: Image | None, new: Image | None, expected: list[LastSeen]) -> None:
    assert last_seen(event(old, new)) == expected


# ------------------------------------------------------------------------------------------------- properties

WORDS = st.sampled_from(["PLANNING", "PENDING", "READY", "ASSIGNED", "EXECUTING", "COMPLETED", "FAILED", "CANCELLED",
                         "DREAMING", ""])  # fmt: skip
TYPES = st.sampled_from(["ACQUIRE_DELIVER", "STORAGE_ACQUIRE_DELIVER", "COLLECT_SELL", "LIQUIDATE", "DELIVER", "SCAN"])
LEVELS = st.sampled_from([*catalogue.SUPPLY_LEVELS, "PLENTY", None])
NAMES = st.sampled_from(["A", "B", ""])
PLAYERS = st.integers(1, 2)
CREDITS = st.integers(-(10**6), 10**6) | st.integers(-(2**63), 2**63 - 1)
TIMES = st.none() | st.integers(0, 5000).map(lambda seconds: NOW - seconds * SECOND) | st.integers(0, 2**63 - 1)

PIPELINE_IMAGES = st.builds(PipelineImage, PLAYERS, NAMES, WORDS, CREDITS, CREDITS, CREDITS, TIMES, TIMES)
TASK_IMAGES = st.builds(
    TaskImage, PLAYERS, TYPES, WORDS, st.none() | NAMES, CREDITS, CREDITS, CREDITS, TIMES, TIMES, TIMES
)
COUNTS = st.integers(0, 3)
IS_CURRENT = st.none() | st.booleans()
FACTORY_IMAGES = st.builds(
    FactoryImage, PLAYERS, NAMES, NAMES, st.none() | NAMES, COUNTS, COUNTS, LEVELS, st.booleans(), IS_CURRENT
)


@st.composite
def some_event(draw: st.DrawFn, number: int = 1) -> Event:
    images: st.SearchStrategy[Image] = draw(st.sampled_from([PIPELINE_IMAGES, TASK_IMAGES, FACTORY_IMAGES]))
    has_old, has_new = draw(st.sampled_from([(False, True), (True, True), (True, False)]))
    old, new = draw(images) if has_old else None, draw(images) if has_new else None
    return event(old, new, number=number, at=NOW + draw(st.integers(-100, 100)), key=draw(st.sampled_from("pqr")))


EVENTS = st.lists(some_event(), max_size=30).map(
    lambda events: [Event(number, one.xid, one.at, one.change) for number, one in enumerate(events, start=1)]
)


@given(some_event())
def test_keys_are_in_the_catalogue_and_only_the_profit_may_fall(one: Event) -> None:
    for (name, labels), n in increments(one):
        assert len(labels) == len(catalogue.SETTLED_LABELS[name])
        assert all(isinstance(label, str) for label in labels)
        assert n >= 0 or name == "manufacturing_pipeline_profit_credits_sum"


@given(some_event())
def test_an_observation_is_one_bucket_and_one_sum(one: Event) -> None:
    found = increments(one)
    for metric in catalogue.HISTOGRAMS:
        buckets = [(labels, n) for (name, labels), n in found if name == f"{metric.name}_bucket"]
        sums = [(labels, n) for (name, labels), n in found if name == f"{metric.name}_sum"]
        assert len(buckets) == len(sums) <= 1
        for ((*labels, le), n), (sum_labels, value) in zip(buckets, sums, strict=True):
            assert (tuple(labels), n) == (sum_labels, 1)
            bounds = [*map(str, metric.buckets), "+Inf"]
            place = bounds.index(le)
            assert place == len(metric.buckets) or value <= metric.buckets[place] * metric.scale
            assert place == 0 or value > metric.buckets[place - 1] * metric.scale


@given(some_event())
def test_counters_step_by_whole_numbers_above_zero(one: Event) -> None:
    counters = {metric.name for metric in catalogue.CATALOGUE if metric.kind is Kind.COUNTER}
    assert all(type(n) is int and n > 0 for (name, _), n in increments(one) if name in counters)


@given(some_event())
def test_the_rules_are_pure(one: Event) -> None:
    twin = Event(one.id + 5, one.xid + 5, one.at, one.change)
    assert increments(one) == increments(one) == increments(twin)
    assert completion(one) == completion(one) == completion(twin)
    assert last_seen(one) == last_seen(one) == last_seen(twin)


@given(EVENTS, st.lists(st.integers(0, 30), max_size=5))
def test_any_split_adds_up_to_the_whole(events: list[Event], cuts: list[int]) -> None:
    whole = settle(events)
    counters = Counters(Tuning().pending_maximum)
    counters.resync(CappedTotals(), 0, 0)
    completions: dict[str, Completion] = {}
    seen: dict[tuple[str, int, str], int] = {}
    for generation, (start, end) in enumerate(pairwise([0, *sorted(cuts), len(events)]), start=1):
        part = settle(events[start:end])
        assert counters.follows(generation)
        counters.confirm(events[start:end], part, generation, generation)
        completions |= part.completions
        for place, at in part.last_seen.items():
            seen[place] = max(at, seen.get(place, at))
    assert whole.increments == summed(events)
    # Totals stop at the ends of bigint, so the order counts beyond them.
    assume(all(abs(n) < 2**63 for n in whole.increments.values()))
    assert counters.exposed() == whole.increments
    assert completions == whole.completions
    assert seen == whole.last_seen


@given(EVENTS)
def test_the_last_completion_and_the_latest_sighting_count(events: list[Event]) -> None:
    settlement = settle(events)
    assert settlement.completions == {done.pipeline_id: done for done in map(completion, events) if done}
    in_order_of_time = sorted((seen for one in events for seen in last_seen(one)), key=lambda seen: seen[1])
    assert settlement.last_seen == dict(in_order_of_time)
