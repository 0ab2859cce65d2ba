"""How often to fold, how much at a time and how long to wait for the answer, from what the last folds took.

While somebody holds a snapshot open (a forgotten transaction, a long dump), no dead row version can be removed, so each
fold makes the next one dearer. The share of time that is spent on that is limited: folds become rarer as they become
slower. This outlives a session, because a fold that is not answered in time ends its session.
"""

from collections import deque
from statistics import fmean
from typing import NamedTuple

from mfg_notify.core.tuning import Tuning

WINDOW = 16
"""Last folds that are measured. Their mean counts, because the share of time is a mean."""
PRIOR_SPREAD = 500
"""Events. If folds differ by less, what an event costs cannot be told from them, and the last estimate stays."""

PENDING_SHARE = 0.8
"""Of the events that may be pending: the next fold comes before there are more."""


class _Sample(NamedTuple):
    """A fold that was settled: when, after how many seconds, and with how many events."""

    at: float
    duration: float
    events: int


class FoldPace:
    """The pause after a fold, the chunk and the timeout of the next one; seconds and events."""

    def __init__(self, tuning: Tuning) -> None:
        self._tuning = tuning
        self._recent: deque[_Sample] = deque(maxlen=WINDOW)
        self._seconds_per_event = tuning.fold_seconds_per_event
        self.pause = 0.0
        """From the end of the last fold to the next, unless it has left events behind."""
        self.chunk = tuning.fold_chunk
        """Events that the next fold takes out of the journal."""
        self.timeout = tuning.answer_timeout
        """For the answer to the next fold."""

    def settled(self, at: float, duration: float, events: int) -> None:
        """Record a fold that has drained the journal and was settled at `at` (a monotonic clock), all in `duration`."""
        tuning = self._tuning
        self._recent.append(_Sample(at, duration, events))
        # Time that the events themselves explain does not count. Rarer folds would carry more of them and take longer,
        # and so become rarer still.
        per_event = self._seconds_per_event = self._estimate_seconds_per_event()
        overhead = fmean(max(0.0, fold.duration - fold.events * per_event) for fold in self._recent)
        share, rate = tuning.fold_share, self._rate()
        self.pause = overhead * (1 / share - 1)
        mean = fmean(fold.duration for fold in self._recent)
        if mean > tuning.fold_slow:
            # All of a slow fold counts. The estimate may explain too much then: more events also touch more rows that
            # have many dead versions.
            self.pause = max(self.pause, mean * (1 / max(share, rate * tuning.fold_seconds_per_event) - 1))
        self.pause = min(self.pause, tuning.fold_pause_maximum)
        if rate > 0:
            self.pause = min(self.pause, tuning.pending_maximum * PENDING_SHARE / rate)

    def _estimate_seconds_per_event(self) -> float:
        """Estimate what an event adds to a fold: the slope of the regression of duration on events."""
        events, duration = fmean(fold.events for fold in self._recent), fmean(fold.duration for fold in self._recent)
        spread = sum((fold.events - events) ** 2 for fold in self._recent)
        together = sum((fold.events - events) * (fold.duration - duration) for fold in self._recent)
        prior = PRIOR_SPREAD**2
        slope = (together + self._seconds_per_event * prior) / (spread + prior)
        return max(slope, self._tuning.fold_seconds_per_event)

    def _rate(self) -> float:
        """Return the events per second that the last folds have carried."""
        first, *others = self._recent
        elapsed = self._recent[-1].at - first.at
        return sum(fold.events for fold in others) / elapsed if elapsed > 0 else 0.0

    def answered(self, duration: float) -> None:
        """Record a fold that was answered after `duration`."""
        self.timeout = min(max(self._tuning.answer_timeout, 10 * duration), self._tuning.fold_timeout_maximum)
        self.chunk = min(2 * self.chunk, self._tuning.fold_chunk)

    def failed(self, duration: float) -> None:
        """Record a fold that was not answered, or whose connection broke, after `duration`.

        If it was slow, the next one takes half as much and may take twice as long.
        """
        if duration >= self._tuning.answer_timeout / 2:
            self.chunk = max(self.chunk // 2, self._tuning.fold_chunk_minimum)
            self.timeout = min(2 * self.timeout, self._tuning.fold_timeout_maximum)
