"""Live rows in, gauges out. An expectation is the whole gauge, written by hand: label values, then the number."""

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.builders import NOW, SECOND, factory, gauge, pipeline, task

from mfg_notify.core import catalogue
from mfg_notify.core.events import TaskImage
from mfg_notify.core.factory_floor import HOUR, LiveRows, Memory, Samples, moving_gauges, survey
from mfg_notify.core.rules import Completion

NOTHING = Memory()


def gauges_of(rows: LiveRows, memory: Memory = NOTHING, players: frozenset[int] | None = None) -> dict[str, Samples]:
    """Return every gauge, for the players of the live rows unless others are named."""
    floor = survey(rows)
    return {
        **floor.gauges,
        **moving_gauges(floor, memory, floor.players if players is None else players, NOW),
    }


class Case(NamedTuple):
    """One gauge of one floor."""

    id: str
    metric: str
    rows: LiveRows
    expected: str
    memory: Memory = NOTHING


def factories(*rows: tuple[int, str | None, str | None]) -> LiveRows:
    """Rows of one factory as (id, pipeline, level), beside the live pipelines a and b and the finished z."""
    return LiveRows(
        pipelines={"a": pipeline("PLANNING"), "b": pipeline("EXECUTING"), "z": pipeline("COMPLETED")},
        factories={number: factory(level, pipeline_id=owner) for number, owner, level in rows},
    )


def tasks(*rows: TaskImage) -> LiveRows:
    return LiveRows(tasks={str(number): row for number, row in enumerate(rows)})


def ships(table: dict[tuple[int, str], bool] | None, *rows: TaskImage) -> LiveRows:
    return LiveRows(tasks=tasks(*rows).tasks, ships=table)


def started(seconds_ago: int, task_type: str = "SELL", player_id: int = 1) -> Memory:
    return Memory(latest={("task_type", player_id, task_type): NOW - seconds_ago * SECOND})


def seen(**seconds_ago: int) -> Memory:
    return Memory(latest={("ship", 1, ship): NOW - ago * SECOND for ship, ago in seconds_ago.items()})


def earned(*profits: tuple[int, int | None]) -> Memory:
    """Completions of player 1 as (microseconds ago, profit)."""
    return Memory(recent={str(n): Completion(str(n), 1, NOW - ago, sum_) for n, (ago, sum_) in enumerate(profits)})


PIPELINES = LiveRows(
    pipelines={
        "1": pipeline("PLANNING"),
        "2": pipeline("EXECUTING"),
        "3": pipeline("EXECUTING"),
        "4": pipeline("PLANNING", product_good="DRUGS"),
        "5": pipeline("EXECUTING", player_id=2),
        "6": pipeline("COMPLETED", product_good="OLD"),
        "7": pipeline("DREAMING", player_id=3),
    }
)
TASKS = tasks(
    task("PENDING"),
    task("READY"),
    task("READY"),
    task("ASSIGNED"),
    task("EXECUTING"),
    task("EXECUTING", task_type="LIQUIDATE"),
    task("PENDING", player_id=2, task_type="SCAN"),
    task("COMPLETED", task_type="OLD"),
    task("FAILED", player_id=3),
)
HELD = (
    task("ASSIGNED", assigned_ship="A"),
    task("EXECUTING", assigned_ship="A"),
    task("EXECUTING", assigned_ship="B"),
    task("READY", assigned_ship="KEPT"),
    task("EXECUTING"),
    task("COMPLETED", assigned_ship="GONE"),
    task("EXECUTING", player_id=2, assigned_ship="A"),
)
FLEET = {(1, "A"): True, (1, "B"): False, (1, "C"): True, (1, "D"): True, (1, "E"): False, (2, "C"): True}
DAY = 24 * 3600
IDLE = task()
A_READY = task("READY", task_type="SELL", ready_at=NOW - 50 * SECOND)
A_NEWER = task("READY", task_type="SELL", ready_at=NOW - 5 * SECOND)

