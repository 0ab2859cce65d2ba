"""Exemplars: the last observation of each bucket, whatever way and in whatever order its event came."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.builders import NOW, SECOND, event, pipeline, task

from mfg_notify.core.capped_totals import OTHER, CappedTotals
from mfg_notify.core.catalogue import HISTOGRAMS, Metric
from mfg_notify.core.counters import Arrival, Counters, settle
from mfg_notify.core.events import Event
from mfg_notify.core.exemplars import Exemplars
from mfg_notify.core.rules import SampleKey, increments

PROFIT, DURATION = "manufacturing_pipeline_profit_credits", "manufacturing_pipeline_duration_seconds"
TASK, SHIP, WAIT = (
    "manufacturing_task_duration_seconds",
    "manufacturing_ship_task_duration_seconds",
    "task_wait_seconds",
)


def bucket(name: str, *labels: str) -> SampleKey:
    return f"{name}_bucket", labels


def completed(number: int, key: str, profit: int = 0, *, product: str = "RIFLES", at: int = NOW) -> Event:
    """Return the event of a pipeline that completes without having started: one observation."""
    ended = pipeline("COMPLETED", net_profit=profit, product_good=product)
    return event(pipeline(product_good=product), ended, number=number, key=key, at=at)


def in_step(maximum: int = 1_000) -> Counters:
    """Return counters that count payloads as they arrive."""
    counters = Counters(100)
    counters.resync(CappedTotals(maximum), 0, 0)
    counters.receive_barrier(0)
    return counters


def confirm(counters: Counters, events: list[Event], generation: int = 1) -> None:
    counters.confirm(events, settle(events), generation, generation)


def test_each_observation_of_an_event_is_noted() -> None:
    ended = pipeline("FAILED", net_profit=-7, started_at=NOW, completed_at=NOW + 90 * SECOND)
    assert settle([event(pipeline(), ended, key="p")]).exemplars == {
        bucket(DURATION, "1", "RIFLES", "120"): (NOW, "p", 90 * SECOND),
        bucket(PROFIT, "1", "RIFLES", "1000"): (NOW, "p", -7),
    }
    done = task("COMPLETED", assigned_ship="S", ready_at=NOW, started_at=NOW, completed_at=NOW + SECOND)
    assert settle([event(task("READY"), done, key="t")]).exemplars == {
        bucket(TASK, "1", "COLLECT_SELL", "10"): (NOW, "t", SECOND),
        bucket(SHIP, "1", "COLLECT_SELL", "10"): (NOW, "t", SECOND),
        bucket(f"manufacturing_{WAIT}", "1", "COLLECT_SELL", "1"): (NOW, "t", 0),
    }


@pytest.mark.parametrize("histogram", HISTOGRAMS, ids=lambda metric: metric.name)
def test_the_label_names_the_row_that_is_observed(histogram: Metric) -> None:
    table = histogram.source.partition(".")[0]
    assert histogram.exemplar_label == {"pipelines": "pipeline_id", "tasks": "task_id"}[table]


@given(st.permutations([completed(n, f"p-{n}", at=NOW + moment) for n, moment in enumerate((0, 5, 5, 2), start=1)]))
def test_the_last_one_is_the_last_in_time(events: list[Event]) -> None:
    last: Exemplars = {bucket(PROFIT, "1", "RIFLES", "1000"): (NOW + 5, "p-3", 0)}
    assert settle(events).exemplars == last
    announced, folded = in_step(), in_step()
    for one in events:
        announced.announce(one)
    for generation, one in enumerate(events, start=1):
        confirm(folded, [one], generation)
    assert announced.exemplars() == folded.exemplars() == last


def last_of(counters: Counters) -> dict[tuple[str, ...], str]:
    """Return the id of the last pipeline by labels and bucket."""
    return {labels: key for (_, labels), (_, key, _) in counters.exemplars().items()}


def test_what_was_announced_stays_once_it_is_settled() -> None:
    counters = in_step()
    one, other = completed(1, "one", 10), completed(2, "other", 7_000)
    counters.announce(one)
    assert last_of(counters) == {("1", "RIFLES", "1000"): "one"}
    confirm(counters, [one, other])
    assert last_of(counters) == {("1", "RIFLES", "1000"): "one", ("1", "RIFLES", "10000"): "other"}


def test_a_forged_one_goes_with_its_event() -> None:
    counters = in_step()
    counters.announce(completed(9, "forged", at=2**62))
    assert last_of(counters) == {("1", "RIFLES", "1000"): "forged"}
    confirm(counters, [completed(1, "true")])
    assert counters.discard_unconfirmed(frozenset({9})) == 1
    assert last_of(counters) == {("1", "RIFLES", "1000"): "true"}


def test_reading_the_totals_again_forgets_them() -> None:
    counters = in_step()
    confirm(counters, [completed(1, "one")])
    pending = completed(2, "pending", 7_000)
    counters.announce(pending)
    # No other exporter has folded: what is pending stays.
    counters.resync(CappedTotals(), 2, 2)
    assert last_of(counters) == {("1", "RIFLES", "10000"): "pending"}
    # Another one has, or the database was rewound.
    counters.resync(CappedTotals(), 1, 3)
    assert counters.exemplars() == {}


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 600_000)), max_size=60), st.integers(0, 60))
def test_there_is_one_for_each_exposed_bucket_at_most(pipelines: list[tuple[int, int]], folded: int) -> None:
    events = [
        completed(number, f"p-{number}", profit, product=f"G-{product}", at=NOW + number)
        for number, (product, profit) in enumerate(pipelines, start=1)
    ]
    counters = in_step(maximum=60)
    confirm(counters, events[:folded])
    counted = events[:folded] + [one for one in events[folded:] if counters.announce(one) is Arrival.COUNTED]
    exposed = {key for key in counters.exposed() if key[0].endswith("_bucket")}
    last: Exemplars = {}
    for one in counted:
        [((name, labels), exemplar)] = settle([one]).exemplars.items()
        own = name, labels
        last[own if own in exposed else (name, ("1", OTHER, labels[-1]))] = exemplar
    assert counters.exemplars() == last
    assert last.keys() == exposed


@given(st.lists(st.sampled_from(["PENDING", "READY", "ASSIGNED", "EXECUTING", "COMPLETED", "FAILED"]), min_size=2))
def test_no_observation_is_overlooked(statuses: list[str]) -> None:
    """An event with few increments is not looked at, so every observation has to come with a counter."""
    rows = [
        task(status, retry_count=n, ready_at=NOW, started_at=NOW, completed_at=NOW) for n, status in enumerate(statuses)
    ]
    for old, new in pairwise(rows):
        one = event(old, new)
        buckets = {key for key, _ in increments(one) if key[0].endswith("_bucket")}
        assert settle([one]).exemplars.keys() == buckets
