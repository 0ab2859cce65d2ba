"""What is due when: heartbeats, snapshots, folds and a standby's readings. Pure: the time is passed in.

A fold becomes due when a notification asks for one, when many payloads wait for confirmation, and when the poll
interval ends. A snapshot becomes due when the reconciliation interval ends, or earlier if events ask for one.
"""

import math
from dataclasses import dataclass
from enum import Enum, auto

from mfg_notify.core.tuning import Tuning


class Step(Enum):
    """What the session does next."""

    HEARTBEAT = auto()
    SNAPSHOT = auto()
    FOLD = auto()
    FOLLOW = auto()
    """Read the totals as a standby."""


@dataclass(frozen=True, slots=True)
class Situation:
    """What the next step depends on besides the time."""

    leading: bool
    drained: bool
    reconciling: bool
    """A snapshot waits for its barrier."""
    needs_snapshot: bool
    presentable: bool
    """A snapshot has been taken over since this exporter began to lead, so that there is something to show."""


class Schedule:
    """When each step of a session is due. All times are seconds of one monotonic clock."""

    def __init__(self, reconcile_interval: float, now: float, tuning: Tuning) -> None:
        self._tuning = tuning
        self._reconcile_interval = reconcile_interval
        self._heartbeat_due = self._fold_due = self._reconcile_due = self._follow_due = now
        self._fold_not_before = self._pause_ends = 0.0
        self._snapshot_not_before = 0.0
        self._announced = 0

    @property
    def fold_due(self) -> float:
        """When the next fold is due."""
        return self._fold_due

    def next_step(self, now: float, situation: Situation) -> Step | None:
        """Return what is due now, the most urgent first; None if nothing is."""
        if now >= self._heartbeat_due:
            return Step.HEARTBEAT
        if not situation.leading:
            return Step.FOLLOW if now >= self._follow_due else None
        if now >= self._snapshot_due(situation):
            return Step.SNAPSHOT
        return Step.FOLD if now >= self._fold_due else None

    def delay(self, now: float, situation: Situation) -> float:
        """Return the seconds until something is due; 0 if something is already."""
        due = min(self._fold_due, self._snapshot_due(situation)) if situation.leading else self._follow_due
        return max(0.0, min(due, self._heartbeat_due) - now)

    def _snapshot_due(self, situation: Situation) -> float:
        # Not before the backlog is folded: every event that arrives during a reconciliation is held in memory.
        if situation.reconciling or not situation.drained:
            return math.inf
        if not situation.presentable:
            return -math.inf  # also if the last one, however long it took, was thrown away because of a rewind
        if situation.needs_snapshot:
            return min(self._reconcile_due, self._snapshot_not_before)
        return self._reconcile_due

    # ---------------------------------------------------------------------------------------- what has happened --

    def heartbeat_begins(self, now: float) -> None:
        """Record that a heartbeat is being sent."""
        self._heartbeat_due = now + self._tuning.heartbeat_interval

    def lead(self, now: float) -> None:
        """Record that this exporter has begun to lead: everything is due."""
        self._fold_due = self._reconcile_due = self._follow_due = now

    def followed(self, now: float, duration: float) -> None:
        """Record that a standby has read the totals in so many seconds."""
        self._follow_due = now + max(self._reconcile_interval, duration / self._tuning.follow_share)

    def request_fold(self, now: float, delay: float) -> None:
        """Make a fold due after so many seconds; later if the last fold found nothing."""
        self._fold_due = min(self._fold_due, max(now + delay, self._fold_not_before))

    def announced(self, events: int, now: float) -> None:
        """Record that so many payloads have been counted: they wait for a fold that confirms them."""
        self._announced += events
        many = self._announced >= self._tuning.announced_maximum
        self.request_fold(now, 0.0 if many else self._tuning.confirming_fold_delay)

    def fold_at_once(self, now: float) -> None:
        """Make a fold due now, whatever the last one found: the triggers must be switched."""
        self._fold_due = min(self._fold_due, now)

    def fold_begins(self) -> None:
        """Record that a fold is being sent: what arrives from here on may ask for another."""
        self._fold_due, self._announced = math.inf, 0

    def fold_ends(self, now: float, *, settled: bool, empty: bool, poll_delay: float, pause: float = 0.0) -> None:
        """Record the end of a fold. Unless it `settled` everything, the next follows at once.

        Otherwise the next one follows when it is asked for or after `poll_delay`, but not within `pause`.
        """
        self._pause_ends = now + pause
        self._fold_not_before = max(self._pause_ends, now + self._tuning.empty_fold_pause if empty else 0.0)
        if settled:
            due = min(max(self._fold_due, self._fold_not_before), now + poll_delay)
            self._fold_due = max(due, self._pause_ends)
        else:
            self._fold_due = now

    def snapshot_ends(self, now: float, duration: float) -> None:
        """Record that a snapshot was read in so many seconds. The fold that it waits for is due."""
        self._snapshot_not_before = now + max(self._tuning.snapshot_pause, 5 * duration)
        self._reconcile_due = now - duration + self._reconcile_interval
        self._fold_due = min(self._fold_due, max(now, self._pause_ends))
