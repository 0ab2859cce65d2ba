"""Which series a scrape shows: zeros before the first step, totals laid out by metric, and the margin."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.builders import NOW, SECOND, factory, gauge, pipeline, samples, task

from mfg_notify.core import catalogue
from mfg_notify.core.capped_totals import OTHER_MAXIMUM, SERIES_MAXIMUM, CappedTotals
from mfg_notify.core.live_state import HOUR, Labels, LiveRows, RecentActivity, compute_gauges
from mfg_notify.core.rules import SampleKey
from mfg_notify.core.series import RETURN_HOLD, Market, Players, Presentation, Series, View, lay_out, never_fall


def view_of(
    rows: LiveRows | None = None,
    totals: str = "",
    activity: RecentActivity | None = None,
    maximum: int = SERIES_MAXIMUM,
) -> View:
    return view_under(maximum, samples(totals), rows, activity)


def view_under(
    maximum: int,
    totals: Mapping[SampleKey, int],
    rows: LiveRows | None = None,
    activity: RecentActivity | None = None,
) -> View:
    """Return a view with the totals that have places under a cap, and the rest as `other`."""
    settled = CappedTotals(maximum, totals)
    gauges = compute_gauges(rows or LiveRows())
    return View(settled.copy(), gauges, activity or RecentActivity(), capped=settled.full)


def series_of(rows: LiveRows | None = None, totals: str = "", activity: RecentActivity | None = None) -> Series:
    return lay_out(view_of(rows, totals, activity), NOW)


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
    activity: RecentActivity = RecentActivity()


CASES = [
    Case("nothing", LiveRows(), "", ""),
    Case("a pipeline in PLANNING", LiveRows({"p": pipeline("PLANNING")}), "", PLAYER + PRODUCT, PRODUCT_HISTOGRAMS),
    Case("a pipeline in EXECUTING", LiveRows({"p": pipeline()}), "", PLAYER + PRODUCT, PRODUCT_HISTOGRAMS),
    Case(
        "a construction pipeline",
        LiveRows({"p": pipeline(site="I52", materials=(("IRON", 5, 9),))}),
        "",
        PLAYER + PRODUCT + "construction_units_total 1 IRON 0",
        PRODUCT_HISTOGRAMS,
    ),
    Case(
        "a task that counts its units",
        LiveRows(tasks={"t": task("PENDING", task_type="SELL")}, counts_units=True),
        "",
        PLAYER + TASK_TYPE + "task_units_total 1 SELL 0",
        TASK_TYPE_HISTOGRAMS,
    ),
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
    Case(
        "a ship that was seen", LiveRows(), "", PLAYER, "", RecentActivity(latest={("ship", 1, "A"): NOW - 23 * HOUR})
    ),
    Case(
        "a ship not seen for a day", LiveRows(), "", "", "", RecentActivity(latest={("ship", 1, "A"): NOW - 24 * HOUR})
    ),
    Case(
        "a ship seen, but not in the table",
        LiveRows(ships={}),
        "",
        "",
        "",
        RecentActivity(latest={("ship", 1, "A"): NOW}),
    ),
    Case(
        "a start of a task is no ship", LiveRows(), "", "", "", RecentActivity(latest={("task_type", 1, "SELL"): NOW})
    ),
    # From totals alone: the rows are gone, their series stay.
    Case(
        "a task type that counted no units",
        LiveRows(counts_units=True),
        "task_retry_total 1 SELL 3",
        PLAYER + TASK_TYPE + "task_units_total 1 SELL 0",
        TASK_TYPE_HISTOGRAMS,
    ),
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
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_zeros_and_totals(case: Case) -> None:
    series = series_of(case.rows, case.totals, case.activity)
    counted = {key: n for key, n in samples(case.totals).items() if key[0].endswith("_total")}
    observed = {key: n for key, n in samples(case.totals).items() if not key[0].endswith("_total")}
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
    ("rows", "totals", "activity"),
    [
        (LiveRows({"p": pipeline()}), "", RecentActivity()),
        (LiveRows(tasks={"t": task()}), "", RecentActivity()),
        (LiveRows(factories={1: factory()}), "", RecentActivity()),
        (LiveRows(ships={(1, "A"): False}), "", RecentActivity()),
        (LiveRows(), "", RecentActivity(latest={("ship", 1, "A"): NOW - SECOND})),
        (LiveRows(), "task_retry_total 1 SELL 3", RecentActivity()),
        (LiveRows(), "pipeline_profit_credits_sum 1 RIFLES -3", RecentActivity()),
    ],
    ids=["pipeline", "task", "factory", "ship", "ship seen", "counter", "histogram"],
)
def test_whoever_is_known_has_the_player_gauges(rows: LiveRows, totals: str, activity: RecentActivity) -> None:
    gauges = series_of(rows, totals, activity).gauges
    of_players = [metric for metric in catalogue.GAUGES if metric.labels == ("player_id",)]
    of_players.remove(catalogue.PLAYER_LAST_EVENT)  # only an event makes it
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
    view = View(
        totals, compute_gauges(LiveRows({"p": pipeline(player_id=2)}, ships={(3, "A"): True})), RecentActivity()
    )
    assert lay_out(view, NOW) == lay_out(view, NOW)
    assert view.totals == samples("revenue_total 1 5")
    assert view.gauges.samples["manufacturing_pipeline_queue_depth"] == {("2",): 1}


# ------------------------------------------------------------------------------------------------ the markets --


def markets_of(market: Market, maximum: int = SERIES_MAXIMUM) -> dict[Labels, float]:
    """Lay out the distributions of supply for player 1, known by a pipeline, and player 9, silent for two days."""
    activity = RecentActivity(latest={("player", 9, ""): NOW - 48 * HOUR})
    view = View({}, compute_gauges(LiveRows({"p": pipeline()})), activity, market)
    return lay_out(view, NOW, maximum).gauges[catalogue.MARKET_SUPPLY.name]


def test_markets_are_shown_of_every_player_who_is_not_silent() -> None:
    market: Market = {catalogue.MARKET_SUPPLY.name: {(player, "IRON", "HIGH"): 3.0 for player in ("1", "2", "9")}}
    assert markets_of(market) == {("1", "IRON", "HIGH"): 3, ("2", "IRON", "HIGH"): 3}


def test_markets_without_a_player_are_those_of_each() -> None:
    assert markets_of({catalogue.MARKET_SUPPLY.name: {("", "IRON", "HIGH"): 3.0}}) == {("1", "IRON", "HIGH"): 3}


def test_the_cap_drops_markets_first() -> None:
    market: Market = {catalogue.MARKET_SUPPLY.name: {("1", "IRON", str(n)): 1.0 for n in range(100)}}
    whole = number_of(lay_out(View({}, compute_gauges(LiveRows({"p": pipeline()})), RecentActivity()), NOW))
    assert len(markets_of(market, whole + 30)) == 30


# ---------------------------------------------------------------------------------------------------- the cap --

ORDER = """
    revenue_total 1 1
    task_retry_total 1 SELL 2
    task_wait_seconds_bucket 1 SELL 5 3
    task_wait_seconds_sum 1 SELL 12
    task_retry_total 1 BUY 4
    task_retry_total 1 HAUL 8
    task_wait_seconds_bucket 1 BUY 5 16
    task_wait_seconds_bucket 1 BUY +Inf 32
    task_wait_seconds_sum 1 BUY 64
    revenue_total 2 128
    revenue_total 3 256
