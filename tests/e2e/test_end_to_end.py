"""End to end: the game's moves, PostgreSQL, the exporter, a real Prometheus, and every query of the dashboards.

One story is played for all tests (see story.py), and each test asks about it. Run by several workers, each worker that
has one of these tests tells its own story; as they are among the first tests of all, it is one worker in practice.

Needs prometheus (Debian: apt-get install prometheus).
"""

import math
import re
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from tests import truth
from tests.conftest import Server
from tests.e2e import daemon
from tests.e2e.prometheus import JOB, SCRAPE_INTERVAL, read_shipped, undo_the_hurry
from tests.e2e.story import Story, played, waiting_task, written_configuration
from tests.game_rows import add_factory, add_pipeline, add_player, add_ship, add_task
from tests.samples import Labels, Series
from tests.support import eventually

from mfg_notify.core.catalogue import (
    CATALOGUE,
    COUNTERS,
    EXPORTER_METRICS,
    HISTOGRAMS,
    MARKET,
    PIPELINE_PROFIT,
    PREFIX,
    SELF_PREFIX,
    SPECIFIED,
    Kind,
)
from mfg_notify.dashboards.shipped import Query, shipped_queries

QUERIES = list(shipped_queries())
RULES = [rule for file in read_shipped()[1].values() for group in file["groups"] for rule in group["rules"]]
SECONDS = {"s": 1, "m": 60, "h": 3600}


def panel(title: str, dashboard: str = "manufacturing.json") -> list[Query]:
    """Return the queries of a panel."""
    found = [query for query in QUERIES if (query.dashboard, query.place) == (dashboard, title)]
    assert found
    return found


NEVER_TRUE_HERE = {
    "MfgNotifyReconcileStale": "needs ten minutes without a reading; is true for a moment at a start",
    "MfgNotifyEventsUnconfirmed": "needs a crash of the server that loses commits, or forged notifications",
    "MfgNotifyQueueFilling": "needs 50 MB of unread notifications; the faults do that",
    "MfgNotifySnapshotHeldOpen": "needs a snapshot that is held for an hour",
    "ManufacturingBotSilent": "needs half an hour without an event",
    "ManufacturingShipsIdleWhileTasksWait": "needs a quarter of an hour without an assignment, after one",
}
"""Alerts that find nothing in this story, and why; that they fire is for promtool to test. All others find it."""
EMPTY_HERE = panel("Task Queue Depth")[-1:]
"""Has data only if a player has no task; test_3 looks at that."""
ABSENT_HERE = "mfg_notify_oldest_snapshot_age_seconds"
"""Is there only if somebody holds a snapshot for a minute; tests/integration/test_own_metrics.py makes it move."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prometheus")


@pytest.fixture(scope="module")
def story(server: Server, folder: Path) -> Iterator[Story]:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed")
    with played(server, folder / "configuration") as story:
        yield story


# -------------------------------------------------------------------------------------- as Grafana would ask --


class Grafana:
    """Asks the queries of the dashboards over the time of the story."""

    def __init__(self, story: Story, **chosen: str) -> None:
        """Choose values of variables; the others are as a dashboard opens: all, or the first."""
        self._prometheus = story.prometheus
        self._chosen = chosen
        self._began = story.began
        self._variables: dict[str, dict[str, str]] = {}

    def ask(self, query: Query) -> dict[Labels, dict[float, float]]:
        """Return what a query finds, by moment; a variable's own query is an instant one."""
        now = time.time()
        step = max(SCRAPE_INTERVAL, _seconds(query.interval))
        if query.instant:
            expr = self.fill(query, step, now - self._began)
            return {labels: {now: value} for labels, value in self._prometheus.at(expr, now).items()}
        # Grafana asks for whole steps; these reach beyond now, as if one looked a little later.
        start, end = math.floor(self._began / step) * step, math.ceil(now / step) * step
        return self._prometheus.over(self.fill(query, step, end - start), start, end, step)

    def fill(self, query: Query, step: float, seconds: float) -> str:
        """Return the expression with all variables in their places."""
        expr = query.expr
        if query.dashboard not in self._variables:
            self._variables[query.dashboard] = {}
            for variable in QUERIES:
                if variable.dashboard == query.dashboard and variable.label is not None:
                    self._look_up(variable)
        values = {
            "__rate_interval": f"{round(1000 * max(step + SCRAPE_INTERVAL, 4 * SCRAPE_INTERVAL))}ms",
            "__range": f"{math.ceil(seconds)}s",
            # Of subqueries. The story is short, so the steps are as well.
            "__interval": f"{round(1000 * SCRAPE_INTERVAL)}ms",
            **self._variables[query.dashboard],
        }
        expr = re.sub(r"\$(\w+)", lambda match: values[match[1]], expr)
        assert "$" not in expr
        return expr

    def _look_up(self, variable: Query) -> None:
        known = self._variables[variable.dashboard]
        name = variable.place.removeprefix("variable ")
        range_ = {"__range": f"{math.ceil(time.time() - self._began)}s"}
        selector = re.sub(r"\$(\w+)", lambda match: {**known, **range_}[match[1]], variable.expr)
        assert variable.label is not None
        if "(" in selector:
            found = sorted({dict(labels)[variable.label] for labels in self._prometheus.at(selector)})
        else:
            found = self._prometheus.values_of(variable.label, selector)
        if name in {"product", "good", "system", "task_type"}:
            known[name] = self._chosen.get(name, ".*")
        elif name == "player_id":
            known[name] = self._chosen.get(name, f"({'|'.join(found)})")
        else:
            known[name] = self._chosen.get(name) or found[0]
            assert known[name] in found


