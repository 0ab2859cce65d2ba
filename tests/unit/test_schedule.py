"""What is due when, in tables: what has happened, then what the schedule answers."""

import math
from dataclasses import replace

import pytest

from mfg_notify.core.schedule import Schedule, Situation, Step
from mfg_notify.core.tuning import Tuning

TUNING = Tuning(
    heartbeat_interval=1.0,
    deferred_fold_delay=0.02,
    confirming_fold_delay=2.0,
    announced_maximum=3,
    empty_fold_pause=0.25,
    snapshot_pause=1.0,
)
INTERVAL = 30.0
NOW = 100.0
LEADER = Situation(leading=True, drained=True, reconciling=False, needs_snapshot=False, presentable=True)
STANDBY = replace(LEADER, leading=False, drained=False)
ASKED = replace(LEADER, needs_snapshot=True)


def schedule() -> Schedule:
    """Return a schedule at the beginning of a session."""
    return Schedule(INTERVAL, NOW, TUNING)


def rested() -> Schedule:
    """Return a schedule in which everything was done just now, and the next fold is due in 30 s."""
    found = schedule()
    found.heartbeat_begins(NOW)
    found.snapshot_ends(NOW, 0.0)
    found.followed(NOW, 0.0)
    found.fold_begins()
    found.fold_ends(NOW, settled=True, empty=False, poll_delay=INTERVAL)
    return found


# -------------------------------------------------------------------------------------------------- what is due --


@pytest.mark.parametrize(
    ("situation", "steps"),
    [
        (LEADER, [Step.HEARTBEAT, Step.SNAPSHOT, Step.FOLD, None]),
        (STANDBY, [Step.HEARTBEAT, Step.FOLLOW, None]),
        (replace(LEADER, drained=False), [Step.HEARTBEAT, Step.FOLD, None]),
        (replace(LEADER, reconciling=True), [Step.HEARTBEAT, Step.FOLD, None]),
        (replace(ASKED, drained=False), [Step.HEARTBEAT, Step.FOLD, None]),
    ],
    ids=["a leader", "a standby", "with a backlog", "while a snapshot waits for its barrier", "asked, with a backlog"],
)
def test_the_first_steps_of_a_session(situation: Situation, steps: list[Step | None]) -> None:
    due = schedule()
    found = []
    for _ in steps:
        step = due.next_step(NOW, situation)
        assert (due.delay(NOW, situation) == 0) is (step is not None)
        found.append(step)
        match step:
            case Step.HEARTBEAT:
                due.heartbeat_begins(NOW)
            case Step.SNAPSHOT:
                due.snapshot_ends(NOW, 0.0)
            case Step.FOLD:
                due.fold_begins()
                due.fold_ends(NOW, settled=True, empty=True, poll_delay=INTERVAL)
            case Step.FOLLOW:
                due.followed(NOW, 0.0)
    assert found == steps


def test_a_discarded_snapshot_is_retaken_at_once_if_hidden() -> None:
    due = rested()
    due.snapshot_ends(NOW, duration=20.0)
    assert due.next_step(NOW, replace(ASKED, presentable=False)) is Step.SNAPSHOT
    assert due.next_step(NOW, ASKED) is Step.FOLD


@pytest.mark.parametrize(
    ("at", "situation", "step"),
    [
        (0.999, LEADER, None),
        (1.0, LEADER, Step.HEARTBEAT),
        (1.0, STANDBY, Step.HEARTBEAT),
        (31.0, LEADER, Step.HEARTBEAT),
    ],
)
def test_a_heartbeat_comes_every_interval_and_first(at: float, situation: Situation, step: Step | None) -> None:
    assert rested().next_step(NOW + at, situation) is step


def test_a_heartbeat_is_due_an_interval_after_the_last_one_began() -> None:
    due = rested()
    due.heartbeat_begins(NOW + 7)
    assert due.delay(NOW + 7, STANDBY) == TUNING.heartbeat_interval
    assert due.next_step(NOW + 7.5, LEADER) is None
    assert due.next_step(NOW + 8, LEADER) is Step.HEARTBEAT