"""
"""Label sets in order of arrival; a histogram of waiting times is 13 series: ten buckets, +Inf, sum and count."""


def capped(totals: str, maximum: int, rows: LiveRows | None = None, activity: RecentActivity | None = None) -> Series:
    return lay_out(view_of(rows, totals, activity, maximum), NOW, maximum)


def counted(series: Series) -> dict[SampleKey, int]:
    """Return what is not at 0, and every sum."""
    return {key: n for key, n in (counters_of(series) | histograms_of(series)).items() if n}


def number_of(series: Series) -> int:
    """Return how many series Prometheus would see, and compare that with what the series say themselves."""
    weights = {metric.name: len(metric.buckets) + 3 for metric in catalogue.HISTOGRAMS}
    counted_here = (
        sum(map(len, series.counters.values()))
        + sum(weights[name] * len(found) for name, found in series.histograms.items())
        + sum(map(len, series.gauges.values()))
    )
    assert series.number == counted_here
    return counted_here


@pytest.mark.parametrize(
    ("maximum", "expected"),
    [
        (18, ORDER),
        (
            17,
            """revenue_total 1 1
               task_retry_total 1 SELL 2
               task_wait_seconds_bucket 1 SELL 5 3
               task_wait_seconds_sum 1 SELL 12
               task_retry_total 1 BUY 4
               task_retry_total 1 HAUL 8
               task_wait_seconds_bucket 1 other 5 16
               task_wait_seconds_bucket 1 other +Inf 32
               task_wait_seconds_sum 1 other 64
               revenue_total other 384""",
        ),
        (
            14,
            """revenue_total 1 1
               task_retry_total 1 SELL 2
               task_wait_seconds_bucket 1 other 5 19
               task_wait_seconds_bucket 1 other +Inf 32
               task_wait_seconds_sum 1 other 76
               task_retry_total 1 other 12
               revenue_total other 384""",
        ),
        (
            0,
            """revenue_total other 385
               task_retry_total 1 other 14
               task_wait_seconds_bucket 1 other 5 19
               task_wait_seconds_bucket 1 other +Inf 32
               task_wait_seconds_sum 1 other 76""",
        ),
    ],
    ids=["first histogram", "second histogram", "no histogram", "nothing"],
)
def test_totals_past_the_cap_are_other(maximum: int, expected: str) -> None:
    if maximum == 18:
        maximum = 1 + 1 + 13 + 1 + 1 + 13 + 1 + 1
    assert counted(capped(ORDER, maximum)) == samples(expected)


def test_labels_past_the_cap_keep_the_player() -> None:
    series = capped("supply_transitions_total 7 IRON HIGH SCARCE 3 \n factory_cycles_total 8 X1-F IRON 2", 0)
    expected = "supply_transitions_total 7 other other other 3 \n factory_cycles_total 8 other other 2"
    assert counted(series) == samples(expected)


LABELS = {"1": ("SELL", "BUY"), "2": ("SELL", "HAUL")}
KEYS: list[SampleKey] = [("manufacturing_revenue_total", (player,)) for player in LABELS]
KEYS += [("manufacturing_task_retry_total", (player, kind)) for player, kinds in LABELS.items() for kind in kinds]
KEYS += [
    (f"manufacturing_task_wait_seconds_{part}", (player, kind, *le))
    for player, kinds in LABELS.items()
    for kind in kinds
    for part, le in (("bucket", ("5",)), ("bucket", ("+Inf",)), ("sum", ()))
]
TOTALS = st.permutations(KEYS).flatmap(
    lambda keys: st.lists(st.integers(1, 9), max_size=len(keys)).map(lambda ns: dict(zip(keys, ns, strict=False)))
)
SOME_ROWS = st.sampled_from(
    [LiveRows(), LiveRows({"p": pipeline()}, {"t": task("READY")}, {1: factory("HIGH")}, {(3, "S"): True})]
)


def sums(found: dict[SampleKey, int]) -> dict[tuple[str, str], int]:
    """Sum over all label sets, by name and, for buckets, by `le`."""
    result: dict[tuple[str, str], int] = {}
    for (name, labels), n in found.items():
        place = (name, labels[-1] if name.endswith("_bucket") else "")
        result[place] = result.get(place, 0) + n
    return {place: n for place, n in result.items() if n}


@given(TOTALS, st.integers(0, 120), SOME_ROWS)
def test_under_any_cap(totals: dict[SampleKey, int], maximum: int, rows: LiveRows) -> None:
    series = lay_out(view_under(maximum, totals, rows), NOW, maximum)
    whole = lay_out(view_under(SERIES_MAXIMUM, totals, rows), NOW)
    assert sums(counters_of(series) | histograms_of(series)) == sums(totals)
    weights = {metric.name: len(metric.buckets) + 3 for metric in catalogue.HISTOGRAMS}
    other = sum("other" in labels for name in series.counters for labels in series.counters[name])
    other += sum(weights[name] for name in series.histograms for labels in series.histograms[name] if "other" in labels)
    # `other` is also a cost_type.
    assert number_of(series) <= maximum + other
    if number_of(whole) <= maximum:
        assert series == whole
        assert series.dropped == 0


@given(TOTALS, st.integers(0, 60), st.integers(0, 60))
def test_places_are_the_same_after_a_restart(totals: dict[SampleKey, int], maximum: int, read: int) -> None:
    steps = list(totals.items())
    running = CappedTotals(maximum, dict(steps[:read]))
    for key, n in steps[read:]:
        running.add(key, n)
    restarted = CappedTotals(maximum, totals)
    assert (running.copy(), running.full) == (restarted.copy(), restarted.full)


@given(TOTALS, st.integers(0, 60), st.integers(0, 60))
def test_what_is_announced_is_shown_where_a_fold_will_settle_it(
    totals: dict[SampleKey, int], maximum: int, first: int
) -> None:
    settled = CappedTotals(maximum, dict(list(totals.items())[:first]))
    announced = {key: settled.place(key) for key in totals if settled.announce([key])}
    for key in reversed(announced):  # in whatever order the fold finds them
        settled.add(key, 1)
    assert announced == {key: settled.place(key) for key in announced}
    assert len(announced) == len(totals) or not settled.announce(totals)


@given(TOTALS, st.integers(0, 60), st.integers(0, 60))
def test_a_label_set_keeps_its_place_as_others_come(totals: dict[SampleKey, int], maximum: int, first: int) -> None:
    before = lay_out(view_under(maximum, dict(list(totals.items())[:first])), NOW, maximum)
    after = lay_out(view_under(maximum, totals), NOW, maximum)
    assert {key for key, n in counters_of(before).items() if n} <= counters_of(after).keys()
    never_fall(before, after)
    assert sums(counters_of(after) | histograms_of(after)) == sums(totals)


def test_memory_is_bounded_whatever_the_database_holds() -> None:
    totals = CappedTotals(100)
    for number in range(10_000):
        totals.add(("manufacturing_task_retry_total", (str(number % 7_000), f"TYPE_{number}")), 1)
    held = totals.copy()
    assert len(held) <= 100 + OTHER_MAXIMUM + 1
    assert sum(held.values()) == 10_000
    assert held["manufacturing_task_retry_total", ("other", "other")] > 0


def test_zeros_come_before_gauges_and_both_are_dropped() -> None:
    rows = LiveRows({"p": pipeline()})
    whole = series_of(rows)
    zeros = 6 + 5 + 11 + 9
    gauges = sum(map(len, whole.gauges.values()))
    assert number_of(whole) == zeros + gauges
    for maximum in range(zeros + gauges + 2):
        series = capped("", maximum, rows)
        assert number_of(series) <= maximum
        assert number_of(series) + series.dropped == zeros + gauges
        assert not any(series.gauges.values()) or number_of(series) > zeros


def test_what_is_summed_under_other_is_not_dropped() -> None:
    totals = "revenue_total 1 5 \n revenue_total 2 7"
    zeros_and_gauges = number_of(series_of(None, "revenue_total 1 5")) - 1
    assert capped(totals, 1).dropped == zeros_and_gauges


# ------------------------------------------------------------------------------------------- silent players --

DAY = 24 * HOUR
LAST_WORD = {("player", 1, ""): NOW - DAY - 1, ("player", 2, ""): NOW - DAY}
TWO_PLAYERS = """
    revenue_total 1 5
    task_wait_seconds_bucket 1 SELL 5 3
    task_wait_seconds_sum 1 SELL 12
    revenue_total 2 7