def _seconds(duration: str | None) -> float:
    return 0.0 if duration is None else float(duration[:-1]) * SECONDS[duration[-1]]


def numbers(found: Mapping[Labels, Mapping[float, float]]) -> list[float]:
    """Return all values that are numbers."""
    return [value for values in found.values() for value in values.values() if not math.isnan(value)]


# ------------------------------------------------------------------------------------------- what was shipped --


def test_it_runs_the_shipped_configuration(story: Story, folder: Path) -> None:
    assert undo_the_hurry(*written_configuration(folder / "configuration")) == read_shipped()
    targets = {target["scrapePool"]: target["lastError"] for target in story.prometheus.ask("targets")["activeTargets"]}
    assert targets == {JOB: "", daemon.JOB: "", daemon.OLDER_FORMAT_JOB: ""}


def test_every_query_of_every_dashboard_returns_data(story: Story) -> None:
    with_daemon = Grafana(story, market_job=daemon.JOB)
    empty = [
        f"{query.dashboard}: {query.place}: {query.expr}"
        for query in QUERIES
        if not numbers(with_daemon.ask(query)) and query not in EMPTY_HERE
    ]
    assert not empty, "\n".join(empty)
    print(f"{len(QUERIES)} queries return data")  # noqa: T201


def test_without_a_daemon_the_markets_come_from_the_exporter(story: Story) -> None:
    without_daemon = Grafana(story, market_job=JOB)
    for query in QUERIES:
        if "$market_job" not in query.expr or query.place.startswith("variable"):
            continue
        ours = any(metric.full_name in query.expr for metric in MARKET) or "process_start_time" in query.expr
        assert bool(numbers(without_daemon.ask(query))) is ours, f"{query.dashboard}: {query.place}"
    for metric, column in zip(MARKET, ("supply", "activity"), strict=True):
        shown = story.prometheus.at(f'sum by ({metric.labels[-1]}) ({metric.full_name}{{job="{JOB}"}})')
        assert {dict(labels)[metric.labels[-1]] for labels in shown} <= {
            level
            for (level,) in story.execute(f"SELECT DISTINCT {column} FROM market_data")  # noqa: S608
        }


def test_every_rule_is_evaluated_and_finds_what_it_looks_for(story: Story) -> None:
    groups = eventually(
        lambda: story.prometheus.ask("rules")["groups"],
        lambda groups: all(rule["health"] == "ok" for group in groups for rule in group["rules"]),
    )
    assert {rule["name"] for group in groups for rule in group["rules"]} == {rule["alert"] for rule in RULES}
    now = time.time()
    found = {rule["alert"] for rule in RULES if story.prometheus.over(rule["expr"], story.began, now, SCRAPE_INTERVAL)}
    assert {rule["alert"] for rule in RULES} - found <= NEVER_TRUE_HERE.keys()
    # Of those, what they look at is there.
    for rule in RULES:
        for selector in re.findall(r"\w+\{[^}]*\}", rule["expr"]):
            if selector.startswith(ABSENT_HERE):
                continue
            assert story.prometheus.over(selector, story.began, now, SCRAPE_INTERVAL), selector
    # Three need not last: a real Prometheus has made them into alerts.
    firing = {
        alert["labels"]["alertname"]: alert
        for alert in story.prometheus.ask("alerts")["alerts"]
        if alert["state"] == "firing"
    }
    assert firing.keys() == {"MfgNotifyEventsLost", "MfgNotifyUnrecordedChanges", "MfgNotifyDatabaseSetBack"}
    assert "in the database game" in firing["MfgNotifyEventsLost"]["annotations"]["description"]


