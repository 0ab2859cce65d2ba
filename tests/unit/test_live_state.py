"""Live rows in, gauges out, written by hand: label values, then the number. And what events do to live rows."""

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import pytest
from hypothesis import event as note
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.builders import NOW, SECOND, Image, event, factory, gauge, pipeline, task

from mfg_notify.core import catalogue
from mfg_notify.core.capped_totals import CappedTotals
from mfg_notify.core.counters import settle
from mfg_notify.core.events import (
    Change,
    Event,
    FactoryChange,
    FactoryImage,
    Operation,
    PipelineChange,
    PipelineImage,
    TaskChange,
    TaskImage,
)
from mfg_notify.core.ledger import Fold, Ledger, Snapshot, Totals
from mfg_notify.core.live_state import HOUR, LiveRows, LiveState, RecentActivity, Samples, compute_gauges, moving_gauges
from mfg_notify.core.rules import Completion
from mfg_notify.core.tuning import Tuning
from mfg_notify.core.visibility import Visibility

NOTHING = RecentActivity()


def gauges_of(
    rows: LiveRows, activity: RecentActivity = NOTHING, players: frozenset[int] | None = None
) -> dict[str, Samples]:
    """Return every gauge, for the players of the live rows unless others are named."""
    state = compute_gauges(rows)
    return {
        **state.samples,
        **moving_gauges(state, activity, state.players if players is None else players, NOW),
    }


class Case(NamedTuple):
    """One gauge of one state."""

    id: str
    metric: str
    rows: LiveRows
    expected: str
    activity: RecentActivity = NOTHING


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


def started(seconds_ago: int, task_type: str = "SELL", player_id: int = 1) -> RecentActivity:
    return RecentActivity(latest={("task_type", player_id, task_type): NOW - seconds_ago * SECOND})


def seen(**seconds_ago: int) -> RecentActivity:
    return RecentActivity(latest={("ship", 1, ship): NOW - ago * SECOND for ship, ago in seconds_ago.items()})