"""


def players_of(series: Series) -> set[str]:
    tables: list[Iterable[Labels]] = [*series.counters.values(), *series.histograms.values(), *series.gauges.values()]
    return {labels[0] for table in tables for labels in table}


def presented(rows: LiveRows | None, totals: str, latest: dict[tuple[str, int, str], int]) -> Series:
    """Return what the first scrape shows."""
    return Presentation().present(view_of(rows, totals, RecentActivity(latest=latest)), NOW)


def test_a_player_is_silent_after_a_day() -> None:
    series = presented(None, TWO_PLAYERS, LAST_WORD)
    assert players_of(series) == {"2"}
    assert series.silent == {"1"}
    assert counted(series) == samples("revenue_total 2 7")


@pytest.mark.parametrize(
    ("rows", "latest"),
    [
        (LiveRows({"p": pipeline()}), {}),
        (LiveRows(tasks={"t": task()}), {}),
        (LiveRows(factories={1: factory()}), {}),
        (LiveRows(), {("player", 1, ""): NOW - DAY}),
    ],
    ids=["live pipeline", "live task", "live factory", "event"],
)
def test_a_live_row_or_an_event_brings_a_player_back(rows: LiveRows, latest: dict[tuple[str, int, str], int]) -> None:
    series = presented(rows, TWO_PLAYERS, LAST_WORD | latest)
    assert (players_of(series), series.silent) == ({"1", "2"}, frozenset())
    assert counted(series) == samples(TWO_PLAYERS)


def test_finished_rows_and_old_ships_bring_no_player_back() -> None:
    rows = LiveRows(
        {"p": pipeline("FAILED")}, {"t": task("COMPLETED")}, {1: factory(pipeline_id="p")}, {(1, "S"): True}
    )
    assert players_of(presented(rows, TWO_PLAYERS, LAST_WORD)) == {"2"}


def test_a_player_of_whom_nothing_is_remembered_is_shown() -> None:
    assert players_of(presented(None, TWO_PLAYERS, {})) == {"1", "2"}


@pytest.mark.parametrize(
    ("last_event", "hidden"),
    [(None, True), (NOW - 9, True), (NOW - 8, True), (NOW - 7, False)],
    ids=["nothing was heard", "an event before", "an event at that moment", "an event since"],
)
def test_a_player_is_hidden_between_eras(last_event: int | None, hidden: bool) -> None:
    rows = LiveRows(
        {"p": pipeline(site="I52", materials=(("IRON", 5, 9),))},
        {"t": task("READY", ready_at=NOW - 5, units=0)},
        {1: factory("HIGH", pipeline_id="p")},
        {(1, "S"): True},
    )
    latest = {} if last_event is None else {("player", 1, ""): last_event}
    players = Players({1: "A", 2: "B"}, closed_at={1: NOW - 8})
    view = replace(view_of(rows, TWO_PLAYERS, RecentActivity(latest=latest)), players=players)
    series = Presentation().present(view, NOW)
    assert players_of(series) == ({"2"} if hidden else {"1", "2"})
    assert series.silent == ({"1"} if hidden else frozenset())
    agents = {("1", "A"): 1, ("2", "B"): 1}
    assert series.gauges["player_info"] == {labels: 1 for labels in agents if labels[0] in players_of(series)}


def test_the_last_event_is_shown_of_players_that_are_shown() -> None:
    latest = {("player", 1, ""): NOW - DAY - 1, ("player", 2, ""): NOW - 1_500_000, ("ship", 2, "S"): NOW}
    shown = lay_out(view_of(None, TWO_PLAYERS, RecentActivity(latest=latest)), NOW)
    assert shown.gauges["player_last_event_timestamp_seconds"] == {("2",): NOW / SECOND - 1.5}


def test_live_rows_of_a_closed_era_do_not_show_a_player_for_ever() -> None:
    players = Players(closed_at={1: NOW - 2 * DAY})

    def scrape(now: int) -> Series:
        activity = RecentActivity(latest={("player", 1, ""): NOW - DAY})
        return lay_out(replace(view_of(LiveRows({"p": pipeline()}), "", activity), players=players), now)

    assert scrape(NOW).silent == frozenset()
    assert scrape(NOW + 1).silent == {"1"}


def test_the_agent_is_shown_of_players_that_are_shown() -> None:
    view = replace(view_of(None, TWO_PLAYERS), players=Players({1: "A", 3: "C"}))
    assert lay_out(view, NOW).gauges["player_info"] == {("1", "A"): 1}


def test_a_player_comes_back_where_it_was_and_then_rises() -> None:
    page = Presentation()

    def scrape(after: int, totals: str, *, silent: bool = False) -> dict[SampleKey, int]:
        latest = LAST_WORD if silent else {("player", 1, ""): NOW + after}
        series = page.present(view_of(None, totals, RecentActivity(latest=latest)), NOW + after)
        shown = {key: n for key, n in (counters_of(series) | histograms_of(series)).items() if key[1][0] == "1"}
        return {key: n for key, n in shown.items() if key in samples(RISEN)}

    assert scrape(0, TWO_PLAYERS, silent=True) == {}
    before = samples(RISEN_FROM)
    assert scrape(1, RISEN) == before
    assert scrape(RETURN_HOLD, RISEN) == before
    assert scrape(RETURN_HOLD + 1, RISEN) == samples(RISEN)
    # Once more; then the database's clock is set back, and nothing stands still for longer.
    assert scrape(DAY, RISEN, silent=True) == {}
    assert scrape(2 * DAY, MORE) == samples(RISEN)
    assert scrape(DAY, MORE) == samples(MORE)


RISEN_FROM = """
    revenue_total 1 5
    cost_total 1 acquire 0
    task_wait_seconds_bucket 1 SELL 5 3
    task_wait_seconds_sum 1 SELL 12
    task_wait_seconds_sum 1 BUY 0