CASES = [
    Case("executing only", "pipeline_running_total", PIPELINES, "1 RIFLES 2 \n 1 DRUGS 0 \n 2 RIFLES 1"),
    Case("planning and executing", "pipeline_queue_depth", PIPELINES, "1 4 \n 2 1"),
    Case(
        "by status",
        "pipelines",
        PIPELINES,
        """1 RIFLES PLANNING 1
           1 RIFLES EXECUTING 2
           1 DRUGS PLANNING 1
           1 DRUGS EXECUTING 0
           2 RIFLES PLANNING 0
           2 RIFLES EXECUTING 1""",
    ),
    Case("pending", "tasks_pending_total", TASKS, "1 COLLECT_SELL 1 \n 1 LIQUIDATE 0 \n 2 SCAN 1"),
    Case("ready", "tasks_ready_total", TASKS, "1 COLLECT_SELL 2 \n 1 LIQUIDATE 0 \n 2 SCAN 0"),
    Case("assigned or executing", "tasks_executing_total", TASKS, "1 COLLECT_SELL 2 \n 1 LIQUIDATE 1 \n 2 SCAN 0"),
    Case("tasks alone make a player", "pipeline_queue_depth", TASKS, "1 0 \n 2 0"),
    Case("factories of a player with tasks alone", "factory_ready_total", TASKS, "1 0 \n 2 0"),
    Case("profit of a player with tasks alone", "profit_rate", TASKS, "1 0 \n 2 0"),
    # Which row speaks for a factory.
    Case("the newest", "factory_supply_ordinal", factories((1, "a", "SCARCE"), (2, "b", "HIGH")), "1 X1-F IRON 4"),
    Case(
        "newest by number", "factory_supply_ordinal", factories((10, "a", "HIGH"), (9, "b", "SCARCE")), "1 X1-F IRON 4"
    ),
    Case(
        "not a finished one's",
        "factory_supply_ordinal",
        factories((1, "a", "SCARCE"), (2, "z", "HIGH")),
        "1 X1-F IRON 1",
    ),
    Case(
        "not an unknown pipeline's",
        "factory_supply_ordinal",
        factories((1, "a", "SCARCE"), (2, "x", "HIGH")),
        "1 X1-F IRON 1",
    ),
    Case(
        "none of a pipeline",
        "factory_supply_ordinal",
        factories((1, "a", "SCARCE"), (2, None, "ABUNDANT")),
        "1 X1-F IRON 5",
    ),
    Case("only stale ones", "factory_supply_level", factories((1, "z", "HIGH")), ""),
    Case("stale ones have no inputs", "factory_inputs_delivered", factories((1, "z", "HIGH")), ""),
    Case("the newest knows nothing yet", "factory_supply_ordinal", factories((1, "a", "HIGH"), (2, "b", None)), ""),
    Case(
        "each player has its own",
        "factory_supply_ordinal",
        LiveRows(factories={1: factory("LIMITED"), 2: factory("MODERATE", player_id=2)}),
        "1 X1-F IRON 2 \n 2 X1-F IRON 3",
    ),
    Case(
        "each good has its own",
        "factory_supply_ordinal",
        LiveRows(factories={1: factory("LIMITED"), 2: factory("HIGH", output_good="GOLD")}),
        "1 X1-F IRON 2 \n 1 X1-F GOLD 4",
    ),
    # What a factory shows.
    Case(
        "a state set",
        "factory_supply_level",
        LiveRows(factories={1: factory("MODERATE")}),
        """1 X1-F IRON SCARCE 0
           1 X1-F IRON LIMITED 0
           1 X1-F IRON MODERATE 1
           1 X1-F IRON HIGH 0
           1 X1-F IRON ABUNDANT 0""",
    ),
    *(
        Case(
            f"all 0 at {level}",
            "factory_supply_level",
            LiveRows(factories={1: factory(level)}),
            """1 X1-F IRON SCARCE 0
               1 X1-F IRON LIMITED 0
               1 X1-F IRON MODERATE 0
               1 X1-F IRON HIGH 0
               1 X1-F IRON ABUNDANT 0""",
        )
        for level in (None, "", "PLENTY")
    ),
    *(
        Case(f"ordinal of {level}", "factory_supply_ordinal", LiveRows(factories={1: factory(level)}), expected)
        for level, expected in [
            ("SCARCE", "1 X1-F IRON 1"),
            ("LIMITED", "1 X1-F IRON 2"),
            ("MODERATE", "1 X1-F IRON 3"),
            ("HIGH", "1 X1-F IRON 4"),
            ("ABUNDANT", "1 X1-F IRON 5"),
            ("PLENTY", ""),
            ("", ""),
            (None, ""),
        ]
    ),
    *(
        Case(
            f"{delivered} of {required} inputs",
            "factory_inputs_delivered",
            LiveRows(factories={1: factory(delivered=delivered, required=required)}),
            f"1 X1-F IRON {share}",
        )
        for delivered, required, share in [(0, 4, 0), (1, 4, 0.25), (4, 4, 1), (0, 0, 1)]
    ),
    Case(
        "factories that are ready",
        "factory_ready_total",
        LiveRows(
            pipelines={"z": pipeline("FAILED")},
            factories={
                1: factory(ready=True),
                2: factory(ready=False),
                3: factory(ready=True, output_good="GOLD"),
                4: factory(ready=True, output_good="TIN"),
                5: factory(ready=True, output_good="OLD", pipeline_id="z"),
                6: factory(player_id=2),
            },
        ),
        "1 2 \n 2 0",
    ),
    # Ships.
    Case("distinct ships that tasks hold", "ships_assigned_total", ships(None, *HELD), "1 2 \n 2 1"),
    Case("idle by the table, unless held", "ships_idle_total", ships(FLEET, *HELD), "1 2 \n 2 1"),
    Case("utilization by the table", "ship_utilization_percent", ships(FLEET, *HELD), "1 50 \n 2 50"),
    Case("an empty table knows of no ship", "ships_idle_total", ships({}, IDLE), "1 0", seen(A=5)),
    Case("the table speaks, not what was seen", "ships_idle_total", ships({(1, "A"): True}, IDLE), "1 1", seen(B=5)),
    Case("no ships at all", "ship_utilization_percent", ships(None, IDLE), "1 0"),
    Case("all at work", "ship_utilization_percent", ships(None, *HELD), "1 100 \n 2 100"),
    Case("all idle", "ship_utilization_percent", ships({(1, "A"): True}, IDLE), "1 0"),
    Case(
        "without a table: seen within 24 h and held by none",
        "ships_idle_total",
        ships(None, *HELD),
        "1 2 \n 2 0",
        seen(A=1, B=1, C=0, D=DAY - 1, E=DAY, F=DAY + 1),
    ),
    Case(
        "utilization without a table",
        "ship_utilization_percent",
        ships(None, *HELD),
        "1 40 \n 2 100",
        seen(A=1, C=1, D=1, E=1),
    ),
    # Starvation.
    Case("no start is known: the oldest's wait", "task_starvation_seconds", tasks(A_NEWER, A_READY), "1 SELL 50"),
    Case("since the last start", "task_starvation_seconds", tasks(A_NEWER, A_READY), "1 SELL 20", started(20)),
    Case("a start long ago", "task_starvation_seconds", tasks(A_READY), "1 SELL 900", started(900)),
    Case("a start of another type", "task_starvation_seconds", tasks(A_READY), "1 SELL 50", started(9, "BUY")),
    Case("a start of another player", "task_starvation_seconds", tasks(A_READY), "1 SELL 50", started(9, "SELL", 2)),
    Case("a start by a clock that is ahead", "task_starvation_seconds", tasks(A_READY), "1 SELL 0", started(-3)),
    Case("fractions", "task_starvation_seconds", tasks(task("READY", ready_at=NOW - 1_500_000)), "1 COLLECT_SELL 1.5"),
    # The profit rate.
    Case(
        "profits of the last hour",
        "profit_rate",
        ships(None, IDLE),
        "1 70",
        earned((0, 100), (HOUR - 1, -30), (HOUR, 1000), (HOUR + 1, 10_000)),
    ),
    Case("a forgotten completion", "profit_rate", ships(None, IDLE), "1 0", earned((5, None))),
    Case("a loss", "profit_rate", ships(None, IDLE), "1 -8", earned((5, -8))),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.metric}: {case.id}")
