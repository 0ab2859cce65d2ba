"""The past as samples: what Prometheus makes of them must be what the rows say, wherever it is cut into parts."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from tests.unit.builders import NOW, SECOND, pipeline, task

from mfg_notify.core import catalogue
from mfg_notify.core.catalogue import BY_NAME, Kind, Metric
from mfg_notify.core.events import Event, PipelineImage, TaskChange, TaskImage
from mfg_notify.core.history import KEEPALIVE, MILLISECOND, Points, Row, Timeline, lay_out_journal, lay_out_rows
from mfg_notify.core.live_state import HOUR, Labels
from mfg_notify.core.rules import SampleKey
from mfg_notify.exposition import render_head, render_points

REVENUE: SampleKey = (catalogue.PIPELINE_REVENUE.name, ("1", "RIFLES"))
INSTALLED = NOW + 7 * HOUR + 123_456
"""Not on any step, nor on a whole millisecond."""
UNTIL = -(-INSTALLED // MILLISECOND) * MILLISECOND
EARLIER = NOW + 3 * HOUR + 17 * SECOND

moments = st.integers(NOW, INSTALLED - 1)
steps = st.sampled_from([SECOND * 7, SECOND * 60, KEEPALIVE])


@st.composite
def tasks(draw: st.DrawFn) -> TaskImage:
    """Draw a task that was finished, or that runs on."""
    status = draw(st.sampled_from(["COMPLETED", "FAILED", "EXECUTING", "READY"]))
    times = sorted(draw(st.tuples(moments, moments)))
    return task(
        status,
        player_id=draw(st.integers(1, 2)),
        task_type=draw(st.sampled_from(["COLLECT_SELL", "LIQUIDATE"])),
        retry_count=draw(st.integers(0, 2)),
        total_revenue=draw(st.integers(0, 100)),
        started_at=draw(st.sampled_from([times[0], None])),
        completed_at=times[1] if status in ("COMPLETED", "FAILED") else None,
    )


@st.composite
def pipelines(draw: st.DrawFn) -> Row:
    """Draw a pipeline that was finished, or that runs on."""
    status = draw(st.sampled_from(["COMPLETED", "FAILED", "EXECUTING"]))
    created, started, ended = sorted(draw(st.tuples(moments, moments, moments)))
    revenue, cost = draw(st.integers(0, 1000)), draw(st.integers(0, 1000))
    finished = status != "EXECUTING"
    image = pipeline(
        status,
        total_revenue=revenue if finished else 0,
        total_cost=cost if finished else 0,
        net_profit=revenue - cost if finished else 0,
        started_at=started,
        completed_at=ended if finished else None,
    )
    return Row(image, created)


class Kept(NamedTuple):
    """Points, with their samples as a list."""

    metric: Metric
    labels: Labels
    samples: list[tuple[int, tuple[float, ...]]]

    def points(self) -> Points:
        """Return them as they came."""
        return Points(self.metric, self.labels, len(self.samples[0][1]), iter(self.samples))


def kept(points: Iterable[Points]) -> list[Kept]:
    found = [(each.width, Kept(each.metric, each.labels, list(each.samples))) for each in points]
    assert all(len(values) == width for width, each in found for _, values in each.samples)
    return [each for _, each in found]


def lay_out(
    rows: Iterable[Row],
    since: int = NOW,
    until: int = UNTIL,
    step: int = 60 * SECOND,
    seeds: Mapping[SampleKey, int] | None = None,
) -> list[Kept]:
    given = sorted(rows, key=lambda row: row.place)
    last = {1: UNTIL, 2: UNTIL}
    return kept(lay_out_rows(given, Timeline(since, until, step), last, seeds or {}, INSTALLED))


def columns(points: Iterable[Kept]) -> Iterator[tuple[str, Labels, int, list[tuple[int, float]]]]:
    """Yield every series: metric, labels, which part of a histogram, samples."""
    for each in points:
        for part in range(len(each.samples[0][1])):
            yield each.metric.name, each.labels, part, [(at, values[part]) for at, values in each.samples]


def increase(samples: Iterable[tuple[int, float]]) -> float:
    """Return what Prometheus counts from the first sample to the last: a fall is a reset to 0."""
    values = [value for _, value in samples]
    return sum(b - a if b >= a else b for a, b in itertools.pairwise(values))


def increases(*parts: list[Kept]) -> dict[tuple[str, Labels, int], float]:
    """Return the increase of each counter and each part of a histogram, over parts of the past one after another."""
    joined: defaultdict[tuple[str, Labels, int], list[tuple[int, float]]] = defaultdict(list)
    for part in parts:
        for name, labels, column, samples in columns(part):
            if BY_NAME[name].kind is not Kind.GAUGE:
                joined[name, labels, column] += samples
    return {key: increase(samples) for key, samples in joined.items()}


def gauge(points: Iterable[Kept], name: str) -> dict[int, float]:
    """Return the samples of a gauge of one series."""
    [found] = [each for each in points if each.metric.name == name]
    return {at: value for at, (value,) in found.samples}


# ------------------------------------------------------------------------------------------------ timeline --


@given(moments, steps, st.integers(2, 10**9))
def test_a_moment_tells_what_happened_before_it(since: int, step: int, length: int) -> None:
    timeline = Timeline(since, since + length * MILLISECOND, step)
    all_of_it = [timeline.moment(place) for place in range(timeline.length)]
    assert all_of_it == sorted(set(all_of_it))
    assert (all_of_it[0], *all_of_it[-2:]) == (since, timeline.until - MILLISECOND, timeline.until)
    for at in (since, since + 1, since + step, (since // step + 1) * step, timeline.until - 1, timeline.until - 2000):
        if timeline.covers(at):
            place = timeline.place(at)
            assert timeline.moment(place - 1) <= at
            # Within the last millisecond there is no other sample.
            assert at < timeline.moment(place) or place == timeline.length - 2
    assert timeline.place(since - 1) == 0


# ------------------------------------------------------------------------------------------------ counters --


@given(st.lists(tasks()), steps)
def test_tasks_increase_by_what_the_rows_say(drawn: list[TaskImage], step: int) -> None:
    found = increases(lay_out([Row(each, None) for each in drawn], step=step))
    finished = [each for each in drawn if each.completed_at is not None]
    expected: Counter[tuple[str, Labels, int]] = Counter()
    for each in finished:
        kind = (str(each.player_id), each.task_type)
        outcome = "success" if each.status == "COMPLETED" else "failure" if each.retry_count else "cancelled"
        expected[catalogue.TASKS_COMPLETED.name, (*kind, outcome), 0] += 1
        expected[catalogue.TASK_RETRY.name, kind, 0] += each.retry_count
        expected[catalogue.REVENUE.name, kind[:1], 0] += each.total_revenue
        if each.started_at is not None and each.completed_at is not None:
            expected[catalogue.TASK_ASSIGNMENTS.name, kind, 0] += 1
            taken = each.completed_at - each.started_at
            buckets = [*catalogue.TASK_DURATION.buckets, float("inf")]
            for part, bound in enumerate(buckets):
                expected[catalogue.TASK_DURATION.name, kind, part] += taken <= bound * SECOND
            expected[catalogue.TASK_DURATION.name, kind, len(buckets)] += 1
            expected[catalogue.TASK_DURATION.name, kind, len(buckets) + 1] += taken
    assert {key: n for key, n in found.items() if n} == +expected


@given(st.lists(tasks()), st.lists(pipelines()), steps)
def test_samples_are_in_order_and_never_far_apart(drawn: list[TaskImage], more: list[Row], step: int) -> None:
    for points in (lay_out([Row(each, None) for each in drawn], step=step), lay_out(more, step=step)):
        for name, _, _, samples in columns(points):
            at = [moment for moment, _ in samples]
            assert at == sorted(set(at))
            assert all(moment % MILLISECOND == 0 for moment in at)
            if name != catalogue.MARGIN.name:  # absent without revenue
                assert all(b - a <= KEEPALIVE for a, b in itertools.pairwise(at))
            if BY_NAME[name].kind is Kind.GAUGE:
                assert at[-1] == UNTIL - MILLISECOND
            else:
                assert samples[-1] == (UNTIL, 0)


@given(st.lists(tasks()), steps, st.integers(NOW // 1000 + 10, INSTALLED // 1000 - 10))
def test_parts_of_the_past_fit_together(drawn: list[TaskImage], step: int, cut: int) -> None:
    rows = [Row(each, None) for each in drawn]
    whole = increases(lay_out(rows, step=step))
    parts = increases(
        lay_out(rows, until=cut * MILLISECOND, step=step), lay_out(rows, since=cut * MILLISECOND, step=step)
    )
    assert {key: n for key, n in parts.items() if n} == {key: n for key, n in whole.items() if n}


@given(st.lists(pipelines(), min_size=1), steps, st.integers(0, 500))
def test_a_seeded_counter_ends_where_it_began_live(drawn: list[Row], step: int, deleted: int) -> None:
    """The triggers have also found what was deleted since."""
    done = [each.image for each in drawn if each.image.status == "COMPLETED"]
    earned = sum(each.total_revenue for each in done if isinstance(each, PipelineImage))
    seeds = {REVENUE: earned + deleted} if earned + deleted else {}
    whole = lay_out(drawn, step=step, seeds=seeds)
    parts = lay_out(drawn, until=EARLIER, step=step, seeds=seeds), lay_out(drawn, since=EARLIER, step=step, seeds=seeds)
    for points in (whole, [*parts[0], *parts[1]]):
        samples = [
            sample
            for name, _, _, found in columns(points)
            if name == catalogue.PIPELINE_REVENUE.name
            for sample in found
        ]
        if earned:
            values = [value for _, value in samples]
            assert values == sorted(values)
            assert (values[0], values[-1]) == (deleted, earned + deleted)


def test_a_counter_stands_at_0_before_its_first_change() -> None:
    done = task("FAILED", started_at=NOW + 100 * SECOND, completed_at=NOW + 150 * SECOND)
    [completed] = [each for each in lay_out([Row(done, None)]) if each.metric is catalogue.TASKS_COMPLETED]
    assert completed.samples[:3] == [
        (NOW + 120 * SECOND, (0,)),
        (NOW + 180 * SECOND, (1,)),
        (NOW + 480 * SECOND, (1,)),
    ]
    assert completed.samples[-2:] == [(UNTIL - MILLISECOND, (1,)), (UNTIL, (0,))]


def test_the_end_of_a_task_after_the_installation_is_live() -> None:
    runs = task("COMPLETED", started_at=INSTALLED - SECOND, completed_at=INSTALLED, total_revenue=5)
    found = lay_out([Row(runs, None)])
    assert [each.metric.name for each in found] == [catalogue.TASKS_EXECUTING.name]


def test_what_was_not_dated_is_not_counted() -> None:
    lost = task("COMPLETED", started_at=NOW, total_revenue=5), pipeline("FAILED", started_at=NOW)
    assert lay_out([Row(lost[0], None)]) == lay_out([Row(lost[1], NOW)]) == []


def test_the_series_of_a_player_end_a_day_after_the_last_change() -> None:
    done = Row(task("FAILED", completed_at=NOW), None)
    until = NOW + 72 * HOUR
    [points] = kept(lay_out_rows([done], Timeline(NOW, until, 60 * SECOND), {1: NOW}, {}, until))
    assert points.samples[-1] == (NOW + 24 * HOUR, (0,))


# -------------------------------------------------------------------------------------------------- gauges --


@given(st.lists(pipelines(), min_size=1), steps)
def test_gauges_are_what_ran_at_the_moment(drawn: list[Row], step: int) -> None:
    points = lay_out(drawn, step=step)
    for name in (catalogue.PIPELINE_RUNNING.name, catalogue.PIPELINE_QUEUE_DEPTH.name):
        spans = [
            (
                row.image.started_at if name == catalogue.PIPELINE_RUNNING.name else row.created_at,
                row.image.completed_at,
            )
            for row in drawn
        ]
        shown = [sample for each in points if each.metric.name == name for sample in each.samples]
        assert shown or all(ended is not None for _, ended in spans)
        for at, (value,) in shown:
            # Within the last millisecond there is no other sample.
            if at < UNTIL - MILLISECOND:
                ran = [began for began, ended in spans if (began or 0) < at and (ended is None or ended >= at)]
                assert value == len(ran)


def test_profit_leaves_the_rate_after_an_hour() -> None:
    done = pipeline("COMPLETED", total_revenue=100, total_cost=30, started_at=NOW, completed_at=NOW + 90 * SECOND)
    points = lay_out([Row(done, NOW)])
    rate = gauge(points, catalogue.PROFIT_RATE.name)
    assert rate[NOW + 120 * SECOND] == 70
    assert rate[NOW + HOUR + 60 * SECOND] == 70
    assert rate[NOW + HOUR + 120 * SECOND] == 0
    assert set(gauge(points, catalogue.MARGIN.name).values()) == {70}


# ------------------------------------------------------------------------------------------------- journal --


def test_the_journal_continues_the_totals() -> None:
    def retried(at: int) -> Event:
        return Event(1, 1, at, TaskChange("U", "t", task("EXECUTING"), task("FAILED", retry_count=1)))

    retries, other = (catalogue.TASK_RETRY.name, ("1", "COLLECT_SELL")), (catalogue.REVENUE.name, ("1",))
    elsewhere = catalogue.REVENUE.name, ("2",)
    timeline = Timeline(NOW, NOW + HOUR, 60 * SECOND)
    events = [retried(NOW - SECOND), retried(NOW + 90 * SECOND)]
    found = {
        (name, labels): samples
        for name, labels, _, samples in columns(
            kept(lay_out_journal(events, {retries: 5, other: 7, elsewhere: 9}, timeline))
        )
    }
    assert found[retries][0] == (NOW, 6)
    assert found[retries][-1] == (NOW + HOUR - MILLISECOND, 7)
    assert {value for _, value in found[other]} == {7}
    assert elsewhere not in found


# --------------------------------------------------------------------------------------------------- page --


def test_the_samples_are_valid_openmetrics() -> None:
    hostile = 'a "quoted"\nline\\ of דגל'
    done = task("FAILED", task_type=hostile, retry_count=1, started_at=NOW, completed_at=NOW + SECOND)
    points = lay_out([Row(done, None)])
    lines = [
        line for each in points for line in (render_head(each.metric), *render_points(each.points(), [("job", "j")]))
    ]
    sums = []
    # Of a histogram with several moments this parser drops samples, so it reads one moment at a time.
    for moment in sorted({at for each in points for at, _ in each.samples}):
        ending = f" {moment // SECOND}.{moment // MILLISECOND % 1000:03d}\n"
        page = "".join(line for line in lines if line.startswith("#") or line.endswith(ending))
        for family in text_string_to_metric_families(page + "# EOF\n"):  # type: ignore[no-untyped-call]
            assert family.name.removeprefix(catalogue.PREFIX) + "_total" * (family.type == "counter") in BY_NAME
            for sample in family.samples:
                assert (sample.labels["task_type"], sample.labels["job"]) == (hostile, "j")
                sums += [float(sample.value)] * (sample.name == f"{catalogue.TASK_DURATION.full_name}_sum")
    assert (sums[:2], set(sums[2:-1]), sums[-1]) == ([0, 1], {1.0}, 0)


@pytest.mark.parametrize("metric", catalogue.CATALOGUE, ids=lambda metric: metric.name)
def test_a_family_has_the_head_of_a_scrape(metric: catalogue.Metric) -> None:
    head = render_head(metric)
    assert f" {metric.kind}\n" in head
    assert metric.help in head
