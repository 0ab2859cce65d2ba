"""How often to fold, how much at a time and how long to wait for the answer, from what the last folds took.

While somebody holds a snapshot open (a forgotten transaction, a long dump), no dead row version can be removed, so each
fold makes the next one dearer. The share of time that is spent on that is limited: folds become rarer as they become
slower. This outlives a session, because a fold that is not answered in time ends its session.
"""

from collections import deque
from statistics import median_low

from mfg_notify.core.tuning import Tuning

SAMPLES = 3
"""Recent folds that are measured; their median counts, because a single slow one only shows what held it up."""


class FoldPace:
    """The pause after a fold, the chunk and the timeout of the next one; seconds and events."""

    def __init__(self, tuning: Tuning) -> None:
        self._tuning = tuning
        self._overheads: deque[float] = deque(maxlen=SAMPLES)
        self.pause = 0.0
        """From the end of the last fold to the next, unless it has left events behind."""
        self.chunk = tuning.fold_chunk
        """Events that the next fold takes out of the journal."""
        self.timeout = tuning.answer_timeout
        """For the answer to the next fold."""

    def succeeded(self, duration: float, events: int) -> None:
        """Record a fold that was answered after `duration`."""
        tuning = self._tuning
        # Time that the events themselves explain does not count: a high rate must not make folds rare.
        self._overheads.append(max(0.0, duration - events * tuning.fold_seconds_per_event))
        overhead = median_low(self._overheads)
        share = tuning.fold_share if overhead <= tuning.fold_slow else tuning.fold_share_when_slow
        self.pause = min(overhead * (1 / share - 1), tuning.fold_pause_maximum)
        self.timeout = min(max(tuning.answer_timeout, 10 * duration), tuning.fold_timeout_maximum)
        self.chunk = min(2 * self.chunk, tuning.fold_chunk)

    def failed(self, duration: float) -> None:
        """Record a fold that was not answered, or whose connection broke, after `duration`.

        If it was slow, the next one takes half as much and may take twice as long.
        """
        if duration >= self._tuning.answer_timeout / 2:
            self.chunk = max(self.chunk // 2, self._tuning.fold_chunk_minimum)
            self.timeout = min(2 * self.timeout, self._tuning.fold_timeout_maximum)