def test_a_gauge(case: Case) -> None:
    assert gauges_of(case.rows, case.memory)["manufacturing_" + case.metric] == gauge(case.expected)


def test_every_gauge_but_the_margin_is_in_the_table() -> None:
    """The margin is a function of counters: see the series."""
    named = {"manufacturing_" + case.metric for case in CASES if case.expected}
    assert {metric.name for metric in catalogue.GAUGES} - named == {"manufacturing_margin_percent"}


def test_nothing_waits_nothing_starves() -> None:
    waiting_no_more = tasks(task("EXECUTING", task_type="SELL", ready_at=NOW - 50 * SECOND))
    assert not any(gauges_of(waiting_no_more, started(900))["manufacturing_task_starvation_seconds"].values())


def test_an_empty_floor_has_no_samples() -> None:
    assert not any(gauges_of(LiveRows()).values())


def test_a_player_without_a_live_row_has_the_player_gauges_at_0() -> None:
    gauges = {name: samples for name, samples in gauges_of(LiveRows(), players=frozenset({9})).items() if samples}
    assert gauges == {
        "manufacturing_" + name: {("9",): 0}
        for name in (
            "pipeline_queue_depth",
            "factory_ready_total",
            "ships_assigned_total",
            "ships_idle_total",
            "ship_utilization_percent",
            "profit_rate",
        )
    }


