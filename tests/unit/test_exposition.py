"""The page of metrics: a whole one against a golden file, and both formats read back by prometheus_client's parsers.

`pytest --update-golden` rewrites the golden file.
"""

import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text
from tests.unit.builders import NOW, SECOND, factory, pipeline, samples, task

from mfg_notify.core import catalogue
from mfg_notify.core.catalogue import Kind, Metric
from mfg_notify.core.exemplars import Exemplars
from mfg_notify.core.live_state import LiveRows, RecentActivity, compute_gauges
from mfg_notify.core.rules import Completion, SampleKey
from mfg_notify.core.series import Players, View
from mfg_notify.exposition import OPENMETRICS, TEXT, Page, Telemetry, choose_format

GOLDEN = Path(__file__).parent / "golden" / "exposition.txt"
READERS: dict[str, Callable[[str], Iterable[Family]]] = {TEXT: read_text, OPENMETRICS: read_openmetrics}
BOTH = pytest.mark.parametrize("form", [TEXT, OPENMETRICS], ids=["text", "openmetrics"])

NEW_LINE, QUOTE, BACKSLASH = "two\nlines", 'a "quoted" word', "back\\slash\\n"
RIGHT_TO_LEFT, LONG = "\u202eדגל\u202c", "\U0001f680" * 128
HOSTILE = (NEW_LINE, QUOTE, BACKSLASH, RIGHT_TO_LEFT, LONG)

Sample = tuple[str, frozenset[tuple[str, str]]]


def page(view: View | None, form: str = TEXT) -> str:
    families = Page(lambda: view, lambda: NOW).render_game(form).decode()
    return families + "# EOF\n" if form == OPENMETRICS else families


def read(view: View | None, form: str) -> dict[Sample, float]:
    """Return every sample of the page, without the prefix of the names."""
    return {
        (sample.name.removeprefix("spacetraders_daemon_manufacturing_"), frozenset(sample.labels.items())): sample.value
        for family in READERS[form](page(view, form))
        for sample in family.samples
    }


def sample(name: str, **labels: str) -> Sample:
    return name, frozenset(labels.items())


IDLE = View(
    {},
    compute_gauges(
        LiveRows(
            pipelines={"p": pipeline("PLANNING")},
            tasks={"t": task()},
            factories={1: factory(pipeline_id="p")},
            ships={(1, "S-1"): True},
        )
    ),
    RecentActivity(),
    {"market_supply_distribution": {("1", "IRON", "HIGH"): 2}, "market_activity_distribution": {}},
)
BUSY = View(
    samples("""
        pipeline_completed_total 1 RIFLES COMPLETED 3
        pipeline_completed_total 1 RIFLES FAILED 1
        pipeline_duration_seconds_bucket 1 RIFLES 60 1
        pipeline_duration_seconds_bucket 1 RIFLES 900 2
        pipeline_duration_seconds_bucket 1 RIFLES +Inf 1
        pipeline_duration_seconds_sum 1 RIFLES 5_400_000_001
        pipeline_profit_credits_bucket 1 RIFLES 1000 1
        pipeline_profit_credits_bucket 1 RIFLES 500000 3
        pipeline_profit_credits_sum 1 RIFLES 640_000
        pipeline_revenue_credits_total 1 RIFLES 800_000
        pipeline_cost_credits_total 1 RIFLES 160_000
        tasks_completed_total 1 SELL success 9
        task_duration_seconds_bucket 1 SELL 30 9
        task_duration_seconds_sum 1 SELL 180_500_000
        task_wait_seconds_bucket 1 SELL 1 9
        task_wait_seconds_sum 1 SELL 1
        task_assignments_total 1 SELL 9
        cost_total 1 acquire 9_007_199_254_740_991
        revenue_total 2 7
        construction_units_total 1 FAB_MATS 120
        task_units_total 1 SELL 45
        supply_transitions_total 1 IRON SCARCE ABUNDANT 1
        factory_cycles_total 1 X1-F IRON 2
    """)
    | {
        ("manufacturing_task_retry_total", ("1", NEW_LINE)): 4,
        ("manufacturing_factory_cycles_total", ("1", QUOTE, BACKSLASH)): 5,
    },
    compute_gauges(
        LiveRows(
            pipelines={
                "p": pipeline(),
                "q": pipeline("PLANNING", product_good=RIGHT_TO_LEFT),
                "r": pipeline(product_good=LONG),
                "s": pipeline(site="X1-I52", materials=(("FAB_MATS", 120, 400), (QUOTE, 0, 2))),
            },
            tasks={
                "1": task("READY", ready_at=NOW - 90 * SECOND),
                "2": task("EXECUTING", task_type="SELL", assigned_ship="S-1"),
                "3": task(task_type=QUOTE),
            },
            factories={
                1: factory("SCARCE", pipeline_id="p", delivered=1, required=4),
                2: factory("HIGH", ready=True, pipeline_id="q", delivered=2, required=4),
                3: factory("MODERATE", factory_symbol=NEW_LINE, output_good=BACKSLASH),
            },
            ships={(1, "S-1"): False, (1, "S-2"): True, (1, "S-3"): True},
            counts_units=True,
        )
    ),
    RecentActivity(
        recent={"x": Completion("x", 1, NOW - 60 * SECOND, 640_000), "y": Completion("y", 1, NOW - 4000 * SECOND, 1)},
        latest={("task_type", 1, "COLLECT_SELL"): NOW - 12_500_000},
    ),
    players=Players({1: "TORWIND", 2: RIGHT_TO_LEFT, 3: "NOBODY"}),
)