@pytest.mark.parametrize(
    ("situation", "at"),
    [(LEADER, INTERVAL), (ASKED, TUNING.snapshot_pause), (replace(ASKED, reconciling=True), math.inf)],
    ids=["after the interval", "soon if events ask for it", "not while one waits for its barrier"],
)
def test_when_the_next_snapshot_is_due(situation: Situation, at: float) -> None:
    due = rested()
    due.heartbeat_begins(NOW + 1000)
    for later in (0.5, 0.999, 1.0, 29.999, 30.0, 500.0):
        assert (due.next_step(NOW + later, situation) is Step.SNAPSHOT) is (later >= at)


@pytest.mark.parametrize(
    ("duration", "asked", "by_itself"),
    [(0.0, 1.0, 30.0), (0.1, 1.0, 29.9), (2.0, 10.0, 28.0), (20.0, 10.0, 10.0)],
    ids=["at once", "quick", "slow: five times as long a pause", "the interval comes first"],
)
def test_a_slow_snapshot_is_followed_by_a_pause(duration: float, asked: float, by_itself: float) -> None:
    """The interval is counted from when the snapshot began, the pause from when it ended."""
    due = schedule()
    due.heartbeat_begins(NOW + 1000)
    due.snapshot_ends(NOW, duration)
    due.fold_begins()
    assert due.delay(NOW, ASKED) == pytest.approx(asked)
    assert due.delay(NOW, LEADER) == pytest.approx(by_itself)


def test_a_snapshot_makes_the_fold_due_that_it_waits_for() -> None:
    due = rested()
    due.snapshot_ends(NOW + 0.5, 0.1)
    assert due.next_step(NOW + 0.5, replace(LEADER, reconciling=True)) is Step.FOLD


def test_a_new_leader_folds_and_reads_a_snapshot_at_once() -> None:
    due = rested()
    due.fold_begins()
    due.heartbeat_begins(NOW + 9)
    assert due.next_step(NOW + 9, STANDBY) is None
    due.lead(NOW + 9)
    assert due.next_step(NOW + 9, replace(LEADER, drained=False)) is Step.FOLD
    assert due.next_step(NOW + 9, LEADER) is Step.SNAPSHOT


# ----------------------------------------------------------------------------------------------------- folding --


@pytest.mark.parametrize(
    ("requests", "at"),
    [
        ([], INTERVAL),
        ([(0.0, 0.02)], 0.02),
        ([(0.0, 2.0), (0.5, 0.02)], 0.52),
        ([(0.0, 0.02), (0.01, 2.0)], 0.02),
        ([(0.0, INTERVAL + 5)], INTERVAL),
    ],
    ids=["none", "one", "a more urgent one", "a less urgent one", "one that is later than the poll"],
)
def test_the_earliest_request_counts(requests: list[tuple[float, float]], at: float) -> None:
    due = rested()
    for when, delay in requests:
        due.request_fold(NOW + when, delay)
    assert due.fold_due == pytest.approx(NOW + at)


@pytest.mark.parametrize(
    ("batches", "delay"),
    [([1], 2.0), ([1, 1], 2.0), ([3], 0.0), ([1, 2], 0.0), ([2, 2], 0.0)],
    ids=["one payload", "two", "many at once", "many in all", "more than many"],
)
def test_counted_payloads_wait_for_a_fold_but_not_too_many(batches: list[int], delay: float) -> None:
    due = rested()
    for batch in batches:
        due.announced(batch, NOW)
    assert due.fold_due == NOW + delay


def test_a_fold_confirms_what_was_announced_before_it() -> None:
    due = rested()
    due.announced(2, NOW)
    due.fold_begins()
    assert due.fold_due == math.inf
    due.announced(2, NOW)
    assert due.fold_due == NOW + TUNING.confirming_fold_delay


@pytest.mark.parametrize(
    ("settled", "requested", "poll_delay", "at"),
    [
        (True, None, 30.0, 30.0),
        (True, None, 0.015, 0.015),
        (True, 0.02, 30.0, 0.02),
        (True, 2.0, 0.5, 0.5),
        (False, None, 30.0, 0.0),
        (False, 2.0, 30.0, 0.0),
    ],
    ids=["a poll", "a poll at once", "a request", "a poll before the request", "more to fold", "more, and a request"],
)
def test_the_end_of_a_fold(settled: bool, requested: float | None, poll_delay: float, at: float) -> None:
    due = rested()
    due.fold_begins()
    if requested is not None:
        due.request_fold(NOW, requested)
    due.fold_ends(NOW, settled=settled, empty=False, poll_delay=poll_delay)
    assert due.fold_due == pytest.approx(NOW + at)