def test_profit_leaves_the_hour_by_the_clock_alone() -> None:
    floor, memory = survey(LiveRows()), earned((0, 100), (HOUR // 2, 10))
    rates = [
        moving_gauges(floor, memory, frozenset({1}), NOW + later)["manufacturing_profit_rate"]["1",]
        for later in (0, HOUR // 2 - 1, HOUR // 2, HOUR - 1, HOUR)
    ]
    assert rates == [110, 110, 100, 100, 0]


def test_a_survey_names_what_is_live() -> None:
    floor = survey(
        LiveRows(
            pipelines={**PIPELINES.pipelines, "z": pipeline("FAILED", player_id=9)},
            tasks=TASKS.tasks,
            factories={1: factory(player_id=4), 2: factory(player_id=5, pipeline_id="z")},
        )
    )
    assert floor.players == {1, 2, 4}
    assert floor.products == {("1", "RIFLES"), ("1", "DRUGS"), ("2", "RIFLES")}
    assert floor.task_types == {("1", "COLLECT_SELL"), ("1", "LIQUIDATE"), ("2", "SCAN")}
    assert floor.factories == {("4", "X1-F", "IRON")}


STATUSES = st.sampled_from(["PENDING", "READY", "ASSIGNED", "EXECUTING", "COMPLETED"])
SHIPS = st.sampled_from("ABC")
SOME_TASKS = st.lists(
    st.builds(lambda status, ship, player: task(status, assigned_ship=ship, player_id=player),
              STATUSES, st.none() | SHIPS, st.integers(1, 2)), max_size=12)  # fmt: skip
FLEETS = st.none() | st.dictionaries(st.tuples(st.integers(1, 2), SHIPS), st.booleans())


@given(SOME_TASKS, FLEETS, st.dictionaries(st.tuples(st.just("ship"), st.integers(1, 2), SHIPS), st.integers(0, NOW)))
def test_utilization_is_a_percentage(
    rows: list[TaskImage], fleet: dict[tuple[int, str], bool] | None, latest: dict[tuple[str, int, str], int]
) -> None:
    gauges = gauges_of(ships(fleet, *rows), Memory(latest=latest), frozenset({1, 2}))
    for labels, percent in gauges["manufacturing_ship_utilization_percent"].items():
        busy = gauges["manufacturing_ships_assigned_total"][labels]
        idle = gauges["manufacturing_ships_idle_total"][labels]
        assert 0 <= percent <= 100
        assert percent * (busy + idle) == pytest.approx(100 * busy)