# ------------------------------------------------------------------------------------------ values and types --


def test_what_prometheus_knows_is_what_happened(story: Story) -> None:
    assert story.differences == []
    story.settle()
    known = {
        bare(labels): value for labels, value in story.prometheus.at(f'{{__name__=~"{PREFIX}.*", job="{JOB}"}}').items()
    }
    expected = truth.expected_samples(story.connection)
    wrong = {
        series: (known.get(series), value)
        for series, value in expected.items()
        if known.get(series) != pytest.approx(value, rel=1e-9 if series[0].endswith("_seconds_sum") else 0, abs=0)
    }
    assert not wrong
    assert len(expected) > 500
    print(f"{len(expected)} counters and parts of histograms are exact")  # noqa: T201


def bare(labels: Labels) -> Series:
    """Return a series as the truth names it: without what Prometheus has added."""
    given = dict(labels)
    name = given.pop("__name__", "")
    return name, frozenset(
        (label, value) for label, value in given.items() if label not in {"job", "instance", "database"}
    )


def test_increase_is_right_within_extrapolation(story: Story) -> None:
    """From one moment at which the game stood still to another, with a crash of the exporter between.

    increase() is last minus first sample of the window, stretched by its distance from either end of the window as far
    as that is below 1.1 of the mean distance of two samples, else by half of that. With n samples that is a factor from
    1 to 1 + 2.2 / (n - 1). It shows nothing of what happened before the first sample of a series.
    """
    began, ended = story.pause, story.interval
    seconds = f"[{round(1000 * (ended - began))}ms]"
    before, after = story.truth_at[began], story.truth_at[ended]
    compared = late = 0
    for name in sorted({name for name, _ in after if name != PIPELINE_PROFIT.full_name + "_sum"}):
        selector = f'{name}{{job="{JOB}"}}{seconds}'
        increases = {
            bare(labels)[1]: value for labels, value in story.prometheus.at(f"increase({selector})", ended).items()
        }
        samples = {
            bare(labels)[1]: value
            for labels, value in story.prometheus.at(f"count_over_time({selector})", ended).items()
        }
        for (_, labels), total in ((series, value) for series, value in after.items() if series[0] == name):
            happened = total - before.get((name, labels), 0.0)
            if (name, labels) not in before:
                # Known only since: what happened before the first scrape is not in the increase.
                late += 1
                happened_at_least = 0.0
            else:
                happened_at_least = happened
                compared += 1
            most = happened * (1 + 2.2 / (samples[labels] - 1)) if samples[labels] > 1 else 0.0
            assert happened_at_least * (1 - 1e-9) <= increases.get(labels, 0.0) <= most * (1 + 1e-9), (name, labels)
    assert compared > 200
    print(f"{compared} increases agree; {late} series began after the first moment")  # noqa: T201


def test_a_restart_of_the_exporter_is_no_reset(story: Story) -> None:
    now = time.time()
    seconds = f"{math.ceil(now - story.began)}s"
    parts = [metric.full_name for metric in COUNTERS]
    parts += [f"{metric.full_name}_{part}" for metric in HISTOGRAMS for part in ("bucket", "count", "sum")]
    # Losses make it fall.
    parts.remove(f"{PIPELINE_PROFIT.full_name}_sum")
    for name in [*parts, SELF_PREFIX + "lost_changes_total"]:
        resets = story.prometheus.at(f'resets({name}{{job="{JOB}"}}[{seconds}])', now)
        assert resets, name
        assert set(resets.values()) == {0.0}, name
    # There was a restart: the exporter's own counters began at 0 again.
    [starts] = story.prometheus.at(f'changes(process_start_time_seconds{{job="{JOB}"}}[{seconds}])', now).values()
    assert starts == 2

    # Nothing is missing but while there was no exporter. A scrape that a busy machine has missed is no gap of ours.
    missing = story.prometheus.over(
        f'absent_over_time({PREFIX}manufacturing_revenue_total{{job="{JOB}"}}[2s])'
        f' unless on () min_over_time(up{{job="{JOB}"}}[2s]) == 0',
        story.gaps[0][0] - 2,
        now,
        SCRAPE_INTERVAL,
    )
    for moments in missing.values():
        assert all(any(start <= at <= end for start, end in story.gaps) for at in moments)