def test_the_page_is_the_golden_one(request: pytest.FixtureRequest) -> None:
    found = page(BUSY).encode()
    if request.config.getoption("--update-golden", default=False):
        GOLDEN.write_bytes(found)
    assert found.decode() == GOLDEN.read_bytes().decode()


def test_a_page_is_the_same_for_the_same_state() -> None:
    backwards = replace(BUSY, totals=dict(reversed(list(BUSY.totals.items()))))
    assert page(BUSY) == page(backwards)


@BOTH
def test_the_page_reads_back(form: str) -> None:
    found = read(BUSY, form)
    task_type = {"player_id": "1", "task_type": "SELL"}
    product = {"player_id": "1", "product_good": "RIFLES"}
    expected = {
        sample("task_retry_total", player_id="1", task_type=NEW_LINE): 4,
        sample("factory_cycles_total", player_id="1", factory_symbol=QUOTE, output_good=BACKSLASH): 5,
        sample("pipeline_running_total", player_id="1", product_good=RIGHT_TO_LEFT): 0,
        sample("pipeline_running_total", player_id="1", product_good=LONG): 1,
        sample("tasks_pending_total", player_id="1", task_type=QUOTE): 1,
        sample("factory_supply_ordinal", player_id="1", factory_symbol=NEW_LINE, output_good=BACKSLASH): 3,
        sample("factory_supply_ordinal", player_id="1", factory_symbol="X1-F", output_good="IRON"): 4,
        sample("factory_inputs_delivered", player_id="1", factory_symbol="X1-F", output_good="IRON"): 0.5,
        sample("factory_ready_total", player_id="1"): 1,
        sample("factory_ready_total", player_id="2"): 0,
        sample("pipeline_queue_depth", player_id="1"): 4,
        sample("ships_assigned_total", player_id="1"): 1,
        sample("ships_idle_total", player_id="1"): 2,
        sample("ship_utilization_percent", player_id="1"): pytest.approx(100 / 3),
        sample("task_starvation_seconds", player_id="1", task_type="COLLECT_SELL"): 12.5,
        sample("profit_rate", player_id="1"): 640_000,
        sample("margin_percent", **product): 80,
        sample("cost_total", player_id="1", cost_type="acquire"): 2**53 - 1,
        sample("revenue_total", player_id="2"): 7,
        # Buckets are cumulative, bounds are printed as Prometheus clients do, durations are seconds.
        **{
            sample("pipeline_duration_seconds_bucket", **product, le=le): n
            for le, n in [("60.0", 1), ("120.0", 1), ("300.0", 1), ("600.0", 1), ("900.0", 3), ("1200.0", 3),
                          ("1800.0", 3), ("3600.0", 3), ("+Inf", 4)]
        },
        sample("pipeline_duration_seconds_count", **product): 4,
        sample("pipeline_duration_seconds_sum", **product): 5400.000001,
        **{
            sample("pipeline_profit_credits_bucket", **product, le=le): n
            for le, n in [("1000.0", 1), ("5000.0", 1), ("10000.0", 1), ("50000.0", 1), ("100000.0", 1),
                          ("500000.0", 4), ("+Inf", 4)]
        },
        sample("pipeline_profit_credits_sum", **product): 640_000,
        sample("task_duration_seconds_sum", **task_type): 180.5,
        sample("task_wait_seconds_sum", **task_type): 0.000001,
        sample("ship_task_duration_seconds_bucket", **task_type, le="+Inf"): 0,
        sample("ship_task_duration_seconds_count", **task_type): 0,
        sample("ship_task_duration_seconds_sum", **task_type): 0,
    }  # fmt: skip
    assert {key: found.get(key) for key in expected} == expected