"""
RISEN = """
    revenue_total 1 8
    cost_total 1 acquire 4
    task_wait_seconds_bucket 1 SELL 5 4
    task_wait_seconds_sum 1 SELL 16
    task_wait_seconds_sum 1 BUY 3
"""
MORE = RISEN.replace("revenue_total 1 8", "revenue_total 1 9")


def test_a_silent_player_does_not_fall_when_it_comes_back() -> None:
    # An unconfirmed event was shown as 9, then its player fell silent, and the truth is 5.
    page, back = Presentation(), RecentActivity()
    page.present(view_of(None, TWO_PLAYERS.replace("revenue_total 1 5", "revenue_total 1 9"), back), NOW)
    page.present(view_of(None, TWO_PLAYERS, RecentActivity(latest=LAST_WORD)), NOW)
    for later in (NOW, NOW + RETURN_HOLD):
        assert page.present(view_of(None, TWO_PLAYERS, back), later).counters[catalogue.REVENUE.name]["1",] == 9


@pytest.mark.parametrize("maximum", [1, 2, 15], ids=str)
def test_sums_stay_exact_when_a_capped_player_goes_and_comes(maximum: int) -> None:
    totals = "task_retry_total 1 SELL 5 \n task_retry_total 2 SELL 7 \n task_retry_total 2 BUY 9"
    page = Presentation(maximum)
    for latest in ({}, LAST_WORD, {}):
        series = page.present(view_of(None, totals, RecentActivity(latest=latest), maximum), NOW)
        of_two = sum(n for labels, n in series.counters["manufacturing_task_retry_total"].items() if labels[0] == "2")
        assert of_two == 16


# ---------------------------------------------------------------------------------------------- never fall --


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ("revenue_total 1 5", "revenue_total 1 4", "revenue_total 1 5"),
        ("revenue_total 1 5", "revenue_total 1 6", "revenue_total 1 6"),
        ("revenue_total 1 5", "", "revenue_total 1 5"),
        ("revenue_total 1 5", "revenue_total 2 4", "revenue_total 1 5 \n revenue_total 2 4"),
        (
            "task_wait_seconds_bucket 1 SELL 5 3 \n task_wait_seconds_sum 1 SELL 12",
            "task_wait_seconds_bucket 1 SELL 60 2 \n task_wait_seconds_sum 1 SELL 90",
            "task_wait_seconds_bucket 1 SELL 5 3 \n task_wait_seconds_sum 1 SELL 12",
        ),
        (
            "task_wait_seconds_bucket 1 SELL 5 3 \n task_wait_seconds_sum 1 SELL 12",
            "",
            "task_wait_seconds_bucket 1 SELL 5 3 \n task_wait_seconds_sum 1 SELL 12",
        ),
        (
            "pipeline_profit_credits_bucket 1 RIFLES 5000 1 \n pipeline_profit_credits_sum 1 RIFLES 4000",
            """pipeline_profit_credits_bucket 1 RIFLES 1000 1
               pipeline_profit_credits_bucket 1 RIFLES 5000 1
               pipeline_profit_credits_sum 1 RIFLES -2000""",
            """pipeline_profit_credits_bucket 1 RIFLES 1000 1
               pipeline_profit_credits_bucket 1 RIFLES 5000 1
               pipeline_profit_credits_sum 1 RIFLES -2000""",
        ),
    ],
    ids=["falls", "rises", "is gone", "two labels", "histogram falls", "histogram is gone", "a loss"],
)
def test_never_fall(before: str, now: str, expected: str) -> None:
    series = series_of(None, now)
    never_fall(series_of(None, before), series)
    assert counted(series) == samples(expected)


@pytest.mark.parametrize("forged", ["revenue_total {} 5", "task_wait_seconds_bucket {} SELL 5 3"])
def test_series_that_are_no_more_are_kept_while_there_is_room(forged: str) -> None:
    real = "task_retry_total 1 SELL 5"
    room = number_of(series_of(None, real)) + 40
    shown = capped(real, room)
    for player in range(2, 30):
        shown, before = capped(f"{real} \n {forged.format(player)}", room), shown
        never_fall(before, shown, room)
        assert number_of(shown) <= room
    after = capped(real, room)
    gone = never_fall(shown, after, room)
    assert counted(after)["manufacturing_task_retry_total", ("1", "SELL")] == 5
    assert number_of(after) + gone <= number_of(after) + number_of(shown)
    assert number_of(after) <= room


def test_gauges_may_fall() -> None:
    series = series_of(LiveRows({"p": pipeline()}))
    expected = series_of(LiveRows({"p": pipeline()})).gauges
    never_fall(series_of(LiveRows({"p": pipeline(), "q": pipeline()})), series)
    assert series.gauges == expected


def test_what_was_shown_is_left_as_it_was() -> None:
    before, series = series_of(None, TWO_PLAYERS), series_of()
    never_fall(before, series)
    assert before == series_of(None, TWO_PLAYERS)


def test_views_of_another_epoch_start_again() -> None:
    page = Presentation()
    page.present(view_of(None, "revenue_total 1 9"), NOW)
    later = replace(view_of(None, "revenue_total 1 5"), epoch=1)
    assert page.present(later, NOW).counters[catalogue.REVENUE.name] == {("1",): 5}
    assert page.present(view_of(None, "revenue_total 1 4"), NOW).counters[catalogue.REVENUE.name] == {("1",): 4}


def test_what_another_exporter_may_have_shown_is_a_floor() -> None:
    page = Presentation()
    floor = samples("""
        revenue_total 1 50
        task_duration_seconds_bucket 1 SELL 30 2
        task_duration_seconds_sum 1 SELL 40
    """)
    lower = replace(view_of(None, "revenue_total 1 20"), floor=floor)
    held = page.present(lower, NOW)
    assert held.counters[catalogue.REVENUE.name] == {("1",): 50}
    assert histograms_of(held)["manufacturing_task_duration_seconds_bucket", ("1", "SELL", "30")] == 2
    higher = replace(view_of(None, "revenue_total 1 60"), floor=floor)
    assert page.present(higher, NOW).counters[catalogue.REVENUE.name] == {("1",): 60}
    # What was shown stays, whatever another exporter may have shown.
    again = replace(lower, floor=samples("revenue_total 1 30"))
    assert page.present(again, NOW).counters[catalogue.REVENUE.name] == {("1",): 60}
    anew = replace(lower, epoch=1, floor=None)
    assert page.present(anew, NOW).counters[catalogue.REVENUE.name] == {("1",): 20}


def test_a_floor_brings_back_no_player_who_is_silent() -> None:
    page = Presentation()
    long_ago = RecentActivity(latest={("player", 1, ""): NOW - 25 * HOUR})
    silent = replace(view_of(None, "revenue_total 1 20", long_ago), floor=samples("revenue_total 1 50"))
    for _ in range(2):
        assert not page.present(silent, NOW).counters["manufacturing_revenue_total"]