def test_types_are_right_in_both_formats(story: Story) -> None:
    expected = {metric.full_name: metric.kind for metric in CATALOGUE}
    expected |= {SELF_PREFIX + metric.name: metric.kind for metric in EXPORTER_METRICS}
    for job, is_openmetrics in ((JOB, True), (daemon.OLDER_FORMAT_JOB, False)):
        entries = story.prometheus.ask("targets/metadata", match_target=f'{{job="{job}"}}')
        types = {entry["metric"]: entry["type"] for entry in entries}
        for name, kind in expected.items():
            # OpenMetrics names the family of a counter without the ending of its samples.
            family = name.removesuffix("_total") if is_openmetrics and kind is Kind.COUNTER else name
            assert types.pop(family) == kind, (job, name)
        assert all(re.match(r"process_|python_", name) for name in types)
    merged = story.prometheus.ask("metadata")
    for name, kind in expected.items():
        if kind is Kind.GAUGE:
            assert [entry["type"] for entry in merged[name]] == ["gauge"] * len(merged[name]), name


# ------------------------------------------------------------------------- the specification's success criteria --


def test_1_all_metrics_are_registered_and_visible_in_prometheus(story: Story) -> None:
    names = set(story.prometheus.values_of("__name__", f'{{job="{JOB}"}}'))
    visible = {metric.name for metric in CATALOGUE if {metric.full_name, f"{metric.full_name}_bucket"} & names}
    assert visible == {metric.name for metric in CATALOGUE}
    assert len(SPECIFIED) == 24
    assert len(visible) >= 25


def test_2_the_dashboard_follows_the_status_of_pipelines(story: Story) -> None:
    grafana = Grafana(story, player_id=str(story.guest), product="ICE")
    [active], [now_by_status, _] = panel("Active Pipelines"), panel("Pipeline Status Over Time")

    def shown() -> dict[str, float]:
        return {dict(labels)["status"]: _last(values) for labels, values in grafana.ask(now_by_status).items()}

    add_pipeline(story.connection, "ice", player_id=story.guest, product_good="ICE")
    eventually(shown, lambda status: status == {"PLANNING": 1, "EXECUTING": 0})
    story.execute("UPDATE manufacturing_pipelines SET status = 'EXECUTING', started_at = now() WHERE id = 'ice'")
    eventually(shown, lambda status: status == {"PLANNING": 0, "EXECUTING": 1})
    assert [_last(values) for values in grafana.ask(active).values()] == [1]
    story.execute("UPDATE manufacturing_pipelines SET status = 'COMPLETED', completed_at = now() WHERE id = 'ice'")
    eventually(lambda: [_last(values) for values in grafana.ask(active).values()], lambda values: values == [0])
    [rate] = panel("Pipeline Completion Rate")
    assert numbers(grafana.ask(rate)) == [pytest.approx(100)]


def _last(values: Mapping[float, float]) -> float:
    return values[max(values)]


def test_3_the_task_queue_shows_pending_ready_and_executing(story: Story) -> None:
    waiting_task(story)
    story.settle()
    grafana = Grafana(story)
    *by_status, nothing = panel("Task Queue Depth")
    assert numbers(grafana.ask(nothing)) == []
    without_tasks = str(add_player(story.connection, "IDLE"))
    add_pipeline(story.connection, "idle", player_id=int(without_tasks))
    grafana_of_idle = Grafana(story, player_id=without_tasks)
    eventually(lambda: numbers(grafana_of_idle.ask(nothing)), lambda shown: shown == [0])
    for query, statuses in zip(by_status, (["PENDING"], ["READY"], ["ASSIGNED", "EXECUTING"]), strict=True):
        shown = {dict(labels)["task_type"]: _last(values) for labels, values in grafana.ask(query).items()}
        there = story.execute(
            "SELECT task_type, count(*) FROM manufacturing_tasks WHERE status = ANY (%s) GROUP BY 1", statuses
        )
        assert shown == dict(there)
        assert shown


def test_4_supply_is_visible_within_thirty_seconds(story: Story) -> None:
    factory = add_factory(
        story.connection, player_id=story.guest, output_good="LIQUID_HYDROGEN", current_supply="LIMITED"
    )
    grafana = Grafana(story, player_id=str(story.guest), good="LIQUID_HYDROGEN")
    level, *_ = panel("Factory Supply Status")

    def shown() -> set[str]:
        return {dict(labels)["supply_level"] for labels in grafana.ask(level)}

    eventually(shown, lambda levels: levels == {"LIMITED"})
    changed = time.monotonic()
    story.execute("UPDATE manufacturing_factory_states SET current_supply = 'HIGH' WHERE id = %s", factory)
    # Gives up after 30 s.
    eventually(shown, lambda levels: levels == {"HIGH"})
    took = time.monotonic() - changed
    print(f"a change of supply was visible in Prometheus after {took:.2f} s, scraped every {SCRAPE_INTERVAL} s")  # noqa: T201