def earned(*profits: tuple[int, int | None]) -> RecentActivity:
    """Completions of player 1 as (microseconds ago, profit)."""
    return RecentActivity(
        recent={str(n): Completion(str(n), 1, NOW - ago, sum_) for n, (ago, sum_) in enumerate(profits)}
    )


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
SITES = LiveRows(
    pipelines={
        "1": pipeline("PLANNING", site="I52", materials=(("IRON", 1, 9), ("GOLD", 0, 2))),
        "2": pipeline("EXECUTING", site="I52", materials=(("IRON", 5, 5),)),
        "3": pipeline("EXECUTING", site="I60", materials=(("IRON", 3, 9),)),
        "4": pipeline("EXECUTING", player_id=2, site="I52", materials=(("IRON", 4, 9),)),
        "5": pipeline("COMPLETED", site="I52", materials=(("IRON", 9, 9),)),
        "6": pipeline("EXECUTING"),
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
        "delivered",
        "construction_delivered_units",
        SITES,
        "1 I52 IRON 6 \n 1 I52 GOLD 0 \n 1 I60 IRON 3 \n 2 I52 IRON 4",
    ),
    Case("needed", "construction_target_units", SITES, "1 I52 IRON 14 \n 1 I52 GOLD 2 \n 1 I60 IRON 9 \n 2 I52 IRON 9"),
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
    # Which row of a factory is the current one.
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
    Case("the table decides, not what was seen", "ships_idle_total", ships({(1, "A"): True}, IDLE), "1 1", seen(B=5)),
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
    assert gauges_of(case.rows, case.activity)["manufacturing_" + case.metric] == gauge(case.expected)


def test_every_gauge_of_the_game_is_in_the_table() -> None:
    """The margin is a function of counters: see the series, for the markets and the players too."""
    named = {"manufacturing_" + case.metric for case in CASES if case.expected}
    elsewhere = {catalogue.MARGIN, catalogue.PLAYER_INFO, catalogue.PLAYER_LAST_EVENT, *catalogue.MARKET}
    assert {metric.name for metric in catalogue.GAUGES} - named == {metric.name for metric in elsewhere}


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
    state, activity = compute_gauges(LiveRows()), earned((0, 100), (HOUR // 2, 10))
    rates = [
        moving_gauges(state, activity, frozenset({1}), NOW + later)["manufacturing_profit_rate"]["1",]
        for later in (0, HOUR // 2 - 1, HOUR // 2, HOUR - 1, HOUR)
    ]
    assert rates == [110, 110, 100, 100, 0]


def test_gauges_name_what_is_live() -> None:
    state = compute_gauges(
        LiveRows(
            pipelines={**PIPELINES.pipelines, "z": pipeline("FAILED", player_id=9)},
            tasks=TASKS.tasks,
            factories={1: factory(player_id=4), 2: factory(player_id=5, pipeline_id="z")},
        )
    )
    assert state.players == {1, 2, 4}
    assert state.products == {("1", "RIFLES"), ("1", "DRUGS"), ("2", "RIFLES")}
    assert state.task_types == {("1", "COLLECT_SELL"), ("1", "LIQUIDATE"), ("2", "SCAN")}
    assert state.factories == {("4", "X1-F", "IRON")}


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
    gauges = gauges_of(ships(fleet, *rows), RecentActivity(latest=latest), frozenset({1, 2}))
    for labels, percent in gauges["manufacturing_ship_utilization_percent"].items():
        busy = gauges["manufacturing_ships_assigned_total"][labels]
        idle = gauges["manufacturing_ships_idle_total"][labels]
        assert 0 <= percent <= 100
        assert percent * (busy + idle) == pytest.approx(100 * busy)


# ------------------------------------------------------------------------------------ rows kept by events --


def truncate(table: type[PipelineChange | TaskChange | FactoryChange], number: int) -> Event:
    return Event(number, number, NOW, table("T", "", None, None))


def state_of(*found: Event) -> LiveState:
    state = LiveState()
    for one in found:
        state.apply(one)
    return state


def live(rows: LiveRows) -> LiveRows:
    """Return the rows that a snapshot would hold of these."""
    pipelines = {key: row for key, row in rows.pipelines.items() if row.status in catalogue.PIPELINE_LIVE}
    return LiveRows(
        pipelines,
        {key: row for key, row in rows.tasks.items() if row.status in catalogue.TASK_LIVE},
        {n: row for n, row in rows.factories.items() if row.pipeline_id is None or row.pipeline_id in pipelines},
        rows.ships,
    )


def rows_of(state: LiveState) -> LiveRows:
    return live(LiveRows(state._pipelines, state._tasks, state._factories, state._ships))


PLANNED = event(None, pipeline("PLANNING"), number=1)
RUNS = event(pipeline("PLANNING"), pipeline(), number=2)
DONE = event(pipeline(), pipeline("COMPLETED"), number=3)
GONE = event(pipeline("COMPLETED"), None, number=4)
AGAIN = event(None, pipeline("PLANNING"), number=5)


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([PLANNED], pipeline("PLANNING")),
        ([PLANNED, RUNS], pipeline()),
        ([RUNS, PLANNED], pipeline()),
        ([PLANNED, RUNS, PLANNED, RUNS], pipeline()),
        ([PLANNED, RUNS, DONE], None),
        ([PLANNED, DONE, RUNS], None),
        ([DONE, RUNS, PLANNED], None),
        ([PLANNED, GONE, DONE, RUNS, PLANNED], None),
        ([GONE, AGAIN, RUNS, GONE], pipeline("PLANNING")),
        ([AGAIN, PLANNED], pipeline("PLANNING")),
        ([PLANNED, truncate(PipelineChange, 2)], None),
        ([truncate(PipelineChange, 2), PLANNED, RUNS], None),
        ([PLANNED, truncate(PipelineChange, 3), AGAIN, DONE, truncate(PipelineChange, 3)], pipeline("PLANNING")),
        ([AGAIN, truncate(PipelineChange, 6)], None),
        ([AGAIN, truncate(PipelineChange, 2)], pipeline("PLANNING")),
        ([PLANNED, truncate(TaskChange, 9), truncate(FactoryChange, 9)], pipeline("PLANNING")),
    ],
    ids=["insert", "update", "late", "twice", "finished", "late after the end", "backwards", "deleted", "again", "old",
         "truncate", "late after truncate", "insert after truncate", "truncate later",
         "late truncate", "truncate of others"],
)  # fmt: skip
def test_the_highest_id_of_a_row_counts(events: list[Event], expected: PipelineImage | None) -> None:
    assert rows_of(state_of(*events)).pipelines == ({} if expected is None else {"row": expected})


@pytest.mark.parametrize("status", catalogue.TERMINAL)
def test_finished_rows_leave(status: str) -> None:
    state = state_of(
        event(None, pipeline(), number=1),
        event(None, task(), number=2),
        event(None, factory(pipeline_id="row"), number=3, key="7"),
    )
    assert state.gauges().factories == {("1", "X1-F", "IRON")}
    state.apply(event(task(), task(status), number=4))
    state.apply(event(pipeline(), pipeline(status), number=5))
    assert state.gauges() == compute_gauges(LiveRows())


def test_rows_of_different_tables_and_keys_have_their_own_order() -> None:
    state = state_of(
        event(None, task("READY"), number=9),
        event(None, pipeline(), number=8),
        event(None, factory("HIGH"), number=7, key="7"),
        event(None, factory("SCARCE"), number=6, key="-6"),
        event(None, task("PENDING"), number=5, key="other"),
    )
    expected = LiveRows({"row": pipeline()}, {"row": task("READY"), "other": task()},
                        {7: factory("HIGH"), -6: factory("SCARCE")})  # fmt: skip
    assert rows_of(state) == expected
    assert state.gauges() == compute_gauges(expected)
    state.apply(event(factory("HIGH"), None, number=10, key="7"))
    assert rows_of(state).factories == {-6: factory("SCARCE")}


def test_a_truncated_table_asks_for_a_snapshot() -> None:
    state = state_of(PLANNED)
    asks = [state.needs_snapshot]
    state.apply(truncate(TaskChange, 2))
    asks.append(state.needs_snapshot)
    state.start_recording()
    state.reconcile(LiveRows(), lambda xid: xid <= 2)
    assert [*asks, state.needs_snapshot] == [False, True, False]


def test_a_requested_resync_corrects_nothing() -> None:
    state = reconciled()
    state.apply(event(None, task(), number=10**15, key="forged"))
    state.request_resync()
    asks = [state.needs_snapshot]
    state.start_recording()
    asks.append(state.needs_snapshot)
    assert state.reconcile(LiveRows(), lambda _: True) == Counter()
    assert [*asks, state.needs_snapshot] == [True, False, False]
    state.start_recording()
    assert state.reconcile(LiveRows(tasks={"a": task()}), lambda _: True) != Counter()


def test_a_snapshot_under_way_does_not_answer_a_new_request() -> None:
    state = reconciled()
    state.start_recording()
    state.request_resync()
    assert state.reconcile(LiveRows(tasks={"a": task()}), lambda _: True) == Counter()
    assert state.needs_snapshot


def test_a_pipeline_revived_after_the_snapshot_needs_another() -> None:
    state = reconciled()
    asks = []
    for number in (5, 6):
        state.apply(event(pipeline("COMPLETED"), pipeline(), number=number))
        asks.append(state.needs_snapshot)
        state.start_recording()
        if number == 6:
            state.apply(event(pipeline("COMPLETED"), pipeline(), number=7, key="other"))
        state.reconcile(LiveRows(), lambda _: False)
        asks.append(state.needs_snapshot)
    assert asks == [True, False, True, True]


@pytest.mark.parametrize("shown", [True, False], ids=["in the snapshot", "after the snapshot"])
def test_a_change_during_a_snapshot_needs_another_if_not_in_it(shown: bool) -> None:
    state = LiveState()
    state.start_recording()
    state.apply(event(pipeline("PLANNING"), pipeline(), number=5))
    state.reconcile(LiveRows({"row": pipeline()} if shown else {}), lambda _: shown)
    assert state.needs_snapshot is not shown


def test_a_revived_pipeline_is_recognized_by_a_later_event() -> None:
    """The event that revived it comes after another, because its payload was too long to be announced."""
    state = reconciled()
    state.apply(event(pipeline("EXECUTING"), pipeline("PLANNING"), number=6))
    assert state.needs_snapshot
    state.start_recording()
    state.apply(event(pipeline("COMPLETED"), pipeline("EXECUTING"), number=5))
    state.reconcile(LiveRows({"row": pipeline("PLANNING")}), lambda _: True)
    state.apply(event(pipeline("PLANNING"), pipeline("EXECUTING"), number=7))
    assert not state.needs_snapshot


@pytest.mark.parametrize("late", [True, False], ids=["it comes late", "it was missed"])
def test_what_a_late_revival_corrects_was_not_missed(*, late: bool) -> None:
    state = reconciled()
    state.apply(event(pipeline("EXECUTING"), pipeline("PLANNING"), number=6, key="p"))
    state.start_recording()
    if late:
        state.apply(event(pipeline("COMPLETED"), pipeline("EXECUTING"), number=5, key="p"))
    rows = LiveRows({"p": pipeline("PLANNING")}, {}, {1: factory("HIGH", pipeline_id="p")})
    assert bool(state.reconcile(rows, lambda _: True)) is not late


def test_gauges_are_immutable() -> None:
    state = state_of(PLANNED)
    before = state.gauges()
    assert state.gauges() is before
    state.apply(RUNS)
    assert before == compute_gauges(LiveRows({"row": pipeline("PLANNING")}))
    assert state.gauges() == compute_gauges(LiveRows({"row": pipeline()}))


# ------------------------------------------------------------------------------------------- reconciliation --


def reconciled(rows: LiveRows | None = None) -> LiveState:
    state = LiveState()
    assert state.reconcile(rows or LiveRows(), lambda _: True) == Counter()
    return state


def test_the_first_snapshot_corrects_nothing() -> None:
    state = reconciled(PIPELINES)
    assert state.gauges() == compute_gauges(PIPELINES)
    assert state.reconcile(PIPELINES, lambda _: True) == Counter()


def test_what_the_snapshot_does_not_see_is_applied_again() -> None:
    state = reconciled()
    state.apply(PLANNED)
    state.start_recording()
    state.apply(RUNS)
    assert state.reconcile(LiveRows({"row": pipeline("PLANNING")}), lambda xid: xid <= 1) == Counter()
    assert rows_of(state).pipelines == {"row": pipeline()}
    # And remembered: its own late notification, and those before, are old news.
    state.apply(PLANNED)
    assert rows_of(state).pipelines == {"row": pipeline()}


def test_what_the_snapshot_sees_is_not_applied_again() -> None:
    state = reconciled()
    state.start_recording()
    state.apply(PLANNED)
    # Another snapshot, another truth: the row was changed by something that no event tells of.
    corrections = state.reconcile(LiveRows({"row": pipeline()}), lambda xid: xid <= 1)
    assert rows_of(state).pipelines == {"row": pipeline()}
    assert corrections.keys() == {"manufacturing_pipeline_running_total", "manufacturing_pipelines"}


def test_order_of_ids_not_of_arrival_when_applied_again() -> None:
    state = reconciled()
    state.start_recording()
    for one in (truncate(TaskChange, 3), event(None, task("READY"), number=7), event(None, task(), number=5)):
        state.apply(one)
    assert state.reconcile(LiveRows(tasks={"a": task()}), lambda _: False) == Counter()
    assert rows_of(state).tasks == {"row": task("READY")}
    assert state.needs_snapshot


def test_a_recording_ends_with_its_reconciliation() -> None:
    state = reconciled()
    state.start_recording()
    state.apply(PLANNED)
    state.start_recording()
    state.apply(RUNS)
    state.reconcile(LiveRows(), lambda _: False)
    state.apply(DONE)
    state.reconcile(LiveRows(), lambda _: False)
    assert rows_of(state).pipelines == {}


CORRECTIONS = [
    ("nothing", PIPELINES, PIPELINES, ""),
    ("a new player's row", LiveRows(), LiveRows(tasks={"t": task()}),
     """tasks_pending_total 1 \n tasks_ready_total 1 \n tasks_executing_total 1
        pipeline_queue_depth 1 \n factory_ready_total 1"""),
    ("a player's last row is gone", LiveRows(tasks={"t": task()}), LiveRows(),
     """tasks_pending_total 1 \n tasks_ready_total 1 \n tasks_executing_total 1
        pipeline_queue_depth 1 \n factory_ready_total 1"""),
    ("one series changed", LiveRows({"p": pipeline()}), LiveRows({"p": pipeline(), "q": pipeline()}),
     "pipeline_running_total 1 \n pipeline_queue_depth 1 \n pipelines 1"),
    ("status", LiveRows({"p": pipeline("PLANNING")}), LiveRows({"p": pipeline()}),
     "pipeline_running_total 1 \n pipelines 2"),
    ("level", LiveRows(factories={1: factory("HIGH")}), LiveRows(factories={1: factory("SCARCE")}),
     "factory_supply_level 2 \n factory_supply_ordinal 1"),
    ("two players", LiveRows(tasks={"a": task(), "b": task(player_id=2)}),
     LiveRows(tasks={"a": task("READY"), "b": task("READY", player_id=2)}),
     "tasks_pending_total 2 \n tasks_ready_total 2"),
    ("not a gauge's matter", LiveRows(tasks={"a": task()}), LiveRows(tasks={"b": task(retry_count=3)}), ""),
    ("ships have no events", LiveRows(ships={(1, "A"): True}), LiveRows(ships={(1, "A"): False, (2, "B"): True}), ""),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after", "expected"), [pytest.param(*row[1:], id=row[0]) for row in CORRECTIONS])
def test_corrections_are_series_by_gauge(before: LiveRows, after: LiveRows, expected: str) -> None:
    state = reconciled(before)
    state.start_recording()
    corrections = {"manufacturing_" + name: n for (name,), n in gauge(expected).items()}
    assert state.reconcile(after, lambda _: True) == corrections
    assert state.gauges() == compute_gauges(after)


@dataclass
class _Transaction:
    xid: int
    events: list[Event]
    announced: list[bool]
    """For each event: is it announced?"""
    lost: list[bool]
    """For each event: did the trigger give up?"""


Action = tuple[str, int, int]
ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ["write"] * 8 + ["commit"] * 5 + ["deliver"] * 4 + ["fold"] * 3 + ["record"] * 3 + ["look"] * 3
            + ["deliver all", "deliver all", "roll back", "truncate"]
        ),
        st.integers(0, 2),
        st.integers(0, 200),
    ),
    min_size=30,
    max_size=90,
)  # fmt: skip


