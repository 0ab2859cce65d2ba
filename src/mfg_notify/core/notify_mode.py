"""Adaptive switch between NOTIFY and polling, with hysteresis.

A transaction that notifies takes a server-wide lock while it commits, so notifying commits are serialized. At a high
event rate the exporter therefore disables NOTIFY in the triggers and polls the journal; when the rate falls it enables
NOTIFY again. This module decides when to switch, how often to poll, and when the exporter may stop polling: a writer
that has read "NOTIFY is disabled" may commit at any later time without notifying. It never talks to the database.
"""

from collections import deque
from enum import StrEnum

from mfg_notify.core.tuning import Tuning
from mfg_notify.core.xmin_horizon import XminHorizon


class Policy(StrEnum):
    """When the triggers notify, as the user chose."""

    ALWAYS = "always"
    ADAPTIVE = "adaptive"
    NEVER = "never"


class NotifyMode:
    """The mode that the triggers are in, the mode that they should be in, and how often to poll meanwhile.

    Times are seconds of any monotonic clock. The mode of the triggers is unknown at start-up, so the first fold always
    sets it.
    """

    def __init__(self, policy: Policy, now: float, tuning: Tuning) -> None:
        self._policy = policy
        self._tuning = tuning
        self._window_start = now
        self._window_events = 0
        self._window_span = 0.0
        """Seconds over which the events of the window were written, if that is longer than the window."""
        self._rate = 0.0
        self._commits: deque[float] = deque(maxlen=tuning.commit_samples)
        self._overloaded = False
        self._quiet_windows = 0
        self._applied: bool | None = None
        """Whether NOTIFY was last disabled in the triggers; None: unknown."""
        self._horizon = XminHorizon()
        self._poll_interval = tuning.poll_interval_minimum

    @property
    def polling(self) -> bool:
        """Tell whether NOTIFY is disabled in the triggers."""
        return self._applied is True

    @property
    def wants_polling(self) -> bool:
        """Tell whether NOTIFY should be disabled."""
        return self._policy is Policy.NEVER or (self._policy is Policy.ADAPTIVE and self._overloaded)

    @property
    def needs_update(self) -> bool:
        """Tell whether the triggers are in another mode than they should be, or in an unknown one."""
        return self._applied is not self.wants_polling

    @property
    def may_sleep(self) -> bool:
        """Tell whether every event from now on comes with a notification, so that polling is unnecessary."""
        return self._applied is False and self._horizon.reached

    def count(self, events: int, now: float, span: float = 0.0) -> None:
        """Count events that have come, and decide anew once a window is full.

        They were written within the last `span` seconds: a fold brings everything since the last one at once, which may
        have been long ago if folds are slow.
        """
        self._window_events += events
        self._window_span = max(self._window_span, span)
        elapsed = now - self._window_start
        if elapsed < self._tuning.rate_window:
            return
        self._rate = rate = self._window_events / max(elapsed, self._window_span)
        self._window_events, self._window_span, self._window_start = 0, 0.0, now
        high_water = self._tuning.high_water_rate
        if self._commits:
            high_water = min(high_water, self._tuning.busy_ratio / min(self._commits))
        if rate > high_water:
            self._overloaded = True
        windows = max(1, int(elapsed / self._tuning.rate_window))
        self._quiet_windows = self._quiet_windows + windows if rate < high_water * self._tuning.low_water_ratio else 0
        if self._quiet_windows >= self._tuning.quiet_exit_windows:
            self._overloaded = False

    def count_silence(self, now: float) -> None:
        """Decide anew although nothing has come. While the triggers do not notify, that says nothing."""
        if not self.polling:
            self.count(0, now)

    def measure_commit(self, seconds: float) -> None:
        """Record how long a notifying commit of our own took."""
        self._commits.append(max(seconds, 1e-6))

    def record_applied(self, *, polling: bool) -> None:
        """Record that the triggers have been switched, from now on."""
        self._applied = polling
        self._horizon.mark()
        self._poll_interval = self._tuning.poll_interval_minimum

    def prepare_stop(self) -> None:
        """Want polling from now on: nobody will listen, unless the user wants notifications always."""
        if self._policy is not Policy.ALWAYS:
            self._policy = Policy.NEVER

    def invalidate(self) -> None:
        """Forget the mode of the triggers: someone else has changed it."""
        self._applied = None

    def folded(self, xid: int, xmin: int) -> None:
        """Record a fold by its own xid and the lowest xid that was running when it began.

        A writer that has read "NOTIFY is disabled" had an xid by then. Once all such writers have ended and their
        events were folded, every writer notifies.
        """
        self._horizon.folded(xid, xmin)

    def poll_delay(self, fold_duration: float) -> float:
        """Return the seconds from a fold that took so long to the next; only while the exporter may not sleep."""
        tuning = self._tuning
        if self._applied is False:
            # A transaction may stay open for hours, so back off.
            self._poll_interval = min(2 * self._poll_interval, tuning.poll_interval_maximum)
            return self._poll_interval
        never = self._policy is Policy.NEVER
        longest = tuning.poll_interval_maximum if never else tuning.poll_interval_under_load
        wait = min(tuning.events_per_poll / self._rate, longest) if self._rate else longest
        return min(max(wait, fold_duration / 2, tuning.poll_interval_minimum), tuning.poll_interval_maximum)