def test_5_ship_utilization_is_accurate(story: Story) -> None:
    with story.connection.transaction():
        for number in range(4):
            add_ship(story.connection, f"GUEST-{number}", player_id=story.guest)
        add_task(story.connection, "ship", player_id=story.guest, status="ASSIGNED", assigned_ship="GUEST-0")
    story.settle()
    [utilization] = panel("Ship Utilization")
    grafana = Grafana(story, player_id=str(story.guest))
    assert [_last(values) for values in grafana.ask(utilization).values()] == [25]
    gauge = f'{PREFIX}manufacturing_ship_utilization_percent{{player_id="{story.guest}"}}'
    assert story.prometheus.number(gauge) == 25


def test_6_economic_metrics_track_costs_revenue_and_profit_rate(story: Story) -> None:
    now = story.settle()
    expected = truth.expected_samples(story.connection)
    for metric, panel_part in (("manufacturing_cost_total", "Costs"), ("manufacturing_revenue_total", "Revenue")):
        happened = sum(value for (name, _), value in expected.items() if name == PREFIX + metric)
        assert story.prometheus.number(f'sum({PREFIX}{metric}{{job="{JOB}"}})', now) == happened > 0, panel_part
    gauges = truth.read_gauges(story.connection)
    rate = sum(value for (name, _), value in gauges.items() if name == "manufacturing_profit_rate")
    tasks, pipelines, last_hour = (Grafana(story).ask(query) for query in panel("Profit of Tasks and of Pipelines"))
    assert _last(*last_hour.values()) == rate != 0
    assert numbers(tasks)
    assert numbers(pipelines)
    # The one number is the difference of the means of the other panel.
    [profit], (revenue, costs, _) = panel("Profit Rate"), panel("Revenue vs Costs")
    grafana, began, ended = Grafana(story), story.began, time.time()
    step = _seconds(profit.interval)
    means = [
        statistics.fmean(
            numbers(story.prometheus.over(grafana.fill(query, step, ended - began), began, ended, SCRAPE_INTERVAL))
        )
        for query in (revenue, costs)
    ]
    [shown] = numbers(grafana.ask(profit))
    assert shown == pytest.approx(means[0] - means[1], rel=0.05)
    [margins] = panel("Profit Margin by Product")
    assert sorted(numbers(Grafana(story).ask(margins))) == pytest.approx(
        sorted(value for (name, _), value in gauges.items() if name == "manufacturing_margin_percent")
    )


def test_7_supply_transitions_are_on_the_market_dashboard(story: Story) -> None:
    grafana = Grafana(story, manufacturing_job=JOB)
    [transitions] = panel("Supply Level Transitions", "market-dynamics.json")
    shown = {dict(labels)["good_symbol"] for labels in grafana.ask(transitions)}
    happened = {
        dict(labels)["good_symbol"]
        for (metric, labels), n in truth.read_counters(story.connection).items()
        if metric == "manufacturing_supply_transitions_total" and n
    }
    assert shown
    assert shown <= happened
    print(f"{len(shown)} of {len(happened)} goods whose supply changed are shown")  # noqa: T201


def test_8_nothing_is_polled_more_than_every_30_seconds(story: Story) -> None:
    """The exporter reads the game's tables every 30 s. A scrape reads nothing from the database."""
    [(since,)] = [story.prometheus.at(f'process_start_time_seconds{{job="{JOB}"}}').values()]
    read = story.prometheus.number(f'mfg_notify_reconcile_duration_seconds_count{{job="{JOB}"}}')
    assert read is not None
    assert 1 <= read <= 1 + (time.time() - since) / 30
    # Every scrape was answered while the database refused connections.
    unconnected = story.prometheus.over(
        f'mfg_notify_connected{{job="{JOB}"}} == 0 and up{{job="{JOB}"}} == 1',
        story.began,
        time.time(),
        SCRAPE_INTERVAL,
    )
    assert unconnected
    # Only the change that the story lost on purpose was lost.
    assert story.prometheus.number(f'mfg_notify_lost_changes_total{{job="{JOB}"}}') == 1
    took = story.prometheus.number(
        f'max_over_time(scrape_duration_seconds{{job="{JOB}"}}[{math.ceil(time.time() - story.began)}s])'
    )
    print(f"the slowest scrape took {took:.3f} s")  # noqa: T201
