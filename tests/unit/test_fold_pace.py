"""How often to fold, how much and how long to wait, from what the last folds took."""

from math import exp
from random import Random

import pytest

from mfg_notify.core.fold_pace import WINDOW, FoldPace
from mfg_notify.core.tuning import Tuning

TUNING = Tuning(
    answer_timeout=5.0,
    fold_chunk=8000,
    fold_chunk_minimum=1000,
    fold_share=0.1,
    fold_slow=0.2,
    fold_seconds_per_event=0.0001,
    fold_pause_maximum=60.0,
    fold_timeout_maximum=25.0,
    pending_maximum=125_000,
)
SECONDS_APART = 10.0


def after(*folds: tuple[float, int]) -> FoldPace:
    """Return the pace after folds of so many seconds and events."""
    pace = FoldPace(TUNING)
    for number, (duration, events) in enumerate(folds):
        pace.settled(SECONDS_APART * number, duration, events)
    return pace


def test_at_first_nothing_is_known() -> None:
    pace = FoldPace(TUNING)
    assert (pace.pause, pace.chunk, pace.timeout) == (0.0, 8000, 5.0)


@pytest.mark.parametrize(
    ("folds", "pause"),
    [
        ([(0.002, 1)] * WINDOW, 0.0171),
        ([(0.1, 0)] * WINDOW, 0.9),
        ([(0.1, 500)] * WINDOW, 0.45),
        ([(0.3, 20_000)] * WINDOW, 1.2),
        ([(30.0, 0)] * WINDOW, 60.0),
        ([(0.1, 0)] * (WINDOW - 1) + [(1.7, 0)], 1.8),
        ([(0.1, 0), (0.2, 0), (0.3, 0), (0.4, 0), (0.5, 0)], 2.7),
        ([(9.0, 0)] + [(0.1, 0)] * WINDOW, 0.9),
        ([(0.2, 0)] * WINDOW, 1.8),
        ([(0.4, 1000)] * WINDOW, 3.6),
        ([(1.0, 7000)] * WINDOW, 9.0),
        ([(1.3, 10_000)] * WINDOW, 11.7),
        ([(20.0, 20_000)] * WINDOW, 50.0),
    ],
    ids=[
        *("cheap", "dear", "half of it for events", "all of it for events", "at most", "one was held up"),
        *("ever dearer", "long ago", "not slow yet", "slow", "and events", "and many", "much is pending"),
    ],
)
def test_folding_takes_a_limited_share_of_the_time(folds: list[tuple[float, int]], pause: float) -> None:
    assert after(*folds).pause == pytest.approx(pause)


@pytest.mark.parametrize("seconds_per_event", [0.0001, 0.0003, 0.001])
def test_folds_that_carry_more_do_not_become_ever_rarer(seconds_per_event: float) -> None:
    pace, clock, duration, rate, overhead = FoldPace(TUNING), 0.0, 0.0, 300.0, 0.25
    for _ in range(200):
        events = round(rate * (pace.pause + duration))
        duration = overhead + seconds_per_event * events
        clock += pace.pause + duration
        pace.settled(clock, duration, events)
    for_events = rate * seconds_per_event
    # If the events alone take more than the share, nothing keeps all of it below: the pause is as long as it may be.
    expected = 0.9 * overhead / (0.1 - for_events) if for_events < 0.1 else 60.0
    assert pace.pause == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("rate", [50, 300, 550, 800])
def test_an_hour_with_a_pinned_snapshot(rate: int) -> None:
    """Each fold visits the dead versions of the rows it adds to: of the more rows, the more events it carries."""
    random, pace, clock, folds = Random(1), FoldPace(Tuning()), 0.0, 0
    shares, ended, since, spent = [], 0.0, 0.0, 0.0
    while clock < 3600.0:
        events = round(rate * (clock - ended))
        ended = clock
        dead_versions = 300 * folds * (1 - exp(-events / 1500))
        duration = (0.003 + 40e-6 * events + 2e-6 * dead_versions) * exp(random.gauss(0.0, 0.25))
        clock, spent, folds = clock + duration, spent + duration, folds + 1
        pace.settled(clock, duration, events)
        clock += max(pace.pause, min(2.0, 250 / rate))
        if clock - since > 300.0:
            shares.append(spent / (clock - since))
            since, spent = clock, 0.0
    assert max(shares) < 0.1


@pytest.mark.parametrize(("duration", "timeout"), [(0.1, 5.0), (0.5, 5.0), (1.0, 10.0), (4.0, 25.0)])
def test_the_timeout_follows_the_duration(duration: float, timeout: float) -> None:
    pace = FoldPace(TUNING)
    pace.answered(duration)
    assert pace.timeout == timeout


def test_a_fold_that_times_out_is_repeated_with_half_the_chunk() -> None:
    pace = FoldPace(TUNING)
    found = []
    for _ in range(4):
        pace.failed(pace.timeout)
        found.append((pace.chunk, pace.timeout))
    assert found == [(4000, 10.0), (2000, 20.0), (1000, 25.0), (1000, 25.0)]
    pace.answered(2.0)
    assert (pace.chunk, pace.timeout) == (2000, 20.0)
    for _ in range(3):
        pace.answered(0.1)
    assert (pace.chunk, pace.timeout) == (8000, 5.0)


def test_a_connection_that_breaks_says_nothing_about_folds() -> None:
    pace = FoldPace(TUNING)
    pace.failed(0.1)
    assert (pace.chunk, pace.timeout) == (8000, 5.0)