class _Game:
    """Rows changed by transactions that commit in any order, and an exporter's ledger that hears of them."""

    def __init__(self) -> None:
        self.ledger = Ledger(lambda: 0.0, NOW, Tuning())
        self.open: dict[int, _Transaction] = {}
        self.history: list[_Transaction] = []
        """Committed, in order of commits."""
        self.journal: dict[int, Event] = {}
        self.queue: deque[tuple[Event, bool] | int] = deque()
        """Notifications: an event and whether it comes twice, or a barrier."""
        self.last_id = self.last_xid = self.generation = 0
        self.recording = False
        self.seen: frozenset[int] = frozenset()
        """Transactions that the snapshot under way shows."""
        self.known: set[int] = set()
        self.dropped = False
        self.corrections: Counter[str] = Counter()
        self.reconciles = 0
        self.ledger.lead()
        self.fold(1)
        self.deliver_all()

    # The game.

    def rows(self, events: Iterable[Event]) -> LiveRows:
        """Return what these events leave of the rows: of each row the highest id counts."""
        pipelines: dict[str, PipelineImage] = {}
        tasks: dict[str, TaskImage] = {}
        factories: dict[int, FactoryImage] = {}
        for one in sorted(events, key=lambda one: one.id):
            match one.change:
                case PipelineChange("T"):
                    pipelines.clear()
                case TaskChange("T"):
                    tasks.clear()
                case FactoryChange("T"):
                    factories.clear()
                case PipelineChange(new=None) as change:
                    pipelines.pop(change.key, None)
                case PipelineChange(new=PipelineImage() as row) as change:
                    pipelines[change.key] = row
                case TaskChange(new=None) as change:
                    tasks.pop(change.key, None)
                case TaskChange(new=TaskImage() as row) as change:
                    tasks[change.key] = row
                case FactoryChange(new=None) as change:
                    factories.pop(int(change.key), None)
                case FactoryChange(new=FactoryImage() as row) as change:
                    factories[int(change.key)] = row
        return LiveRows(pipelines, tasks, factories)

    def committed(self) -> list[Event]:
        return [one for transaction in self.history for one in transaction.events]

    def transaction(self, writer: int) -> _Transaction:
        if writer not in self.open:
            self.last_xid += 1
            self.open[writer] = _Transaction(self.last_xid, [], [], [])
        return self.open[writer]

    def say(self, transaction: _Transaction, change: Change, draw: int) -> None:
        self.last_id += 1
        transaction.events.append(Event(self.last_id, transaction.xid, NOW, change))
        transaction.announced.append(draw % 4 > 0)
        transaction.lost.append(self.dropped and draw % 7 == 0)

    def write(self, writer: int, draw: int) -> None:
        """Change one row that no other transaction has changed."""
        others = [one for other, found in self.open.items() if other != writer for one in found.events]
        if any(one.change.operation == "T" for one in others):
            return
        transaction = self.transaction(writer)
        locked = {one.change.key for one in others}
        rows = self.rows([*self.committed(), *transaction.events])
        match draw % 3:
            case 0:
                self.write_pipeline(transaction, rows, locked, draw // 3)
            case 1:
                key = f"t{writer if draw % 2 else 0}"
                old = rows.tasks.get(key)
                statuses = [*catalogue.TASK_LIVE, "COMPLETED", None]
                status = statuses[draw // 3 % len(statuses)]
                new = task(status, retry_count=draw % 2) if status else None
                if key not in locked and (old or new):
                    self.say(transaction, TaskChange(operation(old, new), key, old, new), draw)
            case _:
                number = draw // 3 % 3
                row = rows.factories.get(number)
                owners = [key for key in rows.pipelines if key not in locked]
                if str(number) in locked or not (row or owners):
                    return
                level = [*catalogue.SUPPLY_LEVELS, None][draw // 9 % 6]
                changed = None if row and draw % 5 == 0 else factory(
                    level, pipeline_id=row.pipeline_id if row else owners[draw % len(owners)]
                )  # fmt: skip
                self.say(transaction, FactoryChange(operation(row, changed), str(number), row, changed), draw)

    def write_pipeline(self, transaction: _Transaction, rows: LiveRows, locked: set[str], draw: int) -> None:
        """Begin a pipeline, or move one on; a finished one does not begin again."""
        mine = sorted(rows.pipelines.keys() - locked)
        if not mine or draw % 3 == 0:
            new = pipeline(["PLANNING", "EXECUTING"][draw % 2])
            self.say(transaction, PipelineChange("I", f"p{self.last_id}", None, new), draw)
            return
        key = mine[draw % len(mine)]
        old = rows.pipelines[key]
        after = {"PLANNING": "EXECUTING", "EXECUTING": ["COMPLETED", "PLANNING"][draw % 2]}.get(old.status)
        children = [n for n, row in rows.factories.items() if row.pipeline_id == key]
        if after is not None:
            self.say(transaction, PipelineChange("U", key, old, pipeline(after)), draw)
        elif not locked:
            self.say(transaction, PipelineChange("D", key, old, None), draw)
            for number in children:
                self.say(transaction, FactoryChange("D", str(number), rows.factories[number], None), draw)

    def truncate(self, writer: int, draw: int) -> None:
        """Empty tables; no other transaction may have touched them."""
        if any(found.events for other, found in self.open.items() if other != writer):
            return
        transaction = self.transaction(writer)
        if draw % 2:
            self.say(transaction, TaskChange("T", "", None, None), draw)
        else:
            self.say(transaction, PipelineChange("T", "", None, None), draw)
            self.say(transaction, FactoryChange("T", "", None, None), draw)

    def commit(self, writer: int, draw: int) -> None:
        transaction = self.open.pop(writer, None)
        if transaction is None:
            return
        self.history.append(transaction)
        for one, announced, lost in zip(transaction.events, transaction.announced, transaction.lost, strict=True):
            if not lost:
                self.journal[one.id] = one
                if announced:
                    self.queue.append((one, draw % 5 == 0))

    def roll_back(self, writer: int) -> None:
        self.open.pop(writer, None)

    # The exporter.

    @property
    def live(self) -> LiveState:
        return self.ledger._live

    def deliver(self) -> None:
        if not self.queue:
            return
        match self.queue.popleft():
            case int() as barrier:
                self.ledger.receive_barrier(barrier)
                self.finish()
            case one, twice:
                for _ in range(1 + twice):
                    self.ledger.announce(one)
                self.known.add(one.id)

    def record(self) -> None:
        if not self.ledger.reconciling:
            self.ledger.begin_reconciliation()
            self.recording = True

    def look(self) -> None:
        """Take a snapshot, some time after the recording began."""
        if not self.recording:
            self.record()
        elif not self.ledger.reconciling:
            self.seen = frozenset(found.xid for found in self.history)
            running = frozenset(found.xid for found in self.open.values())
            self.ledger.reconcile(Snapshot(live(self.rows(self.committed())), Visibility(self.last_xid + 1, running)))

    def fold(self, chunk: int) -> None:
        self.generation += 1
        number = self.ledger.begin_fold()
        events = [self.journal.pop(event) for event in sorted(self.journal)[:chunk]]
        drained = len(events) < chunk
        reply = Fold(number, self.generation, events, settle(events), 0, drained, xid=0, xmin=0, last_id=self.last_id)
        if self.ledger.settle(reply).needs_totals:
            self.ledger.resync(Totals(self.generation, CappedTotals(), RecentActivity()))
        self.known |= {one.id for one in events}
        self.queue.append(number)
        self.finish()

    def finish(self) -> None:
        corrections = self.ledger.finish_reconciliation()
        if corrections is None:
            return
        self.recording = False
        self.known |= {one.id for found in self.history if found.xid in self.seen for one in found.events}
        self.corrections += corrections
        self.reconciles += 1

    def act(self, action: Action) -> None:
        what, who, draw = action
        match what:
            case "write":
                self.write(who, draw)
            case "commit":
                self.commit(who, draw)
            case "roll back":
                self.roll_back(who)
            case "truncate":
                self.truncate(who, draw)
            case "deliver":
                self.deliver()
            case "deliver all":
                self.deliver_all()
            case "fold":
                self.fold(1 + draw % 9)
            case "record":
                self.record()
            case "look":
                self.look()

    def deliver_all(self) -> None:
        while self.queue:
            self.deliver()

    def settle(self) -> None:
        """Let every transaction commit, every notification come, and reconcile once more."""
        for writer in list(self.open):
            self.commit(writer, 1)
        for _ in range(2):
            self.record()
            self.look()
            self.fold(1000)
            self.deliver_all()


def operation(old: Image | None, new: Image | None) -> Operation:
    return "I" if old is None else "D" if new is None else "U"


@settings(max_examples=80, deadline=None)
@given(ACTIONS)
def test_live_rows_are_what_was_announced_or_folded(actions: list[Action]) -> None:
    game = _Game()
    for action in actions:
        game.act(action)
        heard = game.rows(one for one in game.committed() if one.id in game.known)
        assert rows_of(game.live) == live(heard)
        assert game.live.gauges() == compute_gauges(heard)
    note("reconciled" if game.reconciles else "never reconciled")
    game.settle()
    assert rows_of(game.live) == live(game.rows(game.committed()))
    assert game.reconciles
    assert game.corrections == Counter()


@settings(max_examples=60, deadline=None)
@given(ACTIONS)
def test_dropped_events_are_corrected(actions: list[Action]) -> None:
    game = _Game()
    game.settle()
    game.dropped = True
    for action in actions:
        game.act(action)
    game.settle()
    assert rows_of(game.live) == live(game.rows(game.committed()))
    if any(any(found.lost) for found in game.history):
        note("dropped, and " + ("corrected" if game.corrections else "of no matter"))
    else:
        assert game.corrections == Counter()


# ------------------------------------------------------------------------------------------------- activity --


def test_a_memory_takes_the_last_of_each() -> None:
    activity = RecentActivity()
    done = event(pipeline(), pipeline("COMPLETED", total_revenue=9, total_cost=2, completed_at=NOW), number=1, key="p")
    start = event(task("READY"), task("EXECUTING", assigned_ship="S", started_at=NOW - 5), number=2, at=NOW + 3)
    activity.add(settle([done, start]))
    expected = RecentActivity(
        {"p": Completion("p", 1, NOW, 7)},
        {("player", 1, ""): NOW + 3, ("ship", 1, "S"): NOW + 3, ("task_type", 1, "COLLECT_SELL"): NOW - 5},
    )
    assert activity == expected
    activity.add(settle([done, start]))
    assert activity == expected
    activity.add(settle([event(None, task("READY", assigned_ship="S"), number=3, at=NOW - 9)]))
    assert activity == expected
    undone = event(pipeline("COMPLETED"), pipeline("PLANNING"), number=4, key="p")
    activity.add(settle([undone]))
    assert activity.recent == {}
    activity.add(settle([undone]))
    assert activity.recent == {}


def test_a_memory_forgets_what_no_gauge_asks_for() -> None:
    activity = earned((HOUR - 1, 5), (HOUR, 6), (-HOUR, 7))
    activity.latest = {
        ("ship", 1, "seen"): NOW - DAY * SECOND + 1,
        ("ship", 1, "gone"): NOW - DAY * SECOND,
        ("player", 1, ""): 0,
        ("task_type", 1, "SELL"): 0,
    }
    activity.prune(NOW)
    assert set(activity.recent) == {"0", "2"}
    assert set(activity.latest) == {("ship", 1, "seen"), ("player", 1, ""), ("task_type", 1, "SELL")}


def test_pruning_changes_no_gauge() -> None:
    activity = earned((HOUR - 1, 5), (HOUR, 6))
    activity.latest = {("ship", 1, "A"): NOW - DAY * SECOND, ("ship", 1, "B"): NOW, ("task_type", 1, "SELL"): 0}
    before = gauges_of(tasks(A_READY), activity)
    activity.prune(NOW)
    assert gauges_of(tasks(A_READY), activity) == before


def test_a_copy_is_left_as_it_was() -> None:
    activity = earned((5, 5))
    copy = activity.copy()
    activity.add(settle([event(pipeline(), pipeline("COMPLETED", completed_at=NOW), key="0")]))
    activity.add(settle([event(None, task(assigned_ship="S"))]))
    activity.prune(NOW + 2 * HOUR)
    assert copy == earned((5, 5))