@BOTH
@pytest.mark.parametrize("view", [IDLE, BUSY], ids=["idle", "busy"])
def test_both_forms_hold_the_same_samples(view: View, form: str) -> None:
    """No `_created` series, nothing that one format drops, no series twice."""
    text = page(view, form)
    assert len(read(view, form)) == sum(not line.startswith("#") for line in text.splitlines() if line)
    assert read(view, form) == read(view, TEXT)


@BOTH
@pytest.mark.parametrize("metric", catalogue.CATALOGUE, ids=lambda metric: metric.name)
def test_every_name_has_help_and_type(metric: Metric, form: str) -> None:
    """A counter's name has no `_total` in the HELP and TYPE of OpenMetrics; the gauges that end in `_total` keep it."""
    suffix = "_total" if metric.kind is Kind.COUNTER and form == OPENMETRICS else ""
    name = metric.full_name.removesuffix(suffix)
    text = page(IDLE, form)
    assert re.findall(rf"^# TYPE {name} (.*)$", text, re.MULTILINE) == [metric.kind]
    assert re.findall(rf"^# HELP {name} (.*)$", text, re.MULTILINE) == [metric.help]


@BOTH
def test_an_idle_game_shows_every_specified_metric(form: str) -> None:
    """One pipeline, one task, one factory row, one ship; only the margin waits for revenue."""
    names = {re.sub("_(bucket|sum|count)$", "", name) for name, _ in read(IDLE, form)}
    specified = {metric.name.removeprefix("manufacturing_") for metric in catalogue.SPECIFIED}
    assert len(specified) == 24
    assert specified - names == {"margin_percent"}
    assert "# TYPE spacetraders_daemon_manufacturing_margin_percent gauge\n" in page(IDLE, form)


def test_a_loss_shows_as_a_negative_sum() -> None:
    loss = samples("pipeline_profit_credits_bucket 1 RIFLES 1000 1 \n pipeline_profit_credits_sum 1 RIFLES -700")
    found = read(View(loss, compute_gauges(LiveRows()), RecentActivity()), TEXT)
    product = {"player_id": "1", "product_good": "RIFLES"}
    assert found[sample("pipeline_profit_credits_sum", **product)] == -700
    assert found[sample("pipeline_profit_credits_count", **product)] == 1


def test_without_a_reading_the_market_families_are_absent() -> None:
    assert 'market_supply_distribution{good_symbol="IRON",player_id="1",supply_level="HIGH"} 2.0' in page(IDLE)
    assert "market" not in page(BUSY)


def test_without_a_view_nothing_is_shown() -> None:
    assert page(None) == ""


PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;"
    "q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        (PROMETHEUS, OPENMETRICS),
        ("", TEXT),
        ("*/*", TEXT),
        ("text/html", TEXT),
        ("application/openmetrics-text", OPENMETRICS),
        ("Application/OpenMetrics-Text ; Version=1.0.0 ; Q=0.1", OPENMETRICS),
        ("application/openmetrics-text; version=0.0.1", TEXT),
        ("application/openmetrics-text; version=2.0.0", TEXT),
        ("application/openmetrics-text; q=0", TEXT),
        ("application/openmetrics-text; q=0.5, text/plain; q=0.51", TEXT),
        ("application/openmetrics-text; q=nan", TEXT),
        ("text/plain, " * 19 + "application/openmetrics-text", OPENMETRICS),
        ("text/plain, " * 20 + "application/openmetrics-text", TEXT),
    ],
)
def test_accept_chooses_the_format(accept: str, form: str) -> None:
    assert choose_format(accept) == form