@pytest.mark.parametrize(
    ("before", "after", "poll_delay", "at"),
    [
        (None, 0.02, 30.0, 0.25),
        (0.02, None, 30.0, 0.25),
        (None, 0.5, 30.0, 0.5),
        (None, 0.02, 0.1, 0.1),
    ],
    ids=["a request after it", "a request during it", "a later request", "a poll"],
)
def test_after_an_empty_fold_requests_wait(
    before: float | None, after: float | None, poll_delay: float, at: float
) -> None:
    """Otherwise anyone who knows the channel could ask for folds without end. A poll is not asked for by anyone."""
    due = rested()
    due.fold_begins()
    if before is not None:
        due.request_fold(NOW, before)
    due.fold_ends(NOW, settled=True, empty=True, poll_delay=poll_delay)
    if after is not None:
        due.request_fold(NOW, after)
    assert due.fold_due == pytest.approx(NOW + at)


@pytest.mark.parametrize(("took", "at"), [(0.0, INTERVAL), (0.1, INTERVAL), (1.0, 1.0 / TUNING.follow_share)])
def test_a_standby_reads_totals_more_rarely_if_that_takes_long(took: float, at: float) -> None:
    due = rested()
    due.followed(NOW, took)
    due.heartbeat_begins(NOW + 1000)
    assert due.next_step(NOW + at - 0.01, STANDBY) is None
    assert due.next_step(NOW + at, STANDBY) is Step.FOLLOW
    due.lead(NOW)
    assert due.next_step(NOW, STANDBY) is Step.FOLLOW


def test_a_fold_that_found_something_ends_the_pause() -> None:
    due = rested()
    for empty in (True, False):
        due.fold_begins()
        due.fold_ends(NOW, settled=True, empty=empty, poll_delay=INTERVAL)
    due.request_fold(NOW, 0.02)
    assert due.fold_due == pytest.approx(NOW + 0.02)


def test_switching_the_triggers_waits_for_nothing() -> None:
    due = rested()
    due.fold_begins()
    due.fold_ends(NOW, settled=True, empty=True, poll_delay=INTERVAL)
    due.fold_at_once(NOW + 0.01)
    assert due.next_step(NOW + 0.01, LEADER) is Step.FOLD
    due.fold_at_once(NOW + 5)
    assert due.fold_due == NOW + 0.01


@pytest.mark.parametrize(
    ("situation", "at", "delay"),
    [(LEADER, 0.0, 0.3), (LEADER, 0.2, 0.1), (LEADER, 7.0, 0.0), (STANDBY, 0.0, 1.0), (ASKED, 0.95, 0.0)],
    ids=["until the fold", "as time passes", "never negative", "a standby waits for its heartbeat", "something is due"],
)
def test_how_long_to_sleep(situation: Situation, at: float, delay: float) -> None:
    due = rested()
    due.request_fold(NOW, 0.3)
    assert due.delay(NOW + at, situation) == pytest.approx(delay)


# -------------------------------------------------------------------------------------------------- the pause --


@pytest.mark.parametrize("ask", ["events", "fold", "poll", "snapshot"])
def test_nothing_asks_for_a_fold_within_the_pause(ask: str) -> None:
    due = rested()
    due.fold_begins()
    due.fold_ends(NOW, settled=True, empty=False, poll_delay=0.1 if ask == "poll" else INTERVAL, pause=3.0)
    match ask:
        case "events":
            due.announced(TUNING.announced_maximum, NOW)
        case "fold":
            due.request_fold(NOW, 0.02)
        case "snapshot":
            due.snapshot_ends(NOW, 0.0)
    assert due.fold_due == NOW + 3.0


def test_the_pause_delays_no_switch_and_no_rest_of_a_fold() -> None:
    due = rested()
    due.fold_begins()
    due.fold_ends(NOW, settled=True, empty=False, poll_delay=INTERVAL, pause=3.0)
    due.fold_at_once(NOW)
    assert due.fold_due == NOW
    due.fold_begins()
    due.fold_ends(NOW, settled=False, empty=False, poll_delay=INTERVAL, pause=3.0)
    assert due.fold_due == NOW