@given(st.text(st.characters(codec="latin-1"), max_size=200))
@example("application/openmetrics-text;version=x")
@example("application/openmetrics-text;q=1_0")
@example("application/openmetrics-text;q=²")
def test_any_accept_header_chooses_one_of_the_two(accept: str) -> None:
    assert choose_format(accept) in (TEXT, OPENMETRICS)


def test_what_clients_accept_leaves_nothing_behind() -> None:
    shown = Page(lambda: BUSY, lambda: NOW)
    for n in range(30):
        shown.render(f"application/openmetrics-text; version=1.0.{n}; escaping={n}")
        shown.render(f"application/openmetrics-text; version={n}.0.0; charset={n}, text/plain; version={n}")
    assert len(shown._rendered) <= 2 * len(catalogue.CATALOGUE)


def test_one_moment_in_both_formats() -> None:
    """What is rendered later is what was read in `begin`, in whatever thread, and laid out once."""
    views = [BUSY, IDLE]
    rendering = Page(lambda: views.pop(0), lambda: NOW).begin()
    with ThreadPoolExecutor(1) as thread:
        pages = {form: thread.submit(rendering, form).result().decode() for form in (TEXT, OPENMETRICS)}
    assert len(views) == 1
    for form, text in pages.items():
        assert text.startswith(page(BUSY, form).removesuffix("# EOF\n"))


def test_the_number_of_series_is_told() -> None:
    views = [BUSY, BUSY, None]
    shown = Page(lambda: views.pop(0), lambda: NOW)
    for expected in (len(read(BUSY, TEXT)),) * 2 + (0,):
        text = shown.render()[0].decode()
        [number] = [s.value for f in READERS[TEXT](text) for s in f.samples if s.name == "mfg_notify_series"]
        assert number == expected


def test_families_that_change_are_rendered_again() -> None:
    views = [BUSY, View({**BUSY.totals, ("manufacturing_revenue_total", ("1",)): 10**9}, BUSY.gauges, BUSY.activity)]
    shown = Page(lambda: views.pop(0), lambda: NOW)
    first, second = shown.render_game(), shown.render_game()
    risen = b'revenue_total{player_id="1"} 1e+09'
    assert risen not in first
    assert risen in second


def test_the_exporters_table_is_what_it_registers() -> None:
    registry = CollectorRegistry()
    Telemetry(registry).lost_changes = 3
    families = {family.name: family for family in registry.collect()}
    declared = {metric.name: metric for metric in catalogue.EXPORTER_METRICS}
    assert families.keys() == {"mfg_notify_" + name.removesuffix("_total") for name in declared}
    for name, metric in declared.items():
        family = families["mfg_notify_" + name.removesuffix("_total")]
        assert (family.type, family.documentation) == (metric.kind, metric.help)
    assert registry.get_sample_value("mfg_notify_lost_changes_total") == 3


def test_lost_statements_are_absent_until_the_database_was_asked() -> None:
    registry = CollectorRegistry()
    Telemetry(registry)
    assert registry.get_sample_value("mfg_notify_lost_changes_total") is None


LABELS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=128)


@settings(deadline=None)
@given(LABELS)
@example(NEW_LINE)
@example(QUOTE)
@example(BACKSLASH)
@example(RIGHT_TO_LEFT)
@example(LONG)
@example("\r\n")
@example("\u2028")
@example("")
@example('},x="1"} 2 # {')
def test_any_label_value_reads_back(value: str) -> None:
    view = View({("manufacturing_task_retry_total", ("1", value)): 4}, compute_gauges(LiveRows()), RecentActivity())
    for form in (TEXT, OPENMETRICS):
        assert read(view, form)[sample("task_retry_total", player_id="1", task_type=value)] == 4


# ------------------------------------------------------------------------------------------------- exemplars --

PROFIT_BUCKET = ("manufacturing_pipeline_profit_credits_bucket", ("1", "RIFLES", "500000"))


def with_exemplars(**keys: str) -> View:
    """Return the busy view with exemplars: the last pipeline of a profit, the last task of a duration."""
    known: Exemplars = {}
    if "pipeline" in keys:
        known[PROFIT_BUCKET] = (NOW - SECOND, keys["pipeline"], 213_000)
    if "task" in keys:
        known["manufacturing_task_duration_seconds_bucket", ("1", "SELL", "30")] = (NOW, keys["task"], 20_500_001)
    return replace(BUSY, exemplars=known)


def exemplars(view: View) -> dict[Sample, tuple[dict[str, str], float, float]]:
    """Return the exemplars of the page, as prometheus_client's parser reads them."""
    found = {}
    for family in READERS[OPENMETRICS](page(view, OPENMETRICS)):
        for one in family.samples:
            if one.exemplar is not None:
                name = one.name.removeprefix("spacetraders_daemon_manufacturing_")
                read_back = one.exemplar.labels, one.exemplar.value, float(str(one.exemplar.timestamp))
                found[name, frozenset(one.labels.items())] = read_back
    return found


def test_a_bucket_carries_the_last_row_that_fell_into_it() -> None:
    product = {"player_id": "1", "product_good": "RIFLES", "le": "500000.0"}
    kind = {"player_id": "1", "task_type": "SELL", "le": "30.0"}
    seconds = NOW / SECOND
    assert exemplars(with_exemplars(pipeline="p-1", task="t-1")) == {
        sample("pipeline_profit_credits_bucket", **product): ({"pipeline_id": "p-1"}, 213_000, seconds - 1),
        sample("task_duration_seconds_bucket", **kind): ({"task_id": "t-1"}, 20.500001, seconds),
    }
    assert exemplars(BUSY) == {}


def test_the_text_format_has_no_exemplars() -> None:
    view = with_exemplars(pipeline="p-1", task="t-1")
    assert page(view) == page(BUSY)
    assert read(view, OPENMETRICS) == read(BUSY, OPENMETRICS)


@pytest.mark.parametrize("key", [*HOSTILE[:-1], '} 1 # {a="b"} 2\n# EOF', "\r\t\x00\x7f", "", "'"])
def test_an_id_of_an_exemplar_is_text(key: str) -> None:
    [(labels, _, _)] = exemplars(with_exemplars(pipeline=key)).values()
    assert labels == {"pipeline_id": key}


@pytest.mark.parametrize("letter", ["x", "\U0001f680"])
@pytest.mark.parametrize(("row", "label"), [("pipeline", "pipeline_id"), ("task", "task_id")])
def test_an_id_that_is_too_long_is_left_out(row: str, label: str, letter: str) -> None:
    fits = letter * (128 - len(label))
    [(labels, _, _)] = exemplars(with_exemplars(**{row: fits})).values()
    assert labels == {label: fits}
    too_long = with_exemplars(**{row: fits + letter})
    assert exemplars(too_long) == {}
    assert page(too_long, OPENMETRICS) == page(BUSY, OPENMETRICS)


def test_a_page_shows_a_new_exemplar_at_once() -> None:
    now = {"view": with_exemplars(pipeline="old")}
    rendered = Page(lambda: now["view"], lambda: NOW)
    assert b'pipeline_id="old"' in rendered.render_game(OPENMETRICS)
    now["view"] = with_exemplars(pipeline="new")
    assert b'pipeline_id="new"' in rendered.render_game(OPENMETRICS)
    now["view"] = BUSY
    assert b"pipeline_id=" not in rendered.render_game(OPENMETRICS)


@pytest.mark.parametrize("lowered", [{PROFIT_BUCKET: 1}, {}], ids=["less", "nothing"])
def test_a_histogram_that_is_held_has_no_exemplar_of_before(lowered: dict[SampleKey, int]) -> None:
    # The database was rewound: the counts stand still, but the pipelines may never have been.
    now = {"view": with_exemplars(pipeline="undone")}
    rendered = Page(lambda: now["view"], lambda: NOW)
    assert b"undone" in rendered.render_game(OPENMETRICS)
    totals = {key: n for key, n in BUSY.totals.items() if "RIFLES" not in key[1]} | lowered
    now["view"] = replace(BUSY, totals=totals, gauges=compute_gauges(LiveRows()))
    text = rendered.render_game(OPENMETRICS).decode()
    assert "undone" not in text
    counted = [one for family in READERS[OPENMETRICS](text + "# EOF\n") for one in family.samples]
    name = "spacetraders_daemon_manufacturing_pipeline_profit_credits_count"
    assert [one.value for one in counted if one.name == name and one.labels["product_good"] == "RIFLES"] == [4]
